"""Writing block logs: one file, and a log that grows over the files of several runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc as ipc
from isal.isal_zlib import crc32

from forebay.storage.base.disk import Appender, Disk
from forebay.storage.formats.log import CHECKSUM, ZEROS, Extent, LogReader, Span, digits_of

_WRITE = ipc.IpcWriteOptions(compression=pa.Codec("zstd", compression_level=-3), use_threads=False)
_EOS_BYTES = 8
PENDING_ROWS_MAX, PENDING_BYTES_MAX = 8_192, 16 << 20
"""What a record batch may have: so much is written at once, while the worker waits."""
WINDOW_BYTES = 8 << 20


class LogWriter:
    """Appends record batches of one schema to one new file.

    `extent` always names whole batches only. After an OSError the file is in doubt: give the writer
    up and carry on in a file of another name.
    """

    def __init__(self, disk: Disk, folder: Path, name: str, schema: pa.Schema) -> None:
        self._file: Appender = disk.create(folder / name)
        self._schema = schema
        self._prefix = schema.serialize().to_pybytes()
        self._prefix_crc = crc32(self._prefix)
        self.extent = Extent(name, 0, 0, 0)
        self.dirty = True

    def append(self, batch: pa.RecordBatch) -> Span:
        """Write one batch; it is in the operating system's hands, not yet durable."""
        out = pa.BufferOutputStream()
        with ipc.new_stream(out, self._schema, options=_WRITE) as stream:
            stream.write_batch(batch, custom_metadata={"checksum": CHECKSUM + ZEROS})
        whole = memoryview(out.getvalue()).cast("B")
        data = whole[: len(whole) - _EOS_BYTES]
        if self.extent.bytes:
            data = data[len(self._prefix) :]
        last = self.extent
        start, start_crc, message = last.bytes, last.crc, data
        if not start:
            start, start_crc = len(self._prefix), self._prefix_crc
            message = data[start:]
        digits = digits_of(message)
        message[digits] = b"%08x" % crc32(message, self._prefix_crc)
        end, end_crc = last.bytes + len(data), crc32(message, start_crc)
        self._file.append(data)
        self.dirty = True
        self.extent = Extent(last.file, end, last.rows + batch.num_rows, end_crc)
        return Span(last.file, start, end, start_crc, end_crc)

    def adopt(self, messages: Sequence[memoryview], rows: int) -> None:
        """Write batches of another log of the same schema, `rows` in all, as they stand there."""
        last = self.extent
        data = b"".join(messages) if last.bytes else b"".join((self._prefix, *messages))
        self._file.append(data)
        self.dirty = True
        crc = crc32(data, last.crc)
        self.extent = Extent(last.file, last.bytes + len(data), last.rows + rows, crc)

    def sync(self) -> None:
        """Return once all appended batches would survive a power loss."""
        if self.dirty:
            self._file.sync()
            self.dirty = False


class RowBytes:
    """The mean size of a row in memory, the largest of any stretch of WINDOW_BYTES: one large row
    among small ones does not change it, many together do."""

    def __init__(self, known: int = 0) -> None:
        self._widest = known
        self._bytes = self._rows = 0

    def add(self, batch: pa.RecordBatch) -> None:
        self._bytes += batch.nbytes
        self._rows += batch.num_rows
        if self._bytes >= WINDOW_BYTES and self._rows:
            self._widest = max(self._widest, -(-self._bytes // self._rows))
            self._bytes = self._rows = 0

    @property
    def value(self) -> int:
        """In bytes, rounded up; of all rows if they are less than a stretch."""
        return self._widest or -(-self._bytes // max(1, self._rows))


class GrowingLog:
    """All extents of one log, and a file of this run that is made when there is something to write.

    Appended batches are pending until `flush` writes them as one record batch.
    """

    def __init__(
        self,
        disk: Disk,
        folder: Path,
        name: str,
        schema: pa.Schema,
        extents: Iterable[Extent] = (),
        row_bytes: int = 0,
    ) -> None:
        """`row_bytes` is what is known of the rows in `extents`, 0 if nothing is."""
        self._disk = disk
        self._folder = folder
        self._name = name
        self._schema = schema
        self._earlier = tuple(extents)
        self._row_bytes = None if self._earlier and not row_bytes else RowBytes(row_bytes)
        self._writer: LogWriter | None = None
        self._named = True
        self._pending: list[pa.RecordBatch] = []
        self._pending_rows = self._pending_bytes = 0

    @property
    def name(self) -> str:
        """The name of this run's file."""
        return self._name

    @property
    def extents(self) -> tuple[Extent, ...]:
        """What is in files, flushed but perhaps not durable."""
        return (*self._earlier, *((self._writer.extent,) if self._writer else ()))

    @property
    def bytes(self) -> int:
        """Size of this run's file."""
        return self._writer.extent.bytes if self._writer else 0

    @property
    def dirty(self) -> bool:
        return self._writer is not None and self._writer.dirty

    @property
    def full(self) -> bool:
        """Whether what is pending is enough for a record batch, or would soon be too much."""
        return self._pending_rows >= PENDING_ROWS_MAX or self._pending_bytes >= PENDING_BYTES_MAX

    @property
    def row_bytes(self) -> int:
        """As in `RowBytes`; 0 if it is not known."""
        return self._row_bytes.value if self._row_bytes else 0

    def append(self, batch: pa.RecordBatch) -> None:
        self._pending.append(batch)
        if self._row_bytes:
            self._row_bytes.add(batch)
        self._pending_rows += batch.num_rows
        self._pending_bytes += batch.nbytes

    def flush(self) -> Span | None:
        """Write what is pending; None if nothing was."""
        if not self._pending:
            return None
        span = self._write().append(pa.concat_batches(self._pending))
        self._pending, self._pending_rows, self._pending_bytes = [], 0, 0
        return span

    def copy(self, extents: Sequence[Extent]) -> None:
        """Write all that is in other logs of the folder, without decoding it. Raises MissingFile or
        Corruption, also if one has another schema; nothing was written then."""
        held = []
        for extent in extents:
            reader = LogReader(self._disk, self._folder, extent.file)
            held += [message for _, message in reader.follow(extent)]
            reader.require_head(self._schema)
        self._write().adopt(held, sum(extent.rows for extent in extents))

    def _write(self) -> LogWriter:
        """The writer of this run's file, which is made if there is none."""
        if self._writer is None:
            self._writer = LogWriter(self._disk, self._folder, self._name, self._schema)
            self._named = False
        return self._writer

    def sync(self) -> None:
        """Make what was flushed durable, the file's name included."""
        if self._writer:
            self._writer.sync()
            if not self._named:
                self._disk.sync_directory(self._folder)
                self._named = True
