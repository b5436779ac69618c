"""Admission: which events a partition takes in, into which blocks, and what is evicted for them.

For each event, in offset order, as if it came alone:
1. stream time becomes the larger of itself and the event's upload time;
2. every live block with stream time - last touch >= the dedup window is evicted;
3. the event is a duplicate if its key is in a live block, whatever its interval, or in any
   retained block (evicted or merged) of the event's own interval;
4. else it is appended to the open block of its interval (a new one if there is none), which is
   touched at the stream time.
A seal closes the blocks below it between two events; what comes later for them opens late ones.
Events are cut only where step 2 could evict, so the result does not depend on how input is cut.

Pure: looks at the state and at what is known of keys, and yields edits, each of which is applied
before the next is asked for. Knows no file, no engine and no clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Protocol

import numpy as np
import pyarrow as pa

from forebay.storage.base.layout import BlockId
from forebay.storage.dedup.duplicates import duplicates
from forebay.storage.dedup.keys import KeySet
from forebay.storage.dedup.segment import Segment
from forebay.storage.formats.columns import Mask
from forebay.storage.formats.frame import Frame
from forebay.storage.formats.hashes import U64
from forebay.storage.formats.schema import OFFSET
from forebay.storage.formats.state import PartitionState
from forebay.storage.partition.edits import Evict, Judge, Open, Take


class Known(Protocol):
    """The keys of all blocks that an event could be a duplicate in."""

    def live(self, hashes: U64) -> Iterable[tuple[KeySet, Mask]]:
        """Those of each live block, newest first, and which of the hashes may be among them."""

    def retained(self, interval_ms: int) -> list[KeySet]:
        """Those of everything evicted or merged of an interval."""


def unseen(state: PartitionState, frame: Frame) -> Frame | None:
    """What of a frame is not below the source's next offset; None if nothing is. Else a replay by
    the source could double events."""
    following = state.next_offsets.get(frame.source, frame.first_offset)
    if frame.next_offset <= following:
        return None
    if frame.first_offset >= following:
        return frame
    events, rejects = (_from_offset(rows, following) for rows in (frame.events, frame.rejects))
    return replace(frame, first_offset=following, events=events, rejects=rejects)


def admit(
    state: PartitionState, known: Known, events: Segment, window_ms: int
) -> Iterator[Evict | Judge | Open | Take]:
    """Steps 1 to 4 for each of these events. `window_ms` is the dedup window."""
    low = 0
    while low < len(events):
        now_ms = int(events.stream[low])
        due = [b.id for b in state.hot.values() if b.touched_ms <= now_ms - window_ms]
        yield from map(Evict, sorted(due))
        oldest_ms = min((b.touched_ms for b in state.hot.values()), default=now_ms)
        limit_ms = min(oldest_ms, now_ms) + window_ms
        high = int(np.searchsorted(events.stream, limit_ms, side="left"))
        yield from _admit_part(state, known, events.part(low, high), window_ms)
        low = high


def _admit_part(
    state: PartitionState, known: Known, part: Segment, window_ms: int
) -> Iterator[Judge | Open | Take]:
    """Steps 3 and 4 for events that no eviction divides."""
    span_ms, seal = state.block_span_ms, state.seal
    dropped, differs = duplicates(part, known.live(part.hashes), known.retained, span_ms)
    kept = np.flatnonzero(~dropped)
    times = part.times[kept]
    yield Judge(
        part,
        dropped,
        differs,
        late=~dropped & (part.stream - part.times >= window_ms),
        after_seal=int(np.count_nonzero(times < seal.until_ms)) if seal else 0,
    )
    intervals = times - times % span_ms
    _, firsts = np.unique(intervals, return_index=True)
    blocks = _open_blocks(state)
    for interval in intervals[np.sort(firsts)].tolist():  # numbered in order of events
        if interval not in blocks:
            blocks[interval] = BlockId(interval, state.sequence + 1)
            late = seal.number if seal and interval < seal.until_ms else 0
            yield Open(blocks[interval], late)
        yield Take(blocks[interval], part, kept[intervals == interval])


def _open_blocks(state: PartitionState) -> dict[int, BlockId]:
    """The block of each interval that takes its events: the newest, unless a seal has closed it."""
    seal, newest = state.seal, {id.interval_ms: id for id in sorted(state.hot)}
    return {
        interval: id
        for interval, id in newest.items()
        if seal is None or interval >= seal.until_ms or state.hot[id].late >= seal.number
    }


def _from_offset(batch: pa.RecordBatch, first: int) -> pa.RecordBatch:
    """The rows of `batch` at offset `first` or later; offsets rise."""
    offsets = batch.column(OFFSET).to_numpy()
    return batch.slice(int(np.searchsorted(offsets, first, side="left")))
