"""What may be deleted, and why: the rules, and the tick that asks for it.

A block or chunk goes when the batch layer has all of its events ("handed off"), or when its last
event is older than the retention, in stream time ("expired"; there is no such limit by default). It
goes by being listed in the catalog as dropped; files follow after the grace period.
"""

from __future__ import annotations

from dataclasses import dataclass

from storage.batch import Batch, Placed
from storage.layout import BlockId

HANDED_OFF, EXPIRED = "handed off", "expired"


@dataclass(frozen=True)
class Retention:
    """`retention_ms` 0 keeps everything until it is handed off."""

    batch: Batch
    stream_time_ms: int | None
    retention_ms: int = 0

    def reason(self, part: Placed) -> str | None:
        """Why a block or chunk may go, or None."""
        if self.batch.handed_off(part):
            return HANDED_OFF
        if self.retention_ms and self.stream_time_ms is not None:
            return EXPIRED if part.last_ms < self.stream_time_ms - self.retention_ms else None
        return None


@dataclass(frozen=True)
class Tick:
    """What `blocks` tells `chunks` now and then, so that it deletes what may go.

    `committed` is the last eviction that no crash can undo; what was evicted later stays for now.
    `listed` are all evicted blocks of any state that a restart could resume from.
    """

    retention: Retention
    committed: int
    listed: frozenset[BlockId]
