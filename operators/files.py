"""The file source: NDJSON files, plain, gzip or zstd, one partition a file.

A message is a line and its offset is the line's number, from 0; blank lines are no messages but
keep their numbers. The snapshot is line number and position in the decompressed bytes, so a plain
file resumes by a seek and a compressed one by skipping. The file's modification time stands for the
broker's timestamp. The source ends at the files' ends; what is appended later is read by the next
run. Lines must be complete when the job reads them.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import zstandard
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from typing_extensions import override

from operators.messages import Messages
from operators.stop import stopping
from storage.errors import BadInput, Corruption, ForebayError
from storage.layout import PartitionKey

SUFFIXES = (".ndjson", ".jsonl", ".json")
COMPRESSIONS = ("", ".gz", ".zst")
READ_BYTES = 4 << 20
PACKED_BYTES = 256 << 10

Position = tuple[int, int]
"""Lines read, and bytes of decompressed content read."""


@dataclass(frozen=True)
class FilesConfig:
    path: Path
    batch_rows: int = 5000


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
            if entry.is_file() and entry.name.endswith(_ENDINGS)
        }
    if not found:
        raise BadInput(f"source.path: expected NDJSON files at {path} ({', '.join(_ENDINGS)})")
    partitions: dict[PartitionKey, Path] = {}
    for relative, entry in found.items():
        name = re.sub(r"[^A-Za-z0-9.=-]", lambda match: f"_{ord(match[0]):x}", relative)
        partitions[PartitionKey(name, zlib.crc32(name.encode()))] = entry
    return partitions


class _FilePartition(StatefulSourcePartition[Messages, Position]):
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
        self._ended = False

    @override
    def next_batch(self) -> list[Messages]:
        if stopping():
            raise StopIteration
        while len(self._lines) - self._at < self._rows and not self._ended:
            self._read()
        lines = self._lines[self._at : self._at + self._rows]
        if not lines:
            raise StopIteration
        self._at += len(lines)
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
            )
        ]

    def _read(self) -> None:
        data = self._content.read()
        if not data:
            self._ended = True
            data, self._rest = self._rest, b""
            lines = [data] if data else []
        else:
            *lines, self._rest = (self._rest + data).split(b"\n")
        self._lines = self._lines[self._at :] + lines
        self._at = 0

    @override
    def snapshot(self) -> Position:
        return self._line, self._bytes

    @override
    def close(self) -> None:
        self._content.close()


class FileSource(FixedPartitionedSource[Messages, Position]):
    """The files that are there when the job starts."""

    def __init__(self, config: FilesConfig, partitions: dict[PartitionKey, Path]) -> None:
        self._config = config
        self._paths = {key.name: path for key, path in partitions.items()}

    @override
    def list_parts(self) -> list[str]:
        return sorted(self._paths)

    @override
    def build_part(
        self, step_id: str, for_part: str, resume_state: Position | None
    ) -> _FilePartition:
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
                f" offset {self._file.tell()}"
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
                f" {error}"
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
