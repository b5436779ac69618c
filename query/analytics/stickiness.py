"""Stickiness: how many users did an event on exactly n days, or at least n, of a week or month.

Days are those of the period's zone, weeks and months its buckets (Amplitude, Stickiness).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import polars as pl

from forebay.query.analytics.answer import Answer
from forebay.query.analytics.events import Event, Roles
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
from forebay.storage.base.errors import BadInput

DAYS = {"week": 7, "month": 31}


@dataclass(frozen=True, repr=False)
class Stickiness(Answer):
    """The answer to `question`: `over_time` has `bucket` (week or month), `days` (1 to 7 or 31),
    `users` active on that many days, `share` of users active on any day (null if none); `overall`
    is the same summed over all buckets. Columns `group` and `others` (see `frame.top_groups`) if
    there is a `by`: a user counts in each group with an event of theirs, by the days there."""

    over_time: pl.DataFrame
    overall: pl.DataFrame


def stickiness(
    frame: pl.LazyFrame,
    roles: Roles,
    event: Event,
    period: Period,
    *,
    at_least: bool = False,
    by: str | None = None,
    limit: int = 100,
) -> Stickiness:
    """On how many days users did `event`: exactly that many, or with `at_least` that many or more.
    Raises BadInput unless the period is divided into weeks or months."""
    question = {name: value for name, value in locals().items() if name not in ("frame", "roles")}
    if period.interval not in DAYS:
        raise BadInput(f"interval: expected week or month, got {period.interval!r}")
    rows, _ = matched(frame, roles, [event])
    ms, daily = pl.col("ms"), replace(period, interval="day")
    user = pl.col(roles.user).alias("user")
    found = (
        rows.filter(period.within(roles.time))
        .select(user, ms_of_time(roles), group_of(by, frame.collect_schema()))
        .select("user", "group", bucket=period.bucket(ms), day=daily.bucket(ms))
        .unique()
        .collect(engine="streaming")
    )
    found = top_groups(
        found, found.select("group", "user").unique().select("group", weight=1), limit
    )
    counted = found.group_by("user", *GROUP, "bucket").agg(days=pl.col("day").n_unique())
    grid = groups_in(found).join(
        pl.DataFrame({"bucket": range(period.buckets)}, {"bucket": pl.Int32}), how="cross"
    )
    days = pl.DataFrame({"days": range(1, DAYS[period.interval] + 1)}, {"days": pl.UInt32})
    counts = counted.group_by(*GROUP, "bucket", "days").agg(users=pl.len())
    counts = filled(grid.join(days, how="cross", maintain_order="left_right"), counts, ["users"])
    keys = [*GROUP, "bucket"]
    tables = []
    for over in (keys, GROUP):
        table = counts.group_by(*over, "days", maintain_order=True).agg(pl.col("users").sum())
        table = table.with_columns(active=pl.col("users").sum().over(over))
        if at_least:
            more = pl.col("users").cum_sum(reverse=True).over(over, order_by="days")
            table = table.with_columns(users=more)
        table = table.select(*over, "days", "users", share("users", "active").alias("share"))
        tables.append(table)
    tables[0] = tables[0].with_columns(bucket=period.label(pl.col("bucket")))
    return Stickiness(question, *without_group(by, *tables))
