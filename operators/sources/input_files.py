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

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from typing_extensions import override

from forebay.operators.process import noted, stopping
from forebay.operators.sources.content import Content, Position
from forebay.operators.sources.folder import FilesConfig, leave
from forebay.operators.sources.messages import Messages
from forebay.operators.sources.resting import Resting
from forebay.storage.base.errors import ForebayError
from forebay.storage.base.layout import PartitionKey
from forebay.storage.base.times import now_ms

log = logging.getLogger("forebay.files")

BATCH_BYTES_MAX = 16 << 20


class _FilePartition(StatefulSourcePartition[Messages, Position | None]):
    def __init__(self, name: str, content: Content, rows: int, resume: Position | None) -> None:
        self._name = name
        self._rows = rows
        self._content = content
        self._line, *_ = position = resume or (0, 0)
        self._trace, over = content.resume(position)
        self._read = self._whole_lines(over)
        self._lines: list[bytes] = []
        self._at = self._held = 0
        self._ended = False

    @override
    @noted
    def next_batch(self) -> list[Messages]:
        if stopping():
            raise StopIteration
        while len(self._lines) - self._at < self._rows and self._held < BATCH_BYTES_MAX:
            if self._ended:
                break
            del self._lines[: self._at]
            self._at = 0
            read = next(self._read, [])
            self._lines += read
            self._held += sum(map(len, read))
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

    def _whole_lines(self, data: bytes) -> Iterator[list[bytes]]:
        """The lines that end in `data` and in what is read then, some at a time. What can't be
        read, now, ends the partition for this run."""
        rest: list[bytes] = []
        try:
            while True:
                first, *more = data.split(b"\n")
                rest.append(first)
                if more:
                    yield [b"".join(rest), *more[:-1]]
                    rest = [more[-1]]
                data = self._content.read()
                if not data:
                    break
        except ForebayError as error:
            leave(f"{error}")
            return
        finally:
            self._ended = True
            self._content.close()
        last = b"".join(rest)
        try:
            # A number may go on, whatever it is.
            if last and not isinstance(orjson.loads(last), int | float):
                yield [last]
        except orjson.JSONDecodeError:
            log.warning("file %s: its last line is not whole yet; left to a later run", self._name)

    @override
    def snapshot(self) -> Position:
        return self._line, self._trace.bytes, *self._trace.checksums

    @override
    def close(self) -> None:
        self._content.close()


@dataclass
class FileSource(FixedPartitionedSource[Messages, Position | None]):
    """The files that are there when the job starts. `gone` are partitions read before whose files
    are there no more."""

    config: FilesConfig
    partitions: Mapping[PartitionKey, Path]
    gone: Sequence[str] = ()

    def __post_init__(self) -> None:
        self._paths = {key.name: path for key, path in self.partitions.items()}

    @override
    def list_parts(self) -> list[str]:
        return sorted({*self._paths, *self.gone})

    @override
    @noted
    def build_part(
        self, step_id: str, for_part: str, resume_state: Position | None
    ) -> StatefulSourcePartition[Messages, Position | None]:
        content = None
        try:
            if for_part in self._paths:
                content = Content(self._paths[for_part])
                return _FilePartition(for_part, content, self.config.batch_rows, resume_state)
        except FileNotFoundError:
            pass  # since the files were listed
        except ForebayError as error:
            if content:
                content.close()
            leave(f"{error}")
            return Resting(resume_state)
        if resume_state is not None:
            log.warning("file of partition %s is gone; what was read of it stays", for_part)
        return Resting(resume_state)
