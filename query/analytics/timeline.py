"""The timeline: one user's events in order of time."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import polars as pl

from forebay.query.analytics.answer import Answer
from forebay.query.analytics.events import Roles
from forebay.query.analytics.groups import require_roles
from forebay.storage.base.errors import BadInput
from forebay.storage.formats.schema import OFFSET, PARTITION

LIMIT_MAX = 100_000


@dataclass(frozen=True, repr=False)
class Timeline(Answer):
    """The answer to `question`: `events` has all columns of the frame, the earliest event first."""

    events: pl.DataFrame


def timeline(
    frame: pl.LazyFrame,
    roles: Roles,
    user: str,
    *,
    start: datetime | None = None,
    end: datetime | None = None,
    limit: int = 1000,
    offset: int = 0,
    earliest: bool = False,
) -> Timeline:
    """A user's newest `limit` events (or the earliest) after skipping `offset`, from `start` on and
    before `end`. Simultaneous events are in order of partition and offset, if the frame has them.
    Raises BadInput."""
    question = {name: value for name, value in locals().items() if name != "frame"}
    schema = frame.collect_schema()
    require_roles(schema, roles)
    if not 1 <= limit <= LIMIT_MAX or offset < 0:
        raise BadInput(
            f"limit: expected 1 to {LIMIT_MAX:,} events from an offset of at least 0, got {limit}"
            f" from {offset}"
        )
    time = pl.col(roles.time)
    named = pl.lit(user).cast(schema[roles.user], strict=False)
    mine = frame.filter(pl.col(roles.user) == named, time.is_not_null())
    for name, bound, compare in (("start", start, pl.Expr.ge), ("end", end, pl.Expr.lt)):
        if bound is not None and bound.tzinfo is None:
            raise BadInput(f"{name}: expected a time with its zone, got {bound}")
        if bound is not None:
            mine = mine.filter(compare(time, pl.lit(bound).cast(schema[roles.time])))
    place = [name for name in (PARTITION, OFFSET) if name in schema]
    order = [roles.time, *place]
    found = mine.sort(order, descending=not earliest, maintain_order=True)
    events = found.slice(offset, limit).collect().sort(order, maintain_order=True)
    return Timeline(question, events)
