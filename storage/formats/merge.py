"""Merging: rows of logs or chunks become one Parquet file, sorted, in bounded memory.

The file is sorted by (upload_time, _partition, _offset); Polars sorts and writes it. It comes from
a stream of frames, each of which holds rows of one range of that order, so memory holds one range
and what Polars is writing, however much is merged. Input comes in groups whose upload times don't
overlap (blocks of one interval, say); `ranges` cuts each where it has more rows than fit.

A row group has ROW_GROUP_BYTES at most, by the largest mean row of any stretch, because Polars cuts
them by rows. Importing this module imports Polars, which a start of the job does without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, cast

import polars as pl
import pyarrow as pa
from polars.io.plugins import register_io_source

from forebay.storage.base.disk import Disk, naming
from forebay.storage.formats.catalog import Chunk
from forebay.storage.formats.checksum import Checksum, SummedFile
from forebay.storage.formats.chunk import ChunkReader
from forebay.storage.formats.columns import unite
from forebay.storage.formats.log import (
    Extent,
    LogReader,
    Span,
    log_schema,
    read_span,
    require_valid,
)
from forebay.storage.formats.log_writer import RowBytes
from forebay.storage.formats.ranges import POOL, SORTED_BY, Again, Group, Rows, Spill, ranges
from forebay.storage.formats.state import BlockState

ROW_GROUP_ROWS, ROW_GROUP_BYTES = 131_072, 24 << 20
ZSTD_LEVEL = 1
"""On such rows no larger than level 3, for two thirds of the time."""
SHARE = 16
"""A range may have one part in so many of the memory, a row group half of that: there are two
ranges at a time, for a row group may have rows of both, and of a row group Polars holds half a
dozen copies in all stages of encoding. The rest is what allocators keep."""
FRAMES = 6
"""A row group comes to Polars in so many frames, for a few of them are on their way at any time."""
PART_ROWS = 8_192
Complete = Callable[[pa.RecordBatch], pa.RecordBatch]
"""Adds to a batch columns that its file has not."""


def log_rows(disk: Disk, folder: Path, extent: Extent) -> Rows:
    """The rows of one extent of a log; a part is a record batch. Reading raises MissingFile or
    Corruption."""

    def parts(columns: Sequence[str] | None) -> Iterator[tuple[Again, pa.RecordBatch]]:
        reader = LogReader(disk, folder, extent.file, POOL)
        for found in reader.pieces(extent, each=columns is None):
            batches = reader.decoded(found, columns)
            for (span, _), batch in zip(found, batches, strict=True):
                if columns is not None:  # not to be read beyond its end if it is damaged
                    require_valid(folder / extent.file, span, batch)
                yield partial(again, reader, span), batch

    def again(reader: LogReader, span: Span) -> pa.RecordBatch:
        if reader.schema is None:
            raise AssertionError("bug: a part without a schema")
        return read_span(disk, folder, span, reader.schema, reader.schema.names, POOL)

    return parts


def chunk_rows(reader: ChunkReader) -> Rows:
    """The rows of a chunk; a part is some rows of a row group."""

    def parts(columns: Sequence[str] | None) -> Iterator[tuple[Again, pa.RecordBatch]]:
        for group in range(reader.metadata.num_row_groups):
            for number, batch in enumerate(reader.batches(group, columns, PART_ROWS)):
                yield partial(again, group, number), batch

    def again(group: int, number: int) -> pa.RecordBatch:
        return next(islice(reader.batches(group, rows_max=PART_ROWS), number, None))

    return parts


def schema_of(disk: Disk, folder: Path, blocks: Iterable[BlockState]) -> pa.Schema:
    """All columns that any log of these blocks has."""
    names = {extent.file: extent for block in blocks for extent in block.extents}
    return unite(log_schema(disk, folder, name) for name in sorted(names))


def groups_of_blocks(disk: Disk, folder: Path, blocks: Iterable[BlockState]) -> list[Group]:
    """The blocks' logs in `folder`, in groups whose upload times don't overlap."""
    groups: list[Group] = []
    end_ms = None
    for block in sorted(blocks, key=lambda block: block.first_ms):
        rows = [log_rows(disk, folder, extent) for extent in block.extents]
        row_bytes = block.row_bytes or max(map(_row_bytes, rows), default=0)
        if end_ms is None or block.first_ms > end_ms:
            groups.append(Group([], 0, 0))
        last = groups[-1]
        groups[-1] = Group(
            [*last.inputs, *rows], last.rows + block.rows, max(last.row_bytes, row_bytes)
        )
        end_ms = max(block.last_ms, end_ms or block.last_ms)
    return groups


def groups_of_chunks(disk: Disk, folder: Path, chunks: Iterable[Chunk]) -> list[Group]:
    """The chunks in `folder`, as one group."""
    inputs, rows, row_bytes = [], 0, 0
    for chunk in chunks:
        reader = ChunkReader(disk, folder / chunk.file, chunk)
        inputs.append(chunk_rows(reader))
        rows += chunk.rows
        row_bytes = max(row_bytes, chunk.row_bytes or _row_bytes(inputs[-1]))
    return [Group(inputs, rows, row_bytes)]


def _row_bytes(rows: Rows) -> int:
    """The mean size of a row where that is not on record."""
    found = RowBytes()
    for _, batch in rows(None):
        found.add(batch)
    return found.value


def write_sorted(
    disk: Disk,
    target: Path,
    groups: Sequence[Group],
    schema: pa.Schema,
    memory_bytes: int,
    complete: Complete = lambda batch: batch,
) -> Checksum:
    """Write the rows of these groups, which are in order, into the file `target`, with the columns
    of `schema`, null where a part has none and `complete` does not add it. An unfinished file may
    remain after an error; the caller makes it durable and gives it its name. Takes `memory_bytes`,
    or little more.

    Raises MissingFile or Corruption if an input can't be read, OSError if the file can't be
    written.
    """
    widest = max(group.row_bytes for group in groups)
    part_bytes = memory_bytes // SHARE
    rows = max(1, min(ROW_GROUP_ROWS, min(ROW_GROUP_BYTES, part_bytes // 2) // max(1, widest)))

    def frames(*_: object) -> Iterator[pl.DataFrame]:
        for group in groups:
            for batches in ranges(group, part_bytes, spill):
                yield from _sorted(map(complete, batches), schema, max(1, rows // FRAMES))
                del batches

    source = register_io_source(frames, schema=_frame([], schema).schema, is_pure=True)
    with Spill(disk, target) as spill, naming(target), disk.write(target) as file:
        summed = SummedFile(file)
        with _errors_of(summed):
            source.sink_parquet(
                cast(IO[bytes], summed),
                compression="zstd",
                compression_level=ZSTD_LEVEL,
                row_group_size=rows,
                engine="streaming",
            )
    return summed.checksum(disk, target)


@contextmanager
def _errors_of(file: SummedFile) -> Iterator[None]:
    """Polars reports what a file raised as an error of its own, without the error number."""
    try:
        yield
    except pl.exceptions.PolarsError as error:
        if file.error is not None:
            raise file.error from error
        raise


def _frame(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> pl.DataFrame:
    """The batches with exactly these columns."""
    tables = [pa.Table.from_batches([batch]) for batch in batches]
    united = pa.concat_tables([schema.empty_table(), *tables], promote_options="default")
    return cast(pl.DataFrame, pl.from_arrow(united.select(schema.names), rechunk=False))


def _sorted(
    batches: Iterable[pa.RecordBatch], schema: pa.Schema, rows: int
) -> Iterator[pl.DataFrame]:
    """The batches in order, so many rows at a time."""
    frame = _frame(batches, schema)
    order = frame.select(pl.arg_sort_by(*SORTED_BY)).to_series()
    ordered = order.is_sorted()  # then a slice is the same, and no copy
    for low in range(0, len(order), rows):
        yield frame[low : low + rows] if ordered else frame[order[low : low + rows]]
