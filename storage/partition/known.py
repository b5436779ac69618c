"""What a partition knows of dedup keys: those of its live blocks, of evicted and of merged ones.

A block's keys are in memory and in its logs until a chunk covers it, then in the chunk too; each
answers. Nothing is read before it is asked for.
Thread safety: one thread, except for what `_load` does within.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa

from forebay.storage.base.disk import Disk
from forebay.storage.base.layout import BlockId, Layout
from forebay.storage.base.watched import Watched
from forebay.storage.dedup.bloom import BloomFilters
from forebay.storage.dedup.key_sources import ChunkKeys, KeyColumns, LogKeys
from forebay.storage.dedup.keys import KeyCache, KeySet
from forebay.storage.formats.catalog import Catalog, Chunk
from forebay.storage.formats.columns import Mask
from forebay.storage.formats.hashes import U64, Hash
from forebay.storage.formats.log import Extent, Span
from forebay.storage.formats.log_writer import GrowingLog
from forebay.storage.formats.payload import Payload
from forebay.storage.formats.state import BlockState, PartitionState
from forebay.storage.partition.rules import Rules

READERS = min(8, os.cpu_count() or 1)
LOAD_BYTES = 128 << 20
"""Of the logs of which keys are read at once, unless a single one has more."""


class KnownKeys:
    """Of one partition. `catalog` is what chunks there are."""

    def __init__(
        self,
        disk: Disk,
        layout: Layout,
        state: PartitionState,
        rules: Rules,
        cache: KeyCache,
        hash: Hash,
        catalog: Watched[Catalog],
    ) -> None:
        self._disk = disk
        self._hot = layout.hot(state.partition)
        self._chunks = layout.chunks(state.partition)
        self._block_span_ms = state.block_span_ms
        self._backfill_span_ms = max(rules.backfill_span_ms, state.block_span_ms)
        self._columns = KeyColumns(rules.schema.key, rules.schema.payload, hash)
        self._cache = cache
        self._catalog = catalog
        self._bloom = BloomFilters(rules.dedup_window_ms)
        self._logs: dict[BlockId, GrowingLog] = {}
        self._live: dict[BlockId, KeySet] = {}
        self._retained: dict[BlockId, KeySet] = {}
        self._merged: dict[tuple[str, int], KeySet] = {}
        self._loaded = False
        for block in uncovered(state, catalog.read()):
            self._retained[block.id] = self._of_evicted(block)

    # -- what blocks there are ---------------------------------------------------------------

    def resume(self, block: BlockId, log: GrowingLog) -> None:
        """A live block, of which some keys may be in its log alone."""
        self._logs[block] = log
        self._live[block] = KeySet(self._log_keys(lambda: log.extents), self._cache)

    def open(self, block: BlockId, log: GrowingLog, stream_ms: int) -> None:
        """A live block that is empty, so nothing is read."""
        self._logs[block] = log
        self._live[block] = KeySet.empty(self._log_keys(lambda: log.extents), self._cache)
        self._bloom.begin(block, stream_ms)

    def add(
        self, block: BlockId, keys: pa.RecordBatch, hashes: U64, payload: Payload | None
    ) -> None:
        """These keys are the live block's; they are not in its log yet."""
        self._live[block].add(keys, hashes, payload)
        self._bloom.add(block, hashes)
        self._cache.trim()

    def settle(self, block: BlockId, span: Span) -> U64:
        """All that was added is in the block's log now, at `span`; the hashes."""
        hashes = self._live[block].settle(span)
        self._cache.trim()
        return hashes

    def evict(self, block: BlockId) -> None:
        """It is no longer live."""
        del self._logs[block]
        self._retained[block] = self._live.pop(block)
        self._bloom.remove(block)

    def forget(self, block: BlockId) -> None:
        """The evicted block's logs are about to go."""
        if keys := self._retained.pop(block, None):
            keys.close()

    def keep(self, catalog: Catalog) -> None:
        """Release the keys of chunks that are gone."""
        named = {chunk.file for chunk in catalog.chunks}
        for place in [place for place in self._merged if place[0] not in named]:
            self._merged.pop(place).close()

    # -- what is asked -----------------------------------------------------------------------

    def live(self, hashes: U64) -> Iterator[tuple[KeySet, Mask]]:
        """The keys of each live block, newest first, and which hashes may be among them."""
        if not self._loaded:
            self._load()
        masks, every = self._bloom.find(hashes), np.ones(len(hashes), dtype=bool)
        for block in sorted(self._live, reverse=True):
            yield self._live[block], masks.get(block, every)

    def retained(self, interval_ms: int) -> list[KeySet]:
        """The keys of everything evicted or merged of this interval, backfill left out."""
        chunks = self._catalog.read().by_interval.get((interval_ms, False), ())
        end_ms = interval_ms + self._block_span_ms
        return self._retained_in(interval_ms, end_ms, chunks, backfill=False)

    def backfilled(self, first_ms: int) -> list[KeySet]:
        """The keys of all backfill blocks, evicted or merged, of the backfill span that begins
        then."""
        end_ms = first_ms + self._backfill_span_ms
        found = {
            chunk.file: chunk
            for (start_ms, backfill), chunks in self._catalog.read().by_interval.items()
            if backfill and first_ms <= start_ms < end_ms
            for chunk in chunks
        }
        return self._retained_in(first_ms, end_ms, found.values(), backfill=True)

    def _retained_in(
        self, first_ms: int, end_ms: int, chunks: Iterable[Chunk], *, backfill: bool
    ) -> list[KeySet]:
        def such(id: BlockId) -> bool:
            return id.backfill == backfill and first_ms <= id.interval_ms < end_ms

        ids = {id for id in self._retained if such(id)}
        found = [self._retained[id] for id in sorted(ids)]
        for chunk in chunks:
            if not all(id in ids for id in chunk.blocks if such(id)):
                found.append(self._of_chunk(chunk, first_ms, end_ms))
        return found

    def _load(self) -> None:
        """Read back the keys of live blocks that are in logs alone, of several at once, as many as
        the cache has room for; what is left is read when it is asked for."""
        self._loaded = True
        waiting = [id for id in sorted(self._live) if not self._live[id].loaded]
        with ThreadPoolExecutor(READERS, thread_name_prefix="load") as pool:
            while waiting and self._cache.has_room:
                some = [waiting.pop()]
                size = self._log_bytes(some[0])
                while waiting and size + self._log_bytes(waiting[-1]) <= LOAD_BYTES:
                    some.append(waiting.pop())
                    size += self._log_bytes(some[-1])
                keys = [self._live[id] for id in some]
                for one, fetched in zip(keys, pool.map(KeySet.fetch, keys), strict=True):
                    one.load(*fetched)
                self._cache.trim()

    def _log_bytes(self, block: BlockId) -> int:
        return sum(extent.bytes for extent in self._logs[block].extents)

    # -- where keys are read back from -------------------------------------------------------

    def _of_evicted(self, block: BlockState) -> KeySet:
        return KeySet(self._log_keys(lambda: block.extents), self._cache)

    def _of_chunk(self, chunk: Chunk, first_ms: int, end_ms: int) -> KeySet:
        place = (chunk.file, first_ms)
        if place not in self._merged:
            path = self._chunks / chunk.file
            source = ChunkKeys(self._disk, path, self._columns, chunk, first_ms, end_ms)
            self._merged[place] = KeySet(source, self._cache)
        return self._merged[place]

    def _log_keys(self, extents: Callable[[], Iterable[Extent]]) -> LogKeys:
        return LogKeys(self._disk, self._hot, self._columns, extents)


def uncovered(state: PartitionState, catalog: Catalog) -> list[BlockState]:
    """The evicted blocks that no chunk covers, in order of eviction."""
    return [block for block in state.evicted.values() if block.id not in catalog.covered]
