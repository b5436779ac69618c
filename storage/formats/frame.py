"""A frame: what one source partition delivered, decoded into columns. The item of the stream.

Invariants: offsets rise within `events` and within `rejects`; each message with an offset in
[first_offset, next_offset) is in exactly one of them (of this frame, or of a sibling that holds
another hash partition's share).
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from forebay.storage.formats.schema import OFFSET, PARTITION

REJECT_SCHEMA = pa.schema(
    [
        pa.field(PARTITION, pa.string()),
        pa.field(OFFSET, pa.int64()),
        pa.field("broker_time", pa.timestamp("ms", tz="UTC")),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
        pa.field("message", pa.binary()),
    ]
)
"""One row a message that could not become an event; `reason` is one of `REASONS`."""

REASONS = (
    "bad json",
    "no key",
    "no upload time",
    "absurd upload time",
    "future upload time",
    "too large",
    "empty",
)
OF_A_COLUMN = frozenset({"no key"})
"""Reasons for which the detail begins with the name of a column and a colon."""


@dataclass(frozen=True)
class Frame:
    """Columnar events and rejects of offsets [first_offset, next_offset) of one source partition.

    `partition` is the one whose state they go to: the source's own, or a hash partition. `events`
    has the schema's columns, `rejects` those of REJECT_SCHEMA. `end_offset` is the source's end as
    last known, for the lag; None if the source has no such thing. `nulled` counts values of a wrong
    type that were read as null; `skipped` offsets that the source no longer had.
    """

    partition: str
    source: str
    first_offset: int
    next_offset: int
    events: pa.RecordBatch
    rejects: pa.RecordBatch
    nulled: int = 0
    skipped: int = 0
    end_offset: int | None = None

    def __getstate__(self) -> dict[str, object]:
        """For another worker. A batch is often a slice of one of many partitions, whose buffers
        pyarrow would pickle whole with each."""
        return {
            name: (value.schema, value.serialize().to_pybytes())
            if isinstance(value, pa.RecordBatch)
            else value
            for name, value in vars(self).items()
        }

    def __setstate__(self, state: dict[str, object]) -> None:
        for name, value in state.items():
            if isinstance(value, tuple):
                schema, data = value
                value = pa.ipc.read_record_batch(pa.py_buffer(data), schema)
            object.__setattr__(self, name, value)
