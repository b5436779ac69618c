"""The chunk catalog of one partition: which chunks there are, and which blocks each covers.

Published at DATA/chunks/PARTITION/catalog.json by `chunks` alone, atomically and durably. A block
that a listed chunk covers is read from the chunk and from nowhere else.

Format: a record (see `record`) of kind "catalog", version 2; the fields are those of `Catalog`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path

from forebay.storage.base import record
from forebay.storage.base.disk import Disk
from forebay.storage.base.layout import BlockId, ChunkId, checked
from forebay.storage.base.record import OPTIONAL, Count, TimeMs
from forebay.storage.formats.checksum import Checksum
from forebay.storage.formats.columns import ColumnTypes

KIND = "catalog"
VERSION = 2


@dataclass(frozen=True)
class Chunk:
    """One Parquet file. Times are upload times in ms, both ends included."""

    id: ChunkId
    file: str
    blocks: tuple[BlockId, ...]
    batch: Count
    """The batch number current when the chunk was made."""
    rows: Count
    checksum: Checksum
    first_ms: TimeMs
    last_ms: TimeMs
    schema: ColumnTypes
    late: Count = 0
    """As in `BlockState`; the blocks of a chunk agree in it."""
    row_bytes: Count = field(default=0, metadata=OPTIONAL)
    """As in `BlockState`."""

    def __post_init__(self) -> None:
        checked(self.file)

    @property
    def backfill(self) -> bool:
        """Whether its blocks are backfill ones: all are or none is."""
        return self.blocks[0].backfill


@dataclass(frozen=True)
class Catalog:
    """Chunks in order of eviction number.

    `dropped` are blocks of deleted chunks, and blocks that were deleted without becoming chunks; an
    id is listed until no state that a restart could resume from knows the block. Rows of deleted
    blocks are counted: `handed_off_rows` are with the batch layer, `expired_rows` were too old.
    """

    partition: str
    chunks: tuple[Chunk, ...] = ()
    dropped: tuple[BlockId, ...] = ()
    handed_off_rows: Count = 0
    expired_rows: Count = 0

    @cached_property
    def covered(self) -> frozenset[BlockId]:
        """The blocks that are not read from their logs."""
        chunked = (block for chunk in self.chunks for block in chunk.blocks)
        return frozenset((*chunked, *self.dropped))

    @cached_property
    def by_interval(self) -> dict[tuple[int, bool], tuple[Chunk, ...]]:
        """The chunks by what they cover: the interval with which a block begins, and whether it is
        a backfill one."""
        found: dict[tuple[int, bool], dict[str, Chunk]] = {}
        for chunk in self.chunks:
            for block in chunk.blocks:
                found.setdefault((block.interval_ms, block.backfill), {})[chunk.file] = chunk
        return {interval: tuple(chunks.values()) for interval, chunks in found.items()}

    def committed(self, runs: dict[str, int], incarnation: int) -> Catalog:
        """This catalog without the chunks of evictions that were never committed, as the run
        `incarnation` knows it: `runs` has the last eviction that each earlier run committed."""
        kept = tuple(
            chunk
            for chunk in self.chunks
            if chunk.id.incarnation >= incarnation
            or chunk.id.last <= runs.get(str(chunk.id.incarnation), 0)
        )
        return replace(self, chunks=kept)

    def with_chunk(self, chunk: Chunk, of: Sequence[Chunk] = ()) -> Catalog:
        """This catalog with `chunk` in place of those that it is made `of`."""
        gone = {one.file for one in of}
        kept = (one for one in self.chunks if one.file not in gone)
        return replace(self, chunks=tuple(sorted((*kept, chunk), key=lambda one: one.id)))

    def encode(self) -> bytes:
        body = {one.name: getattr(self, one.name) for one in fields(self)}
        return record.encode(KIND, VERSION, body)

    @classmethod
    def decode(cls, data: bytes, name: str) -> Catalog:
        """Raises Corruption or FormatVersion; `name` describes the data in errors."""
        return record.read(cls, KIND, VERSION, data, name)


def read_catalog(disk: Disk, path: Path, partition: str) -> Catalog:
    """The published catalog, empty if there is none."""
    try:
        data = disk.read(path)
    except FileNotFoundError:
        return Catalog(partition)
    return Catalog.decode(data, str(path))
