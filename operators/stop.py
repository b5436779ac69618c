"""The graceful stop: a flag that every source partition looks at before it goes on.

SIGTERM kills a bytewax process at once and SIGINT takes no snapshot, so both are caught here, and
SIGHUP, which a closed terminal sends: each source partition then ends as if its input had, the last
epoch closes with a snapshot, and the process exits 0. A second SIGINT does what it does by default;
SIGTERM may come twice, from a process manager that signals the whole group and from the supervisor.

Whoever waits for anything but the stop itself waits here, so that a stop ends the wait at once.
"""

from __future__ import annotations

import queue
import signal
import threading
from concurrent.futures import Future
from contextlib import suppress
from types import FrameType
from typing import Any

# SUBTLE: a plain flag and SimpleQueue.put, which a signal handler may use at any point. The lock of
# an Event may be held just then by the very thread that runs the handler.
_stopping = False
_waiting: list[queue.SimpleQueue[None]] = []


def stopping() -> bool:
    return _stopping


def stop_on_signals() -> None:
    """Catch SIGTERM, SIGINT and SIGHUP, unless nohup has SIGHUP ignored. Only the main thread may
    call this; elsewhere it does nothing."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _stop)
        signal.signal(signal.SIGINT, _stop)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, _stop)


def wait(seconds: float, answer: Future[Any] | None = None) -> bool:
    """Return after so long, when `answer` is there, or when a stop is asked for; whether one is."""
    awake: queue.SimpleQueue[None] = queue.SimpleQueue()
    _waiting.append(awake)
    try:
        if answer is not None:
            answer.add_done_callback(lambda _: awake.put(None))
        if not _stopping:
            with suppress(queue.Empty):
                awake.get(timeout=seconds)
    finally:
        _waiting.remove(awake)
    return _stopping


def _stop(number: int, _frame: FrameType | None) -> None:
    global _stopping
    if _stopping and number == signal.SIGINT:
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
    _stopping = True
    for awake in tuple(_waiting):
        awake.put(None)
