"""A worker of the job that dies where it is told to, or has less of a resource than the host.

    python -m verify.worker PROCESS ADDRESS...

VERIFY_DEATH is a `Death` as text; VERIFY_LIMIT is a resource and its most, as in `FSIZE=100000` or
`NOFILE=64`. Without either it is `flows.worker`.
"""

from __future__ import annotations

import os
import resource
import sys

from flows import worker
from verify.dying import Death, DyingFiles

DEATH, LIMIT = "VERIFY_DEATH", "VERIFY_LIMIT"


def main(arguments: list[str]) -> int:
    """As `flows.worker`."""
    if limit := os.environ.get(LIMIT):
        name, most = limit.split("=")
        number = getattr(resource, f"RLIMIT_{name}")
        resource.setrlimit(number, (int(most), resource.getrlimit(number)[1]))
    death = os.environ.get(DEATH)
    files = DyingFiles(Death.parse(death) if death else None)
    return worker.main(int(arguments[0]), arguments[1:], files)


if __name__ == "__main__":
    worker.leave(main(sys.argv[1:]))
