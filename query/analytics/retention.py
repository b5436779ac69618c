"""Retention: how many users who did a start event came back, by days since.

A user who does the start event in several buckets of the period (days, weeks or months in its zone)
opens a window in each, at the first such event of the bucket; the bucket is its cohort. Later
return events count, even if they are the start event too.

- Day 0 begins with the hour of the start event; a day is 24 hours (a week 168, a month 720), as in
  Amplitude and Mixpanel. With `calendar`, days are those of the zone, as in PostHog.
- `mode` "on" counts returns on exactly day X, "on or after" those on day X or later.
- `brackets` are ranges of days in place of single days, end excluded.
- A cohort is complete at X if that day, counted from the cohort's beginning, was over at `now`.
  Incomplete cohorts are left out of the overall figures, in numerator and denominator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Literal

import numpy as np
import polars as pl

from forebay.query.analytics.answer import Answer
from forebay.query.analytics.events import Event, Roles, Where, filtered
from forebay.query.analytics.groups import (
    GROUP,
    group_of,
    groups_in,
    latest,
    matched,
    ms_of_time,
    share,
    top_groups,
    without_group,
)
from forebay.query.analytics.period import Period
from forebay.query.analytics.units import number, order, place
from forebay.storage.base.compiled import compiled
from forebay.storage.base.errors import BadInput
from forebay.storage.base.times import DAY_MS, ms_of, time_of

Mode = Literal["on", "on or after"]
WIDTHS_MS = {"day": DAY_MS, "week": 7 * DAY_MS, "month": 30 * DAY_MS}
DAYS_MAX = 1000


@dataclass(frozen=True, repr=False)
class Retention(Answer):
    """The answer to `question`. Columns `group` and `others` (see `frame.top_groups`) if there is a
    `by`.

    `cohorts`  `cohort` (the bucket), `from_day`, `to_day` (not included; null with "on or after"),
               `count` of users who came back, `out_of` users, `share`, `complete`
    `overall`  the same over all cohorts that are complete then
    """

    cohorts: pl.DataFrame
    overall: pl.DataFrame


def retention(
    frame: pl.LazyFrame,
    roles: Roles,
    start: Event,
    back: Event,
    period: Period,
    *,
    mode: Mode = "on",
    days: int = 30,
    brackets: Sequence[tuple[int, int]] | None = None,
    calendar: bool = False,
    segment: Sequence[Where] = (),
    by: str | None = None,
    limit: int = 100,
    now: datetime | None = None,
) -> Retention:
    """Who came back on days 0 to `days`, as the module defines it. `segment` filters start events,
    `by` groups cohorts by a property of the start event; `now` is the time of asking, by default
    that of the newest event that is not in the future. Raises BadInput."""
    question = {name: value for name, value in locals().items() if name not in ("frame", "roles")}
    bounds = _bounds(period, mode, days, brackets)
    now_ms = latest(frame, roles) + 1 if now is None else ms_of(now)
    starts, returns = _windows(frame, roles, start, back, period, calendar, segment, by, now_ms)
    ranking = starts.select("group", weight=pl.lit(1))
    starts = top_groups(starts, ranking, limit)
    groups = groups_in(starts)
    starts = starts.join(groups.with_row_index("cell"), on=GROUP, nulls_equal=True)
    users = pl.concat([starts.select(roles.user), returns.select(roles.user)])
    codes, firsts = number(users)
    back_codes, back_ms = codes[starts.height :], returns["ms"].to_numpy()
    rows = order(back_codes, back_ms, len(firsts))
    counts = np.zeros((groups.height * period.buckets, len(bounds)), dtype=np.int64)
    _count(
        codes[: starts.height],
        starts["ms"].to_numpy(),
        starts["place"].to_numpy(),
        (starts["cell"].cast(pl.Int64) * period.buckets + starts["bucket"]).to_numpy(),
        np.searchsorted(back_codes[rows], np.arange(len(firsts) + 1)),
        back_ms[rows],
        returns["place"].to_numpy()[rows],
        1 if calendar else WIDTHS_MS[period.interval],
        np.array(bounds, dtype=np.int64),
        mode != "on",
        counts,
    )
    sizes = starts.group_by("cell", "bucket").agg(out_of=pl.len())
    return _answer(question, groups, counts, sizes, period, bounds, calendar, now_ms)


def _bounds(
    period: Period, mode: str, days: int, brackets: Sequence[tuple[int, int]] | None
) -> list[tuple[int, int]]:
    """The ranges of days asked for."""
    if period.interval not in WIDTHS_MS:
        raise BadInput(f"interval: expected one of {', '.join(WIDTHS_MS)}; got {period.interval!r}")
    if mode not in ("on", "on or after"):
        raise BadInput(f"mode: expected 'on' or 'on or after', got {mode!r}")
    if brackets is None:
        if not 0 <= days < DAYS_MAX:
            raise BadInput(f"days: expected 0 to {DAYS_MAX - 1}, got {days}")
        return [(day, day + 1) for day in range(days + 1)]
    if mode != "on":
        raise BadInput("brackets: expected none with mode 'on or after', got some")
    flat = [day for pair in brackets for day in pair]
    if not flat or flat != sorted(flat) or any(low >= high for low, high in brackets):
        raise BadInput(f"brackets: expected ranges in order that don't overlap, got {brackets!r}")
    if flat[0] < 0 or flat[-1] > DAYS_MAX:
        raise BadInput(f"brackets: expected days from 0 to {DAYS_MAX}, got {brackets!r}")
    return list(brackets)


def _windows(
    frame: pl.LazyFrame,
    roles: Roles,
    start: Event,
    back: Event,
    period: Period,
    calendar: bool,
    segment: Sequence[Where],
    by: str | None,
    now_ms: int,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Windows (user, `bucket`, `ms`, `place`, `group`) and returns (user, `ms`, `place`). Places
    are bucket numbers with `calendar`, else milliseconds: for windows, those of the hour."""
    until = replace(period, end=time_of(max(period.end_ms, now_ms)))
    ms, time, schema = pl.col("ms"), pl.col(roles.time), frame.collect_schema()
    rows, _ = matched(frame, roles, [filtered(start, segment)])
    starts = (
        rows.filter(period.within(roles.time))
        .select(roles.user, time.alias("time"), ms_of_time(roles), group_of(by, schema))
        .with_columns(bucket=period.bucket(ms))
        .group_by(roles.user, "bucket")
        .agg(ms.min(), pl.col("time").min(), pl.col("group").min_by("ms"))
    )
    hour = pl.col("time").dt.convert_time_zone(period.zone).dt.truncate("1h").dt.epoch("ms")
    starts = starts.with_columns(place=pl.col("bucket").cast(pl.Int64) if calendar else hour)
    rows, _ = matched(frame, roles, [back])
    returns = (
        rows.filter(time.is_between(time_of(period.start_ms), time_of(now_ms), closed="left"))
        .select(roles.user, ms_of_time(roles))
        .with_columns(place=until.bucket(ms).cast(pl.Int64) if calendar else ms)
    )
    found, came = pl.collect_all([starts, returns], engine="streaming")
    return found, came


@compiled
def _count(
    units: Any, begun: Any, bases: Any, cells: Any, lows: Any, back: Any, places: Any,
    width: int, bounds: Any, or_after: bool, counts: Any,
) -> None:  # fmt: skip
    """For each window, count the ranges of days in which its user came back, in its cell. A user's
    returns begin at the index in `lows`."""
    for window in range(len(units)):
        low, high = lows[units[window]], lows[units[window] + 1]
        at = place(back, low, high, begun[window])
        if or_after:
            if at < high:
                last = (places[high - 1] - bases[window]) // width
                for day in range(min(last + 1, counts.shape[1])):
                    counts[cells[window], day] += 1
            continue
        n = 0
        while at < high and n < len(bounds):
            day = (places[at] - bases[window]) // width
            if day < bounds[n, 0]:
                at += 1
            elif day < bounds[n, 1]:
                counts[cells[window], n] += 1
                n += 1
            else:
                n += 1


def _answer(
    question: Mapping[str, object],
    groups: pl.DataFrame,
    counts: Any,
    sizes: pl.DataFrame,
    period: Period,
    bounds: list[tuple[int, int]],
    calendar: bool,
    now_ms: int,
) -> Retention:
    or_after = question["mode"] != "on"
    over = _over_ms(period, [high for _, high in bounds], calendar)
    grid = groups.with_row_index("cell").join(
        pl.DataFrame({"bucket": range(period.buckets)}, {"bucket": pl.Int32}), how="cross"
    )
    days = pl.DataFrame(bounds, {"from_day": pl.Int32, "to_day": pl.Int32}, orient="row")
    cohorts = (
        grid.join(sizes, on=["cell", "bucket"], how="left", maintain_order="left")
        .with_columns(pl.col("out_of").fill_null(0))
        .join(days, how="cross", maintain_order="left_right")
        .with_columns(count=counts.ravel(), complete=np.tile(over.ravel(), groups.height) <= now_ms)
    )
    overall = (
        cohorts.filter("complete")
        .group_by(*GROUP, "from_day", "to_day")
        .agg(pl.col("count").sum(), pl.col("out_of").sum())
    )
    grid = groups.join(days, how="cross", maintain_order="left_right")
    overall = grid.join(
        overall, on=grid.columns, how="left", nulls_equal=True, maintain_order="left"
    ).with_columns(pl.col("count", "out_of").fill_null(0), complete=True)
    tables = []
    for table in (cohorts.with_columns(cohort=period.label(pl.col("bucket"))), overall):
        columns = [*GROUP, *(["cohort"] if "cohort" in table.columns else []), "from_day"]
        to_day = pl.lit(None, pl.Int32) if or_after else pl.col("to_day")
        tables.append(
            table.select(
                *columns, to_day.alias("to_day"), "count", "out_of",
                share("count", "out_of").alias("share"), "complete",
            )
        )  # fmt: skip
    tables[1] = tables[1].drop("complete")
    return Retention(question, *without_group(question["by"], *tables))


def _over_ms(period: Period, ends: list[int], calendar: bool) -> Any:
    """When so many days are over for each bucket: an array of buckets by ends."""
    if not calendar:
        widths = np.array(ends, dtype=np.int64) * WIDTHS_MS[period.interval]
        return period.edges_ms[:-1, None] + widths
    longest = timedelta(milliseconds=WIDTHS_MS[period.interval] * 32 // 30 * (max(ends) + 1))
    edges = replace(period, end=time_of(period.end_ms) + longest + timedelta(days=1)).edges_ms
    return edges[np.arange(period.buckets)[:, None] + np.array(ends)]
