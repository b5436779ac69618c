"""Where the keys of a block are read back from: its logs and their hash files, or its chunk.

Nothing is read before it is needed. What is read is verified by the checksums of logs, hash files,
a chunk's footer and its pages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from forebay.storage.base.disk import Disk
from forebay.storage.base.times import ms_of
from forebay.storage.dedup.keys import Stored
from forebay.storage.formats.catalog import Chunk
from forebay.storage.formats.chunk import ChunkReader
from forebay.storage.formats.columns import within_years
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
        """The payload of the rows that `read` returns, over the columns that are `present`."""
        present = set(present)
        names = tuple(name for name in self.payload if name in present)
        # Read with a key column, because a batch without columns has no rows.
        return Payload(names, hash_payload(read([self.key[0], *names]).select(list(names))))


class LogKeys:
    """The keys of a block's logs."""

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
    """The keys of one interval of a chunk, as written."""

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
        reader = self._open()
        for group in range(reader.metadata.num_row_groups):
            if self._overlaps(reader, group):
                batch = self._inside(reader, group, self._columns.key)
                if batch.num_rows:
                    yield Stored(group, self._columns.hash(batch.columns), batch)

    def read(self, place: int) -> pa.RecordBatch:
        return self._inside(self._open(), place, self._columns.key)

    def payload(self, place: int) -> Payload:
        reader = self._open()
        names = reader.names
        return self._columns.payload_of(names, lambda some: self._inside(reader, place, some))

    def _open(self) -> ChunkReader:
        return ChunkReader(self._disk, self._path, self._chunk)

    def _overlaps(self, reader: ChunkReader, group: int) -> bool:
        """Whether the row group's statistics leave room for the interval."""
        column = reader.names.index(UPLOAD_TIME)
        statistics = reader.metadata.row_group(group).column(column).statistics
        if statistics is None or not statistics.has_min_max:
            return True
        low, high = (ms_of(value) for value in (statistics.min, statistics.max))
        return low < self._end_ms and high >= self._first_ms

    def _inside(self, reader: ChunkReader, group: int, columns: Sequence[str]) -> pa.RecordBatch:
        """The rows of the row group that belong to the interval."""
        table = reader.table(group, list(dict.fromkeys((*columns, UPLOAD_TIME))))
        times = table[UPLOAD_TIME].cast(pa.int64())
        inside = pc.and_(pc.greater_equal(times, self._first_ms), pc.less(times, self._end_ms))
        found = table.filter(inside).select(list(columns))
        return within_years(
            pa.RecordBatch.from_arrays(
                [column.combine_chunks() for column in found.columns], schema=found.schema
            )
        )
