"""Events as record batches that are read when they are asked for: a row group, then the next.

What always holds: no thread of ours reads ahead, and a reader that stops half-way leaves nothing
behind that its process would have to wait for; memory holds one batch, and the bytes of one log.
Pages of chunks are checked against their checksums. Each batch has the columns of the schema asked
for: those that a chunk lacks are null, and so are times outside the years 1 to 9999.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from weakref import WeakSet

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from forebay.query.view import PartitionView
from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import Corruption, MissingFile
from forebay.storage.formats.catalog import Chunk
from forebay.storage.formats.chunk import chunk_metadata
from forebay.storage.formats.columns import within_years
from forebay.storage.formats.log import Extent, LogReader, Span
from forebay.storage.formats.schema import UPLOAD_TIME

BATCH_ROWS = 65_536
LOG_BYTES = 4 << 20
"""Compressed bytes of a log that are decoded at once."""
REFUSED_S, LEAVE_S = 0.1, 0.05
"""How long the end of the process waits for a reader to ask once more, and to leave Python then."""


@dataclass(frozen=True)
class Between:
    """Upload times in milliseconds, from `first_ms` on and before `end_ms`; None: no bound."""

    first_ms: int | None = None
    end_ms: int | None = None

    def all_of(self, chunk: Chunk) -> bool:
        below = self.first_ms is not None and chunk.first_ms < self.first_ms
        return not below and (self.end_ms is None or chunk.last_ms < self.end_ms)

    def rows(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Those of a batch that are between."""
        times = batch.column(UPLOAD_TIME).cast(pa.int64())
        for bound, compare in ((self.first_ms, pc.greater_equal), (self.end_ms, pc.less)):
            if bound is not None:
                batch = batch.filter(compare(times, bound))
                times = batch.column(UPLOAD_TIME).cast(pa.int64())
        return batch


class Pulled(Iterator[pa.RecordBatch]):
    """Batches for a reader that may pull on a thread of its own. Thread safety: any thread.

    DuckDB asks for a batch more than it needs, and does not wait for it: its thread would be in
    Python when the interpreter ends, which aborts the process or keeps it for ever. So the end of
    the process waits for the batch that is being read, refuses the next one, and leaves the reader
    a moment to go.
    """

    _open: ClassVar[WeakSet[Pulled]] = WeakSet()

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self._batches = batches
        self._turn = threading.Lock()
        self._ending = False
        self._refused = threading.Event()
        self._open.add(self)

    def __next__(self) -> pa.RecordBatch:
        with self._turn:
            if self._ending:
                self._refused.set()
                raise MissingFile("stream: expected a process that goes on, this one is ending")
            try:
                return next(self._batches)
            except BaseException:
                self._open.discard(self)
                raise

    @classmethod
    def end_all(cls) -> None:
        """Let no more batches be read of any stream that was not read to its end."""
        for one in (found := list(cls._open)):
            with one._turn:
                one._ending = True
            one._refused.wait(REFUSED_S)
        if found:
            time.sleep(LEAVE_S)


atexit.register(Pulled.end_all)


def arrow_of(schema: pa.Schema) -> pa.Schema:
    """The schema in which rows leave: as Polars has it, in types that every reader knows."""
    return _exported(pl.DataFrame(schema.empty_table())).schema


def event_batches(
    disk: Disk, partitions: Sequence[PartitionView], schema: pa.Schema, between: Between
) -> Iterator[pa.RecordBatch]:
    """The rows of all chunks, then the hot ones, in the schema that `arrow_of` gives.

    Raises MissingFile if the view is too old, or Corruption.
    """
    for partition in partitions:
        for path, chunk in zip(partition.chunk_paths, partition.chunks, strict=True):
            for batch in _chunk_batches(disk, path, chunk):
                found = batch if between.all_of(chunk) else between.rows(batch)
                yield from _shaped(found, schema, path)
    for partition in partitions:
        for extent in partition.extents:
            for batch in _log_batches(disk, partition.folder, extent):
                yield from _shaped(between.rows(batch), schema, partition.folder / extent.file)


def _chunk_batches(disk: Disk, path: Path, chunk: Chunk) -> Iterator[pa.RecordBatch]:
    metadata = chunk_metadata(disk, path, chunk)
    try:
        with pq.ParquetFile(path, metadata=metadata, page_checksum_verification=True) as file:
            yield from file.iter_batches(BATCH_ROWS, use_threads=False)
    except FileNotFoundError as error:
        raise MissingFile(f"chunk {path}: expected a file, none is there") from error
    except (pa.ArrowException, OSError) as error:
        chunk.checksum.require_whole(disk, path)
        raise Corruption(f"chunk {path}: expected pages that can be read, got {error}") from error


def _log_batches(disk: Disk, folder: Path, extent: Extent) -> Iterator[pa.RecordBatch]:
    """The rows of a block log, of which small batches are put together. What a query keeps decoded
    is not used: all columns of all hot rows are many times what their logs take."""
    reader = LogReader(disk, folder, extent.file)
    held: list[tuple[Span, memoryview]] = []
    size = 0
    found = reader.follow(extent, torn_ok=True)
    names = reader.schema.names if reader.schema is not None else []
    for number, (span, message) in enumerate(found, start=1):
        held.append((span, message))
        size += len(message)
        if size >= LOG_BYTES or number == len(found):
            whole = pa.Table.from_batches(reader.decode(held, names)).combine_chunks()
            yield from whole.to_batches(BATCH_ROWS)
            held, size = [], 0


def _shaped(batch: pa.RecordBatch, schema: pa.Schema, path: Path) -> Iterator[pa.RecordBatch]:
    """The rows, if there are any, with exactly the columns of `schema`."""
    if not batch.num_rows:
        return
    columns = []
    for field in schema:
        at = batch.schema.get_field_index(field.name)
        if at < 0:
            columns.append(pa.nulls(batch.num_rows, field.type))
            continue
        column = batch.column(at)
        try:
            columns.append(column if column.type == field.type else column.cast(field.type))
        except pa.ArrowException as error:
            raise Corruption(
                f"{path}: {field.name}: expected {field.type}, got {column.type}", 0
            ) from error
    yield within_years(pa.RecordBatch.from_arrays(columns, schema=schema))


def _exported(frame: pl.DataFrame) -> pa.Table:
    return frame.to_arrow(compat_level=pl.CompatLevel.oldest())
