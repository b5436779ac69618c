r"""The lines of a file, from where a run begins, in bounded memory.

What always holds:

- Memory holds a piece of content and one line, and of a line that is longer than `line_bytes_max`
  by more than a piece only its first KEPT_BYTES; the rest is counted.
- One call looks at SCAN_BYTES_MAX of content or little more, whatever stands there, so a stop and
  the end of an epoch never wait for the end of a line.
- `line` and `trace` are those of the last line that was returned, so a run that goes on from them
  reads the unfinished line from its beginning.

A line ends in `\n`; blank ones (nothing, or `\r`) are counted and not returned. A last line without
its newline is returned if it is a whole JSON document other than a number, which may go on. One
that is too long to be kept counts as one if it is framed as an object is.
"""

from __future__ import annotations

import logging
from copy import copy
from dataclasses import dataclass, field

import numpy as np
import orjson

from forebay.operators.sources.content import Content, Position
from forebay.operators.sources.folder import leave
from forebay.operators.sources.messages import I64
from forebay.operators.sources.unpack import PIECE_BYTES_MAX
from forebay.storage.base.errors import ForebayError

log = logging.getLogger("forebay.files")

SCAN_BYTES_MAX = 16 << 20
KEPT_BYTES = 64 << 10
"""Of a line that is too long: enough to see what it is."""
_ENDS_BYTES = 64
"""Of a line that is too long, to see how it begins and ends."""
_BLANKS = b"\r\n"


@dataclass
class Lines:
    """Lines that were read, with their numbers; `lengths` are those of which only the beginning is
    here, by row."""

    values: list[bytes] = field(default_factory=list)
    numbers: list[I64] = field(default_factory=list)
    lengths: dict[int, int] = field(default_factory=dict)

    def add(self, lines: list[bytes], first: int) -> None:
        """Those of `lines` that are not blank; `first` is the number of the first."""
        numbers = np.arange(first, first + len(lines), dtype=np.int64)
        kept = [row for row, line in enumerate(lines) if line and line != b"\r"]
        if len(kept) < len(lines):
            numbers, lines = numbers[kept], [lines[row] for row in kept]
        self.values += lines
        self.numbers.append(numbers)

    @property
    def offsets(self) -> I64:
        return np.concatenate([np.empty(0, np.int64), *self.numbers])


class LineReader:
    """Reads one file forward. Not thread-safe."""

    def __init__(
        self, name: str, content: Content, position: Position, line_bytes_max: int
    ) -> None:
        """`name` is the partition's. Raises as `Content.resume`."""
        self._name = name
        self._content = content
        self._whole_bytes_max = line_bytes_max + PIECE_BYTES_MAX
        self.line, *_ = position
        self.trace, self._data = content.resume(position)
        self.ended = False
        """Whether all was given that this run gives."""
        self._read = copy(self.trace)
        """Of what was read of the line that has not ended yet, too."""
        self._begun = bytearray()
        self._begun_bytes = 0
        """How much was read of it, and how much of that is held; and how it ends so far."""
        self._tail = b""

    def take(self, rows: int) -> Lines:
        """The next lines, at most `rows`; none where no line ended in what was looked at."""
        lines, scanned = Lines(), 0
        while len(lines.values) < rows and scanned < SCAN_BYTES_MAX and not self.ended:
            if not self._data:
                self._fill(lines)
            scanned += len(self._data)
            self._take_some(lines, rows)
            scanned -= len(self._data)
        return lines

    def _fill(self, lines: Lines) -> None:
        """Read on. At the end of what can be read, add the last line."""
        try:
            self._data = self._content.read()
        except ForebayError as error:
            self.ended = True
            leave(f"{error}")
            return
        if not self._data:
            self.ended = True
            self._end(lines)

    def _take_some(self, lines: Lines, rows: int) -> None:
        """Take the lines that end in the data held, or the part of one that does not."""
        data = self._data
        if not data:
            return
        if self._begun_bytes:
            line, newline, _ = data.partition(b"\n")
            self._keep(line)
            if newline:
                self._give(lines)
                self._pass(len(line) + 1)
            else:
                self._read.add(data)
                self._data = b""
        elif blank := _blank_bytes(data):
            self.line += data.count(b"\n", 0, blank)
            self._pass(blank)
        else:
            *whole, rest = data.split(b"\n", rows - len(lines.values))
            if whole:
                lines.add(whole, self.line)
                self.line += len(whole)
                self._pass(len(data) - len(rest))
            else:
                self._keep(data)
                self._read.add(data)
                self._data = b""

    def _pass(self, count: int) -> None:
        """So much of the data held ends with a line: it has been read."""
        self._read.add(self._data[:count])
        self.trace = copy(self._read)
        self._data = self._data[count:]

    def _keep(self, part: bytes) -> None:
        """Keep what was read of a line that has not ended yet."""
        held_whole = self._begun_bytes == len(self._begun)
        self._begun_bytes += len(part)
        self._tail = (self._tail + part[-_ENDS_BYTES:])[-_ENDS_BYTES:]
        if held_whole:
            self._begun += part
            if self._begun_bytes > self._whole_bytes_max:
                del self._begun[KEPT_BYTES:]

    def _give(self, lines: Lines) -> None:
        """Add the line that was begun: it has ended."""
        if self._begun_bytes > len(self._begun):
            lines.lengths[len(lines.values)] = self._begun_bytes
        lines.add([bytes(self._begun)], self.line)
        self.line += 1
        self._begun, self._begun_bytes, self._tail = bytearray(), 0, b""

    def _end(self, lines: Lines) -> None:
        """The last line, without a newline."""
        if not self._begun_bytes:
            return
        if not self._is_document():
            log.warning("file %s: its last line is not whole yet; left to a later run", self._name)
            return
        self._give(lines)
        self._read.add(b"\n")
        self.trace = self._read

    def _is_document(self) -> bool:
        if self._begun_bytes > len(self._begun):
            begins, ends = self._begun[:_ENDS_BYTES].lstrip(), self._tail.rstrip()
            return begins.startswith(b"{") and ends.endswith(b"}")
        try:
            # A number may go on, whatever it is.
            return not isinstance(orjson.loads(self._begun), int | float)
        except orjson.JSONDecodeError:
            return False


def _blank_bytes(data: bytes) -> int:
    """With how many bytes of blank lines `data` begins. There may be gigabytes of them."""
    if data[0] not in _BLANKS:
        return 0
    blank = len(data) - len(data.lstrip(_BLANKS))
    end = data.rfind(b"\n", 0, blank) + 1
    return 0 if data.find(b"\r\r", 0, end) >= 0 else end
