"""What a data directory keeps, against `retention_bytes`: the time from which on it has room, and a
warning before anything is deleted.

Each worker adds up for itself, once per tick interval, what all partitions have published. One that
can't be read is left out: that makes the sum smaller, and less is deleted. Only the worker that has
the first partition warns. Not thread-safe: one belongs to each worker.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection

from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import ForebayError
from forebay.storage.base.layout import Layout
from forebay.storage.base.text import size_text
from forebay.storage.base.times import utc_text
from forebay.storage.formats.boundary import Boundary
from forebay.storage.formats.catalog import read_catalog
from forebay.storage.formats.state import read_manifest
from forebay.storage.partition.expiry import Kept, kept, room

NEAR = 0.9
"""Of the bound: from there on it is said that deletion is about to begin."""
EVERY_S = 86_400.0
"""How often the same is said."""

log = logging.getLogger("forebay.disk")


class DiskWatch:
    """`bytes_max` 0 is no bound: nothing is added up."""

    def __init__(
        self,
        disk: Disk,
        layout: Layout,
        bytes_max: int,
        window_ms: int,
        every_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._disk = disk
        self._layout = layout
        self._bytes_max = bytes_max
        self._window_ms = window_ms
        self._every_s = every_s
        self._clock = clock
        self._boundary: Boundary | None = None
        self._due = 0.0
        self._from_ms: int | None = None
        self._said: dict[str, float] = {}

    def from_ms(self, boundary: Boundary, mine: Collection[str]) -> int | None:
        """The upload time before which data has no room, None if all has. `mine` are the partitions
        of this worker."""
        now = self._clock()
        if self._bytes_max and (now >= self._due or boundary != self._boundary):
            self._boundary, self._due = boundary, now + self._every_s
            names = self._layout.partitions()
            found = sum((self._kept(name, boundary) for name in names), Kept())
            self._from_ms = room(found, self._bytes_max).from_ms
            if names and names[0] in mine:
                self._say(found, now)
        return self._from_ms

    def _kept(self, name: str, boundary: Boundary) -> Kept:
        try:
            state = read_manifest(self._disk, self._layout.manifest(name))
            catalog = read_catalog(self._disk, self._layout.catalog(name), name)
        except (ForebayError, OSError):
            return Kept()
        if state is None:
            return Kept()
        catalog = catalog.committed(state.runs, state.incarnation)
        blocks = (block for block in state.blocks if block.id not in catalog.covered)
        return kept(state.stream_time_ms, catalog.chunks, blocks, boundary, self._window_ms)

    def _say(self, found: Kept, now: float) -> None:
        held, limit = size_text(found.bytes), size_text(self._bytes_max)
        found_room = room(found, self._bytes_max)
        if found_room.over:
            self._once_in_a_while(
                "over", now,
                f"{held} are kept, beyond retention_bytes ({limit}), for the last day"
                " is never deleted, nor is what is hot: more disk, or fewer events, are needed",
            )  # fmt: skip
        elif found_room.from_ms is None and found.bytes >= NEAR * self._bytes_max:
            from_ms = room(found, int(NEAR * self._bytes_max)).from_ms
            rest = f"data from {utc_text(from_ms)} on" if from_ms is not None else "the last day"
            self._once_in_a_while(
                "near", now,
                f"{held} are kept, and beyond retention_bytes ({limit}) the oldest is"
                f" deleted, though no batch layer took it: once a tenth more has come, {rest} will"
                " be left",
            )  # fmt: skip
        if found_room.from_ms is not None:
            log.info(
                "%s are kept, beyond retention_bytes (%s): what is before %s is deleted",
                held, limit, utc_text(found_room.from_ms),
            )  # fmt: skip

    def _once_in_a_while(self, what: str, now: float, text: str) -> None:
        if now >= self._said.get(what, now):
            self._said[what] = now + EVERY_S
            log.warning("%s", text)
