"""What all questions begin and end with: selecting the rows that count, and naming the largest
groups.

A row without a user or a time doesn't count. Event names reach the scan as one predicate.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from functools import reduce
from operator import or_

import polars as pl

from forebay.query.analytics.events import Event, Roles, property_of
from forebay.query.analytics.period import Interval, Period
from forebay.storage.base.errors import BadInput
from forebay.storage.base.text import did_you_mean
from forebay.storage.base.times import now_ms, time_of

OTHERS = "(others)"
ALIKE = "events alike"
"""A column that a frame may have: of how many events a row is. No column of events is called so."""
DAYS = 30
"""Length of the default period."""
GROUPS_MAX = 1000
GROUP = ["group", "others"]
GROUP_SCHEMA = {"group": pl.String, "others": pl.Boolean}


def matched(
    frame: pl.LazyFrame, roles: Roles, kinds: Sequence[Event], *, every: bool = False
) -> tuple[pl.LazyFrame, list[pl.Expr]]:
    """The rows of any of the kinds (with `every`, all), and for each kind whether a row is of it.

    Raises BadInput if a role's column is missing or not of its type.
    """
    schema = frame.collect_schema()
    require_roles(schema, roles)
    found = [kind.expr(schema, roles) for kind in kinds]
    for number, kind in enumerate(kinds):
        if kind.first:  # in the whole frame, before other filters
            frame = frame.with_columns(found[number].alias(f"_first_{number}"))
            found[number] = pl.col(f"_first_{number}")
    rows = frame.filter(pl.col(roles.user).is_not_null(), pl.col(roles.time).is_not_null())
    if not every and None not in (names := {kind.name for kind in kinds}):
        rows = rows.filter(pl.col(roles.event).is_in(sorted(filter(None, names))))
    if not every and any(kind.where or kind.first for kind in kinds):
        rows = rows.filter(reduce(or_, found))
    return rows, found


def require_roles(schema: pl.Schema, roles: Roles) -> None:
    """Raise BadInput unless each role has a column of its type."""
    for role, name in vars(roles).items():
        if name is not None and name not in schema:
            near = did_you_mean(name, schema.names())
            raise BadInput(
                f"role {role}: expected a column among {', '.join(schema.names())};"
                f" got {name!r}{near}"
            )
    dtype = schema[roles.time]
    if not isinstance(dtype, pl.Datetime) or dtype.time_zone != "UTC":
        raise BadInput(f"role time: expected a column of times in UTC, got {roles.time}: {dtype}")
    if schema[roles.event] != pl.String:
        raise BadInput(
            f"role event: expected a column of text, got {roles.event}: {schema[roles.event]}"
        )


def ms_of_time(roles: Roles) -> pl.Expr:
    """Event times in milliseconds."""
    return pl.col(roles.time).dt.epoch("ms").alias("ms")


def latest(frame: pl.LazyFrame, roles: Roles) -> int:
    """The time of the newest event that is not in the future, in milliseconds; 0 if there is
    none."""
    require_roles(frame.collect_schema(), roles)
    past = frame.filter(pl.col(roles.time) <= time_of(now_ms()))
    found = past.select(pl.col(roles.time).max().dt.epoch("ms")).collect(engine="streaming")
    return found.item() or 0


def recent(frame: pl.LazyFrame, roles: Roles, interval: Interval) -> Period:
    """The DAYS days up to the newest event that is not in the future, or since the first event if
    that is later. Raises BadInput if there is none."""
    rows, _ = matched(frame, roles, [Event()])
    past = rows.filter(pl.col(roles.time) <= time_of(now_ms())).select(pl.col(roles.time).dt.date())
    found = past.select(first=pl.first().min(), last=pl.first().max()).collect(engine="streaming")
    first, last = found.row(0)
    if last is None:
        raise BadInput("period: expected events with a user and a time, got none")
    end = last + timedelta(days=1)
    return Period(max(first, end - timedelta(days=DAYS)), end, interval)


def top_groups(rows: pl.DataFrame, ranking: pl.DataFrame, limit: int) -> pl.DataFrame:
    """`group` is kept if it is one of the `limit` groups of the greatest `weight` in `ranking`;
    else it becomes OTHERS, with `others` true, as a value may have that name. Null is the group
    without a value. Raises BadInput for a limit below 1 or above GROUPS_MAX."""
    if not 1 <= limit <= GROUPS_MAX:
        raise BadInput(f"limit: expected 1 to {GROUPS_MAX} groups, got {limit}")
    kept = (
        ranking.group_by("group")
        .agg(pl.col("weight").sum())
        .sort("weight", "group", descending=[True, False], nulls_last=True)
        .head(limit)
        .select("group", kept=True)
    )
    named = rows.join(kept, on="group", how="left", nulls_equal=True, maintain_order="left")
    others = pl.col("kept").is_null()
    return named.with_columns(
        group=pl.when(others).then(pl.lit(OTHERS)).otherwise("group"), others=others
    ).drop("kept")


def group_of(by: str | None, schema: pl.Schema) -> pl.Expr:
    """The column `group`: a property as text, or null if all rows are one group."""
    found = pl.lit(None, pl.String) if by is None else property_of(by, schema).cast(pl.String)
    return found.alias("group")


def filled(grid: pl.DataFrame, found: pl.DataFrame, zero: Sequence[str]) -> pl.DataFrame:
    """The rows of a grid with their values from `found`; if missing, 0 in the columns `zero`."""
    keys = [name for name in grid.columns if name in found.columns]
    rows = grid.join(found, on=keys, how="left", nulls_equal=True, maintain_order="left")
    return rows.with_columns(pl.col(name).fill_null(0) for name in zero)


def groups_in(rows: pl.DataFrame) -> pl.DataFrame:
    """The distinct groups by name, with OTHERS and the group without a value last; one group if
    there are no rows."""
    if not rows.height:
        return pl.DataFrame({"group": [None], "others": [False]}, GROUP_SCHEMA)
    return rows.select(GROUP).unique().sort("others", "group", nulls_last=True)


def without_group(by: object, *tables: pl.DataFrame) -> list[pl.DataFrame]:
    """The tables, without the columns of groups if nothing groups them."""
    return [table if by is not None else table.drop(GROUP, strict=False) for table in tables]


def share(part: str, whole: str) -> pl.Expr:
    """From 0 to 1; null if the whole is 0."""
    return pl.when(pl.col(whole) > 0).then(pl.col(part) / pl.col(whole))
