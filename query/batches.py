"""Events as record batches that are read on demand, one row group after another.

What always holds: no thread of ours reads ahead, and an abandoned reader leaves nothing behind that
its process would have to wait for; memory holds one batch, and the bytes of one log. Pages of
chunks are checked against their checksums. Each batch has the columns of the requested schema:
columns that a chunk lacks are null, and so are times outside the years 1 to 9999.
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

from forebay.query.node import give_up_all
from forebay.query.partition import ChunkFile, Partition
from forebay.storage.base.errors import Corruption, MissingFile
from forebay.storage.base.times import time_of
from forebay.storage.formats.boundary import Placed
from forebay.storage.formats.columns import within_years
from forebay.storage.formats.schema import UPLOAD_TIME

BATCH_ROWS = 65_536
REFUSED_S, LEAVE_S = 0.1, 0.05
"""How long process exit waits for a reader to ask once more, and then for it to leave Python."""


@dataclass(frozen=True)
class Between:
    """Upload times in milliseconds, from `first_ms` on and before `end_ms`; None: unbounded."""

    first_ms: int | None = None
    end_ms: int | None = None

    def all_of(self, part: Placed) -> bool:
        below = self.first_ms is not None and part.first_ms < self.first_ms
        return not below and (self.end_ms is None or part.last_ms < self.end_ms)

    def within(self, other: Between) -> Between:
        """The intersection of both."""
        firsts = [ms for ms in (self.first_ms, other.first_ms) if ms is not None]
        ends = [ms for ms in (self.end_ms, other.end_ms) if ms is not None]
        return Between(max(firsts, default=None), min(ends, default=None))

    def rows(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The rows of a batch within these bounds."""
        times = batch.column(UPLOAD_TIME).cast(pa.int64())
        for bound, compare in ((self.first_ms, pc.greater_equal), (self.end_ms, pc.less)):
            if bound is not None:
                batch = batch.filter(compare(times, bound))
                times = batch.column(UPLOAD_TIME).cast(pa.int64())
        return batch

    def scanned(self, rows: pl.LazyFrame) -> pl.LazyFrame:
        """The rows of a lazy frame within these bounds."""
        for bound, compare in ((self.first_ms, pl.Expr.ge), (self.end_ms, pl.Expr.lt)):
            if bound is not None:
                rows = rows.filter(compare(pl.col(UPLOAD_TIME), time_of(bound)))
        return rows


class Pulled(Iterator[pa.RecordBatch]):
    """Batches for a reader that may pull on a thread of its own. Thread safety: any thread.

    DuckDB asks for one batch more than it needs, and does not wait for it: its thread could be in
    Python when the interpreter exits, which aborts the process or makes it hang. So process exit
    waits for the batch that is being read, refuses the next one, and gives the reader a moment to
    leave.
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
        """Stop all streams that were not read to their end."""
        give_up_all()
        for one in (found := list(cls._open)):
            with one._turn:
                one._ending = True
            one._refused.wait(REFUSED_S)
        if found:
            time.sleep(LEAVE_S)


atexit.register(Pulled.end_all)


def event_batches(
    partitions: Sequence[Partition],
    between: Between,
    schema: pa.Schema,
    where: pc.Expression | None = None,
) -> Iterator[pa.RecordBatch]:
    """The rows of all chunks, then the hot rows, with these columns of the schema that `arrow_of`
    returns; without row groups in which, by their statistics, no row can match `where`.

    The decoded block logs that queries cache are not used: all columns of all hot rows take many
    times the memory of their logs. Raises MissingFile if the view is too old, or Corruption.
    """
    for file in (file for partition in partitions for file in partition.chunk_files):
        yield from chunk_batches(file, between, schema, where)
    for log in (log for partition in partitions for log in partition.block_logs):
        for table in log.tables([*schema.names, UPLOAD_TIME]):
            for batch in table.combine_chunks().to_batches(BATCH_ROWS):
                yield from _shaped(between.rows(batch), schema, log.path)


def chunk_batches(
    file: ChunkFile, between: Between, schema: pa.Schema, where: pc.Expression | None = None
) -> Iterator[pa.RecordBatch]:
    """The same for one chunk."""
    whole = between.all_of(file.chunk)
    columns = schema.names if whole else [*schema.names, UPLOAD_TIME]
    for batch in file.batches(BATCH_ROWS, columns, where):
        found = batch if whole else between.rows(batch)
        yield from _shaped(found, schema, file.path)


def _shaped(batch: pa.RecordBatch, schema: pa.Schema, path: Path) -> Iterator[pa.RecordBatch]:
    """The rows, if any, with exactly the columns of `schema`."""
    if not batch.num_rows:
        return

    def column(field: pa.Field) -> pa.Array:
        at = batch.schema.get_field_index(field.name)
        if at < 0:
            return pa.nulls(batch.num_rows, field.type)
        try:
            return batch.column(at).cast(field.type)
        except pa.ArrowException as error:
            got = batch.schema.field(at).type
            raise Corruption(
                f"{path}: {field.name}: expected {field.type}, got {got}", 0
            ) from error

    yield within_years(pa.RecordBatch.from_arrays([*map(column, schema)], schema=schema))
