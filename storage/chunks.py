"""The chunks of one partition: merging offered blocks, publishing the catalog.

Steps for each chunk, each safe to repeat after a crash: write under a temporary name; fsync and
rename; publish the catalog that lists it. A crash before the last leaves a file that no catalog
names, which the next start collects.

What always holds: this is the only writer of the catalog; a chunk's name is never used twice; the
first offer of a run withdraws every chunk that an earlier run made of evictions that were never
committed, before a block is merged. Nothing needs to be remembered from run to run but the catalog:
`blocks` offers again whatever it does not cover.
"""

from __future__ import annotations

from storage.batch import read_batch
from storage.blocks import Offer
from storage.catalog import Catalog, Chunk, read_catalog
from storage.chunk import schema_of, write_chunk
from storage.files import Files
from storage.layout import ChunkId, Layout, chunk_name
from storage.schema import column_types
from storage.state import BlockState


class Chunks:
    """Thread safety: one thread at a time, which may be another than the caller of `blocks`."""

    def __init__(
        self, partition: str, layout: Layout, files: Files, blocks_per_chunk: int, grace_ms: int
    ) -> None:
        self._partition = partition
        self._layout = layout
        self._files = files
        self._blocks_per_chunk = blocks_per_chunk
        self._grace_ms = grace_ms
        self._folder = layout.chunks(partition)
        files.make_directory(self._folder)
        self._catalog = read_catalog(files, layout.catalog(partition), partition)
        self._pending: dict[int, BlockState] = {}
        self._doomed: list[tuple[int, str]] = []
        self._resumed = False

    def take(self, offer: Offer, now_ms: int) -> None:
        """Accept offered blocks and merge every full set of them, oldest eviction first."""
        if offer.runs is not None:
            self._resume(offer.runs, offer.incarnation, now_ms)
        if not self._resumed:
            raise AssertionError("bug: an offer came before the one that resumes the partition")
        for block in offer.blocks:
            if block.id not in self._catalog.covered and block.number is not None:
                self._pending[block.number] = block
        while len(self._pending) >= self._blocks_per_chunk:
            numbers = sorted(self._pending)[: self._blocks_per_chunk]
            self._merge([self._pending[number] for number in numbers], offer.incarnation)
            for number in numbers:
                del self._pending[number]
        self._collect(now_ms)

    def _resume(self, runs: dict[str, int], incarnation: int, now_ms: int) -> None:
        kept = self._catalog.committed(runs, incarnation)
        if kept != self._catalog:
            self._publish(kept)
        self._pending = {}
        named = {chunk.file for chunk in kept.chunks}
        found = [path.relative_to(self._folder) for path in self._folder.rglob("*.parquet*")]
        due = now_ms + self._grace_ms
        self._doomed = [(due, name.as_posix()) for name in found if name.as_posix() not in named]
        self._resumed = True

    def _merge(self, blocks: list[BlockState], incarnation: int) -> None:
        numbers = [block.number for block in blocks if block.number is not None]
        id = ChunkId(min(numbers), max(numbers), incarnation)
        first_ms = min(block.first_ms for block in blocks)
        name = chunk_name(id, first_ms)
        target = self._folder / name
        self._files.make_directory(target.parent)
        hot = self._layout.hot(self._partition)
        schema = schema_of(self._files, hot, blocks)
        temporary = target.with_name(f"{target.name}.tmp")
        seal = write_chunk(self._files, hot, blocks, temporary, schema)
        self._files.publish(temporary, target)
        chunk = Chunk(
            id=id,
            file=name,
            blocks=tuple(block.id for block in blocks),
            batch=read_batch(self._files, self._layout.batch).number,
            rows=sum(block.rows for block in blocks),
            seal=seal,
            first_ms=first_ms,
            last_ms=max(block.last_ms for block in blocks),
            schema=column_types(schema),
        )
        self._publish(self._catalog.with_chunk(chunk))

    def _publish(self, catalog: Catalog) -> None:
        path = self._layout.catalog(self._partition)
        self._files.replace(path, catalog.encode(), durable=True)
        self._catalog = catalog

    def _collect(self, now_ms: int) -> None:
        """Delete files that no catalog has named for the grace period."""
        for _, name in [doomed for doomed in self._doomed if doomed[0] <= now_ms]:
            self._files.remove(self._folder / name)
        self._doomed = [doomed for doomed in self._doomed if doomed[0] > now_ms]
