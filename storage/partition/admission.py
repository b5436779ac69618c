"""Admission: which events a partition takes in, into which blocks, and what is evicted for them.

For each event, in offset order, as if it arrived alone:
1. stream time becomes the larger of itself and the event's upload time;
2. every live block with stream time - last touch >= the dedup window is evicted;
3. the event is a duplicate if its key is in a live block, whatever its interval, or in any
   retained block (evicted or merged) of the event's own interval;
4. else it is appended to the open block of its interval (a new one if there is none), which is
   touched at the stream time.
An event is *backfill* if all of its interval is older than the dedup window was at first. Such
events share one block per UTC day, so that a few events of many intervals cost few files; they are
also duplicates if their key is in a retained backfill block of their day. An event that is not
backfill has none of its interval there, because stream time never goes back. A seal closes the
blocks below it between two events; what arrives for them later opens late blocks. Events are cut
only where step 2 could evict, so the result does not depend on how input is cut.

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
from forebay.storage.dedup.arrivals import Arrivals
from forebay.storage.dedup.duplicates import duplicates
from forebay.storage.dedup.keys import KeySet
from forebay.storage.formats.columns import Mask
from forebay.storage.formats.frame import Frame
from forebay.storage.formats.hashes import I64, U64
from forebay.storage.formats.schema import OFFSET
from forebay.storage.formats.state import PartitionState
from forebay.storage.partition.edits import Evict, Judge, Open, Take


class Known(Protocol):
    """The keys of all blocks that an event could be a duplicate in."""

    def live(self, hashes: U64) -> Iterable[tuple[KeySet, Mask]]:
        """The keys of each live block, newest first, and which of the hashes may be among them."""

    def retained(self, interval_ms: int) -> list[KeySet]:
        """The keys of everything evicted or merged of an interval, backfill left out."""

    def backfilled(self, first_ms: int) -> list[KeySet]:
        """The keys of all backfill blocks, evicted or merged, of a backfill span."""


def unseen(state: PartitionState, frame: Frame) -> Frame | None:
    """The part of a frame that is not below the source's next offset; None if there is none.
    Without this, a redelivery by the source could double events."""
    following = state.next_offsets.get(frame.source, frame.first_offset)
    if frame.next_offset <= following:
        return None
    if frame.first_offset >= following:
        return frame
    events, rejects = (_from_offset(rows, following) for rows in (frame.events, frame.rejects))
    return replace(frame, first_offset=following, events=events, rejects=rejects)


def admit(
    state: PartitionState, known: Known, events: Arrivals, window_ms: int, backfill_span_ms: int
) -> Iterator[Evict | Judge | Open | Take]:
    """Steps 1 to 4 for each of these events. `window_ms` is the dedup window; `backfill_span_ms` is
    a day but in tests."""
    low = 0
    while low < len(events):
        now_ms = int(events.stream[low])
        due = [b.id for b in state.hot.values() if b.touched_ms <= now_ms - window_ms]
        yield from map(Evict, sorted(due))
        oldest_ms = min((b.touched_ms for b in state.hot.values()), default=now_ms)
        limit_ms = min(oldest_ms, now_ms) + window_ms
        high = int(np.searchsorted(events.stream, limit_ms, side="left"))
        yield from _admit_part(state, known, events.part(low, high), window_ms, backfill_span_ms)
        low = high


def _admit_part(
    state: PartitionState, known: Known, part: Arrivals, window_ms: int, backfill_span_ms: int
) -> Iterator[Judge | Open | Take]:
    """Steps 3 and 4 for events that no eviction divides."""
    span_ms, seal = state.block_span_ms, state.seal
    intervals = part.times - part.times % span_ms
    backfill: Mask = intervals + span_ms + (state.backfill_after_ms or window_ms) <= part.stream
    days = part.times - part.times % max(backfill_span_ms, span_ms)
    retained = _retained(known, intervals, backfill, days)
    dropped, differs = duplicates(part, known.live(part.hashes), retained)
    kept = np.flatnonzero(~dropped)
    times = part.times[kept]
    yield Judge(
        part,
        dropped,
        differs,
        late=~dropped & (part.stream - part.times >= window_ms),
        after_seal=int(np.count_nonzero(times < seal.until_ms)) if seal else 0,
    )
    starts = np.where(backfill, days, intervals)[kept]
    if seal:  # no block has events on both sides of a seal that it begins under
        split = (starts < seal.until_ms) & (times >= seal.until_ms)
        starts[split] = seal.until_ms
    which = 2 * starts + backfill[kept]
    _, firsts = np.unique(which, return_index=True)
    blocks = _open_blocks(state)
    for row in np.sort(firsts).tolist():  # numbered in order of events
        start, old = int(starts[row]), bool(backfill[kept[row]])
        if (start, old) not in blocks:
            blocks[start, old] = BlockId(start, state.sequence + 1, old)
            late = seal.number if seal and start < seal.until_ms else 0
            yield Open(blocks[start, old], late)
        yield Take(blocks[start, old], part, kept[which == which[row]])


def _retained(
    known: Known, intervals: I64, backfill: Mask, days: I64
) -> Iterator[tuple[KeySet, Mask]]:
    """The keys of retained blocks, and the events that are duplicates if theirs is among them."""
    for interval in np.unique(intervals):
        for keys in known.retained(int(interval)):
            yield keys, intervals == interval
    for day in np.unique(days[backfill]):
        for keys in known.backfilled(int(day)):
            yield keys, backfill & (days == day)


def _open_blocks(state: PartitionState) -> dict[tuple[int, bool], BlockId]:
    """The block that takes events, by where it begins and whether it is a backfill one: the newest,
    unless a seal has closed it."""
    seal, newest = state.seal, {(id.interval_ms, id.backfill): id for id in sorted(state.hot)}
    return {
        place: id
        for place, id in newest.items()
        if seal is None or id.interval_ms >= seal.until_ms or state.hot[id].late >= seal.number
    }


def _from_offset(batch: pa.RecordBatch, first: int) -> pa.RecordBatch:
    """The rows of `batch` at offset `first` or later; offsets rise."""
    offsets = batch.column(OFFSET).to_numpy()
    return batch.slice(int(np.searchsorted(offsets, first, side="left")))
