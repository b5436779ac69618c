"""The rules of a partition, as far as they are a matter of configuration."""

from __future__ import annotations

from dataclasses import dataclass

from forebay.storage.base.times import DAY_MS
from forebay.storage.formats.schema import Schema

DROPS_BYTES_MAX = 16 << 20
REJECTS_BYTES_MAX = 256 << 20


@dataclass(frozen=True)
class Rules:
    """All times in ms.

    `conflicts`: whether the payloads of duplicates are compared. `drops_bytes_max` bounds the drop
    log; 0 keeps none. `rejects_bytes_max` bounds the files of rejects, and `rejects_ms` how long
    after its arrival a reject is kept, in wall time; 0 has no such limit. A backfill block has
    events of one `backfill_span_ms`.
    """

    schema: Schema
    block_span_ms: int
    dedup_window_ms: int
    grace_ms: int
    conflicts: bool = True
    drops_bytes_max: int = DROPS_BYTES_MAX
    rejects_bytes_max: int = REJECTS_BYTES_MAX
    rejects_ms: int = 0
    backfill_span_ms: int = DAY_MS

    @property
    def compared(self) -> tuple[str, ...] | None:
        """The columns in which a duplicate may differ from the event kept; None: not compared."""
        return (self.schema.payload or None) if self.conflicts else None
