"""A disk that soon fills up: a small file system of its own where the user may mount one, else a
limit on the size of files. How much a job needs on it depends on how fast the host is, so it is
made small only once there is something on it.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

FREE_BYTES, LARGE = 512 << 10, "256m"
FILE_BYTES_MAX = 100_000


@dataclass
class SmallDisk:
    """`limit` is what a worker must be given (see `verify.worker`), None if the disk itself is
    small; `reasons` are what the operating system, or SQLite, calls the fault."""

    folder: Path
    limit: str | None
    reasons: tuple[str, ...]

    def shrink(self) -> None:
        """Leave only little room."""
        if self.limit is None:
            status = os.statvfs(self.folder)
            used = (status.f_blocks - status.f_bfree) * status.f_frsize
            _mount(self.folder, f"remount,size={used + FREE_BYTES}")

    def grow(self) -> None:
        """Make room."""
        if self.limit is None:
            _mount(self.folder, f"remount,size={LARGE}")
        self.limit = None


@contextmanager
def small_disk(folder: Path) -> Iterator[SmallDisk]:
    """A disk at the new folder `folder`."""
    folder.mkdir()
    full = "database or disk is full"
    if not _mount(folder, f"size={LARGE}"):
        reasons = ("File too large", "disk I/O error", full)
        yield SmallDisk(folder, f"FSIZE={FILE_BYTES_MAX}", reasons)
        return
    try:
        yield SmallDisk(folder, None, ("No space left on device", full))
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def _mount(folder: Path, options: str) -> bool:
    """Whether this user on this host may mount a file system in memory."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False
