"""Sessions: how many there are, how long they last, and how many events they have.

By default, a session is a user's events with one id in the role `session` (-1 and null are none),
as in Amplitude. With `gap`, it is a run of a user's events with no longer pause in between; with
`to_midnight`, as in Mixpanel, it also ends with the day in the period's zone. A session belongs to
the bucket in which it starts. Filters apply before events are grouped. Events more than `longest`
outside the period are not read: a longer session is cut off there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import pairwise

import polars as pl

from forebay.query.analytics.answer import Answer
from forebay.query.analytics.events import Event, Roles, Where
from forebay.query.analytics.groups import (
    GROUP,
    filled,
    group_of,
    groups_in,
    matched,
    ms_of_time,
    share,
    top_groups,
    without_group,
)
from forebay.query.analytics.period import Period
from forebay.query.analytics.units import ordered
from forebay.storage.base.errors import BadInput
from forebay.storage.base.times import time_of

LENGTHS_MS = (0, 3_000, 10_000, 30_000, 60_000, 180_000, 600_000, 1_800_000, 3_600_000, 86_400_000)
"""Amplitude's bins of session lengths."""


@dataclass(frozen=True, repr=False)
class Sessions(Answer):
    """The answer to `question`. Columns `group` and `others` (see `frame.top_groups`) if there is a
    `by`.

    `over_time`  `bucket`, `sessions`, `users` (with one), `mean_ms` and `median_ms` (length; null
                 of none), `events_per_session`, `per_user` (null of none)
    `overall`    the same of the whole period
    `lengths`    `from_ms`, `to_ms` (not included; null is the last), `sessions` of such a length
    """

    over_time: pl.DataFrame
    overall: pl.DataFrame
    lengths: pl.DataFrame


def sessions(
    frame: pl.LazyFrame,
    roles: Roles,
    period: Period,
    *,
    gap: timedelta | None = None,
    to_midnight: bool = False,
    where: Sequence[Where] = (),
    by: str | None = None,
    limit: int = 100,
    longest: timedelta = timedelta(days=1),
    bins_ms: Sequence[int] = LENGTHS_MS,
) -> Sessions:
    """The sessions that start in the period, as the module defines them. `by` is a property of the
    session's first event; `bins_ms` are the lower ends of `lengths`, ascending. Raises BadInput."""
    question = {name: value for name, value in locals().items() if name not in ("frame", "roles")}
    if gap is None and (to_midnight or roles.session is None):
        raise BadInput("gap: expected a time such as 30 minutes, as no role has sessions; got none")
    if (gap is not None and gap <= timedelta(0)) or longest < (gap or timedelta(0)):
        raise BadInput(f"gap: expected more than 0 and at most {longest}, got {gap}")
    if not bins_ms or list(bins_ms) != sorted(set(bins_ms)):
        raise BadInput(f"bins_ms: expected ascending lengths, got {bins_ms!r}")
    reach_ms = longest // timedelta(milliseconds=1)
    schema = frame.collect_schema()
    rows, _ = matched(frame, roles, [Event(None, tuple(where))])
    rows = rows.filter(period.within(roles.time, before_ms=reach_ms, after_ms=reach_ms))
    columns = [pl.col(roles.user).alias("user"), ms_of_time(roles), group_of(by, schema)]
    if gap is None:
        found = _by_id(rows, columns, pl.col(str(roles.session)))
    else:
        found = _by_gap(rows, columns, gap // timedelta(milliseconds=1), period, to_midnight)
    start = pl.col("start")
    found = found.filter(start.is_between(period.start_ms, period.end_ms, closed="left"))
    found = found.with_columns(bucket=period.bucket(start), length=pl.col("end") - start)
    return _answer(question, top_groups(found, found.select("group", weight=1), limit), period)


def _by_id(rows: pl.LazyFrame, columns: list[pl.Expr], id: pl.Expr) -> pl.DataFrame:
    return (
        rows.filter(id != -1)
        .select(*columns, id.alias("id"))
        .group_by("user", "id")
        .agg(
            start=pl.col("ms").min(), end=pl.col("ms").max(), events=pl.len(),
            group=pl.col("group").min_by("ms"),
        )
        .collect(engine="streaming")
    )  # fmt: skip


def _by_gap(
    rows: pl.LazyFrame, columns: list[pl.Expr], gap_ms: int, period: Period, to_midnight: bool
) -> pl.DataFrame:
    found = rows.select(columns).collect(engine="streaming")
    order, _ = ordered(found.select("user"), found["ms"].to_numpy())
    ms, user = pl.col("ms"), pl.col("user")
    begins = (user != user.shift()) | (ms - ms.shift() > gap_ms)
    if to_midnight:
        low, high = found.select(ms.min().alias("low"), ms.max().alias("high")).row(0)
        days = replace(
            period, start=time_of(low or 0), end=time_of((high or 0) + 1), interval="day"
        )
        day = days.bucket(ms)
        begins |= day != day.shift()
    return (
        found[order]
        .with_columns(id=begins.fill_null(True).cum_sum())
        .group_by("user", "id")
        .agg(start=ms.first(), end=ms.last(), events=pl.len(), group=pl.col("group").first())
    )


def _answer(question: Mapping[str, object], found: pl.DataFrame, period: Period) -> Sessions:
    groups = groups_in(found)
    measures = {
        "sessions": pl.len(),
        "users": pl.col("user").n_unique(),
        "mean_ms": pl.col("length").mean(),
        "median_ms": pl.col("length").median(),
        "events": pl.col("events").sum(),
    }

    def table(grid: pl.DataFrame) -> pl.DataFrame:
        counts = found.group_by(grid.columns).agg(**measures)
        return filled(grid, counts, ["sessions", "users"]).select(
            *grid.columns, "sessions", "users", "mean_ms", "median_ms",
            events_per_session=share("events", "sessions"), per_user=share("sessions", "users"),
        )  # fmt: skip

    buckets = pl.DataFrame({"bucket": range(period.buckets)}, {"bucket": pl.Int32})
    over_time = table(groups.join(buckets, how="cross"))
    bins: list[int] = list(question["bins_ms"])  # type: ignore[call-overload]
    edges = [*pairwise(bins), (bins[-1], None)]
    lengths = pl.DataFrame(edges, {"from_ms": pl.Int64, "to_ms": pl.Int64}, orient="row")
    at = pl.lit(pl.Series(bins)).search_sorted(pl.col("length"), side="right") - 1
    counts = (
        found.filter(pl.col("length") >= bins[0])
        .group_by(*GROUP, from_ms=pl.lit(pl.Series(bins)).gather(at))
        .agg(sessions=pl.len())
    )
    tables = (
        over_time.with_columns(bucket=period.label(pl.col("bucket"))),
        table(groups),
        filled(groups.join(lengths, how="cross"), counts, ["sessions"]),
    )
    return Sessions(question, *without_group(question["by"], *tables))
