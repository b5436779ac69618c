"""Hot blocks by upload time, so that a question about some times reads only the blocks that may
have such events.

What always holds: a filter that says nothing certain about times keeps all blocks.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from pyarrow.fs import LocalFileSystem

from forebay.query.batches import Between
from forebay.query.partition import Partition
from forebay.storage.base.times import MINUTE_MS
from forebay.storage.formats.boundary import Placed
from forebay.storage.formats.schema import UPLOAD_TIME

STEP_MS = 5 * MINUTE_MS
"""Blocks are grouped by whole intervals: thousands of blocks share a few of these."""
GROUPS = 8
TIME = pa.timestamp("ms", "UTC")
Interval = tuple[int, int]


def grouped(partitions: Sequence[Partition]) -> list[tuple[Between, list[Partition]]]:
    """All hot blocks in a few groups by time (at least one), each with the bounds of its upload
    times. A block is in one group only; the times of two groups may overlap."""
    found = _intervals(partitions)
    size = max(1, -(-len(found) // GROUPS))
    groups = [found[first : first + size] for first in range(0, len(found), size)]
    return [
        (Between(group[0][0], max(end for _, end in group)), _only(partitions, set(group)))
        for group in groups
    ] or [(Between(), list(partitions))]


def pruned(
    partitions: Sequence[Partition], where: pc.Expression | None, schema: pa.Schema
) -> list[Partition]:
    """The partitions with those hot blocks alone that may have a row for which `where` holds, whose
    columns are of `schema`."""
    if where is None:
        return list(partitions)
    try:
        return _only(partitions, _possible(_intervals(partitions), where, schema))
    except pa.ArrowException:  # it compares what Arrow does not
        return list(partitions)


def _intervals(partitions: Sequence[Partition]) -> list[Interval]:
    return sorted({_interval(block) for one in partitions for block in one.hot})


def _interval(block: Placed) -> Interval:
    """Whole steps, from the beginning of the first on and before the end of the last."""
    return block.first_ms // STEP_MS * STEP_MS, (block.last_ms // STEP_MS + 1) * STEP_MS


def _only(partitions: Sequence[Partition], intervals: set[Interval]) -> list[Partition]:
    return [one.only(lambda block: _interval(block) in intervals) for one in partitions]


def _possible(
    intervals: Sequence[Interval], where: pc.Expression, schema: pa.Schema
) -> set[Interval]:
    """Those with a time for which it can be true. Arrow tells it of files that are said to have the
    rows of one interval each; no file of the name is opened."""
    time = pc.field(UPLOAD_TIME)
    said = [
        (time >= pa.scalar(first, TIME)) & (time < pa.scalar(end, TIME)) for first, end in intervals
    ]
    files = ds.FileSystemDataset.from_paths(
        [str(number) for number in range(len(intervals))],
        schema=schema,
        format=ds.ParquetFileFormat(),
        filesystem=LocalFileSystem(),
        partitions=said,
    )
    return {intervals[int(file.path)] for file in files.get_fragments(where)}
