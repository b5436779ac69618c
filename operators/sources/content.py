r"""What a file of the source holds: its decompressed bytes, read forward from where a run begins.

A run that continues a file checks that the file is the one it has read from: the content before its
place must be as long as it was, and its first and last WINDOW_BYTES must have the checksums they
had. That detects a rotated, rewritten or truncated file for the price of two small reads; a file
that was recompressed counts as the same. It doesn't detect an edit between the windows: the whole
content would have to be read for that at each start.

A last line may lack its newline when it is read; it is read as if `\n` stood there, and the place
is behind that. The file may go on with `\n`, or with `\r\n`: then the place moves behind that, and
as long as only its `\r` is there, that too counts as `\n`.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from copy import copy
from pathlib import Path

from isal.isal_zlib import crc32

from forebay.operators.sources.unpack import packed, unpack
from forebay.storage.base.errors import BadInput, Corruption, ForebayError
from forebay.storage.base.text import count_text

WINDOW_BYTES = 64 << 10
ADVICE = "give the new file a name of its own, and move the old one back if it is still there"
_OF_THE_PROCESS = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM))
"""What keeps a file from being opened and is no fault of the file."""
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

Position = tuple[int, ...]
"""Where a run left off, as its snapshot has it: lines and bytes of decompressed content read, and
the checksums (CRC-32) of the first and the last WINDOW_BYTES of these. Version 1 lacks the last
two."""


class Trace:
    """How much was read of a file, and what distinguishes its content from another's."""

    def __init__(self) -> None:
        self.bytes = 0
        self._head = 0
        self._tail = b""
        self._checked: tuple[int, int] = (0, 0)

    def add(self, text: bytes) -> None:
        """`text` was read next."""
        if self.bytes < WINDOW_BYTES:
            self._head = crc32(text[: WINDOW_BYTES - self.bytes], self._head)
        self.bytes += len(text)
        self._tail = (self._tail + text[-WINDOW_BYTES:])[-WINDOW_BYTES:]

    @property
    def checksums(self) -> tuple[int, int]:
        if self._checked[0] != self.bytes:
            self._checked = self.bytes, crc32(self._tail)
        return self._head, self._checked[1]


class Content:
    """An open file. Not thread-safe."""

    def __init__(self, path: Path) -> None:
        """Raises BadInput if the file is of a kind that can't be read, FileNotFoundError if there
        is none, or OSError if the process can't open any more files."""
        self._path = path
        descriptor = _open(path)
        self.time_ms = os.fstat(descriptor).st_mtime_ns // 1_000_000
        self._file = os.fdopen(descriptor, "rb")
        self._pieces = unpack(self._file, path.name)

    def read(self) -> bytes:
        """Some more bytes; none at the end. Raises Corruption at damage, and BadInput if the file
        can't be read or was truncated meanwhile."""
        with self._named():
            piece = next(self._pieces, b"")
            if piece or self._size() >= self._file.tell():
                return piece
        raise BadInput(
            f"file {self._path}: expected at least the {self._file.tell()} bytes read of it, got"
            f" {self._size()}: it was truncated meanwhile; {ADVICE}"
        )

    def resume(self, position: Position) -> tuple[Trace, bytes]:
        """Go on at `position`. Returns the trace of what precedes it, and what was read beyond.

        Raises Corruption as above, and BadInput if it is not what was read before."""
        trace, (lines, count, *checksums) = Trace(), position
        if not count:
            return trace, b""
        over = self._skip(trace, count - 1)
        if over == b"\r":
            over += self.read()
        if trace.bytes < count - 1:
            raise BadInput(
                f"file {self._path}: expected at least {count - 1} bytes as read before, got"
                f" {trace.bytes}: it is another file or was truncated; {ADVICE}"
            )
        newline = next((n for n in (b"\r\n", b"\n", b"\r") if over.startswith(n)), b"")
        known = [_checksums_with(trace, end) for end in (b"\n", newline[:1] or b"\n")]
        goes_on = newline in (b"", b"\r") and over != newline
        if goes_on or (checksums and (*checksums,) not in known):
            raise BadInput(
                f"file {self._path}: expected the {count_text(lines, 'line')} ({count} bytes) read"
                f" before, got other content: it is another file or was changed; {ADVICE}"
            )
        trace.add(newline if newline == b"\r\n" else b"\n")
        return trace, over[len(newline) :]

    def _skip(self, trace: Trace, count: int) -> bytes:
        """Add the first `count` bytes, or as many as there are, to the trace; what was read
        beyond, a byte at least if there is one."""
        if packed(self._path.name):
            over = b""
            while trace.bytes <= count and not over and (piece := self.read()):
                part, over = piece[: count - trace.bytes], piece[count - trace.bytes :]
                trace.add(part)
            return over
        with self._named():
            there = min(count, self._size())
            trace.add(self._file.read(min(there, WINDOW_BYTES)))
            trace.bytes = self._file.seek(max(trace.bytes, there - WINDOW_BYTES))
            trace.add(self._file.read(there - trace.bytes))
            return self._file.read(1)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """What is raised inside names the file, and is one of our errors."""
        try:
            yield
        except Corruption as damage:
            raise Corruption(f"file {self._path}: {damage}", damage.offset) from damage
        except OSError as error:
            raise BadInput(f"file {self._path}: {error.strerror or error}") from error

    def _size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        self._file.close()


def _checksums_with(trace: Trace, end: bytes) -> tuple[int, int]:
    """The checksums that the trace would have behind `end`."""
    longer = copy(trace)
    longer.add(end)
    return longer.checksums


def head(path: Path) -> bytes:
    """The first WINDOW_BYTES of what a file holds, or as much as can be read."""
    found = b""
    # What keeps it from being read is reported when its turn comes.
    with suppress(ForebayError, OSError), closing(Content(path)) as content:
        while len(found) < WINDOW_BYTES and (piece := content.read()):
            found += piece
    return found[:WINDOW_BYTES]


def _open(path: Path) -> int:
    """A descriptor of a plain file: opening another kind could block for ever, or do something."""
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
        if kind == stat.S_IFREG:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
            if kind == stat.S_IFREG:
                return descriptor
            os.close(descriptor)
    except FileNotFoundError as error:
        if not os.path.islink(path):
            raise
        raise BadInput(f"file {path}: expected a file, got a link to nothing") from error
    except OSError as error:
        if error.errno in _OF_THE_PROCESS:
            raise
        raise BadInput(f"file {path}: {error.strerror}") from error
    raise BadInput(f"file {path}: expected a plain file, got {_KINDS.get(kind, 'something else')}")
