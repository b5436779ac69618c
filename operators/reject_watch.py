"""A warning, now and then, that most of the arriving messages are rejects.

The job does not stop for them, and nothing is lost: but whoever started it with a schema for other
messages should learn of it while it runs. Not thread-safe: one belongs to each worker.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from forebay.storage.formats.frame import Frame
from forebay.storage.formats.outcome import ADVICE, Outcome

FIRST_S, EVERY_S = 5.0, 60.0
"""How long messages are counted before the first look, and between two."""

log = logging.getLogger("forebay.rejects")


class RejectWatch:
    """Counts what arrives, and checks it when it is time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._due: float | None = None
        self._found = Outcome()

    def take(self, frame: Frame) -> None:
        """Count the messages of a frame (duplicates are not rejects)."""
        now = self._clock()
        if self._due is None:
            self._due = now + FIRST_S
        self._found.accepted += frame.events.num_rows
        if frame.rejects.num_rows:
            self._found.take(frame.rejects)
        if now < self._due:
            return
        found, self._found, self._due = self._found, Outcome(), now + EVERY_S
        if found.most_are_rejects:
            reasons = ", ".join(f"{count:,} {name}" for name, count in found.reasons.most_common(3))
            log.warning(
                "%d of the last %d messages are rejects (%s), such as %s; %s",
                found.rejects,
                found.rejects + found.accepted,
                reasons,
                found.sample,
                ADVICE,
            )
