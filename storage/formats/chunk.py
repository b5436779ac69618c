"""The chunk: evicted blocks merged into one Parquet file, sorted by upload time.

Blocks of one interval are sorted together, intervals follow one another, so the file as a whole is
sorted by (upload_time, _partition, _offset) and memory holds one interval, not the chunk.
zstd pages, column statistics, row groups of ROW_GROUP_ROWS rows; Parquet's own dictionary where
values may repeat. The rows' columns are those of the blocks' logs, missing ones null. Its checksum
is in the catalog; no one reads a chunk before having seen that its footer is as written.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from forebay.storage.base.disk import Disk, naming
from forebay.storage.base.errors import Corruption
from forebay.storage.base.times import END_S, FIRST_S, PER_SECOND
from forebay.storage.formats.catalog import Chunk
from forebay.storage.formats.checksum import Checksum, SummedFile
from forebay.storage.formats.columns import parse_types, unite
from forebay.storage.formats.log import log_schema, read_log
from forebay.storage.formats.schema import OFFSET, PARTITION, RAW, UPLOAD_TIME
from forebay.storage.formats.state import BlockState

ROW_GROUP_ROWS, ROW_GROUP_BYTES = 131_072, 256 << 20
ZSTD_LEVEL = 1
"""On such rows no larger than level 3, for two thirds of the time."""
SORTED_BY = (UPLOAD_TIME, PARTITION, OFFSET)


def schema_of(disk: Disk, folder: Path, blocks: Iterable[BlockState]) -> pa.Schema:
    """All columns that any log of these blocks has."""
    names = {extent.file: extent for block in blocks for extent in block.extents}
    return unite(log_schema(disk, folder, name) for name in sorted(names))


def write_chunk(
    disk: Disk, folder: Path, blocks: Sequence[BlockState], target: Path, schema: pa.Schema
) -> Checksum:
    """Merge the blocks' logs in `folder` into the file `target`, which may lie about unfinished
    after an error; making it durable and giving it its name is the caller's."""
    ordered = sorted(blocks, key=lambda block: block.id)
    sorting = pq.SortingColumn.from_ordering(schema, [(name, "ascending") for name in SORTED_BY])
    with naming(target), disk.write(target) as file:
        summed = SummedFile(file)
        with pq.ParquetWriter(
            summed,
            schema,
            compression="zstd",
            compression_level=ZSTD_LEVEL,
            use_dictionary=repeating(schema),
            sorting_columns=sorting,
            write_page_checksum=True,
        ) as writer:
            _write_rows(disk, folder, ordered, writer, schema)
            summed.begin_footer()
    return summed.checksum()


def _write_rows(
    disk: Disk,
    folder: Path,
    ordered: Sequence[BlockState],
    writer: pq.ParquetWriter,
    schema: pa.Schema,
) -> None:
    for _, group in groupby(ordered, lambda block: block.id.interval_ms):
        extents = [extent for block in group for extent in block.extents]
        batches = [batch for extent in extents for batch in read_log(disk, folder, extent)]
        table = with_columns(batches, schema).cast(_large(schema)).combine_chunks()
        order = pc.sort_indices(table, sort_keys=[(name, "ascending") for name in SORTED_BY])
        rows = _group_rows(table)
        for low in range(0, len(order), rows):
            part = table.take(order.slice(low, rows))
            writer.write_table(part.cast(schema), ROW_GROUP_ROWS)


def repeating(schema: pa.Schema) -> list[str]:
    """The columns whose values may repeat often enough for a dictionary."""
    apart = {OFFSET, RAW}
    return [
        field.name
        for field in schema
        if field.name not in apart and not pa.types.is_timestamp(field.type)
    ]


def _large(schema: pa.Schema) -> pa.Schema:
    """With 64-bit offsets, for an interval may have more text than 32 bits can tell."""
    types = {pa.string(): pa.large_string(), pa.binary(): pa.large_binary()}
    return pa.schema([field.with_type(types.get(field.type, field.type)) for field in schema])


def _group_rows(table: pa.Table) -> int:
    """Rows in a row group: fewer of large rows, for a column's offsets have 32 bits."""
    rows = ROW_GROUP_BYTES * table.num_rows // max(1, table.nbytes)
    return max(1, min(ROW_GROUP_ROWS, int(rows)))


def with_columns(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> pa.Table:
    """The batches as one table of exactly this schema; columns that one lacks are null."""
    tables = [pa.Table.from_batches([batch]) for batch in batches]
    united = pa.concat_tables([schema.empty_table(), *tables], promote_options="default")
    return united.select(schema.names)


def chunk_metadata(disk: Disk, path: Path, chunk: Chunk) -> pq.FileMetaData:
    """The footer of a chunk. Raises MissingFile, or Corruption if that is not as written or says
    other than the catalog does."""
    metadata, start = chunk.checksum.metadata(disk, path), chunk.checksum.footer_start
    try:
        schema = metadata.schema.to_arrow_schema()
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise Corruption(
            f"chunk {path}: the schema in its footer at offset {start} can't be read: {error}",
            start,
        ) from error
    expected = pa.schema([(f.name, _as_stored(f.type)) for f in parse_types(chunk.schema)])
    if not schema.equals(expected, check_metadata=True):
        raise Corruption(
            f"chunk {path}: expected the columns {chunk.schema} in its footer at offset {start},"
            f" got {schema}",
            start,
        )
    if metadata.num_rows != chunk.rows:
        raise Corruption(
            f"chunk {path}: expected {chunk.rows} rows in its footer at offset {start}, got"
            f" {metadata.num_rows}",
            start,
        )
    return metadata


def columns_outside_years(metadata: pq.FileMetaData) -> frozenset[str]:
    """The columns of which a chunk of version 1 has times outside the years 1 to 9999, or may."""
    schema = metadata.schema.to_arrow_schema()
    times = [i for i, field in enumerate(schema) if pa.types.is_timestamp(field.type)]
    found = set()
    for group in range(metadata.num_row_groups):
        for i in times:
            statistics = metadata.row_group(group).column(i).statistics
            if (
                statistics is not None
                and statistics.null_count == metadata.row_group(group).num_rows
            ):
                continue
            if statistics is None or not statistics.has_min_max:
                found.add(schema.names[i])
                continue
            per_second = PER_SECOND[schema.types[i].unit]
            first, end = FIRST_S * per_second, END_S * per_second
            if statistics.min_raw < first or statistics.max_raw >= end:
                found.add(schema.names[i])
    return frozenset(found)


def _as_stored(type: pa.DataType) -> pa.DataType:
    """Parquet has no timestamps in seconds."""
    seconds = pa.types.is_timestamp(type) and type.unit == "s"
    return pa.timestamp("ms", tz=type.tz) if seconds else type
