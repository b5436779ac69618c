"""A worker process: one worker of the cluster that `cluster` supervises.

    python -m flows.worker PROCESS ADDRESS...

It ends when its standard input does, so that no worker outlives its supervisor. Exit codes: 0 the
input ended or a stop was asked for; PERMANENT an error that a restart would meet again; else what
Python makes of an exception.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from datetime import timedelta

from bytewax._bytewax import cluster_main
from bytewax.recovery import RecoveryConfig

from flows.realtime import build
from flows.settings import load
from storage.errors import ForebayError
from storage.files import Files
from storage.layout import Layout

PERMANENT = 78
"""EX_CONFIG of sysexits.h."""

log = logging.getLogger("forebay.worker")


def main(process: int, addresses: list[str], files: Files | None = None) -> int:
    """Run until the input ends or a stop is asked for; `files` as in `build`."""
    logging.basicConfig(format=f"%(asctime)s worker {process} %(levelname)s %(message)s")
    threading.Thread(target=_end_with_supervisor, daemon=True).start()
    try:
        settings = load()
        recovery = RecoveryConfig(
            str(Layout(settings.data_dir).recovery), backup_interval=timedelta(0)
        )
        cluster_main(
            build(settings, files),
            addresses if len(addresses) > 1 else [],
            process,
            epoch_interval=timedelta(milliseconds=settings.epoch_interval),
            recovery_config=recovery,
            worker_count_per_proc=1,
        )
    except Exception as error:
        cause = _cause(error)
        if cause is None:
            raise
        log.error("%s: %s", type(cause).__name__, cause)
        return PERMANENT
    return 0


def _cause(error: BaseException | None) -> ForebayError | None:
    """The error of ours that the engine wrapped, if there is one."""
    while error is not None and not isinstance(error, ForebayError):
        error = error.__cause__ or error.__context__
    return error


def _end_with_supervisor() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    raise SystemExit(main(int(sys.argv[1]), sys.argv[2:]))
