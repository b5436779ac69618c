"""What a partition retains besides its live blocks: the keys of evicted and merged ones.

A block's keys are in its logs until a chunk covers it, then in the chunk too; either answers. A key
set reads nothing until it is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from forebay.storage.base.disk import Disk
from forebay.storage.base.layout import BlockId, Layout
from forebay.storage.dedup.key_sources import ChunkKeys, LogKeys
from forebay.storage.dedup.keys import KeyCache, KeySet
from forebay.storage.formats.catalog import Catalog
from forebay.storage.formats.hashes import Hash
from forebay.storage.formats.log import Extent, GrowingLog
from forebay.storage.formats.schema import Schema
from forebay.storage.formats.state import BlockState


class Retained:
    """Makes the key sets of one partition, and finds those of an interval. One thread."""

    def __init__(
        self,
        disk: Disk,
        layout: Layout,
        partition: str,
        schema: Schema,
        block_span_ms: int,
        cache: KeyCache,
        hash_keys: Hash,
    ) -> None:
        self._disk = disk
        self._hot = layout.hot(partition)
        self._chunks = layout.chunks(partition)
        self._schema = schema
        self._block_span_ms = block_span_ms
        self._cache = cache
        self._hash = hash_keys
        self._of_block: dict[BlockId, KeySet] = {}
        self._of_chunk: dict[tuple[str, int], KeySet] = {}

    def of_log(self, log: GrowingLog) -> KeySet:
        """The key set of a live block; nothing is read if its log is empty."""
        make = KeySet if log.extents else KeySet.empty
        return make(self._log_keys(lambda: log.extents), self._cache)

    def add(self, block: BlockState, keys: KeySet | None = None) -> None:
        """An evicted block, with the key set it had while it was live if there is one."""
        source = self._log_keys(lambda: block.extents)
        self._of_block[block.id] = keys or KeySet(source, self._cache)

    def forget(self, id: BlockId) -> None:
        """The block's logs are about to go."""
        keys = self._of_block.pop(id, None)
        if keys:
            keys.close()

    def keep(self, catalog: Catalog) -> None:
        """Let go of the keys of chunks that are gone."""
        named = {chunk.file for chunk in catalog.chunks}
        for place in [place for place in self._of_chunk if place[0] not in named]:
            self._of_chunk.pop(place).close()

    def of_interval(self, interval: int, catalog: Catalog) -> list[KeySet]:
        """Key sets of everything evicted or merged of this interval."""
        ids = {id for id in self._of_block if id.interval_ms == interval}
        found = [self._of_block[id] for id in sorted(ids)]
        for chunk in catalog.by_interval.get(interval, ()):
            if all(id in ids for id in chunk.blocks if id.interval_ms == interval):
                continue
            place = (chunk.file, interval)
            if place not in self._of_chunk:
                path = self._chunks / chunk.file
                end = interval + self._block_span_ms
                schema = self._schema
                source = ChunkKeys(
                    self._disk,
                    path,
                    chunk,
                    schema.key,
                    interval,
                    end,
                    schema.payload,
                    hash=self._hash,
                )
                self._of_chunk[place] = KeySet(source, self._cache)
            found.append(self._of_chunk[place])
        return found

    def _log_keys(self, extents: Callable[[], Iterable[Extent]]) -> LogKeys:
        schema = self._schema
        return LogKeys(self._disk, self._hot, schema.key, extents, schema.payload, hash=self._hash)
