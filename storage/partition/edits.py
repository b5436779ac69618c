"""Edits: every change that a partition's state can undergo, one type each.

Whoever decides (`admission`, `gc`) only looks at the state and yields edits; `journal` applies each
before the next is asked for, first to the state, then to logs and keys (an eviction once the log of
its block is whole). So the state is right at every moment, and what decides needs no files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from forebay.storage.base.layout import BlockId
from forebay.storage.dedup.arrivals import Arrivals
from forebay.storage.formats.boundary import Seal
from forebay.storage.formats.columns import Mask
from forebay.storage.formats.frame import Frame
from forebay.storage.formats.hashes import I64
from forebay.storage.formats.log import Extent
from forebay.storage.formats.rejects import RejectFile, labels
from forebay.storage.formats.state import BlockState, PartitionState

_FAR = np.iinfo(np.int64)


@dataclass(frozen=True)
class Progress:
    """A source was read up to the end of `frame`; `new`: not all of it had been read before."""

    frame: Frame
    new: bool

    def apply(self, state: PartitionState) -> None:
        frame = self.frame
        if frame.end_offset is not None:
            state.end_offsets[frame.source] = frame.end_offset
        if self.new:
            state.next_offsets[frame.source] = frame.next_offset
            state.counters.nulled += frame.nulled
            state.counters.skipped += frame.skipped


@dataclass(frozen=True)
class Reject:
    """Messages, of REJECT_SCHEMA, that are not events; how many of each label; the wall time."""

    rows: pa.RecordBatch
    labels: Mapping[str, int]
    arrived_ms: int

    def apply(self, state: PartitionState) -> None:
        _count_rejects(state, self.labels, 1)


@dataclass(frozen=True)
class Replay:
    """A file of rejects was decoded again: what is `left` stays rejected, the others have passed
    and come as events. `nulled` as in a frame."""

    extent: Extent
    left: tuple[pa.RecordBatch, ...]
    passed: tuple[pa.RecordBatch, ...]
    nulled: int

    def apply(self, state: PartitionState) -> None:
        for rows in self.passed:
            _count_rejects(state, labels(rows), -1)
        state.counters.nulled += self.nulled


@dataclass(frozen=True)
class Delete:
    """Of a file of rejects, those that are `gone` are deleted as was asked, and others `left`."""

    extent: Extent
    left: tuple[pa.RecordBatch, ...]
    gone: tuple[pa.RecordBatch, ...]

    def apply(self, state: PartitionState) -> None:
        for rows in self.gone:
            _expire_rejects(state, labels(rows))


@dataclass(frozen=True)
class Expire:
    """A file of rejects is deleted as a whole."""

    extent: Extent

    def apply(self, state: PartitionState) -> None:
        _expire_rejects(state, state.reject_files[self.extent.file].labels)


@dataclass(frozen=True)
class Replayed:
    """The requests up to this number have been carried out."""

    number: int

    def apply(self, state: PartitionState) -> None:
        state.replays = max(state.replays, self.number)


@dataclass(frozen=True)
class Judge:
    """Of each event of arrivals, whether it was `dropped` as a duplicate, whether it `differs` in
    payload from the event kept, and whether it is `late`. `after_seal` counts accepted ones."""

    arrivals: Arrivals
    dropped: Mask
    differs: Mask
    late: Mask
    after_seal: int

    def apply(self, state: PartitionState) -> None:
        counters, duplicates = state.counters, int(np.count_nonzero(self.dropped))
        counters.accepted += len(self.arrivals) - duplicates
        counters.duplicates += duplicates
        counters.conflicts += int(np.count_nonzero(self.differs))
        counters.late += int(np.count_nonzero(self.late))
        counters.after_seal += self.after_seal
        state.stream_time_ms = int(self.arrivals.stream[-1])


@dataclass(frozen=True)
class Open:
    """A block begins, empty; `late` as in `BlockState`."""

    block: BlockId
    late: int

    def apply(self, state: PartitionState) -> None:
        state.sequence = self.block.sequence
        empty = BlockState(self.block, 0, int(_FAR.max), int(_FAR.min), (), self.late)
        state.hot[self.block] = empty


@dataclass(frozen=True)
class Take:
    """These rows of arrivals, ascending and new, belong to the block."""

    block: BlockId
    arrivals: Arrivals
    rows: I64

    def apply(self, state: PartitionState) -> None:
        block, times = state.hot[self.block], self.arrivals.times[self.rows]
        state.hot[self.block] = replace(
            block,
            touched_ms=int(self.arrivals.stream[self.rows[-1]]),
            first_ms=min(block.first_ms, int(times.min())),
            last_ms=max(block.last_ms, int(times.max())),
        )


@dataclass(frozen=True)
class Write:
    """What was pending of a block is in its log; `row_bytes` as in `BlockState`."""

    block: BlockId
    extents: tuple[Extent, ...]
    row_bytes: int

    def apply(self, state: PartitionState) -> None:
        state.hot[self.block] = replace(
            state.hot[self.block], extents=self.extents, row_bytes=self.row_bytes
        )


@dataclass(frozen=True)
class List:
    """The files of rejects and of drops that count, and what is known of those of rejects."""

    rejects: list[Extent]
    reject_files: dict[str, RejectFile]
    drops: list[Extent]

    def apply(self, state: PartitionState) -> None:
        state.rejects, state.reject_files = self.rejects, self.reject_files
        state.drops = self.drops


@dataclass(frozen=True)
class Evict:
    """The block leaves the cache; it is to become part of a chunk."""

    block: BlockId

    def apply(self, state: PartitionState) -> None:
        state.evictions += 1
        block = state.hot.pop(self.block)
        state.evicted[self.block] = replace(block, number=state.evictions)


@dataclass(frozen=True)
class Close:
    """The seal is in force: the blocks below it take no more events."""

    seal: Seal

    def apply(self, state: PartitionState) -> None:
        state.seal = self.seal


@dataclass(frozen=True)
class Count:
    """A snapshot is being taken."""

    def apply(self, state: PartitionState) -> None:
        state.snapshots += 1


@dataclass(frozen=True)
class Assure:
    """No crash can undo this seal and this stream time any more."""

    seal: int
    stream_time_ms: int | None

    def apply(self, state: PartitionState) -> None:
        state.committed_seal, state.committed_ms = self.seal, self.stream_time_ms


@dataclass(frozen=True)
class Cover:
    """A chunk was first seen to cover the evicted block at this wall time; None: none does."""

    block: BlockId
    at_ms: int | None

    def apply(self, state: PartitionState) -> None:
        state.evicted[self.block] = replace(state.evicted[self.block], covered_at_ms=self.at_ms)


@dataclass(frozen=True)
class Forget:
    """The evicted block is read from its chunk alone from now on."""

    block: BlockId

    def apply(self, state: PartitionState) -> None:
        del state.evicted[self.block]


Edit = (
    Progress | Reject | Replay | Delete | Expire | Replayed | Judge | Open | Take | Write | List
    | Evict | Close | Count | Assure | Cover | Forget
)  # fmt: skip


def _expire_rejects(state: PartitionState, found: Mapping[str, int]) -> None:
    """Move the counts of these labels from the present rejects to those that were deleted."""
    _count_rejects(state, found, -1)
    state.counters.rejects_expired += sum(found.values())


def _count_rejects(state: PartitionState, found: Mapping[str, int], by: int) -> None:
    """Count these labels in, or with -1 out."""
    counters = state.counters
    for label, count in found.items():
        counters.rejects += by * count
        rest = counters.rejected.get(label, 0) + by * count
        counters.rejected[label] = rest
        if not rest:
            del counters.rejected[label]
