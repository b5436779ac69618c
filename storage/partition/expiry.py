"""Expiry: what may be deleted, and why; and what waits for the batch layer.

A block or chunk goes when the batch layer has all of its events ("handed off"), or when its last
event is older than the retention, in stream time, or than what the bound in bytes leaves room for
("expired"; there is no such limit by default). It is deleted by being listed in the catalog as
dropped; its files follow after the grace period.

The bound is of a data directory as a whole, and each partition has a writer of its own. So whoever
ticks adds up what all partitions have published (`kept`), and finds the upload time from which on
data has room (`room`); each partition then deletes what is older. Adding up again while some have
deleted and others have not gives no later time. The last day, by the greatest stream time of all,
wins over the bound: it is kept, whatever its size.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from forebay.storage.base.times import DAY_MS
from forebay.storage.formats.boundary import Boundary, Placed
from forebay.storage.formats.catalog import Catalog, Chunk
from forebay.storage.formats.state import BlockState, PartitionState

HANDED_OFF, EXPIRED = "handed off", "expired"


LAST_DAY_MS = DAY_MS


@dataclass(frozen=True)
class Expiry:
    """`retention_ms` 0 keeps everything until it is handed off; `from_ms` is from where on the
    bound in bytes leaves room, None if it leaves room for all."""

    boundary: Boundary
    stream_time_ms: int | None
    retention_ms: int = 0
    from_ms: int | None = None

    def reason(self, part: Placed) -> str | None:
        """Why a block or chunk may go, or None."""
        if self.boundary.handed_off(part):
            return HANDED_OFF
        seal = self.boundary.seal
        if seal and not self.boundary.complete and part.first_ms < seal.until_ms:
            return None  # about to be handed off
        if self.from_ms is not None and part.last_ms < self.from_ms:
            return EXPIRED
        if self.retention_ms and self.stream_time_ms is not None:
            return EXPIRED if part.last_ms < self.stream_time_ms - self.retention_ms else None
        return None


@dataclass(frozen=True)
class Waiting:
    """What the batch layer has yet to take: how old it is, in stream time, and its size."""

    age_ms: int
    bytes: int


def waiting(state: PartitionState, catalog: Catalog, boundary: Boundary) -> Waiting | None:
    """What of a partition is yet to be handed over, if anything is."""
    chunks = [chunk for chunk in catalog.chunks if not boundary.handed_off(chunk)]
    blocks = [block for block in state.blocks if block.id not in catalog.covered]
    blocks = [block for block in blocks if not boundary.handed_off(block)]
    parts: list[Placed] = [*chunks, *blocks]
    if state.stream_time_ms is None or not parts:
        return None
    first_ms = max(min(part.first_ms for part in parts), boundary.covered_until_ms or 0)
    size = sum(extent.bytes for block in blocks for extent in block.extents)
    size += sum(chunk.checksum.bytes for chunk in chunks)
    return Waiting(state.stream_time_ms - first_ms, size)


@dataclass(frozen=True)
class Kept:
    """What is kept and not handed off: its bytes, the newest stream time, and of each block and
    chunk, since when it may go (`expires_ms`) and its bytes."""

    bytes: int = 0
    newest_ms: int | None = None
    parts: tuple[tuple[int, int], ...] = ()

    def __add__(self, other: Kept) -> Kept:
        times = [ms for ms in (self.newest_ms, other.newest_ms) if ms is not None]
        parts = (*self.parts, *other.parts)
        return Kept(self.bytes + other.bytes, max(times, default=None), parts)


@dataclass(frozen=True)
class Room:
    """What a bound leaves room for: data from `from_ms` on, None if all; `over` are the bytes
    beyond the bound that the last day takes."""

    from_ms: int | None = None
    over: int = 0


def expires_ms(block: BlockState, window_ms: int) -> int:
    """The bound from which on a live block may go: nothing in it is younger, and any event that is
    younger than the bound would evict it."""
    return max(block.last_ms + 1, block.touched_ms + window_ms)


def kept(
    stream_time_ms: int | None,
    chunks: Iterable[Chunk],
    blocks: Iterable[BlockState],
    boundary: Boundary,
    window_ms: int,
) -> Kept:
    """What a partition keeps of its chunks that count, and the blocks that none of them covers."""
    parts = [
        (chunk.last_ms + 1, chunk.checksum.bytes)
        for chunk in chunks
        if not boundary.handed_off(chunk)
    ]
    for block in blocks:
        if not boundary.handed_off(block):
            live = block.number is None
            since_ms = expires_ms(block, window_ms) if live else block.last_ms + 1
            parts.append((since_ms, sum(extent.bytes for extent in block.extents)))
    return Kept(sum(size for _, size in parts), stream_time_ms, tuple(parts))


def room(kept: Kept, bytes_max: int) -> Room:
    """What this bound leaves room for; 0 is none. Oldest data goes first, the last day never."""
    over = kept.bytes - bytes_max
    if not bytes_max or over <= 0 or kept.newest_ms is None:
        return Room()
    from_ms = None
    for since_ms, size in sorted(kept.parts):
        if over <= 0 or since_ms > kept.newest_ms - LAST_DAY_MS:
            break
        from_ms, over = since_ms, over - size
    return Room(from_ms, max(0, over))
