"""Redecoding: rejects decoded again for a replay, under the present configuration.

What comes out for a message never depends on the messages around it, so neither does what passes.
An upload time is in the future or not by the present wall clock: one that was is not for ever.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from forebay.operators.decode import Decoder
from forebay.operators.sources.messages import Messages
from forebay.storage.base.times import now_ms
from forebay.storage.formats.frame import Frame
from forebay.storage.formats.schema import OFFSET, PARTITION

MESSAGES_MAX = 5_000
FAR_OFF_MS = -(2**63)


def decode_again(decoder: Decoder, rejects: pa.RecordBatch) -> list[Frame]:
    """Frames of each source's rejects, of MESSAGES_MAX at most; broker times are the first ones.
    One that is null was further off than any reader takes, and still is."""
    frames = []
    for source in pc.unique(rejects.column(PARTITION)).to_pylist():
        mine = rejects.filter(pc.equal(rejects.column(PARTITION), source))
        for low in range(0, mine.num_rows, MESSAGES_MAX):
            part = mine.slice(low, MESSAGES_MAX)
            offsets = part.column(OFFSET).to_numpy()
            times = part.column("broker_time").cast(pa.int64())
            item = Messages(
                source=source,
                values=part.column("message").to_pylist(),
                offsets=offsets,
                times_ms=times.fill_null(FAR_OFF_MS).to_numpy(),
                next_offset=int(offsets[-1]) + 1,
                read_ms=now_ms(),
            )
            frames += decoder.decode([item])
    return frames
