"""`forebay batch run` that a test can stop at a step, to kill it there, or give smaller slices.

BATCH_STOP names the step: `making` (the table is yet to be made), `sealed`, `writing`, `written`,
`checked` (the catalog has found the commit to fit, and has yet to make it), `committed`, or
`halfway`, when the first of several nodes has been completed; there the process says so on standard
output and waits for a line on standard input to go on. BATCH_SLICE_ROWS is how many rows a slice
may have; BATCH_FILE_BYTES how large a file may be, as if the disk were full; BATCH_UNLOCKED has
locks keep no one out, as on some network file systems. At the end it prints its peak memory in
bytes.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from pyiceberg.catalog.sql import SqlCatalog

from forebay.cli.main import main
from forebay.flows import batch
from forebay.flows.batch_table import EventTable
from forebay.storage.base.disk import Disk
from forebay.storage.formats.boundary import BoundaryWriter
from forebay.verify.worker import peak_bytes

STEPS = ("sealed", "writing", "written", "checked", "committed")
STOPPED = "stopped"
_stops = iter([None])


def _stop(*_: object) -> None:
    """Once in the life of the process."""
    for _once in _stops:
        print(STOPPED, flush=True)
        sys.stdin.readline()


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


def _stop_when_checked() -> None:
    """A SQL catalog writes the metadata between its check and its change."""
    write = SqlCatalog._write_metadata

    def written(**arguments: Any) -> None:
        write(**arguments)
        _stop()

    SqlCatalog._write_metadata = staticmethod(written)  # type: ignore[assignment]


def stop_at(step: str) -> None:
    if step == "sealed":
        _wrap("write", _stop, None)
    elif step == "writing":
        slices = iter(range(10**9))
        _wrap("_slice", lambda self: _stop() if next(slices) else None, None)
    elif step == "halfway":
        _wrap("complete", None, _stop, BoundaryWriter)
    elif step == "making":
        _wrap("create_namespace", _stop, None, SqlCatalog)
    elif step == "checked":
        _wrap("append", lambda _: _stop_when_checked(), None, EventTable)
    else:
        before, after = (_stop, None) if step == "written" else (None, _stop)
        _wrap("append", before, after, EventTable)


def _no_lock(self: Disk, path: Path) -> BinaryIO:
    return path.open("a+b")


if __name__ == "__main__":
    if wanted := os.environ.get("BATCH_STOP"):
        stop_at(wanted)
    if rows := os.environ.get("BATCH_SLICE_ROWS"):
        batch.SLICE_ROWS = int(rows)
    if size := os.environ.get("BATCH_FILE_BYTES"):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(size), int(size)))
    if os.environ.get("BATCH_UNLOCKED"):
        Disk.lock = _no_lock  # type: ignore[method-assign]
    try:
        main()
    finally:
        print("peak", peak_bytes(), flush=True)
