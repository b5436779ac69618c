"""Arrivals: events of one partition in offset order, with all that the rules need of them.

Its arrays have one entry per event. Rows are never removed: what becomes of an event is stated by
its row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from forebay.storage.dedup.keys import Key, key_tuples
from forebay.storage.formats.hashes import I64, U64, Hash
from forebay.storage.formats.payload import Payload, Probe
from forebay.storage.formats.schema import UPLOAD_TIME


@dataclass(frozen=True)
class Arrivals:
    """`times` are upload times, `stream` the stream time after each event (both ms)."""

    events: pa.RecordBatch
    keys: pa.RecordBatch
    hashes: U64
    probe: Probe | None
    times: I64
    stream: I64

    @classmethod
    def of(
        cls,
        events: pa.RecordBatch,
        key: tuple[str, ...],
        payload: tuple[str, ...] | None,
        stream_time_ms: int | None,
        hash: Hash,
    ) -> Arrivals:
        """`payload` names the columns to compare, None if none are."""
        times: I64 = events.column(UPLOAD_TIME).cast(pa.int64()).to_numpy()
        floor = times[0] if stream_time_ms is None else stream_time_ms
        keys = events.select(list(key))
        return cls(
            events,
            keys,
            hash(keys.columns),
            None if payload is None else Probe.of(events, payload),
            times,
            np.maximum.accumulate(np.maximum(times, floor)),
        )

    def __len__(self) -> int:
        return len(self.hashes)

    def part(self, low: int, high: int) -> Arrivals:
        """Rows [low, high)."""
        rows = slice(low, high)
        return Arrivals(
            self.events.slice(low, high - low),
            self.keys.slice(low, high - low),
            self.hashes[rows],
            self.probe and self.probe.part(low, high),
            self.times[rows],
            self.stream[rows],
        )

    def pick(self, rows: I64) -> tuple[pa.RecordBatch, pa.RecordBatch]:
        """Events and keys of these rows, which are ascending."""
        if len(rows) == len(self):
            return self.events, self.keys
        picked = pa.array(rows)
        return self.events.take(picked), self.keys.take(picked)

    def payload(self, rows: I64) -> Payload | None:
        return Payload(self.probe.names, self.probe.hashes[rows]) if self.probe else None

    def key_tuples(self, rows: I64) -> list[Key]:
        """The keys of these rows as Python values."""
        return key_tuples(self.keys.take(pa.array(rows)))
