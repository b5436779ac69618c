"""A live block: one in the cache, with its log that grows and its keys."""

from __future__ import annotations

from dataclasses import dataclass

from storage.index import I64
from storage.keys import KeySet
from storage.layout import BlockId
from storage.log import GrowingLog
from storage.segment import Segment
from storage.state import BlockState


@dataclass
class LiveBlock:
    """`touched_ms` is the stream time of the last update, the others are upload times."""

    id: BlockId
    log: GrowingLog
    keys: KeySet
    touched_ms: int
    first_ms: int
    last_ms: int

    @property
    def state(self) -> BlockState:
        return BlockState(self.id, self.touched_ms, self.first_ms, self.last_ms, self.log.extents)

    @property
    def full(self) -> bool:
        """Whether what is pending is as much as memory should hold."""
        return self.log.full

    def take(self, segment: Segment, rows: I64) -> None:
        """These rows, which rise and are new, are the block's."""
        events, keys = segment.pick(rows)
        self.log.append(events)
        self.keys.add(keys, segment.hashes[rows], segment.payload(rows))
        times = segment.times[rows]
        self.touched_ms = int(segment.stream[rows[-1]])
        self.first_ms = min(self.first_ms, int(times.min()))
        self.last_ms = max(self.last_ms, int(times.max()))

    def flush(self) -> bool:
        """Write what is pending to the log; whether anything was."""
        span = self.log.flush()
        if span:
            self.keys.settle(span)
        return span is not None
