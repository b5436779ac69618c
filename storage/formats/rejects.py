"""Rejects: the messages of one partition that could not become events, and which of them are meant.

They are in logs like those of blocks, of REJECT_SCHEMA. The partition's state lists the extents
that count, oldest first, and when the newest reject of each arrived (`RejectFile`). A reject that a
replay turns into an event, or that is deleted, is removed: its file is replaced in the list by one
with the rejects that stay. So each reject that counts is in exactly one listed extent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import BadInput
from forebay.storage.base.record import Count, TimeMs
from forebay.storage.base.times import FIRST_MS, LAST_MS
from forebay.storage.formats.columns import Mask, as_mask
from forebay.storage.formats.frame import OF_A_COLUMN, REASONS
from forebay.storage.formats.log import Extent, read_log
from forebay.storage.formats.schema import OFFSET, PARTITION


@dataclass(frozen=True)
class RejectFile:
    """What is known of one file of rejects without opening it.

    `arrived_ms` is the wall time at which the newest of them was taken in. Broker times would not
    do: a client may set them to anything, and have its rejects deleted at once, or never. A
    broker's own times are not later than ours, so a reject is kept at least as long as by them, and
    longer by as much as the job was behind. None: written by a build that did not record it.

    `labels` says how many there are of each reason and column, as `labels` counts them.
    """

    arrived_ms: TimeMs | None
    labels: dict[str, Count]


@dataclass(frozen=True)
class RejectFilter:
    """Rejects that match every field given; an empty field matches all.

    `reasons` are as in the table of rejects; `partitions` and `offsets` are where the messages came
    from; `since_ms` (included) and `until_ms` (not included) are broker times, since 1970. Raises
    BadInput on an unknown reason or a wrong type.
    """

    reasons: tuple[str, ...] = ()
    partitions: tuple[str, ...] = ()
    offsets: tuple[Count, ...] = ()
    since_ms: TimeMs | None = None
    until_ms: TimeMs | None = None

    def __post_init__(self) -> None:
        for reason in self.reasons if isinstance(self.reasons, tuple) else ():
            if reason not in REASONS:
                raise BadInput(f"reason: expected one of {', '.join(REASONS)}; got {reason!r}")
        for name, values, kind in (
            ("reasons", self.reasons, str),
            ("partitions", self.partitions, str),
            ("offsets", self.offsets, int),
        ):
            if not isinstance(values, tuple) or not all(type(one) is kind for one in values):
                raise BadInput(f"{name}: expected a tuple of {kind.__name__}, got {values!r}")
        for offset in self.offsets:
            _require_within("offset", offset, 0, 2**53 - 1)
        for name, ms in (("since", self.since_ms), ("until", self.until_ms)):
            if ms is not None:
                _require_within(name, ms, FIRST_MS, LAST_MS)

    def rows(self, rejects: pa.RecordBatch) -> Mask:
        """For each row of `rejects`, a batch with the columns of the table, whether it is meant."""
        wanted: Mask = np.ones(rejects.num_rows, dtype=bool)
        for name, values in (
            ("reason", self.reasons),
            (PARTITION, self.partitions),
            (OFFSET, self.offsets),
        ):
            if values:
                column = rejects.column(name)
                wanted &= as_mask(pc.is_in(column, value_set=pa.array(values, column.type)))
        times = rejects.column("broker_time").cast(pa.int64())
        if self.since_ms is not None:
            wanted &= as_mask(pc.greater_equal(times, self.since_ms))
        if self.until_ms is not None:
            wanted &= as_mask(pc.less(times, self.until_ms))
        return wanted

    def pick(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """The rows of `batches` that match, batch by batch, in the columns of REJECT_SCHEMA."""
        for batch in batches:
            rows = self.rows(batch)
            if rows.any():
                yield batch if rows.all() else batch.filter(pa.array(rows))


def _require_within(name: str, value: object, least: int, most: int) -> None:
    if type(value) is not int or not least <= value <= most:
        raise BadInput(f"{name}: expected a whole number from {least} to {most}, got {value!r}")


ALL = RejectFilter()


OF_LABELS = ("reason", "detail")
"""The columns that labels are made of."""


def labels(rejects: pa.RecordBatch) -> Counter[str]:
    """How many rejects there are of each reason; where a column is at fault, of each "REASON:
    COLUMN"."""
    reasons, details = (rejects.column(name).dictionary_encode() for name in OF_LABELS)
    pairs = Counter(zip(_codes(reasons), _codes(details), strict=True))
    names, texts = reasons.dictionary.to_pylist(), details.dictionary.to_pylist()
    found: Counter[str] = Counter()
    for (reason, detail), count in pairs.items():
        text = texts[detail] if detail >= 0 else ""
        column = text.partition(":")[0] if names[reason] in OF_A_COLUMN else ""
        found[f"{names[reason]}: {column}" if column else names[reason]] += count
    return found


def _codes(column: pa.DictionaryArray) -> list[int]:
    codes: list[int] = column.indices.fill_null(-1).to_pylist()
    return codes


def read_rejects(
    disk: Disk, folder: Path, extents: Iterable[Extent], wanted: RejectFilter
) -> Iterator[pa.RecordBatch]:
    """The rejects meant, in order of arrival. Raises MissingFile or Corruption."""
    for extent in extents:
        yield from wanted.pick(read_log(disk, folder, extent))
