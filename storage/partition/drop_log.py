"""The drop log as it is written: it explains and never decides, within a bound in bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa

from forebay.storage.base.disk import Disk
from forebay.storage.base.layout import drop_log_name
from forebay.storage.dedup.arrivals import Arrivals
from forebay.storage.formats.columns import Mask
from forebay.storage.formats.drops import DROP_SCHEMA, WHATS
from forebay.storage.formats.hashes import I64
from forebay.storage.formats.log import Extent
from forebay.storage.formats.log_writer import GrowingLog
from forebay.storage.formats.schema import OFFSET, PARTITION, UPLOAD_TIME
from forebay.storage.formats.series import LogSeries

DUPLICATE, CONFLICT, LATE = range(3)
SAMPLES_MAX = 10
"""Conflicts sampled between two flushes."""
FILES_MAX = 64
FILES_OF_BOUND = 8
"""Files that share the bound, so that an eighth of what is told goes at once."""
_WHATS = pa.array(WHATS, pa.string())
_OF_EVENTS = [PARTITION, OFFSET, UPLOAD_TIME]


class DropLog:
    """Thread safety: one thread. `bytes_max` 0 keeps no drops at all."""

    def __init__(
        self,
        disk: Disk,
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
            disk,
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

    def note(self, arrivals: Arrivals, dropped: Mask, differs: Mask, late: Mask) -> None:
        """Log what became of the events of arrivals that were `dropped`, of which some `differs`
        in payload, or were `late`."""
        rows = np.flatnonzero(dropped | late)
        if not self._bytes_max or not len(rows):
            return
        whats = np.where(late[rows], LATE, np.where(differs[rows], CONFLICT, DUPLICATE))
        columns = [
            *arrivals.events.select(_OF_EVENTS).take(pa.array(rows)).columns,
            _WHATS.take(pa.array(whats)),
            pa.array(arrivals.hashes[rows]),
            self._sampled(whats, arrivals.events, rows),
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
        """The files no longer listed, because their bytes or their number exceed the bound.

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
