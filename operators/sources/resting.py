"""A partition of which nothing is read in this run."""

from __future__ import annotations

from typing import TypeVar

from bytewax.inputs import StatefulSourcePartition
from typing_extensions import override

from forebay.operators.sources.messages import Messages

S = TypeVar("S")


class Resting(StatefulSourcePartition[Messages, S | None]):
    """A partition of which nothing is read in this run: its place, if it has one, is kept."""

    def __init__(self, place: S | None = None) -> None:
        self._place = place

    @override
    def next_batch(self) -> list[Messages]:
        raise StopIteration

    @override
    def snapshot(self) -> S | None:
        return self._place
