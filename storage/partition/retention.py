"""Retention: what may be deleted, and why; and what waits for the batch layer.

A block or chunk goes when the batch layer has all of its events ("handed off"), or when its last
event is older than the retention, in stream time ("expired"; there is no such limit by default). It
goes by being listed in the catalog as dropped; files follow after the grace period.
"""

from __future__ import annotations

from dataclasses import dataclass

from forebay.storage.formats.boundary import Boundary, Placed
from forebay.storage.formats.catalog import Catalog
from forebay.storage.formats.state import PartitionState

HANDED_OFF, EXPIRED = "handed off", "expired"


@dataclass(frozen=True)
class Retention:
    """`retention_ms` 0 keeps everything until it is handed off."""

    boundary: Boundary
    stream_time_ms: int | None
    retention_ms: int = 0

    def reason(self, part: Placed) -> str | None:
        """Why a block or chunk may go, or None."""
        if self.boundary.handed_off(part):
            return HANDED_OFF
        seal = self.boundary.seal
        if seal and not self.boundary.complete and part.first_ms < seal.until_ms:
            return None  # about to be handed off
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
