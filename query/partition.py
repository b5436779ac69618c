"""One partition as a reader sees it: its published state, its logs and its chunks.

Views, queries, `why` and the check read partitions only through this module. What always holds:

- Nothing is opened if a link to it leads out of the data directory.
- A log is read forward and verified up to its extent. If a power loss cut a block log short,
  queries read what is whole: the job is about to write the rest again. A drop log may also be
  missing, as it only explains. A reject log is whole, or an error.
- A chunk's footer is checked against the catalog first, and its pages as they are read.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyarrow.fs import LocalFileSystem

from forebay.query.node import Remote
from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import Corruption, MissingFile
from forebay.storage.base.layout import Layout
from forebay.storage.decoding.from_raw import NONE_DECLARED, FromRaw
from forebay.storage.formats.catalog import Catalog, Chunk
from forebay.storage.formats.chunk import (
    ChunkReader,
    chunk_metadata,
    columns_outside_years,
    damaged_columns,
    span_ms,
)
from forebay.storage.formats.log import Extent, LogReader, Span
from forebay.storage.formats.rejects import RejectFilter
from forebay.storage.formats.schema import OFFSET, PARTITION, RAW, UPLOAD_TIME
from forebay.storage.formats.state import BlockState, PartitionState

T = TypeVar("T")
LOG_BYTES = 4 << 20
"""Compressed bytes of a log that are decoded at a time."""


@dataclass(frozen=True)
class Log:
    """The part of a log file that counts. `torn_ok`: queries read it up to its last whole batch;
    `optional`: it may lack its end, or be missing, without being faulty. Columns that were declared
    after it was begun are decoded `from_raw`."""

    disk: Disk
    path: Path
    extent: Extent
    torn_ok: bool = False
    optional: bool = False
    from_raw: FromRaw = NONE_DECLARED

    @property
    def bytes(self) -> int:
        return self.extent.bytes

    def open(self) -> LogReader:
        """A reader at the beginning of the file."""
        return LogReader(self.disk, self.path.parent, self.path.name)

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Its rows, about LOG_BYTES of the file at a time, with those of the columns that it has or
        that can be decoded from its raw. Raises MissingFile or Corruption."""
        reader = self.open()
        try:
            found = reader.follow(self.extent, torn_ok=self.torn_ok)
        except MissingFile:
            if self.optional:
                return
            raise
        present = reader.schema.names if reader.schema else []
        added = [] if columns is None else self.from_raw.lacking(present, columns)
        names = None if columns is None else _read_for(present, columns, added)
        held: list[tuple[Span, memoryview]] = []
        for span, message in found:
            held.append((span, message))
            if span.end - held[0][0].start >= LOG_BYTES:
                yield self._table(reader.decode(held, names), added)
                held = []
        if held:
            yield self._table(reader.decode(held, names), added)

    def added(self, reader: LogReader, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The rows that `reader`, which was opened here, has not read yet, a piece at a time: these
        columns, or all of the file and its raw. Raises MissingFile or Corruption."""
        for found in reader.pieces(self.extent, torn_ok=self.torn_ok):
            if batches := reader.decode(found, columns):
                present = batches[0].schema.names
                names = self.from_raw.lacking(present, self.from_raw.names) if not columns else []
                yield self._table(batches, names)

    def _table(self, batches: Iterable[pa.RecordBatch], added: Sequence[str]) -> pa.Table:
        return pa.Table.from_batches([self.from_raw.complete(one, added) for one in batches])

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """The same, in the batches that were written."""
        for table in self.tables(columns):
            yield from table.to_batches()

    def faults(self) -> Iterator[Corruption]:
        """Yields or raises what is wrong with any of its bytes; raises MissingFile."""
        rows = sum(batch.num_rows for batch in replace(self, torn_ok=self.optional).batches())
        whole = self.path.exists() and self.disk.size(self.path) >= self.extent.bytes
        if rows != self.extent.rows and (whole or not self.optional):
            yield Corruption(f"log {self.path}: expected {self.extent.rows} rows, got {rows}", 0)


@dataclass(frozen=True)
class ChunkFile:
    """A chunk, and its file. Columns that were declared after it was made are decoded
    `from_raw`."""

    disk: Disk
    path: Path
    chunk: Chunk
    from_raw: FromRaw = NONE_DECLARED

    @property
    def lacking(self) -> list[str]:
        """The declared columns that it lacks, but that can be decoded from its raw."""
        return self.from_raw.lacking(self.chunk.schema, self.from_raw.names)

    @property
    def bytes(self) -> int:
        return self.chunk.checksum.bytes

    def metadata(self) -> pq.FileMetaData:
        """Its footer. Raises MissingFile, or Corruption unless it is as the catalog says."""
        return chunk_metadata(self.disk, self.path, self.chunk)

    def span_ms(self, column: str) -> tuple[int, int] | None:
        """The first and last time in a column, if that is known without reading it. Raises as
        `metadata` does."""
        if column == UPLOAD_TIME:
            return self.chunk.first_ms, self.chunk.last_ms
        return span_ms(self.metadata(), column)

    def require_whole(self) -> None:
        """Raise MissingFile, or Corruption unless every byte is as written."""
        self.chunk.checksum.require_whole(self.disk, self.path)

    def batches(
        self, rows_max: int, columns: Sequence[str], where: pc.Expression | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Its rows, with those of the columns that it has or that can be decoded from its raw;
        without row groups in which no row can match `where`. Raises MissingFile, or Corruption if
        anything is not as written."""
        reader = ChunkReader(self.disk, self.path, self.chunk)
        added = self.from_raw.lacking(reader.names, columns)
        names = _read_for(reader.names, columns, added) or [OFFSET]
        every = range(reader.metadata.num_row_groups)
        for group in every if where is None else self._groups(where):
            one = reader.constant(group, PARTITION) if names == [PARTITION] else None
            if one is None:
                for batch in reader.batches(group, names, rows_max):
                    yield self.from_raw.complete(batch, added)
                continue
            rows = reader.metadata.row_group(group).num_rows  # read from the footer alone
            column = pa.array([one]).take(pa.array(np.zeros(min(rows, rows_max), np.int8)))
            for first in range(0, rows, rows_max):
                part = column.slice(0, min(rows_max, rows - first))
                yield pa.RecordBatch.from_arrays([part], names)

    def _groups(self, where: pc.Expression) -> list[int]:
        """The row groups that may have a matching row."""
        try:
            fragment = ds.ParquetFileFormat().make_fragment(str(self.path), LocalFileSystem())
            # Statistics say nothing about a column that the chunk lacks.
            known = pa.schema([*fragment.physical_schema, *self.from_raw.schema(self.lacking)])
            return [group.id for group in fragment.subset(where, schema=known).row_groups]
        except FileNotFoundError as error:
            raise MissingFile(f"chunk {self.path}: expected a file, none is there") from error
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            # A column in it can't be decoded from raw, or has another type in the chunk.
            return list(range(self.metadata().num_row_groups))

    def faults(self) -> Iterator[Corruption]:
        """Yields or raises what is wrong with any of its bytes, by column and row group if that can
        be determined; raises MissingFile."""
        metadata = self.metadata()
        try:
            self.require_whole()
        except Corruption as error:
            found = list(damaged_columns(self.disk, self.path, self.chunk, metadata))
            yield from found or [error]


def _read_for(present: Iterable[str], wanted: Iterable[str], added: Sequence[str]) -> list[str]:
    """The columns to read, of those present, for the wanted ones, some of which are added."""
    needed = {*wanted, RAW} if added else {*wanted}
    return [name for name in present if name in needed]


class VerifiedChunks:
    """Chunks that were found to match their catalog. Thread safety: any thread.

    A chunk's size is checked in every view, its footer (with `whole`: every byte) once per store:
    names are never reused, so what was right stays right unless the disk fails.
    """

    def __init__(self, *, whole: bool = False) -> None:
        self._whole = whole
        self._known: dict[Path, frozenset[str]] = {}

    def require(self, file: ChunkFile) -> None:
        """Raise MissingFile, or Corruption with file and offset, unless the chunk is as written."""
        if file.path in self._known:
            file.chunk.checksum.require_size(file.disk, file.path)
            return
        metadata = file.metadata()
        if self._whole:
            file.require_whole()
        of_version_1 = not file.chunk.checksum.pieces
        self._known[file.path] = columns_outside_years(metadata) if of_version_1 else frozenset()

    def outside_years(self, path: Path) -> frozenset[str]:
        """The columns of a verified chunk that may have times outside the years 1 to 9999."""
        return self._known.get(path, frozenset())

    def keep(self, paths: Iterable[Path]) -> None:
        """Forget all others."""
        self._known = {path: self._known[path] for path in paths if path in self._known}


@dataclass(frozen=True)
class Partition:
    """A partition at one moment: its published state, the blocks that no chunk covers, and the
    chunks that count. `from_raw` has the columns that are declared, here or elsewhere. A `remote`
    partition is another node's: it has no files here, and its rows are read from there."""

    disk: Disk
    layout: Layout
    state: PartitionState
    hot: tuple[BlockState, ...]
    chunks: tuple[Chunk, ...]
    handed_off_rows: int = 0
    expired_rows: int = 0
    from_raw: FromRaw = NONE_DECLARED
    remote: Remote | None = None

    @classmethod
    def of(cls, directory: Directory, state: PartitionState, catalog: Catalog) -> Partition:
        """The partition by this state and a catalog that was read after it."""
        counts = catalog.committed(state.runs, state.incarnation)
        hot = tuple(block for block in state.blocks if block.id not in counts.covered)
        rows = counts.handed_off_rows, counts.expired_rows
        return cls(directory.disk, directory.layout, state, hot, counts.chunks, *rows)

    def only(self, wanted: Callable[[Chunk | BlockState], bool]) -> Partition:
        """The partition with just these blocks and chunks."""
        hot = tuple(block for block in self.hot if wanted(block))
        return replace(self, hot=hot, chunks=tuple(one for one in self.chunks if wanted(one)))

    def without_files(self, paths: Collection[Path]) -> Partition:
        """The partition without the chunks in these files."""
        left = (file.chunk for file in self.chunk_files if file.path not in paths)
        return replace(self, chunks=tuple(left))

    @property
    def name(self) -> str:
        return self.state.partition

    @property
    def folder(self) -> Path:
        """The folder of its block logs, unique among the partitions of all nodes."""
        return self.layout.hot(self.name)

    @cached_property
    def block_logs(self) -> tuple[Log, ...]:
        if self.remote is not None:
            return ()
        return tuple(log for block in self.hot for log in self.logs_of(block))

    def logs_of(self, block: BlockState) -> list[Log]:
        return self._logs(self.folder, block.extents, torn_ok=True, from_raw=self.from_raw)

    @property
    def reject_logs(self) -> list[Log]:
        if self.remote is not None:
            return []
        return self._logs(self.layout.rejects(self.name), self.state.rejects)

    @property
    def drop_logs(self) -> list[Log]:
        if self.remote is not None:
            return []
        folder = self.layout.drops(self.name)
        return self._logs(folder, self.state.drops, torn_ok=True, optional=True)

    def _logs(self, folder: Path, extents: Iterable[Extent], **kind: Any) -> list[Log]:
        return [Log(self.disk, folder / extent.file, extent, **kind) for extent in extents]

    def rejects(self, wanted: RejectFilter) -> Iterator[pa.RecordBatch]:
        """The rejects that match, in order of arrival. Raises MissingFile if the view is too old,
        or Corruption."""
        return chain.from_iterable(wanted.pick(log.batches()) for log in self.reject_logs)

    @cached_property
    def chunk_files(self) -> tuple[ChunkFile, ...]:
        if self.remote is not None:
            return ()
        folder = self.layout.chunks(self.name)
        return tuple(
            ChunkFile(self.disk, folder / chunk.file, chunk, self.from_raw) for chunk in self.chunks
        )

    @property
    def chunk_paths(self) -> list[Path]:
        return [file.path for file in self.chunk_files]

    @property
    def hot_rows(self) -> int:
        return sum(block.rows for block in self.hot)

    @property
    def cold_rows(self) -> int:
        return sum(chunk.rows for chunk in self.chunks)

    def require_files(self, directory: Directory) -> None:
        """Raise MissingFile if a block log or chunk is gone, Corruption if one is not a plain file
        or a link leads out."""
        for log in (*self.reject_logs, *self.drop_logs):
            directory.require(log.path)
        for path in (*(log.path for log in self.block_logs), *self.chunk_paths):
            directory.require_file(path)


class Published:
    """Decoded published files of partitions: a file with the same bytes as before is not decoded
    again. Thread safety: any thread."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[bytes, Any]] = {}

    def decoded(self, disk: Disk, path: Path, decode: Callable[[bytes, str], T]) -> T | None:
        """What `decode` returns for the file's bytes and name; None if there is no file."""
        try:
            data = disk.read(path)
        except FileNotFoundError:
            return None
        known, value = self._known.get(path, (None, None))
        if known != data:
            value = decode(data, str(path))
            self._known[path] = data, value
        return cast(T, value)


class Directory:
    """A data directory as a reader sees it, links followed. Each folder is checked once, so an
    instance serves one view; `published` may be kept for several."""

    def __init__(self, disk: Disk, root: Path, published: Published | None = None) -> None:
        self._published = published or Published()
        self.disk = disk
        self.layout = Layout(root)
        self._real = root.resolve()
        self._folders: set[Path] = set()

    def require(self, path: Path) -> None:
        """Raise Corruption if links lead out of the data directory."""
        self._require_folder(path.parent)
        if path.is_symlink():
            self._look(path)

    def require_file(self, path: Path) -> None:
        """The same for a file that must exist. Raises MissingFile, or Corruption if it is not a
        plain file."""
        try:
            mode = os.lstat(path).st_mode
            if not stat.S_ISREG(mode):
                self.require(path)
                mode = os.stat(path).st_mode
        except FileNotFoundError as error:
            raise MissingFile(f"{path} is missing") from error
        if not stat.S_ISREG(mode):
            raise Corruption(f"{path}: expected a plain file")
        self._require_folder(path.parent)

    def _require_folder(self, folder: Path) -> None:
        if folder not in self._folders:
            self._look(folder)
            self._folders.add(folder)

    def _look(self, path: Path) -> None:
        if not path.resolve().is_relative_to(self._real):
            raise Corruption(
                f"{path}: expected a file below {self.layout.root}, got a link out of it"
            )

    def catalog(self, name: str) -> Catalog:
        """The chunks of a partition."""
        path = self.layout.catalog(name)
        return self._published.decoded(self.disk, path, Catalog.decode) or Catalog(name)

    def state(self, name: str) -> PartitionState | None:
        """The partition's published state, if any. Raises MissingFile if that is gone although it
        has chunks."""
        path = self.layout.manifest(name)
        self.require(path)
        self.require(self.layout.catalog(name))
        state = self._published.decoded(self.disk, path, PartitionState.decode)
        if state is None and self.catalog(name).chunks:
            raise MissingFile(
                f"{path}: expected the manifest of a partition that has chunks, none is there; the"
                " job publishes it again when it is started"
            )
        if state is not None and state.partition != name:
            raise Corruption(f"{path}: expected partition {name!r}, got {state.partition!r}", 0)
        return state
