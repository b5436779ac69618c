"""The chunk: evicted blocks merged into one Parquet file, sorted by upload time.

`merge` writes it. Its columns are those of the blocks' logs and, if `raw` is kept, those declared
since, which are taken from `raw`; missing values are null. It has zstd pages and column statistics.
Its checksums are in the catalog: no one reads a chunk before its footer is verified, and
`ChunkReader` reads no column before its pages are. Polars writes no checksums of pages; older
chunks, which pyarrow wrote, have them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import Corruption, MissingFile
from forebay.storage.base.times import END_S, FIRST_S, PER_SECOND
from forebay.storage.formats.catalog import Chunk
from forebay.storage.formats.columns import parse_types

SHORT = 32
"""Characters that statistics have whole: they may cut what is longer."""

_LARGE = {pa.large_string(): pa.string(), pa.large_binary(): pa.binary()}


class ChunkReader:
    """Reads row groups of a chunk, in the types that its catalog names. Creating one raises
    MissingFile, or Corruption unless the footer is what the catalog says."""

    def __init__(self, disk: Disk, path: Path, chunk: Chunk) -> None:
        self._disk = disk
        self._path = path
        self._chunk = chunk
        self._types = parse_types(chunk.schema)
        self.metadata = chunk_metadata(disk, path, chunk)

    @property
    def names(self) -> list[str]:
        return list(self._types.names)

    def batches(
        self, group: int, columns: Sequence[str] | None = None, rows_max: int = 1 << 16
    ) -> Iterator[pa.RecordBatch]:
        """The rows of a row group, with these columns only, at most `rows_max` at a time. Raises
        MissingFile, or Corruption unless these columns are as written."""
        names = self.names if columns is None else list(columns)
        types = pa.schema([self._types.field(name) for name in names])
        require_columns(self._disk, self._path, self._chunk, self.metadata, names, [group])
        try:
            with pq.ParquetFile(
                self._path, metadata=self.metadata, page_checksum_verification=True
            ) as file:
                for batch in file.iter_batches(
                    rows_max, row_groups=[group], columns=names, use_threads=False
                ):
                    yield batch.select(names).cast(types)
        except FileNotFoundError as error:
            raise MissingFile(f"chunk {self._path}: expected a file, none is there") from error
        except (pa.ArrowException, OSError) as error:
            self._chunk.checksum.require_whole(self._disk, self._path)
            at, _ = column_range(self.metadata, group, 0)
            raise Corruption(
                f"chunk {self._path}: row group {group} from offset {at}: {error}", at
            ) from error

    def constant(self, group: int, name: str) -> object:
        """The value of a text column in all rows of a row group, if its statistics say so."""
        column = self.metadata.row_group(group).column(self.metadata.schema.names.index(name))
        known = column.statistics
        if known is None or not known.has_min_max or known.null_count != 0:
            return None
        whole = known.min == known.max and len(known.min) < SHORT
        return known.min if whole else None

    def table(self, group: int, columns: Sequence[str] | None = None) -> pa.Table:
        """All of these at once."""
        names = self.names if columns is None else list(columns)
        types = pa.schema([self._types.field(name) for name in names])
        return pa.Table.from_batches(self.batches(group, names), types)


def require_columns(
    disk: Disk,
    path: Path,
    chunk: Chunk,
    metadata: pq.FileMetaData,
    names: Iterable[str],
    groups: Iterable[int],
) -> None:
    """Raise MissingFile, or Corruption unless these columns (those it has) are as written in these
    row groups, as far as the catalog can tell: a chunk of version 1 has checksums in its pages."""
    if chunk.checksum.pieces:
        wanted = {n for n, name in enumerate(metadata.schema.names) if name in set(names)}
        ranges = [column_range(metadata, group, n) for group in groups for n in sorted(wanted)]
        chunk.checksum.require(disk, path, ranges)


def column_range(metadata: pq.FileMetaData, group: int, column: int) -> tuple[int, int]:
    """Where in the file a column of a row group lies, as offsets [start, end)."""
    found = metadata.row_group(group).column(column)
    start = found.data_page_offset
    if found.dictionary_page_offset:
        start = min(start, found.dictionary_page_offset)
    return start, start + found.total_compressed_size


def damaged_columns(
    disk: Disk, path: Path, chunk: Chunk, metadata: pq.FileMetaData
) -> Iterator[Corruption]:
    """Which columns of which row groups are damaged: those in a piece that is not as written, and
    of these the ones that can't be read, if there are any; of a chunk of version 1, which has no
    checksums of pieces, those of which a page does not match its own."""
    columns = [
        (*column_range(metadata, group, column), group, metadata.schema.names[column])
        for group in range(metadata.num_row_groups)
        for column in range(metadata.num_columns)
    ]
    pieces = chunk.checksum.damaged(disk, path)
    with pq.ParquetFile(path, metadata=metadata, page_checksum_verification=True) as file:

        def error(group: int, name: str) -> Exception | None:
            try:
                file.read_row_group(group, columns=[name], use_threads=False)
            except (pa.ArrowException, OSError) as found:
                return found
            return None

        for low, high in pieces or [(start, end) for start, end, _, _ in columns]:
            inside = [(n, name) for start, end, n, name in columns if start < high and low < end]
            errors = {one: found for one in inside if (found := error(*one))}
            if not pieces and not errors:
                continue
            where = ", ".join(f"row group {n} column {name!r}" for n, name in errors or inside)
            why = "; ".join(str(found).strip() for found in errors.values()) or "checksum"
            yield Corruption(
                f"chunk {path}: bytes {low}..{high} are damaged ({where or 'no column'}): {why}",
                low,
            )


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
    plain = pa.schema([(f.name, _LARGE.get(f.type, f.type)) for f in schema], schema.metadata)
    if not plain.equals(expected, check_metadata=True):
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
    """The columns in which a chunk of version 1 may have times outside the years 1 to 9999."""
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


def span_ms(metadata: pq.FileMetaData, column: str) -> tuple[int, int] | None:
    """The first and last time in a column; None unless the statistics of all row groups say so."""
    schema = metadata.schema.to_arrow_schema()
    at = schema.get_field_index(column)
    if at < 0 or not pa.types.is_timestamp(schema.types[at]):
        return None
    groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
    found = [one.column(at).statistics for one in groups]
    if not all(known is not None and known.has_min_max for known in found):
        return None
    per_second = PER_SECOND[schema.types[at].unit]
    first, last = min(one.min_raw for one in found), max(one.max_raw for one in found)
    return first * 1000 // per_second, last * 1000 // per_second


def _as_stored(type: pa.DataType) -> pa.DataType:
    """Parquet has no timestamps in seconds."""
    seconds = pa.types.is_timestamp(type) and type.unit == "s"
    return pa.timestamp("ms", tz=type.tz) if seconds else type
