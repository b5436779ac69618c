"""`forebay batch run` that a test can stop at a step, to kill it there, or give smaller slices.

BATCH_STOP names the step: `sealed`, `writing`, `written`, `committed`, or `halfway`, when the first
of several nodes has been completed; there the process says so on standard output and waits.
BATCH_SLICE_ROWS is how many rows a slice may have. At the end it prints its peak memory in bytes.
"""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable
from typing import Any

from cli.main import main
from flows import batch
from storage.batch import BatchWriter

STEPS = ("sealed", "writing", "written", "committed")
STOPPED = "stopped"


def _stop(*_: object) -> None:
    print(STOPPED, flush=True)
    signal.pause()


def _wrap(
    name: str,
    before: Callable[..., None] | None,
    after: Callable[..., None] | None,
    owner: type = batch._Run,
) -> None:
    """Have a step of the run call these around itself."""
    step = getattr(owner, name)

    def wrapped(self: Any, *arguments: Any, **options: Any) -> Any:
        if before:
            before(self)
        found = step(self, *arguments, **options)
        if after:
            after(self)
        return found

    setattr(owner, name, wrapped)


def stop_at(step: str) -> None:
    if step == "sealed":
        _wrap("write", _stop, None)
    elif step == "writing":
        slices = iter(range(10**9))
        _wrap("_slice", lambda self: _stop() if next(slices) else None, None)
    elif step == "halfway":
        _wrap("complete", None, _stop, BatchWriter)
    else:
        _wrap("_commit", *((_stop, None) if step == "written" else (None, _stop)))


if __name__ == "__main__":
    if wanted := os.environ.get("BATCH_STOP"):
        stop_at(wanted)
    if rows := os.environ.get("BATCH_SLICE_ROWS"):
        batch.SLICE_ROWS = int(rows)
    try:
        main()
    finally:
        print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, flush=True)
