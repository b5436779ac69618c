"""The drop log of one partition: what happened to events that a query does not show as sent.

    _partition    string                  source partition of the copy
    _offset       int64                   its offset there
    upload_time   timestamp[ms, UTC]      its upload time
    what          string                  one of `WHATS`
    key_hash      uint64                  hash of the dedup key (see `index`)
    payload       string                  of some conflicts: the copy's payload, as JSON

A duplicate was dropped; a conflict is a duplicate whose payload is not that of the event kept; a
late event was kept, in a block of its own. The log explains and never decides: counts are the
counters', it is bounded in bytes (the oldest file goes first), and a commit does not wait for the
file that grows, so a power loss may take the last explanations.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa

from storage.files import Files
from storage.index import I64
from storage.keys import Mask
from storage.layout import drop_log_name
from storage.log import Extent, GrowingLog
from storage.schema import OFFSET, PARTITION, UPLOAD_TIME
from storage.segment import Segment
from storage.series import LogSeries

WHATS = ("duplicate", "conflict", "late")
DUPLICATE, CONFLICT, LATE = range(3)
DROP_SCHEMA = pa.schema(
    [
        pa.field(PARTITION, pa.string()),
        pa.field(OFFSET, pa.int64()),
        pa.field(UPLOAD_TIME, pa.timestamp("ms", tz="UTC")),
        pa.field("what", pa.string()),
        pa.field("key_hash", pa.uint64()),
        pa.field("payload", pa.string()),
    ]
)
SAMPLES_MAX = 10
"""Conflicts sampled between two flushes."""
FILES_MAX = 64
FILES_OF_BOUND = 8
"""Files that share the bound, so that an eighth of what is told goes at once."""
_WHATS = pa.array(WHATS, pa.string())
_OF_EVENTS = [PARTITION, OFFSET, UPLOAD_TIME]


class Drops:
    """Thread safety: one thread. `bytes_max` 0 keeps no drops at all."""

    def __init__(
        self,
        files: Files,
        folder: Path,
        incarnation: int,
        extents: list[Extent],
        bytes_max: int,
        payload: tuple[str, ...],
    ) -> None:
        """Go on after `extents`, those of the committed state; `payload` names columns."""
        self._bytes_max = bytes_max
        self._payload = list(payload)
        self._samples = 0
        self._log = LogSeries(
            files,
            folder,
            drop_log_name,
            incarnation,
            DROP_SCHEMA,
            extents,
            max(1, bytes_max // FILES_OF_BOUND),
        )

    @property
    def extents(self) -> list[Extent]:
        return self._log.extents

    def note(self, segment: Segment, dropped: Mask, differs: Mask, late: Mask) -> None:
        """Log what became of the events of a segment that were `dropped`, of which some `differs`
        in payload, or were `late`."""
        rows = np.flatnonzero(dropped | late)
        if not self._bytes_max or not len(rows):
            return
        whats = np.where(late[rows], LATE, np.where(differs[rows], CONFLICT, DUPLICATE))
        columns = [
            *segment.events.select(_OF_EVENTS).take(pa.array(rows)).columns,
            _WHATS.take(pa.array(whats)),
            pa.array(segment.hashes[rows]),
            self._sampled(whats, segment.events, rows),
        ]
        self._log.append(pa.RecordBatch.from_arrays(columns, schema=DROP_SCHEMA))

    def _sampled(self, whats: I64, events: pa.RecordBatch, rows: I64) -> pa.Array:
        sample = np.flatnonzero(whats == CONFLICT)[: SAMPLES_MAX - self._samples]
        if not len(sample):
            return pa.nulls(len(whats), pa.string())
        self._samples += len(sample)
        payloads = events.select(self._payload).take(pa.array(rows[sample])).to_pylist()
        texts: list[str | None] = [None] * len(whats)
        for at, payload in zip(sample.tolist(), payloads, strict=True):
            texts[at] = orjson.dumps(payload).decode()
        return pa.array(texts, pa.string())

    def flush(self) -> None:
        self._samples = 0
        self._log.flush()

    def trim(self) -> list[Path]:
        """The files that are listed no more, for their bytes or their number is beyond the bound.

        The file that grows always stays listed.
        """
        extents = self._log.extents
        sealed = self._log.sealed_extents
        gone = []
        while sealed and (
            len(extents) > FILES_MAX or sum(extent.bytes for extent in extents) > self._bytes_max
        ):
            gone.append(self._log.discard(sealed[0]))
            extents, sealed = self._log.extents, self._log.sealed_extents
        return gone

    def sealed(self) -> list[GrowingLog]:
        """Full files that are not durable yet."""
        return self._log.unsynced(sealed_only=True)

    def settle(self) -> None:
        self._log.settle()
