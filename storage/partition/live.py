"""The live blocks: those in the cache, each with its log that grows and its keys.

At most one block of an interval is open; the others were closed by a seal (see `batch`) and take no
more events, but stay in the cache, where their keys are looked up, until they are evicted.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from forebay.storage.base.layout import BlockId
from forebay.storage.dedup.bloom import BloomFilters
from forebay.storage.dedup.keys import KeyCache, KeySet
from forebay.storage.dedup.segment import Segment
from forebay.storage.formats.boundary import Seal
from forebay.storage.formats.columns import Mask
from forebay.storage.formats.hash_file import HashWriter
from forebay.storage.formats.hashes import I64, U64
from forebay.storage.formats.log import GrowingLog
from forebay.storage.formats.state import BlockState

READERS = min(8, os.cpu_count() or 1)
LOAD_BYTES = 128 << 20
"""Of the logs of which keys are read at once, unless a single one has more."""


@dataclass
class LiveBlock:
    """`touched_ms` is the stream time of the last update, the others are upload times."""

    id: BlockId
    log: GrowingLog
    hashes: HashWriter
    keys: KeySet
    touched_ms: int
    first_ms: int
    last_ms: int
    late: int

    @property
    def state(self) -> BlockState:
        return BlockState(
            self.id, self.touched_ms, self.first_ms, self.last_ms, self.log.extents, self.late
        )

    @property
    def full(self) -> bool:
        """Whether what is pending is as much as memory should hold."""
        return self.log.full

    @property
    def log_bytes(self) -> int:
        return sum(extent.bytes for extent in self.log.extents)

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
            self.hashes.append(span, self.keys.settle(span))
        return span is not None


class LiveBlocks:
    """Iterates in order of id."""

    def __init__(self, window_ms: int) -> None:
        self._blocks: dict[BlockId, LiveBlock] = {}
        self._open: dict[int, LiveBlock] = {}
        self._bloom = BloomFilters(window_ms)

    def __iter__(self) -> Iterator[LiveBlock]:
        return iter(sorted(self._blocks.values(), key=lambda block: block.id))

    def open_of(self, interval_ms: int) -> LiveBlock | None:
        """The block that takes the events of an interval."""
        return self._open.get(interval_ms)

    def add(self, block: LiveBlock) -> None:
        """An open block, of which some keys may be in its log alone."""
        self._blocks[block.id] = self._open[block.id.interval_ms] = block

    def begin(self, block: LiveBlock, stream_ms: int) -> None:
        """An open block that is empty."""
        self.add(block)
        self._bloom.begin(block.id, stream_ms)

    def take(self, block: LiveBlock, segment: Segment, rows: I64) -> None:
        """These rows, which rise and are new, are the block's."""
        block.take(segment, rows)
        self._bloom.add(block.id, segment.hashes[rows])

    def holding(self, hashes: U64) -> Iterator[tuple[KeySet, Mask]]:
        """The keys of each block, newest first, and which of the hashes may be among them."""
        masks, every = self._bloom.find(hashes), np.ones(len(hashes), dtype=bool)
        for block in reversed(list(self)):
            yield block.keys, masks.get(block.id, every)

    def load(self, cache: KeyCache) -> None:
        """Read back the keys that are in logs alone, of several blocks at once, as many as `cache`
        has room for; what is left is read when it is asked for."""
        waiting = [block for block in self if not block.keys.loaded]
        with ThreadPoolExecutor(READERS, thread_name_prefix="load") as pool:
            while waiting and cache.has_room:
                some = [waiting.pop()]
                size = some[0].log_bytes
                while waiting and size + waiting[-1].log_bytes <= LOAD_BYTES:
                    some.append(waiting.pop())
                    size += some[-1].log_bytes
                keys = [block.keys for block in some]
                for one, fetched in zip(keys, pool.map(KeySet.fetch, keys), strict=True):
                    one.load(*fetched)
                cache.trim()

    def seal(self, seal: Seal) -> None:
        """Close the blocks below the seal, but for those of events that came too late for it."""
        self._open = {
            interval: block
            for interval, block in self._open.items()
            if interval >= seal.until_ms or block.late >= seal.number
        }

    def remove(self, block: LiveBlock) -> None:
        del self._blocks[block.id]
        self._bloom.remove(block.id)
        if self._open.get(block.id.interval_ms) is block:
            del self._open[block.id.interval_ms]

    def oldest_ms(self, default: int) -> int:
        """The earliest last touch."""
        return min((block.touched_ms for block in self._blocks.values()), default=default)
