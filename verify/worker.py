"""A worker of the job that dies where it is told to, or has less of a resource than the host.

    python -m verify.worker PROCESS ADDRESS...

VERIFY_DEATH is a `Death` as text; VERIFY_LIMIT is a resource and its most, as in `FSIZE=100000` or
`NOFILE=64`. Without either it is `flows.worker`, but for two things: however it ends, the most
memory that it had is a line of VERIFY_PEAKS, in bytes; and one that hangs is ended by SIGALRM.
"""

from __future__ import annotations

import os
import resource
import signal
import sys

from flows import worker
from verify.dying import Death, DyingFiles, kill_self

DEATH, LIMIT, PEAKS = "VERIFY_DEATH", "VERIFY_LIMIT", "VERIFY_PEAKS"
HANG_S = 300
"""Far more than any run takes."""


def main(arguments: list[str]) -> int:
    """As `flows.worker`."""
    if limit := os.environ.get(LIMIT):
        name, most = limit.split("=")
        number = getattr(resource, f"RLIMIT_{name}")
        resource.setrlimit(number, (int(most), resource.getrlimit(number)[1]))
    signal.alarm(HANG_S)
    death = os.environ.get(DEATH)
    files = DyingFiles(Death.parse(death) if death else None, _die)
    try:
        return worker.main(int(arguments[0]), arguments[1:], files)
    finally:
        _note_peak()


def _die() -> None:
    _note_peak()
    kill_self()


def _note_peak() -> None:
    if path := os.environ.get(PEAKS):
        kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with open(path, "a") as peaks:
            peaks.write(f"{kib * 1024}\n")


if __name__ == "__main__":
    worker.leave(main(sys.argv[1:]))
