"""The drop log of one partition: what happened to events that a query does not show as sent.

    _partition    string                  source partition of the copy
    _offset       int64                   its offset there
    upload_time   timestamp[ms, UTC]      its upload time
    what          string                  one of `WHATS`
    key_hash      uint64                  hash of the dedup key (see `hashes`)
    payload       string                  of some conflicts: the copy's payload, as JSON

A duplicate was dropped; a conflict is a duplicate whose payload is not that of the event kept; a
late event was kept, in a block of its own. The log explains and never decides: counts come from the
counters, it is bounded in bytes (the oldest file is deleted first), and a commit does not wait for
the growing file, so a power loss may take the last explanations.
"""

from __future__ import annotations

import pyarrow as pa

from forebay.storage.formats.schema import OFFSET, PARTITION, UPLOAD_TIME

WHATS = ("duplicate", "conflict", "late")
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
