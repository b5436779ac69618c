"""The block log: an append-only Arrow IPC stream file, committed by length.

    file    := schema message, record batch message*          (Arrow IPC streaming format, no EOS)
    buffers are zstd-compressed; one record batch per flush; reject logs have the same format
    each batch's metadata has the CRC-32 of schema and batch, its own eight digits taken as zeros

Times outside the years 1 to 9999, which version 1 stored, are read as null.
A file does not say how much of it counts. An `Extent` does: the first `bytes` bytes of `file` hold
`rows` rows, and `crc` is the CRC-32 (zlib) of exactly these bytes, so a reader that follows a
growing log continues the checksum instead of reading again. The batches' own checksums are for a
log that is shorter than its extent: everything before the first batch that is not whole is still
read. Bytes past an extent belong to no one.
An incarnation's log is one file; a block that lived through restarts has several extents.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc as ipc
from isal.isal_zlib import crc32

from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import Corruption, MissingFile
from forebay.storage.base.layout import checked
from forebay.storage.base.record import Count, Crc
from forebay.storage.formats.columns import require_plain, within_years

CHECKSUM, ZEROS = b"crc32:", b"00000000"
PIECE_BYTES = 4 << 20
"""What is read at once of a log that is read in pieces."""
HEAD_BYTES = 1 << 20
"""What is read at once to find the schema of a log."""


@dataclass(frozen=True)
class Extent:
    """The part of a log file that counts."""

    file: str
    bytes: Count
    rows: Count
    crc: Crc

    def __post_init__(self) -> None:
        checked(self.file)


@dataclass(frozen=True)
class Span:
    """Where one record batch stands in a log file: bytes [start, end). `start_crc` and `end_crc`
    are the CRC-32 of the file up to there."""

    file: str
    start: int
    end: int
    start_crc: int
    end_crc: int


class LogReader:
    """Follows one log file as its extent grows. Holds the schema and the checksum so far.

    Raises MissingFile, or Corruption with file and offset; a file shorter than its extent (power
    loss) is read to its last whole batch if `torn_ok`.
    """

    def __init__(
        self, disk: Disk, folder: Path, name: str, pool: pa.MemoryPool | None = None
    ) -> None:
        """`pool`: where decompressed batches are allocated, if not in Arrow's default pool."""
        self._disk = disk
        self._pool = pool
        self._path = folder / name
        self._name = name
        self._crc = 0
        self._bytes = 0
        self._prefix = b""
        self.schema: pa.Schema | None = None

    def follow(self, extent: Extent, *, torn_ok: bool = False) -> list[tuple[Span, memoryview]]:
        """The batches in `extent` not returned before, each with its message's bytes."""
        if extent.bytes <= self._bytes:
            return []
        data = self._read(extent.bytes)
        torn = self._bytes + len(data) < extent.bytes
        if torn and not torn_ok:
            raise Corruption(
                f"log {self._path}: expected {extent.bytes} bytes,"
                f" got {self._bytes + len(data)} at offset {self._bytes + len(data)}",
                self._bytes + len(data),
            )
        try:
            found = list(self._split(data, torn))
        except Corruption:
            self._require(data, extent)
            raise
        if not torn and (not found or found[-1][0].end_crc != extent.crc):
            self._require(data, extent)
        if found:
            self._crc, self._bytes = found[-1][0].end_crc, found[-1][0].end
        return found

    def skip(self, extent: Extent) -> None:
        """Continue after an extent. Only its schema is read; the rest is not verified. Raises
        MissingFile or Corruption."""
        size = HEAD_BYTES
        while extent.bytes:
            data = self._read(min(size, extent.bytes))
            source = pa.BufferReader(pa.py_buffer(data))
            try:
                self.schema = _read_schema(source)
                break
            except (pa.ArrowException, ValueError, EOFError, OSError) as error:
                if size >= extent.bytes:
                    raise Corruption(
                        f"log {self._path}: expected a schema, got {error}", 0
                    ) from error
                size *= 8
        else:
            return
        self._prefix = data[: source.tell()]
        self._crc, self._bytes = extent.crc, extent.bytes

    def pieces(
        self, extent: Extent, *, torn_ok: bool = False, each: bool = True
    ) -> Iterator[list[tuple[Span, memoryview]]]:
        """As `follow`, some PIECE_BYTES of the file at a time. Batches are verified by their own
        checksums unless `each` is False; whether they are the extent shows only at the end."""
        size = PIECE_BYTES
        while self._bytes + size < extent.bytes:
            data = self._read(self._bytes + size)
            found = list(self._split(data, torn=True, each=each))
            size = PIECE_BYTES if found else 2 * size
            if found:
                self._crc, self._bytes = found[-1][0].end_crc, found[-1][0].end
                yield found
        yield self.follow(extent, torn_ok=torn_ok)

    def _read(self, end: int) -> bytes:
        try:
            return self._disk.read(self._path, self._bytes, end)
        except FileNotFoundError as error:
            raise MissingFile(f"log {self._path}: expected {end} bytes, no file") from error

    def require_head(self, schema: pa.Schema) -> None:
        """Raise Corruption unless what was read begins as a new log of this schema does."""
        if self._prefix != schema.serialize().to_pybytes():
            raise Corruption(f"log {self._path}: expected the schema that this build writes", 0)

    def _require(self, data: bytes, extent: Extent) -> None:
        """Raise Corruption unless `data` is what the extent says: where it begins to differ, no
        one can tell."""
        crc = crc32(data, self._crc)
        if crc != extent.crc:
            raise Corruption(
                f"log {self._path}: expected checksum {extent.crc:#010x} for bytes"
                f" {self._bytes}..{extent.bytes}, got {crc:#010x}",
                self._bytes,
            )

    def _split(
        self, data: bytes, torn: bool, *, each: bool = True
    ) -> Iterator[tuple[Span, memoryview]]:
        """The batches that are whole in `data`; if it is `torn`, before the first that is not, by
        its checksum too, unless `each` is False."""
        source, view = pa.BufferReader(pa.py_buffer(data)), memoryview(data)
        base, crc = self._bytes, self._crc
        try:
            if base == 0:
                self.schema = _read_schema(source)
                self._prefix = data[: source.tell()]
                crc = crc32(self._prefix)
            while source.tell() < len(data):
                start = source.tell()
                ipc.read_message(source)
                end = source.tell()
                message = view[start:end]
                if torn and each and not _is_whole(message, crc32(self._prefix)):
                    return
                before, crc = crc, crc32(message, crc)
                yield Span(self._name, base + start, base + end, before, crc), message
        except (pa.ArrowException, ValueError, EOFError, OSError) as error:
            if not torn:
                raise Corruption(
                    f"log {self._path}: expected a record batch at offset"
                    f" {base + source.tell()}, got {error}",
                    base + source.tell(),
                ) from error

    def decode(
        self, found: Sequence[tuple[Span, memoryview]], columns: Sequence[str] | None = None
    ) -> list[pa.RecordBatch]:
        """Decompress only `columns` of what `follow` found, in that order; None: all."""
        return list(self.decoded(found, columns))

    def decoded(
        self, found: Sequence[tuple[Span, memoryview]], columns: Sequence[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """The same, one after the other."""
        if not found or self.schema is None:
            return
        columns = self.schema.names if columns is None else columns
        stream = _Stream([self._prefix, *(message for _, message in found)])
        spans = [span for span, _ in found]
        yield from _decode(self._path, stream, self.schema, spans, columns, self._pool)


class _Stream:
    """The schema and messages of a log, for Arrow to read one behind the other: none is copied."""

    closed = False

    def __init__(self, messages: Iterable[bytes | memoryview]) -> None:
        self._messages = iter(messages)
        self._rest = memoryview(b"")

    def read(self, size: int) -> memoryview:
        """The next `size` bytes, but none beyond the message that they begin in."""
        if not self._rest:
            self._rest = memoryview(next(self._messages, b""))
        part, self._rest = self._rest[:size], self._rest[size:]
        return part


def _decode(
    path: Path,
    stream: _Stream,
    schema: pa.Schema,
    spans: Sequence[Span],
    columns: Sequence[str],
    pool: pa.MemoryPool | None = None,
) -> Iterator[pa.RecordBatch]:
    """The batches of the spans, which a stream has after their schema. Raises Corruption with the
    offset of the first that can't be read."""
    wanted = sorted(schema.get_field_index(name) for name in columns)
    options = ipc.IpcReadOptions(included_fields=wanted, use_threads=False)
    done = 0
    try:
        source = pa.PythonFile(stream, mode="r")
        for batch in ipc.open_stream(source, options=options, memory_pool=pool):
            yield within_years(batch.select(list(columns)))
            done += 1
    except (pa.ArrowException, OSError, MemoryError) as error:
        at = spans[done].start
        raise Corruption(
            f"log {path}: the record batch at offset {at} can't be read: {error}", at
        ) from error


def require_valid(path: Path, span: Span, batch: pa.RecordBatch) -> None:
    """Raise Corruption unless the batch at `span` can be read whatever is in it."""
    try:
        batch.validate(full=True)
    except pa.ArrowException as error:
        raise Corruption(
            f"log {path}: the record batch at offset {span.start} can't be read: {error}",
            span.start,
        ) from error


def digits_of(message: memoryview) -> slice:
    """Where in a message the digits of its checksum are. Raises ValueError if it has none."""
    header = 8 + int.from_bytes(message[4:8], "little")
    start = bytes(message[:header]).rindex(CHECKSUM) + len(CHECKSUM)
    return slice(start, start + len(ZEROS))


def _is_whole(message: memoryview, prefix_crc: int) -> bool:
    """Whether a message, and what stands before all, is as it was written."""
    digits, crc = digits_of(message), prefix_crc
    for part in (message[: digits.start], ZEROS, message[digits.stop :]):
        crc = crc32(part, crc)
    return b"%08x" % crc == message[digits]


def read_log(
    disk: Disk, folder: Path, extent: Extent, columns: Sequence[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """All batches of one extent, verified, with `columns` only (those it has)."""
    reader = LogReader(disk, folder, extent.file)
    found = reader.follow(extent)
    if reader.schema is not None:
        names = reader.schema.names if columns is None else columns
        yield from reader.decode(found, [n for n in names if n in reader.schema.names])


def log_schema(disk: Disk, folder: Path, name: str) -> pa.Schema:
    """The schema at the head of a log, not checked. Raises MissingFile or Corruption."""
    return _head(disk, folder / name)[0]


def schema_of_span(disk: Disk, folder: Path, span: Span) -> pa.Schema:
    """The schema at the head of a log, as it was when the batch at `span` was written: the batch's
    checksum covers both. Raises MissingFile or Corruption."""
    path = folder / span.file
    schema, prefix = _head(disk, path)
    message = memoryview(disk.read(path, span.start, span.end))
    try:
        whole = _is_whole(message, crc32(prefix))
    except (ValueError, IndexError):
        whole = False
    if not whole:
        raise Corruption(
            f"log {path}: the schema at offset 0 and the record batch at offset {span.start} are"
            " not both as they were written",
            0,
        )
    return schema


def _head(disk: Disk, path: Path) -> tuple[pa.Schema, bytes]:
    """The schema at the head of a log, and its bytes."""
    for size in (1 << 14, None):
        try:
            data = disk.read(path, 0, size)
            source = pa.BufferReader(data)
            return _read_schema(source), data[: source.tell()]
        except FileNotFoundError as error:
            raise MissingFile(f"log {path}: expected a file, none is there") from error
        except (pa.ArrowException, ValueError, OSError) as error:
            failure = error
    raise Corruption(f"log {path}: no schema at offset 0: {failure}", 0) from failure


def _read_schema(source: pa.BufferReader) -> pa.Schema:
    """Raises ArrowException or ValueError."""
    schema = ipc.read_schema(source)
    require_plain(schema)
    return schema


def read_span(
    disk: Disk,
    folder: Path,
    span: Span,
    schema: pa.Schema,
    columns: Sequence[str],
    pool: pa.MemoryPool | None = None,
) -> pa.RecordBatch:
    """One record batch read alone; `schema` is the schema of its file, `pool` as in LogReader."""
    data = disk.read(folder / span.file, span.start, span.end)
    if len(data) != span.end - span.start:
        raise Corruption(
            f"log {folder / span.file}: expected bytes up to {span.end}, file is short",
            span.start + len(data),
        )
    if crc32(data, span.start_crc) != span.end_crc:
        raise Corruption(
            f"log {folder / span.file}: checksum of bytes {span.start}..{span.end} does not match",
            span.start,
        )
    stream = _Stream([schema.serialize().to_pybytes(), data])
    return next(_decode(folder / span.file, stream, schema, [span], columns, pool))
