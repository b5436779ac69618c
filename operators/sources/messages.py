"""Messages: what a source delivers, before decoding. One item is many messages of one partition."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Messages:
    """`values`, `offsets` and `times_ms` (the broker's timestamps) have one entry per message, in
    offset order. `next_offset` is where the source would go on; `skipped` counts offsets it no
    longer had; `end_offset` is the partition's end as last known. `read_ms` is the wall time at
    which the messages were read, None if the clock of `times_ms` can be trusted. Without messages,
    `after_offset` is where the source was before. `lengths` has, by row, the whole length of each
    message of which only the beginning is here.
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
    lengths: Mapping[int, int] = field(default_factory=dict)

    @property
    def first_offset(self) -> int:
        if len(self.offsets):
            return int(self.offsets[0])
        return self.next_offset if self.after_offset is None else self.after_offset

    @property
    def clocks_ms(self) -> I64:
        """For each message, the clock that its upload time must not be far ahead of."""
        return self.times_ms if self.read_ms is None else np.full_like(self.times_ms, self.read_ms)
