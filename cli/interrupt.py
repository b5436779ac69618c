"""Ctrl-C while the command is being imported: the process ends at once with 130, without output.

A KeyboardInterrupt during an import is reported by the importing code, or lost. Nothing has begun
by then, so nothing is left undone. One handler serves both phases: Polars keeps the one that it
finds when it is imported, and would not notice a replacement.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130

_importing = 0


def hear_interrupts() -> None:
    """Call this first, in the main thread. Does nothing if SIGINT is ignored from the start."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupted)


@contextmanager
def importing() -> Iterator[None]:
    global _importing
    _importing += 1
    try:
        yield
    finally:
        _importing -= 1


def _interrupted(number: int, frame: FrameType | None) -> None:
    if _importing:
        os._exit(INTERRUPTED)
    signal.default_int_handler(number, frame)
