"""A replay of rejects: one file of them decoded again, and what stays of it.

In the log of rejects, each that counts is in exactly one listed extent: what passes goes out with
its file, and what stays of that is appended again, so the state never grows with what was replayed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from forebay.storage.base.disk import Disk
from forebay.storage.formats.columns import Mask, as_mask
from forebay.storage.formats.frame import Frame
from forebay.storage.formats.log import Extent, read_log
from forebay.storage.formats.rejects import RejectFilter
from forebay.storage.formats.schema import OFFSET, PARTITION
from forebay.storage.partition.edits import Replay

Redecode = Callable[[pa.RecordBatch], list[Frame]]
"""Decodes rejects again: frames of their sources with the events of those that pass."""


def redecoded(
    disk: Disk, folder: Path, extent: Extent, wanted: RejectFilter, redecode: Redecode
) -> tuple[Replay, list[Frame]]:
    """What becomes of one file of rejects, and frames with all events that come of it."""
    left, passed, frames = [], [], []
    for batch in read_log(disk, folder, extent):
        rows = np.flatnonzero(wanted.rows(batch))
        stays: Mask = np.ones(batch.num_rows, dtype=bool)
        for frame in redecode(batch.take(pa.array(rows))) if len(rows) else ():
            if frame.events.num_rows:
                frames.append(frame)
                mine = as_mask(pc.equal(batch.column(PARTITION), frame.source))
                stays &= ~(mine & np.isin(batch.column(OFFSET), frame.events.column(OFFSET)))
        if stays.any():
            left.append(batch.filter(pa.array(stays)))
        if not stays.all():
            passed.append(batch.filter(pa.array(~stays)))
    nulled = sum(frame.nulled for frame in frames)
    return Replay(extent, tuple(left), tuple(passed), nulled), frames
