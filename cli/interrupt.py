"""Ctrl-C while the command is imported: the process ends at once with 130, as quietly as later.

A KeyboardInterrupt in the midst of an import is reported by whatever imports, or lost. Nothing has
begun then, so nothing is left undone. One handler does both, for Polars keeps the one that it finds
when it is imported, and would be deaf if it were replaced.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130

_importing = 0


def hear_interrupts() -> None:
    """To be called first, in the main thread, unless who started the process has it ignored."""
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
