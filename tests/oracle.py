"""The oracle of `verify`, for tests that give it one event at a time, from several sources.

What always holds: each message is in exactly one of accepted, duplicates, rejects and ignored.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from forebay.verify import oracle
from forebay.verify.oracle import Block, Key, Place

__all__ = ["Block", "Key", "Oracle", "Place"]


@dataclass
class Oracle(oracle.Oracle):
    """One partition, and where each of its sources goes on."""

    next_offsets: dict[str, int] = field(default_factory=dict)

    def reject(self, place: Place) -> None:
        if self._is_new(place):
            self.rejects += 1

    def event(self, place: Place, key: Key, upload_ms: int) -> None:
        if self._is_new(place):
            self.admit(place, key, upload_ms)

    def _is_new(self, place: Place) -> bool:
        source, offset = place
        if offset < self.next_offsets.get(source, 0):
            return False
        self.next_offsets[source] = offset + 1
        return True

    def blocks(self) -> dict[tuple[int, bool], list[list[Place]]]:
        """The events of each interval's blocks, and of each day's backfill ones, the blocks in
        order of creation."""
        found: dict[tuple[int, bool], list[list[Place]]] = {}
        for block in [*self.closed, *self.live.values()]:
            found.setdefault(block.place, []).append(sorted(block.events))
        return found

    def places(self) -> list[Place]:
        """Every event accepted, each once."""
        return sorted(place for blocks in self.blocks().values() for b in blocks for place in b)
