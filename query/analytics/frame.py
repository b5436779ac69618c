"""What all questions begin and end with: rows that count, and groups of which the largest are named.

A row without a user or a time is none. Event names go to the scan as one predicate.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import or_

import polars as pl

from forebay.query.analytics.events import Event, Roles
from forebay.storage.base.errors import BadInput
from forebay.storage.base.text import did_you_mean

OTHERS = "(others)"
GROUPS_MAX = 1000


def matched(
    frame: pl.LazyFrame, roles: Roles, kinds: Sequence[Event], *, every: bool = False
) -> tuple[pl.LazyFrame, list[pl.Expr]]:
    """The rows that are of any kind (with `every`, all), and for each kind whether a row is of it.

    Raises BadInput if a role's column is missing or not of its type.
    """
    schema = frame.collect_schema()
    require_roles(schema, roles)
    found = [kind.expr(schema, roles) for kind in kinds]
    for number, kind in enumerate(kinds):
        if kind.first:  # of the whole frame, whatever is filtered afterwards
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


def top_groups(rows: pl.DataFrame, weight: pl.Expr, limit: int) -> pl.DataFrame:
    """With `group` named where it is one of the `limit` groups of the greatest weight, and else
    OTHERS with true in the column `others`: a value may have that name itself. Null is the group
    without a value. Raises BadInput for a limit below 1 or above GROUPS_MAX."""
    if not 1 <= limit <= GROUPS_MAX:
        raise BadInput(f"limit: expected 1 to {GROUPS_MAX} groups, got {limit}")
    kept = (
        rows.group_by("group")
        .agg(weight.sum().alias("weight"))
        .sort("weight", "group", descending=[True, False], nulls_last=True)
        .head(limit)
        .select("group", kept=True)
    )
    named = rows.join(kept, on="group", how="left", nulls_equal=True, maintain_order="left")
    others = pl.col("kept").is_null()
    return named.with_columns(
        group=pl.when(others).then(pl.lit(OTHERS)).otherwise("group"), others=others
    ).drop("kept")
