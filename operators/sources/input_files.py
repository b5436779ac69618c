"""The file source: NDJSON files, plain, gzip or zstd, one partition a file.

A message is a line (see `lines`) and its offset is the line's number, from 0; blank lines are not
messages but keep their numbers. The snapshot is a `Position` (see `content`). The file's
modification time takes the place of the broker's timestamp. The source ends at the files' ends;
what is appended later is read by the next run, and so is a last line that is not whole yet.

What always holds: a file that can't be read, is not the one that was read before, or is damaged
does not stop the others. It is named in the log and again at the end (`process.note_unread`), what
stands before the damage is read, and its place is kept for a run that finds it whole.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from typing_extensions import override

from forebay.operators.process import PerThread, noted, stopping
from forebay.operators.sources.content import Content, Position
from forebay.operators.sources.folder import FilesConfig, leave
from forebay.operators.sources.lines import LineReader
from forebay.operators.sources.messages import Messages
from forebay.operators.sources.resting import Resting
from forebay.storage.base.errors import ForebayError
from forebay.storage.base.layout import PartitionKey
from forebay.storage.base.times import now_ms

log = logging.getLogger("forebay.files")

OPEN_FILES_MAX = 16
"""Of a worker at once: each takes a descriptor, a piece of its content, and what its decompression
needs. The others wait for their turn, in the order of their names."""


class _Turns:
    """Which of a worker thread's partitions may have their files open."""

    def __init__(self) -> None:
        self._names: set[str] = set()

    def take(self, name: str) -> bool:
        """Whether it may open its file, from now on until `give`."""
        if len(self._names) < OPEN_FILES_MAX:
            self._names.add(name)
        return name in self._names

    def give(self, name: str) -> None:
        self._names.discard(name)


class _FilePartition(StatefulSourcePartition[Messages, Position | None]):
    """A file, opened when it is its turn, and closed at its end."""

    def __init__(
        self, name: str, path: Path, config: FilesConfig, turns: _Turns, place: Position | None
    ) -> None:
        self._name = name
        self._path = path
        self._config = config
        self._turns = turns
        self._place = place
        self._content: Content | None = None
        self._time_ms = 0
        self._lines: LineReader | None = None

    @override
    @noted
    def next_batch(self) -> list[Messages]:
        if stopping():
            raise StopIteration
        if self._lines is None:
            if not self._turns.take(self._name):
                return []
            self._lines = self._open()
        reader = self._lines
        if reader is None:
            raise StopIteration
        first = reader.line
        lines = reader.take(self._config.batch_rows)
        if reader.line == first:
            if not reader.ended:
                return []  # in the middle of a line
            self.close()
            raise StopIteration
        if reader.ended and self._content:
            # The turn is kept: what the files have in one activation is taken in together.
            self._content.close()
        self._note_place(reader)
        return [
            Messages(
                source=self._name,
                values=lines.values,
                offsets=lines.offsets,
                times_ms=np.full(len(lines.values), self._time_ms, dtype=np.int64),
                next_offset=reader.line,
                end_offset=reader.line if reader.ended else None,
                read_ms=now_ms(),
                lengths=lines.lengths,
            )
        ]

    def _open(self) -> LineReader | None:
        """None if nothing of it can be read. Raises OSError if the process can't open any more
        files."""
        try:
            content = self._content = Content(self._path)
            reader = LineReader(
                self._name, content, self._place or (0, 0), self._config.line_bytes_max
            )
        except FileNotFoundError:  # since the files were listed
            self.close()
            _tell_gone(self._name, self._place)
            return None
        except ForebayError as error:
            self.close()
            leave(f"{error}")
            return None
        self._time_ms = content.time_ms
        self._note_place(reader)
        return reader

    def _note_place(self, reader: LineReader) -> None:
        self._place = reader.line, reader.trace.bytes, *reader.trace.checksums

    @override
    def snapshot(self) -> Position | None:
        return self._place

    @override
    def close(self) -> None:
        self._turns.give(self._name)
        if self._content is not None:
            self._content.close()


def _tell_gone(name: str, place: Position | None) -> None:
    if place is not None:
        log.warning("file of partition %s is gone; what was read of it stays", name)


@dataclass
class FileSource(FixedPartitionedSource[Messages, Position | None]):
    """The files that are there when the job starts. `gone` are partitions read before whose files
    no longer exist."""

    config: FilesConfig
    partitions: Mapping[PartitionKey, Path]
    gone: Sequence[str] = ()

    def __post_init__(self) -> None:
        self._paths = {key.name: path for key, path in self.partitions.items()}
        self._turns = PerThread(_Turns)

    @override
    def list_parts(self) -> list[str]:
        return sorted({*self._paths, *self.gone})

    @override
    @noted
    def build_part(
        self, step_id: str, for_part: str, resume_state: Position | None
    ) -> StatefulSourcePartition[Messages, Position | None]:
        if for_part in self._paths:
            path, turns = self._paths[for_part], self._turns.get()
            return _FilePartition(for_part, path, self.config, turns, resume_state)
        _tell_gone(for_part, resume_state)
        return Resting(resume_state)
