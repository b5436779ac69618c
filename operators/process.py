"""The process of a worker: its graceful stop, its failure, and what its partitions share.

The stop is a flag that every source partition looks at before it goes on. SIGTERM kills a bytewax
process at once and SIGINT takes no snapshot, so both are caught here, and SIGHUP, which a closed
terminal sends: each source partition then ends as if its input had, the last epoch closes with a
snapshot, and the process exits 0. A second SIGINT does what it does by default; SIGTERM may come
twice, from a process manager that signals the whole group and from the supervisor. Every wait for
anything other than the stop itself happens here, so that a stop ends it at once.

The failure is the first error that any of our steps raised. The engine does not keep it. A worker
that has peers panics instead, as they do; and a `close` that raises aborts the process silently. So
each entry from the engine into our code is `noted`, and no `close` raises: it notes what went
wrong. Whoever runs the dataflow asks for the failure afterwards, whatever the engine made of it.
Input that could not be read is not a failure, because all other input is read to its end: it is
noted too, and asked for at the end.
"""

from __future__ import annotations

import queue
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import wraps
from types import FrameType
from typing import Any, Generic, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

# SUBTLE: a plain flag and SimpleQueue.put, which a signal handler may use at any point. The lock of
# an Event may be held just then by the very thread that runs the handler.
_stopping = False
_waiting: list[queue.SimpleQueue[None]] = []

_noted: list[BaseException] = []
_unread: list[str] = []


def stopping() -> bool:
    return _stopping


def stop_signals() -> list[signal.Signals]:
    """Those that ask for a stop: also SIGHUP, of a closed terminal, unless nohup has it ignored."""
    hangup = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    return [signal.SIGTERM, signal.SIGINT, *([signal.SIGHUP] if hangup else [])]


def stop_on_signals() -> None:
    """Catch these signals, including one that arrived while SIGINT was blocked. Only the main
    thread may call this; elsewhere it does nothing."""
    if threading.current_thread() is threading.main_thread():
        for number in stop_signals():
            signal.signal(number, _stop)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def wait(seconds: float, answer: Future[Any] | None = None) -> bool:
    """Wait for so long, for `answer`, or for a stop. Returns whether a stop is asked for."""
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


def failure() -> BaseException | None:
    """What went wrong first; None if nothing did."""
    return _noted[0] if _noted else None


def note(error: BaseException) -> None:
    _noted.append(error)


def unread() -> list[str]:
    """The input that could not be read in this run, a line for each that says why."""
    return list(_unread)


def note_unread(what: str) -> None:
    _unread.append(what)


def noted(entry: Callable[P, R]) -> Callable[P, R]:
    """`entry`, with what it raises noted. (StopIteration is how a source ends.)"""

    @wraps(entry)
    def noting(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return entry(*args, **kwargs)
        except StopIteration:
            raise
        except Exception as error:
            note(error)
            raise

    return noting


class PerThread(Generic[T]):
    """One value for each thread that asks, made when it first asks: what the partitions of one
    worker thread share.

    SUBTLE: not threading.local, which a thread of the engine finds empty again whenever the engine
    has let go of Python's lock in between.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._values: dict[int, T] = {}

    def get(self) -> T:
        """The value of the calling thread."""
        thread = threading.get_ident()
        if thread not in self._values:
            self._values[thread] = self._make()
        return self._values[thread]
