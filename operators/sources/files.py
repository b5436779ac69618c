"""The file source: NDJSON files, plain, gzip or zstd, one partition a file.

A message is a line and its offset is the line's number, from 0; blank lines are no messages but
keep their numbers. The snapshot is a `Position` (see `content`). The file's modification time
stands for the broker's timestamp. The source ends at the files' ends; what is appended later is
read by the next run, and so is a last line that is not whole yet.

What always holds: a file that can't be read, is not the one that was read before, or is damaged
stops no other. It is named in the log and again at the end (`process.note_unread`), what stands
before the damage is read, and its place is kept for a run that finds it whole.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from typing_extensions import override

from forebay.operators.process import note_unread, noted, stopping
from forebay.operators.sources.content import Content, Position
from forebay.operators.sources.messages import Messages, Resting
from forebay.storage.base.errors import BadInput, ForebayError
from forebay.storage.base.layout import PartitionKey
from forebay.storage.base.times import now_ms

log = logging.getLogger("forebay.files")

SUFFIXES = (".ndjson", ".jsonl", ".json")
COMPRESSIONS = ("", ".gz", ".zst")
BATCH_BYTES_MAX = 16 << 20
NAME_CHARS_MAX = 200
"""Of a partition's name."""
_ENDINGS = tuple(suffix + packed for suffix in SUFFIXES for packed in COMPRESSIONS)
_ALIKE = re.compile(
    r"\.(ndjson|jsonl|json)(\.[^.]*)?\Z|\.(gz|zst|zstd|bz2|xz|lz4|zip|br|snappy)\Z", re.IGNORECASE
)
"""What may be meant as input by its name."""
_SHOWN = 3


@dataclass(frozen=True)
class FilesConfig:
    """`leave_out` is a folder that is not looked into, Forebay's own."""

    path: Path
    batch_rows: int = 5000
    leave_out: Path | None = None


def file_partitions(config: FilesConfig) -> dict[PartitionKey, Path]:
    """Every NDJSON file at or below `path`, each a partition named after its relative path; but no
    link to another one of them, whose events would be there twice. Whether a file can be read is
    found out later.

    A partition's number comes from its name alone, so files may be added in any order.
    Raises BadInput if there is none.
    """
    path = config.path
    problem = f"expected NDJSON files at {path} ({', '.join(_ENDINGS)})"
    try:
        found = {path.name: path} if path.is_file() else _once(path, dict(_below(config)))
    except OSError as error:
        raise BadInput(f"files.path: {problem}, got: {error.strerror}") from error
    if not found:
        raise BadInput(f"files.path: {problem}")
    return {
        PartitionKey(name := _name(relative), zlib.crc32(name.encode())): entry
        for relative, entry in found.items()
    }


def _below(config: FilesConfig) -> Iterator[tuple[str, Path]]:
    """What is named as input below the folder, by relative path; what may be meant as input and is
    not read is warned of. Raises OSError if the folder can't be listed, BadInput if it is ours."""
    passed: list[str] = []
    own = os.path.realpath(config.leave_out) if config.leave_out else ""
    if own and _within(config.path, own):
        raise BadInput(f"files.path: expected a folder outside of data_dir, got {config.path}")

    def unlisted(error: OSError) -> None:
        if error.filename == str(config.path):
            raise error
        if not isinstance(error, FileNotFoundError):
            _leave(f"folder {error.filename}: {error.strerror}")

    for folder, folders, names in os.walk(config.path, onerror=unlisted):
        links = [name for name in folders if Path(folder, name).is_symlink()]
        folders[:] = sorted(name for name in folders if not _within(Path(folder, name), own))
        for name in sorted([*names, *links]):
            entry = Path(folder, name)
            relative = entry.relative_to(config.path).as_posix()
            if entry.is_symlink() and _within(entry, own):
                continue
            if name.endswith(_ENDINGS):
                yield relative, entry
            elif name in links or _ALIKE.search(name):
                passed.append(relative)
    if passed:
        more = f" and {len(passed) - _SHOWN} more" if len(passed) > _SHOWN else ""
        log.warning(
            "not read: %s%s (a file is, if its name ends in %s; a link to a folder is not)",
            ", ".join(passed[:_SHOWN]),
            more,
            ", ".join(_ENDINGS),
        )


def _once(root: Path, found: dict[str, Path]) -> dict[str, Path]:
    """What was found, without links to what else was."""
    links = {name: os.path.realpath(e) for name, e in found.items() if e.is_symlink()}
    top = os.path.realpath(root)
    files = {os.path.join(top, name) for name in found if name not in links} if links else set()
    return {name: entry for name, entry in found.items() if links.get(name) not in files}


def _within(entry: Path, own: str) -> bool:
    """Whether this is the folder `own`, or in it."""
    real = os.path.realpath(entry) if own else ""
    return bool(own) and (real == own or real.startswith(f"{own}{os.sep}"))


def _leave(what: str) -> None:
    log.error("%s; left to a later run", what)
    note_unread(what)


def _name(relative: str) -> str:
    """A partition name, another for each path: what it may not have becomes `_HEX_`, and the end of
    one that would be too long a digest, which is longer than any `_HEX_`."""
    name = re.sub(r"\A[.=-]|[^A-Za-z0-9.=-]", lambda match: f"_{ord(match[0]):x}_", relative)
    if len(name) <= NAME_CHARS_MAX:
        return name
    digest = hashlib.sha256(os.fsencode(relative)).hexdigest()
    return f"{name[: NAME_CHARS_MAX - len(digest) - 2]}_{digest}_"


class _FilePartition(StatefulSourcePartition[Messages, Position | None]):
    def __init__(self, name: str, content: Content, rows: int, resume: Position | None) -> None:
        self._name = name
        self._rows = rows
        self._content = content
        self._line, *_ = position = resume or (0, 0)
        self._trace, over = content.resume(position)
        self._lines: list[bytes] = []
        self._rest: list[bytes] = []
        self._at = self._held = 0
        self._ended = False
        self._take(over)

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
        self._trace.add(b"\n".join((*lines, b"")))
        kept = [row for row, line in enumerate(lines) if line and line != b"\r"]
        return [
            Messages(
                source=self._name,
                values=lines if len(kept) == len(lines) else [lines[row] for row in kept],
                offsets=np.array(kept, dtype=np.int64) + first,
                times_ms=np.full(len(kept), self._content.time_ms, dtype=np.int64),
                next_offset=self._line,
                end_offset=self._line if self._ended and self._at == len(self._lines) else None,
                read_ms=now_ms(),
            )
        ]

    def _read(self) -> None:
        """Take in some more lines. What can't be read, now, ends the partition for this run."""
        try:
            data = self._content.read()
        except ForebayError as error:
            _leave(f"{error}")
            self._end()
            return
        if data:
            self._take(data)
        else:
            self._end()
            self._take_last(b"".join(self._rest))

    def _end(self) -> None:
        self._ended = True
        self._content.close()

    def _take(self, data: bytes) -> None:
        """The lines that end in `data`; what stands behind them is the rest."""
        first, *more = data.split(b"\n")
        self._rest.append(first)
        if more:
            self._add(b"".join(self._rest), *more[:-1])
            self._rest = [more[-1]]

    def _add(self, *lines: bytes) -> None:
        del self._lines[: self._at]
        self._at = 0
        self._lines += lines
        self._held += sum(map(len, lines))

    def _take_last(self, line: bytes) -> None:
        """What stands after the last newline, if it is whole; else a later run reads it. A number
        may go on, whatever it is."""
        try:
            if line and not isinstance(orjson.loads(line), int | float):
                self._add(line)
        except orjson.JSONDecodeError:
            log.warning("file %s: its last line is not whole yet; left to a later run", self._name)

    @override
    def snapshot(self) -> Position:
        return self._line, self._trace.bytes, *self._trace.checksums

    @override
    def close(self) -> None:
        self._content.close()


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
    @noted
    def build_part(
        self, step_id: str, for_part: str, resume_state: Position | None
    ) -> StatefulSourcePartition[Messages, Position | None]:
        content = None
        try:
            if for_part in self._paths:
                content = Content(self._paths[for_part])
                rows = self._config.batch_rows
                return _FilePartition(for_part, content, rows, resume_state)
        except FileNotFoundError:
            pass  # since the files were listed
        except ForebayError as error:
            if content:
                content.close()
            _leave(f"{error}")
            return Resting(resume_state)
        if resume_state is not None:
            log.warning("file of partition %s is gone; what was read of it stays", for_part)
        return Resting(resume_state)
