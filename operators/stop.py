"""The graceful stop: a flag that every source partition looks at before it goes on.

SIGTERM kills a bytewax process at once and SIGINT takes no snapshot, so both are caught here: each
source partition then ends as if its input had, the last epoch closes with a snapshot, and the
process exits 0. A second SIGINT does what it does by default; SIGTERM may come twice, from a
process manager that tells the whole group and from the supervisor.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType

_stopping = threading.Event()


def stopping() -> bool:
    return _stopping.is_set()


def stop_on_signals() -> None:
    """Catch SIGTERM and SIGINT. Only the main thread may call this; elsewhere it does nothing."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _stop)
        signal.signal(signal.SIGINT, _stop)


def _stop(number: int, _frame: FrameType | None) -> None:
    if stopping() and number == signal.SIGINT:
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
    _stopping.set()
