"""The file source: NDJSON files, plain, gzip or zstd, one partition a file.

A message is a line and its offset is the line's number, from 0; blank lines are no messages but
keep their numbers. The snapshot is line number and position in the decompressed bytes, so a plain
file resumes by a seek and a compressed one by skipping. The file's modification time stands for the
broker's timestamp. The source ends at the files' ends; what is appended later is read by the next
run. Lines must be complete when the job reads them.
"""

from __future__ import annotations

import gzip
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import zstandard
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from typing_extensions import override

from operators.messages import Messages
from operators.stop import stopping
from storage.errors import BadInput, Corruption
from storage.layout import PartitionKey

SUFFIXES = (".ndjson", ".jsonl", ".json")
COMPRESSIONS = ("", ".gz", ".zst")
READ_BYTES = 4 << 20

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
        self._path = path
        self._time_ms = path.stat().st_mtime_ns // 1_000_000
        self._file = _open(path)
        _skip(self._file, path, self._bytes)
        self._rest = b""
        self._lines: list[bytes] = []
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
        try:
            data = self._file.read(READ_BYTES)
        except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
            raise Corruption(f"file {self._path}: can't be decompressed: {error}") from error
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
        self._file.close()


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


def _open(path: Path) -> BinaryIO:
    if path.name.endswith(".gz"):
        return cast(BinaryIO, gzip.open(path, "rb"))
    if path.name.endswith(".zst"):
        reader = zstandard.ZstdDecompressor().stream_reader(
            path.open("rb"), read_across_frames=True, closefd=True
        )
        return cast(BinaryIO, reader)
    return path.open("rb")


def _skip(file: BinaryIO, path: Path, count: int) -> None:
    """Go on after `count` bytes, less one for the newline a last line may lack."""
    if isinstance(file, zstandard.ZstdDecompressionReader):
        left = count
        while left > 0:
            data = file.read(min(left, READ_BYTES))
            if not data:
                break
            left -= len(data)
    else:
        file.seek(0, 2)
        left = count - file.tell()
        file.seek(min(count, file.tell()))
    if left > 1:
        raise BadInput(
            f"file {path}: expected at least {count - 1} bytes as read before, got {count - left}"
        )
