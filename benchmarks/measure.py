"""Measure: CPU time, wall time and peak memory of a child process with all that it started.

How: the child leads a process group of its own, and this process adopts orphans
(PR_SET_CHILD_SUBREAPER), so whatever of that group the child did not wait for is reaped here. The
CPU time is user + system of every process of the group; the kernel adds a reaped child's to its
parent's, so each is counted once. Peak memory is that of the largest process, not a sum. Bytes
written are those of all write calls, reported by the kernel in the same way.

Linux only.
"""

from __future__ import annotations

import atexit
import ctypes
import math
import os
import re
import shutil
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "bench"
POLL_S = 0.02
TAIL_BYTES = 2_000
_PR_SET_CHILD_SUBREAPER = 36


class Failed(Exception):
    """A measured process did not do what it was asked to do."""


@dataclass(frozen=True)
class Usage:
    """What one process and its descendants took, from start to end."""

    cpu_s: float
    wall_s: float
    peak_bytes: int
    written_bytes: int


class Child:
    """A running process, in a group of its own; its output goes to the file `log`. It does not
    outlive this one."""

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("FOREBAY_")}
        self._log = log
        self._started_s = time.monotonic()
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**inherited, **environment},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        atexit.register(self._abandon)

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_until(self, reached: Callable[[], bool], timeout_s: float) -> None:
        """Return when `reached` is true. Raises Failed if the process ends first or is too slow."""
        deadline = time.monotonic() + timeout_s
        while not reached():
            if self._has_ended() and not reached():
                self.kill()
                raise Failed(f"ended early: {self.tail()}")
            if time.monotonic() > deadline:
                self.kill()
                raise Failed(f"took more than {timeout_s:.0f} s: {self.tail()}")
            time.sleep(POLL_S)

    def stop(self, timeout_s: float) -> Usage:
        """Ask it to end, and measure it."""
        self._process.terminate()
        return self.wait(timeout_s)

    def wait(self, timeout_s: float) -> Usage:
        """What it took, once it has ended. Raises Failed if it fails, or takes longer."""
        self.wait_until(self._has_ended, timeout_s)
        ended_s = time.monotonic()
        usage, code = self._reap(ended_s)
        if code:
            raise Failed(f"ended with {code}: {self.tail()}")
        return usage

    def kill(self) -> Usage:
        """End the whole group at once. The usage is that of what ran until then."""
        os.killpg(self.pid, signal.SIGKILL)
        return self._reap(time.monotonic())[0]

    def tail(self) -> str:
        """The end of its output."""
        return self._log.read_bytes()[-TAIL_BYTES:].decode(errors="replace").strip()

    def _abandon(self) -> None:
        if self._process.returncode is None:
            _kill_group(self.pid)

    def _has_ended(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _reap(self, ended_s: float) -> tuple[Usage, int]:
        """Wait for every process of the group; those that outlived the leader are ended."""
        cpu_s, peak_kib, code = 0.0, 0, 0
        leader = True
        written_before = _written()
        while True:
            try:
                pid, status, used = os.wait4(self.pid if leader else -self.pid, 0)
            except ChildProcessError:
                break
            if leader:
                self._process.returncode = code = os.waitstatus_to_exitcode(status)
                _kill_group(pid)
                leader = False
            cpu_s += used.ru_utime + used.ru_stime
            peak_kib = max(peak_kib, used.ru_maxrss)
        atexit.unregister(self._abandon)
        written = _written() - written_before
        return Usage(cpu_s, ended_s - self._started_s, peak_kib << 10, written), code


def _written() -> int:
    """Bytes that this process and all that it has reaped passed to write calls."""
    found = re.search(r"wchar: (\d+)", Path("/proc/self/io").read_text())
    if found is None:
        raise Failed("/proc/self/io: expected wchar, got none")
    return int(found[1])


def _kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


@dataclass(frozen=True)
class Figure:
    """The median of some values, and how far they lie apart as a share of it."""

    median: float
    spread: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Figure:
        found = list(values)
        middle = statistics.median(found)
        return cls(middle, (max(found) - min(found)) / middle if middle else 0.0)


def percentile(values: Iterable[float], share: float) -> float:
    """The smallest value that this share of the values does not exceed."""
    found = sorted(values)
    return found[max(0, math.ceil(share * len(found)) - 1)]


@contextmanager
def scratch(name: str) -> Iterator[Path]:
    """An empty folder in build/bench, which is gone afterwards."""
    folder = BUILD / f"{name}-scratch"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
