"""The few things Forebay asks of a file system, in one place so that tests and `forebay verify` can
make them fail.

What always holds: a file that a reader may have open is never truncated or written in place; it is
appended to, or replaced as a whole. `replace` is atomic for readers, and durable if asked; only one
process at a time may replace a file, but any number may `claim` one.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
import struct
import threading
import uuid
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from forebay.storage.base.errors import BadInput

_FLOCK = "hhqqi4x"
"""struct flock of 64-bit Linux."""
_WHOLE_FILE = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
_HELD = "{}: expected no other writer, got one: another job runs on this data directory"


def name_at(name: str) -> int:
    """The byte of a file that stands for a name, far beyond its end: a 62-bit hash. Of 4,096 names,
    two share a byte with a probability of 2e-12; the second is then refused, which does no harm.
    """
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") >> 2


def _range(at: int, kind: int) -> bytes:
    """The lock of one byte, or its release."""
    return struct.pack(_FLOCK, kind, os.SEEK_SET, at, 1, 0)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError raised inside names this file, unless it names another."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


class Appender:
    """A file that only grows. It is open only while it is used: there may be thousands of them.
    Not thread-safe."""

    def __init__(self, path: Path) -> None:
        self._path = path
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))

    def append(self, data: bytes | memoryview) -> None:
        """Write all of `data`. On OSError some of it may be in the file."""
        with self._open() as descriptor:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]

    def sync(self) -> None:
        """Return once everything appended would survive a power loss."""
        with self._open() as descriptor:
            os.fdatasync(descriptor)

    @contextmanager
    def _open(self) -> Iterator[int]:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND)
        try:
            with naming(self._path):
                yield descriptor
        finally:
            os.close(descriptor)


class NameLock:
    """The lock of a name, held until it is closed or garbage-collected."""

    def __init__(self, release: Callable[[], None]) -> None:
        self.close = weakref.finalize(self, release)
        self.close.atexit = False  # the end of the process releases it


CLAIM_SUFFIX = ".claim"
"""Ends the temporary names of `claim`, which are hidden files."""
FOLDERS_MAX = 10_000
"""How many folders are remembered as durable: the hours of chunks are ever new ones."""


class Disk:
    """The real file system."""

    def __init__(self) -> None:
        self._durable: set[Path] = set()
        self._held: dict[Path, tuple[BinaryIO, set[int]]] = {}
        self._names = threading.RLock()

    def create(self, path: Path) -> Appender:
        """A new file for appending. Raises FileExistsError if the name was ever used."""
        return Appender(path)

    def read(self, path: Path, start: int = 0, end: int | None = None) -> bytes:
        """Bytes [start, end) of a file; fewer if the file is shorter. Raises OSError if it is not a
        plain file, which could block a reader for ever."""
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with naming(path), os.fdopen(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "expected a plain file", str(path))
            size = status.st_size
            file.seek(start)
            return file.read() if end is None else file.read(max(0, min(end, size) - start))

    def size(self, path: Path) -> int:
        return path.stat().st_size

    def state(self, path: Path) -> tuple[int, int, int] | None:
        """What changes whenever the file at `path` is replaced; None if there is none."""
        try:
            found = os.stat(path)
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def replace(self, path: Path, data: bytes, *, durable: bool) -> None:
        """Put `data` at `path` at once: a reader sees the old content or the new, never a mix."""
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            with naming(temporary), temporary.open("wb") as file:
                file.write(data)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        if durable:
            self.sync_directory(path.parent)

    def claim(self, path: Path, data: bytes) -> bool:
        """Create the file `path` with `data` unless it exists: of several at once, one creates it.
        On return it is whole and durable, whoever did. Returns whether this call did."""
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{CLAIM_SUFFIX}")
        try:
            with naming(temporary), temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.link(temporary, path)
            made = True
        except FileExistsError:
            made = False
        finally:
            temporary.unlink(missing_ok=True)
        self.sync_directory(path.parent)
        return made

    def drop_claims(self, folder: Path) -> None:
        """Delete what a killed `claim` left in `folder`. No one may be claiming there meanwhile."""
        for path in folder.glob(f".*{CLAIM_SUFFIX}"):
            self.remove(path)

    def write(self, path: Path) -> BinaryIO:
        """A new file, to be written as a whole and then given its name by `publish`."""
        return path.open("wb")

    def publish(self, temporary: Path, path: Path) -> None:
        """Make a finished file durable and give it its name."""
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            with naming(temporary):
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.rename(path)
        self.sync_directory(path.parent)

    def make_directory(self, path: Path) -> None:
        """Create `path` and its parents, durably. Existing ones may be from a run that was killed
        before it synced them: each is synced once, except parents that we may not open."""
        if len(self._durable) > FOLDERS_MAX:
            self._durable.clear()
        for folder in (*reversed(path.parents), path):
            there = folder.is_dir()
            if there and folder in self._durable:
                continue
            if not there:
                folder.mkdir(exist_ok=True)
            with suppress(PermissionError):
                self.sync_directory(folder.parent)
            self._durable.add(folder)

    def lock(self, path: Path) -> BinaryIO:
        """Keep other processes from taking the same lock until this one ends or the file returned
        is closed. Raises BadInput if another process has it."""
        file = path.open("a+b")
        try:
            self._set_lock(file, _WHOLE_FILE, str(path))
        except BaseException:
            file.close()
            raise
        return file

    def lock_name(self, path: Path, name: str) -> NameLock:
        """As `lock`, for one of any number of names. All locks taken through this object share one
        descriptor, and `locked` tells whether any is held. Thread-safe.

        SUBTLE: the kernel sees no conflict within a descriptor, so held names are kept here too.
        """
        with self._names:
            held = self._held.get(path)
            if held is None:
                held = self._held[path] = path.open("a+b"), set()
            file, names = held
            at = name_at(name)
            if at in names:
                raise BadInput(_HELD.format(f"{path} for {name}"))
            self._set_lock(file, _range(at, fcntl.F_WRLCK), f"{path} for {name}")
            names.add(at)
        return NameLock(lambda: self._release(file, names, at))

    def _release(self, file: BinaryIO, names: set[int], at: int) -> None:
        with self._names:
            names.discard(at)
            if not file.closed:
                fcntl.fcntl(file, fcntl.F_OFD_SETLK, _range(at, fcntl.F_UNLCK))

    @staticmethod
    def _set_lock(file: BinaryIO, what: bytes, named: str) -> None:
        try:
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, what)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            raise BadInput(_HELD.format(named)) from error

    def locked(self, path: Path) -> bool:
        """Whether the lock is held, or that of any name in it, by whomever."""
        try:
            with path.open("rb+") as file:
                found = fcntl.fcntl(file, fcntl.F_OFD_GETLK, _WHOLE_FILE)
        except OSError:
            return False
        return bool(struct.unpack(_FLOCK, found)[0] != fcntl.F_UNLCK)

    def touch(self, path: Path) -> None:
        """Make an empty file, durably, unless there is one."""
        if not path.exists():
            path.open("ab").close()
        self.sync_directory(path.parent)

    def sync_directory(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def remove(self, path: Path) -> None:
        """Delete a file; one that is already gone is fine."""
        path.unlink(missing_ok=True)

    def remove_empty(self, path: Path, root: Path) -> None:
        """Delete the folder `path` and those above it, up to `root`, as long as they are empty."""
        while path != root:
            try:
                path.rmdir()
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                    return
                raise
            path = path.parent

    def step(self, name: str) -> None:
        """Called where a crash matters and no other method marks the point; does nothing."""
