"""A sample: some events of a kind, to see what another question's figure is made of. Events without
a user count here too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from forebay.query.analytics.answer import Answer
from forebay.query.analytics.events import Event, Roles, Where, filtered
from forebay.query.analytics.groups import require_roles
from forebay.query.analytics.period import Period
from forebay.storage.base.errors import BadInput
from forebay.storage.formats.schema import OFFSET, PARTITION

LIMIT_MAX = 1000


@dataclass(frozen=True, repr=False)
class Sample(Answer):
    """The answer to `question`.

    `events`  all columns of the frame, the earliest event first
    `total`   `events`: the number of such events, in one row
    """

    events: pl.DataFrame
    total: pl.DataFrame


def sample(
    frame: pl.LazyFrame,
    roles: Roles,
    event: Event,
    period: Period | None = None,
    *,
    where: Sequence[Where] = (),
    limit: int = 50,
) -> Sample:
    """At most `limit` events of the kind that pass `where`, in the `period` or of all times. They
    are the first ones read, so that no others have to be read in full. Raises BadInput."""
    question = {name: value for name, value in locals().items() if name != "frame"}
    if not 1 <= limit <= LIMIT_MAX:
        raise BadInput(f"limit: expected 1 to {LIMIT_MAX:,}, got {limit}")
    schema = frame.collect_schema()
    require_roles(schema, roles)
    rows = frame.filter(filtered(event, where).expr(schema, roles))
    if period is not None:
        rows = rows.filter(period.within(roles.time))
    total = rows.select(events=pl.len()).collect(engine="streaming")
    place = [name for name in (PARTITION, OFFSET) if name in schema]
    found = rows.head(limit).collect(engine="streaming")
    return Sample(question, found.sort(roles.time, *place), total)
