"""The rules of admission, one event at a time, so plain that they can be checked by eye.

What always holds: each message is in exactly one of accepted, duplicates, rejects and ignored.
Shares no code with what it judges.
"""

from __future__ import annotations

from dataclasses import dataclass, field

Key = tuple[str, int]
Place = tuple[str, int]
"""Source and offset: what tells one accepted event from another."""


@dataclass
class OracleBlock:
    interval_ms: int
    touched_ms: int
    keys: set[Key] = field(default_factory=set)
    events: list[Place] = field(default_factory=list)


@dataclass
class Oracle:
    """One partition. `closed` holds evicted blocks in order of eviction; none is ever forgotten."""

    block_span_ms: int
    dedup_window_ms: int
    stream_time_ms: int | None = None
    next_offsets: dict[str, int] = field(default_factory=dict)
    live: dict[int, OracleBlock] = field(default_factory=dict)
    closed: list[OracleBlock] = field(default_factory=list)
    accepted: int = 0
    duplicates: int = 0
    rejects: int = 0
    late: int = 0

    def reject(self, place: Place) -> None:
        if self._is_new(place):
            self.rejects += 1

    def event(self, place: Place, key: Key, upload_ms: int) -> None:
        if not self._is_new(place):
            return
        now_ms = self.stream_time_ms = max(self.stream_time_ms or upload_ms, upload_ms)
        for block in sorted(self.live.values(), key=lambda block: block.interval_ms):
            if now_ms - block.touched_ms >= self.dedup_window_ms:
                self.closed.append(self.live.pop(block.interval_ms))
        interval_ms = upload_ms // self.block_span_ms * self.block_span_ms
        retained = [block for block in self.closed if block.interval_ms == interval_ms]
        if any(key in block.keys for block in [*self.live.values(), *retained]):
            self.duplicates += 1
            return
        block = self.live.setdefault(interval_ms, OracleBlock(interval_ms, now_ms))
        block.touched_ms = now_ms
        block.keys.add(key)
        block.events.append(place)
        self.accepted += 1
        self.late += now_ms - upload_ms >= self.dedup_window_ms

    def _is_new(self, place: Place) -> bool:
        source, offset = place
        if offset < self.next_offsets.get(source, 0):
            return False
        self.next_offsets[source] = offset + 1
        return True

    def blocks(self) -> dict[int, list[list[Place]]]:
        """The events of each interval's blocks, the blocks in order of creation."""
        found: dict[int, list[list[Place]]] = {}
        for block in [*self.closed, *self.live.values()]:
            found.setdefault(block.interval_ms, []).append(sorted(block.events))
        return found

    def places(self) -> list[Place]:
        """Every event accepted, each once."""
        return sorted(place for blocks in self.blocks().values() for b in blocks for place in b)
