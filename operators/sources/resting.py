"""A partition of which nothing is read in this run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from bytewax.inputs import StatefulSourcePartition
from typing_extensions import override

from forebay.operators.sources.messages import Messages

S = TypeVar("S")


@dataclass
class Resting(StatefulSourcePartition[Messages, S | None]):
    """Its place, if it has one, is kept."""

    place: S | None = None

    @override
    def next_batch(self) -> list[Messages]:
        raise StopIteration

    @override
    def snapshot(self) -> S | None:
        return self.place
