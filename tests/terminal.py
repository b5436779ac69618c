"""Commands as processes of their own, and what a terminal shows of them."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

ROOT = Path(__file__).parent.parent
WAIT_S = 60


def started(*arguments: str | Path, stdout: int = subprocess.PIPE) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "forebay", *map(str, arguments)], cwd=ROOT, stdout=stdout,
        stderr=subprocess.PIPE, text=True,
        env={name: text for name, text in os.environ.items() if name not in ("COLUMNS", "LINES")},
    )  # fmt: skip


def at_terminal(columns: int, *arguments: str | Path) -> list[str]:
    """The lines that a terminal so wide is given."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with started(*arguments, stdout=theirs) as process:
        os.close(theirs)
        found = b"".join(iter(lambda: _read(ours), b""))
        os.close(ours)
        assert process.wait(WAIT_S) == 0
        assert errors_of(process) == ""
    return found.decode().replace("\r\n", "\n").split("\n")


def _read(terminal: int) -> bytes:
    """What a process prints to its terminal, nothing once it has ended."""
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""


def errors_of(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    return process.stderr.read()
