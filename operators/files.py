"""The file source: NDJSON files, plain, gzip or zstd, one partition a file.

A message is a line and its offset is the line's number, from 0; blank lines are no messages but
keep their numbers. The snapshot is line number and position in the decompressed bytes, so a plain
file resumes by a seek and a compressed one by skipping. The file's modification time stands for the
broker's timestamp. The source ends at the files' ends; what is appended later is read by the next
run, and so is a last line that is not whole yet, or what stands behind damage.
"""

from __future__ import annotations

import logging
import os
import re
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import orjson
import zstandard
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from typing_extensions import override

from operators.failure import note_unread, noted
from operators.messages import Messages
from operators.stop import stopping
from storage.errors import BadInput, Corruption, ForebayError
from storage.layout import PartitionKey

log = logging.getLogger("forebay.files")

SUFFIXES = (".ndjson", ".jsonl", ".json")
COMPRESSIONS = ("", ".gz", ".zst")
READ_BYTES = 4 << 20
PACKED_BYTES = 256 << 10
BATCH_BYTES_MAX = 16 << 20

Position = tuple[int, int]
"""Lines read, and bytes of decompressed content read."""


@dataclass(frozen=True)
class FilesConfig:
    """`leave_out` is a folder that is not looked into, Forebay's own."""

    path: Path
    batch_rows: int = 5000
    leave_out: Path | None = None


def file_partitions(config: FilesConfig) -> dict[PartitionKey, Path]:
    """Every NDJSON file at or below `path`, each a partition named after its relative path.

    A partition's number comes from its name alone, so files may be added in any order.
    Raises BadInput if there is none.
    """
    path = config.path
    if path.is_file():
        found = {path.name: path}
    else:
        found = {
            entry.relative_to(path).as_posix(): entry
            for entry in sorted(path.rglob("*"))
            if entry.is_file() and entry.name.endswith(_ENDINGS) and not _left_out(entry, config)
        }
    if not found:
        raise BadInput(f"files.path: expected NDJSON files at {path} ({', '.join(_ENDINGS)})")
    return {
        PartitionKey(name := _name(relative), zlib.crc32(name.encode())): entry
        for relative, entry in found.items()
    }


def _left_out(entry: Path, config: FilesConfig) -> bool:
    return config.leave_out is not None and config.leave_out.resolve() in entry.resolve().parents


def _name(relative: str) -> str:
    """A partition name, another for each path: what it may not have becomes `_HEX_`."""
    return re.sub(r"\A[.=-]|[^A-Za-z0-9.=-]", lambda match: f"_{ord(match[0]):x}_", relative)


class _FilePartition(StatefulSourcePartition[Messages, Position | None]):
    def __init__(self, name: str, path: Path, rows: int, resume: Position | None) -> None:
        self._name = name
        self._rows = rows
        self._line, self._bytes = resume or (0, 0)
        self._time_ms = path.stat().st_mtime_ns // 1_000_000
        self._content = _Content(path)
        try:
            *self._lines, self._rest = self._content.skip(self._bytes).split(b"\n")
        except ForebayError:
            self._content.close()
            raise
        self._at = 0
        self._held = sum(map(len, self._lines))
        self._ended = False

    @override
    @noted
    def next_batch(self) -> list[Messages]:
        if stopping():
            raise StopIteration
        while len(self._lines) - self._at < self._rows and self._held < BATCH_BYTES_MAX:
            if self._ended:
                break
            self._read()
        lines = self._lines[self._at : self._at + self._rows]
        if not lines:
            raise StopIteration
        self._at += len(lines)
        self._held -= sum(map(len, lines))
        first = self._line
        self._line += len(lines)
        self._bytes += sum(map(len, lines)) + len(lines)
        kept = [row for row, line in enumerate(lines) if line and line != b"\r"]
        return [
            Messages(
                source=self._name,
                values=lines if len(kept) == len(lines) else [lines[row] for row in kept],
                offsets=np.array(kept, dtype=np.int64) + first,
                times_ms=np.full(len(kept), self._time_ms, dtype=np.int64),
                next_offset=self._line,
                end_offset=self._line if self._ended and self._at == len(self._lines) else None,
                read_ms=time.time_ns() // 1_000_000,
            )
        ]

    def _read(self) -> None:
        """Take in some more lines. What can't be read, now, ends the partition for this run."""
        try:
            data = self._content.read()
        except (Corruption, OSError) as error:
            log.error("%s; the rest is left to a later run", error)
            note_unread(str(error))
            self._ended, self._rest = True, b""
            return
        if data:
            *lines, self._rest = (self._rest + data).split(b"\n")
        else:
            self._ended = True
            lines, self._rest = self._last_line(), b""
        self._held += sum(map(len, lines))
        self._lines = self._lines[self._at :] + lines
        self._at = 0

    def _last_line(self) -> list[bytes]:
        """What stands after the last newline, if it is whole; else a later run reads it."""
        if not self._rest:
            return []
        try:
            orjson.loads(self._rest)
        except orjson.JSONDecodeError:
            log.warning("file %s: its last line is not whole yet; left to a later run", self._name)
            return []
        return [self._rest]

    @override
    def snapshot(self) -> Position:
        return self._line, self._bytes

    @override
    def close(self) -> None:
        self._content.close()


class _GonePartition(StatefulSourcePartition[Messages, Position | None]):
    """A file that was read before and is not there now: nothing more comes, its place is kept."""

    def __init__(self, name: str, resume: Position | None) -> None:
        log.warning("file of partition %s is gone; what was read of it stays", name)
        self._resume = resume

    @override
    def next_batch(self) -> list[Messages]:
        raise StopIteration

    @override
    def snapshot(self) -> Position | None:
        return self._resume


class FileSource(FixedPartitionedSource[Messages, Position | None]):
    """The files that are there when the job starts."""

    def __init__(
        self,
        config: FilesConfig,
        partitions: Mapping[PartitionKey, Path],
        gone: Sequence[str] = (),
    ) -> None:
        """`gone` are partitions read before whose files are there no more."""
        self._config = config
        self._gone = gone
        self._paths = {key.name: path for key, path in partitions.items()}

    @override
    def list_parts(self) -> list[str]:
        return sorted({*self._paths, *self._gone})

    @override
    def build_part(
        self, step_id: str, for_part: str, resume_state: Position | None
    ) -> StatefulSourcePartition[Messages, Position | None]:
        if for_part not in self._paths:
            return _GonePartition(for_part, resume_state)
        return _FilePartition(
            for_part, self._paths[for_part], self._config.batch_rows, resume_state
        )


_ENDINGS = tuple(suffix + packed for suffix in SUFFIXES for packed in COMPRESSIONS)


class _Content:
    """The decompressed bytes of a file, forward only. Raises Corruption for what is not whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._unpack: _Unpack | None = None
        self._make = next((m for end, m in _UNPACKERS.items() if path.name.endswith(end)), None)
        self._file = path.open("rb")

    def read(self) -> bytes:
        """Some bytes more; none at the end."""
        while data := self._file.read(READ_BYTES if self._make is None else PACKED_BYTES):
            data = data if self._make is None else self._unpacked(data, self._make)
            if data:
                return data
        if self._unpack is not None and not self._unpack.eof:
            raise Corruption(
                f"file {self._path}: expected the end of a compressed frame, got the file's end at"
                f" offset {self._file.tell()}",
                self._file.tell(),
            )
        return b""

    def _unpacked(self, data: bytes, make: Callable[[], _Unpack]) -> bytes:
        """`data` decompressed; frames (gzip members) may follow one another."""
        parts = []
        try:
            while data:
                if self._unpack is None or self._unpack.eof:
                    self._unpack = make()
                parts.append(self._unpack.decompress(data))
                data = self._unpack.unused_data
        except (zlib.error, zstandard.ZstdError) as error:
            raise Corruption(
                f"file {self._path}: can't be decompressed before offset {self._file.tell()}:"
                f" {error}",
                self._file.tell(),
            ) from error
        return b"".join(parts)

    def skip(self, count: int) -> bytes:
        """Go on after `count` bytes, less one for the newline that a last line may lack; what was
        read beyond. Raises BadInput if there are fewer."""
        if self._make is None:
            size = os.fstat(self._file.fileno()).st_size
            self._require(count, size)
            self._file.seek(min(count, size))
            return b""
        seen = 0
        while seen < count and (data := self.read()):
            seen += len(data)
            if seen >= count:
                return data[len(data) - (seen - count) :]
        self._require(count, seen)
        return b""

    def _require(self, count: int, found: int) -> None:
        if found < count - 1:
            raise BadInput(
                f"file {self._path}: expected at least {count - 1} bytes as read before, got"
                f" {found}"
            )

    def close(self) -> None:
        self._file.close()


class _Unpack(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


_UNPACKERS: dict[str, Callable[[], _Unpack]] = {
    ".gz": lambda: zlib.decompressobj(16 + zlib.MAX_WBITS),
    ".zst": lambda: zstandard.ZstdDecompressor().decompressobj(),
}
