"""Sealing and completing days over HTTP: what `forebay batch seal` and `complete` do, by the same
code, in a process that may be killed at any step, as each request may be repeated.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, date, datetime

from forebay.query.view import View
from forebay.serve.problems import Problem
from forebay.storage.base.errors import BadInput
from forebay.storage.base.times import FIRST_MS, LAST_MS, ms_of, now_ms, utc_text
from forebay.storage.handoff import Handoff

WAIT_SHARE = 0.9
"""The share of an answer's time that a job may take to commit the seal."""


def seal(view: View, seconds: float, through: date | datetime) -> dict[str, object]:
    """From now on, events that arrive for upload times before `through` are late: what is there
    never changes. Answers when no crash can undo that, with the number of each node's seal. Asking
    again changes nothing."""
    until_ms = _until_ms(through)
    with _handoff(view, seconds) as handoff:
        found = handoff.seal(until_ms)
    numbers = [one.seal.number if one.seal else 0 for one in found]
    nodes = [{"node": node.name, "seal": n} for node, n in zip(view.nodes, numbers, strict=True)]
    return {"sealed_until": utc_text(until_ms), "nodes": nodes}


def complete(
    view: View, seconds: float, through: date | datetime, late: bool = False
) -> dict[str, object]:
    """From now on, the batch layer answers for upload times before `through`; with `late`, it has
    taken the late table as well. Seals them first if necessary: events that arrived since you read
    them are then hidden, so it is better to seal before you read. Answers with each node's batch
    number. Asking again changes nothing."""
    until_ms = _until_ms(through)
    with _handoff(view, seconds) as handoff:
        handoff.seal(until_ms)
        found = handoff.complete(now_ms(), late=late)
    nodes = [
        {"node": node.name, "batch_number": one.number}
        for node, one in zip(view.nodes, found, strict=True)
    ]
    return {"covered_until": utc_text(until_ms), "nodes": nodes}


def seal_form(through: date | datetime) -> None:
    """The parameters of a seal."""


def complete_form(through: date | datetime, late: bool = False) -> None:
    """The parameters of a completion."""


@contextmanager
def _handoff(view: View, seconds: float) -> Iterator[Handoff]:
    """The open handoff. Raises Problem while there is another, and if the directory can't be
    written to; BadInput for other nodes."""
    if others := [node.name for node in view.nodes if node.node is not None]:
        raise BadInput(f"batch: expected data directories, got the node {others[0]}: ask there")
    handoff = Handoff([node.root for node in view.nodes], seconds * WAIT_SHARE)
    try:
        with ExitStack() as stack:
            try:
                stack.enter_context(handoff)
            except BadInput as error:
                raise Problem(409, str(error)) from error
            yield handoff
    except OSError as error:
        raise Problem(500, f"batch: expected a folder to write to, got {error}") from error


def _until_ms(through: date | datetime) -> int:
    if not isinstance(through, datetime):
        through = datetime(through.year, through.month, through.day, tzinfo=UTC)
    until_ms = ms_of(through)
    if not FIRST_MS <= until_ms <= LAST_MS:
        raise BadInput(f"through: expected a time of the years 1 to 9999 in UTC, got {through}")
    return until_ms
