"""Notices when the wall clock steps back.

The engine compares wall times: when a source wants to be asked again, when a step wants to be
called, how old an epoch is. So when the clock steps back, nothing is read and nothing is committed
until it is where it was, and nothing outside wakes up the engine, not even a stop. The remedy is to
end the workers and restart them from the last commit, as after a crash, with times of the new
clock. A step forward ends an epoch early and does no harm.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable

LOOK_S = 0.25
STEP_S = 0.5
"""The smallest step that is reported."""
RESTART_S = 2.0
"""A step that takes longer to wait out than a start of the workers."""
READ_S, READS = 0.01, 10
"""How long it may take to read both clocks, or they don't belong together; how often to try."""

log = logging.getLogger("forebay.clock")


class Clock:
    """Compares the wall clock with the monotonic one, whenever it is asked. One thread asks."""

    def __init__(
        self,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wall, self._steady = wall, steady
        self._ahead_s = -math.inf
        """How far the wall clock was ahead of the other at most."""
        self.stepped_back_s()

    def stepped_back_s(self) -> float:
        """How far the wall clock has stepped back since this was last not 0; STEP_S at least."""
        for _ in range(READS):
            before = self._steady()
            wall = self._wall()
            if self._steady() - before < READ_S:
                break
        else:
            return 0.0
        ahead = wall - before
        back = self._ahead_s - ahead
        if back < STEP_S:
            self._ahead_s = max(self._ahead_s, ahead)
            return 0.0
        self._ahead_s = ahead
        return back


def warn_of_steps() -> None:
    """Report from now on, on a thread, when the wall clock has stepped back: for a job without a
    supervisor, which only whoever started it can restart."""
    threading.Thread(target=_watch, name="clock", daemon=True).start()


def _watch() -> None:
    clock = Clock()
    while True:
        if back := clock.stepped_back_s():
            log.warning(
                "the wall clock stepped back by %.1f s: nothing is read or committed for as long,"
                " unless the job is ended (with SIGKILL, which does no harm) and started again",
                back,
            )
        time.sleep(LOOK_S)
