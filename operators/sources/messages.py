"""Messages: what a source delivers, before decoding. One item is many messages of one partition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from bytewax.inputs import StatefulSourcePartition
from typing_extensions import override

I64 = npt.NDArray[np.int64]
S = TypeVar("S")


@dataclass(frozen=True)
class Messages:
    """`values`, `offsets` and `times_ms` (the broker's timestamps) have one entry a message, in
    offset order. `next_offset` is where the source would go on; `skipped` counts offsets it no
    longer had; `end_offset` is the partition's end as last known. `read_ms` is the wall time at
    which the messages were read, None if `times_ms` are a clock to be trusted. Without messages,
    `after_offset` is where the source was before.
    """

    source: str
    values: list[bytes]
    offsets: I64
    times_ms: I64
    next_offset: int
    skipped: int = 0
    end_offset: int | None = None
    read_ms: int | None = None
    after_offset: int | None = None

    @property
    def first_offset(self) -> int:
        if len(self.offsets):
            return int(self.offsets[0])
        return self.next_offset if self.after_offset is None else self.after_offset


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
