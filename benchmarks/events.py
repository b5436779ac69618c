"""The events: endless columnar frames, for benchmarks in which JSON should play no part.

Messages of a load are decoded once; their columns are repeated under new ids, upload times and
offsets. So values, sizes and compression are those of real events, at a tenth of the cost of
decoding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from forebay.cli.load import Load, LoadSpec
from forebay.flows.settings import Settings
from forebay.operators.decode import DecodeConfig, Decoder
from forebay.operators.sources.messages import Messages
from forebay.storage.formats.columns import arrow_schema
from forebay.storage.formats.frame import REJECT_SCHEMA, Frame
from forebay.storage.formats.hashes import I64, U64
from forebay.storage.formats.schema import OFFSET, PARTITION, UPLOAD_TIME

ROWS = 5_000
POOL_ROWS = 50_000
ID_BYTES = 32
START_MS = 1_714_521_600_000
SCHEMA = Settings(event_schema="amplitude").schema_of_events
_NO_REJECTS = pa.RecordBatch.from_pylist([], REJECT_SCHEMA)


def messages(events: int, seed: int = 0, span_ms: int = 3_600_000) -> list[bytes]:
    """Messages of a load, all new events and on time, with upload times from START_MS on."""
    spec = LoadSpec(
        events, 1, seed, START_MS, span_ms, duplicates=0, late=0, broken=0, disorder_ms=0
    )
    return [message for parts in Load(spec).slices() for message in parts[0]]


def decoded(values: Sequence[bytes], first: int = 0, source: str = "p") -> Frame:
    """What `decode` makes of one batch."""
    config = DecodeConfig(SCHEMA, future_skew_ms=60_000, message_bytes_max=1 << 20)
    item = Messages(
        source=source,
        values=list(values),
        offsets=np.arange(first, first + len(values), dtype=np.int64),
        times_ms=np.full(len(values), START_MS + 86_400_000, dtype=np.int64),
        next_offset=first + len(values),
    )
    return Decoder(config).decode([item])[0]


class Events:
    """A pool of decoded events. `frames` never gives the same dedup key twice."""

    def __init__(self, seed: int = 0) -> None:
        values = messages(POOL_ROWS, seed)
        self._pool = [
            decoded(values[low : low + ROWS]).events for low in range(0, len(values), ROWS)
        ]
        self._next: dict[str, int] = {}

    def frames(
        self, partitions: Sequence[str], events: int, start_ms: int, span_ms: int, rows: int = ROWS
    ) -> Iterator[Frame]:
        """So many events in all, in frames of up to `rows`, the partitions in turn; upload times
        rise from `start_ms` through `span_ms`."""
        done = 0
        while done < events:
            for number, partition in enumerate(partitions):
                count = min(rows, events - done)
                if not count:
                    return
                place = done + np.arange(count, dtype=np.int64)
                yield self._frame(partition, number, start_ms + place * span_ms // events)
                done += count

    def _frame(self, partition: str, number: int, times_ms: I64) -> Frame:
        count = len(times_ms)
        first = self._next.get(partition, 0)
        self._next[partition] = first + count
        offsets = np.arange(first, first + count, dtype=np.int64)
        pool = self._pool[first // ROWS % len(self._pool)].slice(0, count)
        own = {
            PARTITION: pa.array([partition]).take(pa.array(np.zeros(count, np.int64))),
            OFFSET: pa.array(offsets),
            UPLOAD_TIME: pa.array(times_ms).cast(arrow_schema(SCHEMA).field(UPLOAD_TIME).type),
            "insert_id": _ids(offsets.astype(np.uint64) | np.uint64(number << 48)),
        }
        columns = [own.get(field.name, pool.column(field.name)) for field in arrow_schema(SCHEMA)]
        batch = pa.RecordBatch.from_arrays(columns, schema=arrow_schema(SCHEMA))
        return Frame(partition, partition, first, first + count, batch, _NO_REJECTS)


def mixed(numbers: U64) -> U64:
    """Other numbers for these, one to one, that look random (splitmix64; Steele and others)."""
    mix: U64 = numbers * np.uint64(0x9E3779B97F4A7C15)
    mix = (mix ^ (mix >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mix = (mix ^ (mix >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: U64 = mix ^ (mix >> np.uint64(31))
    return mixed


def _ids(numbers: U64) -> pa.StringArray:
    """A text of ID_BYTES hexadecimal digits for each number."""
    halves = np.stack([mixed(numbers), mixed(~numbers)], axis=1)
    text = pa.py_buffer(halves.tobytes().hex().encode())
    bounds = pa.py_buffer(np.arange(len(numbers) + 1, dtype=np.int32) * np.int32(ID_BYTES))
    return pa.StringArray.from_buffers(len(numbers), bounds, text)
