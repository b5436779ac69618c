"""The chunks of one partition: merging offered blocks, publishing the catalog, deleting.

Steps for each chunk, each safe to repeat after a crash: write under a temporary name; fsync and
rename; publish the catalog that lists it. A crash before the last leaves a file that no catalog
names, which the next start collects.

What always holds: this is the only writer of the catalog; a chunk's name is never used twice; the
first offer of a run withdraws every chunk that an earlier run made of evictions that were never
committed, before a block is merged; only what no crash can undo is compacted. Only the catalog
needs to be kept from run to run: `blocks` offers again whatever it does not cover. A column that
was declared after a block was written is in its chunk, from `raw`. Late blocks are merged
separately, by their seal, and so are backfill blocks; a block that the batch layer has is no longer
merged, but dropped at the next tick.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import Corruption, MissingFile
from forebay.storage.base.layout import ChunkId, Layout, chunk_name, compacted_name
from forebay.storage.base.times import DAY_MS
from forebay.storage.decoding.from_raw import NONE_DECLARED, from_raw_of
from forebay.storage.formats.boundary import watched_boundary
from forebay.storage.formats.catalog import Catalog, Chunk, read_catalog
from forebay.storage.formats.columns import column_types, parse_types, unite
from forebay.storage.formats.state import BlockState
from forebay.storage.partition.compaction import compacted_id, neighbours
from forebay.storage.partition.expiry import EXPIRED, HANDED_OFF
from forebay.storage.partition.offer import Offer, Tick

if TYPE_CHECKING:
    from forebay.storage.formats.ranges import Group

MERGE_BYTES = 256 << 20
log = logging.getLogger("forebay.chunks")
COMPACTIONS_MAX = 8
"""At an offer: a stop does not wait for more."""


class Chunks:
    """Thread safety: one thread at a time, which may be another than the caller of `blocks`."""

    def __init__(
        self,
        partition: str,
        layout: Layout,
        disk: Disk,
        blocks_per_chunk: int,
        grace_ms: int,
        merge_bytes: int = MERGE_BYTES,
        compacted_ms: int = DAY_MS,
    ) -> None:
        """`merge_bytes` is the memory that a merge may take, `compacted_ms` the span of upload time
        within which chunks are compacted."""
        self._partition = partition
        self._layout = layout
        self._disk = disk
        self._blocks_per_chunk = blocks_per_chunk
        self._grace_ms = grace_ms
        self._merge_bytes = merge_bytes
        self._compacted_ms = compacted_ms
        self._from_raw = NONE_DECLARED
        self._folder = layout.chunks(partition)
        disk.make_directory(self._folder)
        self._catalog = read_catalog(disk, layout.catalog(partition), partition)
        self._pending: dict[int, BlockState] = {}
        self._boundary = watched_boundary(disk, layout)
        self._doomed: dict[str, int] = {}
        self._compactions = 0
        self.merged = 0
        """How often blocks were merged into a chunk."""
        self._apart: set[str] = set()
        self._resumed = False

    def take(self, offer: Offer, now_ms: int) -> None:
        """Accept offered blocks and merge every full set of them, oldest eviction first."""
        if offer.runs is not None:
            self._from_raw = from_raw_of(offer.declared)
            self._resume(offer.runs, offer.incarnation, now_ms)
        if not self._resumed:
            raise AssertionError("bug: an offer came before the one that resumes the partition")
        for block in offer.blocks:
            if block.id not in self._catalog.covered and block.number is not None:
                self._pending[block.number] = block
        while blocks := self._due():
            self._merge(blocks, offer.incarnation)
            self._forget(blocks)
            self.merged += 1
        if offer.tick is not None:
            self._drop(offer.tick, offer)
            self._doom(now_ms)
        for _ in range(COMPACTIONS_MAX):
            if chunks := self._neighbours(offer):
                self._try_to_compact(chunks, offer.incarnation, now_ms)
        self._collect(now_ms)

    def _neighbours(self, offer: Offer) -> list[Chunk]:
        """Small chunks to make one of: none that a batch layer is about to take, or has."""
        boundary = self._boundary.read()
        until_ms = boundary.seal.until_ms if boundary.seal else None
        chunks = (
            chunk
            for chunk in self._catalog.chunks
            if (until_ms is None or chunk.first_ms >= until_ms) and chunk.file not in self._apart
        )
        return neighbours(chunks, offer.incarnation, offer.committed, self._compacted_ms)

    def _try_to_compact(self, chunks: list[Chunk], incarnation: int, now_ms: int) -> None:
        """Damage is reported, and left where it is: it must not stop the job."""
        try:
            self._compact(chunks, incarnation, now_ms)
        except (Corruption, MissingFile) as error:
            log.error("chunks are not compacted: %s", error)
            self._apart |= {chunk.file for chunk in chunks}

    def _due(self) -> list[BlockState]:
        """The next full set of blocks to merge, oldest eviction first; none if there is none."""
        boundary = self._boundary.read()
        sets: dict[tuple[int, bool], list[BlockState]] = {}
        for number in sorted(self._pending):
            block = self._pending[number]
            if not boundary.handed_off(block):
                found = sets.setdefault((block.late, block.id.backfill), [])
                found.append(block)
                if len(found) == self._blocks_per_chunk:
                    return found
        return []

    def _forget(self, blocks: Iterable[BlockState]) -> None:
        gone = {block.number for block in blocks}
        self._pending = {n: block for n, block in self._pending.items() if n not in gone}

    def _drop(self, tick: Tick, offer: Offer) -> None:
        """Take from the catalog what may go, and forget dropped blocks that nobody knows."""
        catalog, retention = self._catalog, tick.retention
        kept, gone = [], []
        for chunk in catalog.chunks:
            reason = retention.reason(chunk)
            sure = chunk.id.incarnation < offer.incarnation or chunk.id.last <= offer.committed
            old = reason != HANDED_OFF or chunk.batch < retention.boundary.number
            if reason and sure and old:
                gone.append((reason, chunk.rows, chunk.blocks))
            else:
                kept.append(chunk)
        blocks = []
        for number, block in self._pending.items():
            reason = retention.reason(block)
            if reason and number <= offer.committed:
                gone.append((reason, block.rows, (block.id,)))
                blocks.append(block)
        dropped = (*catalog.dropped, *(id for _, _, ids in gone for id in ids))
        found = Catalog(
            catalog.partition,
            tuple(kept),
            tuple(id for id in dropped if id in tick.listed),
            catalog.handed_off_rows + sum(rows for why, rows, _ in gone if why == HANDED_OFF),
            catalog.expired_rows + sum(rows for why, rows, _ in gone if why == EXPIRED),
        )
        if found != catalog:
            self._publish(found)
        self._forget(blocks)

    def _resume(self, runs: dict[str, int], incarnation: int, now_ms: int) -> None:
        kept = self._catalog.committed(runs, incarnation)
        if kept != self._catalog:
            self._publish(kept)
        self._pending = {}
        self._doom(now_ms)
        self._resumed = True

    def _doom(self, now_ms: int) -> None:
        """Note the files that no catalog names."""
        named = {chunk.file for chunk in self._catalog.chunks}
        found = (path.relative_to(self._folder) for path in self._folder.rglob("*.parquet*"))
        for name in {name.as_posix() for name in found} - named:
            self._doomed.setdefault(name, now_ms + self._grace_ms)

    def _merge(self, blocks: list[BlockState], incarnation: int) -> None:
        from forebay.storage.formats import merge  # Polars, which a start does without

        numbers = [block.number for block in blocks if block.number is not None]
        id = ChunkId(min(numbers), max(numbers), incarnation)
        first_ms = min(block.first_ms for block in blocks)
        hot = self._layout.hot(self._partition)
        made = self._write(
            chunk_name(id, first_ms),
            merge.groups_of_blocks(self._disk, hot, blocks),
            merge.schema_of(self._disk, hot, blocks),
            id=id,
            blocks=tuple(block.id for block in blocks),
            batch=self._boundary.read().number,
            rows=sum(block.rows for block in blocks),
            first_ms=first_ms,
            last_ms=max(block.last_ms for block in blocks),
            late=blocks[0].late,
        )
        self._publish(self._catalog.with_chunk(made))

    def _compact(self, chunks: list[Chunk], incarnation: int, now_ms: int) -> None:
        """Make one chunk of these. Their files stay for the grace period."""
        from forebay.storage.formats import merge

        self._compactions += 1
        id, first_ms = compacted_id(chunks), min(chunk.first_ms for chunk in chunks)
        made = self._write(
            compacted_name(id, first_ms, self._compactions, incarnation),
            merge.groups_of_chunks(self._disk, self._folder, chunks),
            unite(parse_types(chunk.schema) for chunk in chunks),
            id=id,
            blocks=tuple(block for chunk in chunks for block in chunk.blocks),
            batch=max(chunk.batch for chunk in chunks),
            rows=sum(chunk.rows for chunk in chunks),
            first_ms=first_ms,
            last_ms=max(chunk.last_ms for chunk in chunks),
            late=chunks[0].late,
        )
        self._publish(self._catalog.with_chunk(made, of=chunks))
        for chunk in chunks:
            self._doomed.setdefault(chunk.file, now_ms + self._grace_ms)

    def _write(self, name: str, groups: list[Group], schema: pa.Schema, **what: Any) -> Chunk:
        """Write a chunk's file; it is durable, but in no catalog yet."""
        from forebay.storage.formats import merge

        wanted = self._from_raw.names
        added = self._from_raw.lacking(schema.names, wanted)
        schema = unite([schema, self._from_raw.schema(added)])
        target = self._folder / name
        self._disk.make_directory(target.parent)
        temporary = target.with_name(f"{target.name}.tmp")
        try:
            checksum = merge.write_sorted(
                self._disk,
                temporary,
                groups,
                schema,
                self._merge_bytes,
                lambda batch: self._from_raw.complete(batch, wanted),
            )
            self._disk.publish(temporary, target)
        except BaseException:
            with suppress(OSError):  # of a disk that is gone
                self._disk.remove(temporary)
            raise
        row_bytes = max(group.row_bytes for group in groups)
        types = column_types(schema)
        return Chunk(file=name, checksum=checksum, schema=types, row_bytes=row_bytes, **what)

    def _publish(self, catalog: Catalog) -> None:
        path = self._layout.catalog(self._partition)
        self._disk.replace(path, catalog.encode(), durable=True)
        self._catalog = catalog

    def _collect(self, now_ms: int) -> None:
        """Delete files that no catalog has named for the grace period, and folders left empty."""
        for name in [name for name, due in self._doomed.items() if due <= now_ms]:
            path = self._folder / name
            self._disk.remove(path)
            self._disk.remove_empty(path.parent, self._folder)
            del self._doomed[name]
