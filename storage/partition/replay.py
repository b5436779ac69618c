"""A replay of rejects: one file of them decoded again, and what stays of it; or deleted likewise.

In the log of rejects, each that counts is in exactly one listed extent: what passes or is deleted
goes out with its file, and a file with what stays is listed in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import Corruption, MissingFile
from forebay.storage.formats.columns import Mask, as_mask
from forebay.storage.formats.frame import Frame
from forebay.storage.formats.log import Extent, read_log
from forebay.storage.formats.rejects import ALL, RejectFilter
from forebay.storage.formats.schema import OFFSET, PARTITION
from forebay.storage.partition.edits import Delete, Expire, Replay

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


def deleted(
    disk: Disk,
    folder: Path,
    extent: Extent,
    wanted: RejectFilter,
    next_offsets: Mapping[str, int],
) -> Delete | Expire | None:
    """The deletion of those rejects of one file that are meant and were read before `next_offsets`,
    which have each source's; None if there are none.

    If a file can't be read, nobody knows which of its rejects are meant: it is deleted if all
    rejects are, else it stays.
    """
    if not next_offsets:
        return None
    left, gone = [], []
    try:
        for batch in read_log(disk, folder, extent):
            goes = wanted.rows(batch) & _read_before(batch, next_offsets)
            if goes.any():
                gone.append(batch.filter(pa.array(goes)))
            if not goes.all():
                left.append(batch.filter(pa.array(~goes)))
    except (Corruption, MissingFile):
        return Expire(extent) if wanted == ALL else None
    return Delete(extent, tuple(left), tuple(gone)) if gone else None


def _read_before(rejects: pa.RecordBatch, next_offsets: Mapping[str, int]) -> Mask:
    sources, offsets = rejects.column(PARTITION), rejects.column(OFFSET).to_numpy()
    before: Mask = np.zeros(rejects.num_rows, dtype=bool)
    for source in pc.unique(sources).to_pylist():
        before |= as_mask(pc.equal(sources, source)) & (offsets < next_offsets.get(source, 0))
    return before
