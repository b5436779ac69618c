"""A worker of the job that dies at a chosen step, or has less of a resource than the host.

    python -m forebay.verify.worker PROCESS ADDRESS...

VERIFY_DEATH is a `Death` as text; VERIFY_LIMIT is a resource and its maximum, as in `FSIZE=100000`
or `NOFILE=64`. Without either it is `flows.worker`, except for two things: however it ends,
VERIFY_NOTES gets a `Note`; and a worker that hangs is ended by SIGALRM.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from forebay.verify.dying import Death, DyingDisk, kill_self

DEATH, LIMIT, NOTES = "VERIFY_DEATH", "VERIFY_LIMIT", "VERIFY_NOTES"
HANG_S = 300
"""Far more than any run takes."""


@dataclass(frozen=True)
class Note:
    """What a worker had used in the end: the most memory in bytes, how many batches it dropped
    because the state that it resumed from was newer than the source, and how often it read a log,
    hash file or chunk.
    """

    peak_bytes: int
    orphans: int
    read_back: int

    def __str__(self) -> str:
        return f"{self.peak_bytes} {self.orphans} {self.read_back}"

    @classmethod
    def parse(cls, line: str) -> Note:
        return cls(*map(int, line.split()))


def main(arguments: list[str]) -> int:
    """As `flows.worker`."""
    from forebay.flows import worker  # the engine, not needed to list the stories

    if limit := os.environ.get(LIMIT):
        name, most = limit.split("=")
        number = getattr(resource, f"RLIMIT_{name}")
        resource.setrlimit(number, (int(most), resource.getrlimit(number)[1]))
    signal.alarm(HANG_S)
    death = os.environ.get(DEATH)
    disk = DyingDisk(Death.parse(death) if death else None, lambda: _die(disk))
    try:
        return worker.main(int(arguments[0]), arguments[1:], disk)
    finally:
        _note(disk)


def _die(disk: DyingDisk) -> None:
    _note(disk)
    kill_self()


def _note(disk: DyingDisk) -> None:
    if path := os.environ.get(NOTES):
        with open(path, "a") as notes:
            notes.write(f"{Note(peak_bytes(), disk.orphans, disk.read_back)}\n")


def peak_bytes() -> int:
    """Of this program alone: `ru_maxrss` also includes its parent's memory from before the exec."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


if __name__ == "__main__":
    from forebay.flows.worker import leave

    leave(main(sys.argv[1:]))
