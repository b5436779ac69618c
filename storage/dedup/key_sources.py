"""Where the keys of a block are read back from: its logs and their hash files, or its chunk.

Nothing is read before it is asked for. What is read is as it was written: by checksums of logs,
hash files, a chunk's footer and its pages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import Corruption, MissingFile
from forebay.storage.base.times import ms_of
from forebay.storage.dedup.keys import Stored
from forebay.storage.formats.catalog import Chunk
from forebay.storage.formats.chunk import chunk_metadata
from forebay.storage.formats.columns import parse_types, within_years
from forebay.storage.formats.hash_file import read_hashes
from forebay.storage.formats.hashes import Hash
from forebay.storage.formats.log import Extent, LogReader, Span, read_span, schema_of_span
from forebay.storage.formats.payload import Payload, hash_payload
from forebay.storage.formats.schema import UPLOAD_TIME


@dataclass(frozen=True)
class KeyColumns:
    """What a key set reads back: the columns of the key, with their `hash`, and of the payload."""

    key: tuple[str, ...]
    payload: tuple[str, ...]
    hash: Hash

    def payload_of(
        self, present: Iterable[str], read: Callable[[Sequence[str]], pa.RecordBatch]
    ) -> Payload:
        """The payload of the rows that `read` gives, of those columns that are `present`."""
        present = set(present)
        names = tuple(name for name in self.payload if name in present)
        # Read with a key column, for a batch of no columns has no rows.
        return Payload(names, hash_payload(read([self.key[0], *names]).select(list(names))))


class LogKeys:
    """Of a block's logs."""

    def __init__(
        self,
        disk: Disk,
        folder: Path,
        columns: KeyColumns,
        extents: Callable[[], Iterable[Extent]],
    ) -> None:
        self._disk = disk
        self._folder = folder
        self._columns = columns
        self._extents = extents
        self._schemas: dict[str, pa.Schema] = {}

    def batches(self) -> Iterator[Stored]:
        for extent in self._extents():
            known = read_hashes(self._disk, self._folder, extent, self._columns.hash)
            if known is None:
                yield from self._read_log(extent)
            else:
                yield from (Stored(span, hashes) for span, hashes in known)

    def _read_log(self, extent: Extent) -> Iterator[Stored]:
        reader = LogReader(self._disk, self._folder, extent.file)
        found = reader.follow(extent)
        if reader.schema is not None:
            self._schemas[extent.file] = reader.schema
        batches = reader.decode(found, self._columns.key)
        for (span, _), keys in zip(found, batches, strict=True):
            yield Stored(span, self._columns.hash(keys.columns), keys)

    def read(self, place: Span) -> pa.RecordBatch:
        return self._read(place, self._columns.key)

    def payload(self, place: Span) -> Payload:
        names = self._schema(place).names
        return self._columns.payload_of(names, lambda columns: self._read(place, columns))

    def _read(self, place: Span, columns: Sequence[str]) -> pa.RecordBatch:
        return read_span(self._disk, self._folder, place, self._schema(place), columns)

    def _schema(self, place: Span) -> pa.Schema:
        if place.file not in self._schemas:
            self._schemas[place.file] = schema_of_span(self._disk, self._folder, place)
        return self._schemas[place.file]


class ChunkKeys:
    """Of one interval of a chunk: by metadata as written, and pages that match their checksums."""

    def __init__(
        self,
        disk: Disk,
        path: Path,
        columns: KeyColumns,
        chunk: Chunk,
        first_ms: int,
        end_ms: int,
    ) -> None:
        self._disk = disk
        self._path = path
        self._columns = columns
        self._chunk = chunk
        self._first_ms = first_ms
        self._end_ms = end_ms

    def batches(self) -> Iterator[Stored]:
        with self._open() as file:
            for group in range(file.num_row_groups):
                if self._overlaps(file, group):
                    batch = self._inside(file, group, self._columns.key)
                    if batch.num_rows:
                        yield Stored(group, self._columns.hash(batch.columns), batch)

    def read(self, place: int) -> pa.RecordBatch:
        with self._open() as file:
            return self._inside(file, place, self._columns.key)

    def payload(self, place: int) -> Payload:
        with self._open() as file:
            names = file.schema_arrow.names
            return self._columns.payload_of(names, lambda some: self._inside(file, place, some))

    def _open(self) -> pq.ParquetFile:
        metadata = chunk_metadata(self._disk, self._path, self._chunk)
        try:
            return pq.ParquetFile(self._path, metadata=metadata, page_checksum_verification=True)
        except FileNotFoundError as error:
            raise MissingFile(f"chunk {self._path}: expected a file, none is there") from error

    def _overlaps(self, file: pq.ParquetFile, group: int) -> bool:
        """Whether the row group's statistics leave room for the interval."""
        column = file.schema_arrow.get_field_index(UPLOAD_TIME)
        statistics = file.metadata.row_group(group).column(column).statistics
        if statistics is None or not statistics.has_min_max:
            return True
        low, high = (ms_of(value) for value in (statistics.min, statistics.max))
        return low < self._end_ms and high >= self._first_ms

    def _inside(self, file: pq.ParquetFile, group: int, columns: Sequence[str]) -> pa.RecordBatch:
        """Those rows of the row group that are of the interval."""
        wanted = list(dict.fromkeys((*columns, UPLOAD_TIME)))
        try:
            table = file.read_row_group(group, columns=wanted, use_threads=False)
        except (pa.ArrowException, OSError) as error:
            column = file.metadata.row_group(group).column(0)
            at = column.dictionary_page_offset or column.data_page_offset
            raise Corruption(
                f"chunk {self._path}: row group {group} from offset {at}: {error}", at
            ) from error
        types = parse_types(self._chunk.schema)
        table = table.cast(pa.schema([types.field(name) for name in table.column_names]))
        times = table[UPLOAD_TIME].cast(pa.int64())
        inside = pc.and_(pc.greater_equal(times, self._first_ms), pc.less(times, self._end_ms))
        found = table.filter(inside).select(list(columns))
        return within_years(
            pa.RecordBatch.from_arrays(
                [column.combine_chunks() for column in found.columns], schema=found.schema
            )
        )
