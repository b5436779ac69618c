"""Admission against the oracle, in memory: no file is written or read.

Edits are applied to the state and to key sets in memory; nothing else of a partition is there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from forebay.storage.base.layout import BlockId
from forebay.storage.dedup.arrivals import Arrivals
from forebay.storage.dedup.keys import KeyCache, KeySet, Stored
from forebay.storage.formats.columns import Mask
from forebay.storage.formats.frame import Frame
from forebay.storage.formats.hashes import U64, Hash, hash_keys
from forebay.storage.formats.payload import Payload
from forebay.storage.formats.rejects import labels
from forebay.storage.formats.schema import OFFSET, PARTITION
from forebay.storage.formats.state import PartitionState
from forebay.storage.partition.admission import admit, unseen
from forebay.storage.partition.edits import Edit, Evict, Open, Progress, Reject, Take
from tests.life import Step, cut, few_or_many, produce, sizes
from tests.oracle import Oracle, Place
from tests.partition import (
    BIG_CACHE,
    CONFIG,
    SCHEMA,
    SPAN_MS,
    WINDOW_MS,
    Message,
    event,
    frame,
    judge,
    one_hash,
)


class Nowhere:
    """The source of keys that were never written: there is nothing to read back."""

    def batches(self) -> Iterator[Stored]:
        return iter(())

    def read(self, place: Any) -> Any:
        raise AssertionError("a key was read back that is in memory")

    def payload(self, place: Any) -> Payload:
        raise AssertionError("a payload was read back that is in memory")


class Memory:
    """A partition without files."""

    def __init__(
        self,
        cache_bytes: int = BIG_CACHE,
        hash: Hash = hash_keys,
        backfill_ms: int = CONFIG.backfill_span_ms,
    ) -> None:
        self._backfill_ms = backfill_ms
        self.state = PartitionState("p00", 1, SCHEMA.key, SPAN_MS, {})
        self.events: dict[BlockId, list[Place]] = defaultdict(list)
        self.edits: list[type[Edit]] = []
        self._cache = KeyCache(cache_bytes)
        self._hash = hash
        self._keys: dict[BlockId, KeySet] = {}
        self._evicted: dict[BlockId, KeySet] = {}

    def live(self, hashes: U64) -> Iterator[tuple[KeySet, Mask]]:
        for block in sorted(self._keys, reverse=True):
            yield self._keys[block], np.ones(len(hashes), dtype=bool)

    def retained(self, interval_ms: int) -> list[KeySet]:
        return [
            keys
            for id, keys in self._evicted.items()
            if id.interval_ms == interval_ms and not id.backfill
        ]

    def backfilled(self, first_ms: int) -> list[KeySet]:
        end_ms = first_ms + self._backfill_ms
        return [
            keys
            for id, keys in self._evicted.items()
            if id.backfill and first_ms <= id.interval_ms < end_ms
        ]

    def take(self, taken: Frame) -> None:
        new = unseen(self.state, taken)
        self.apply(Progress(taken, new is not None))
        if new is None:
            return
        self.apply(Reject(new.rejects, labels(new.rejects), 0))
        if new.events.num_rows:
            stream_ms = self.state.stream_time_ms
            arrivals = Arrivals.of(new.events, SCHEMA.key, SCHEMA.payload, stream_ms, self._hash)
            for edit in admit(self.state, self, arrivals, WINDOW_MS, self._backfill_ms):
                self.apply(edit)

    def apply(self, edit: Edit) -> None:
        edit.apply(self.state)
        self.edits.append(type(edit))
        match edit:
            case Open(block):
                self._keys[block] = KeySet.empty(Nowhere(), self._cache)
            case Take(block, arrivals, rows):
                events, keys = arrivals.pick(rows)
                self._keys[block].add(keys, arrivals.hashes[rows], arrivals.payload(rows))
                places = (events.column(name).to_pylist() for name in (PARTITION, OFFSET))
                self.events[block] += zip(*places, strict=True)
            case Evict(block):
                self._evicted[block] = self._keys.pop(block)

    def append(self, messages: Sequence[Message]) -> None:
        low = 0
        for high in range(1, len(messages) + 1):
            if high == len(messages) or messages[high].source != messages[low].source:
                self.take(frame(messages[low:high]))
                low = high

    def blocks(self) -> dict[tuple[int, bool], list[list[Place]]]:
        """As `Oracle.blocks`."""
        found: dict[tuple[int, bool], list[list[Place]]] = {}
        for block in sorted(self.events):
            place = block.interval_ms, block.backfill
            found.setdefault(place, []).append(sorted(self.events[block]))
        return found


def assert_agrees(memory: Memory, oracle: Oracle) -> None:
    state, counters = memory.state, memory.state.counters
    assert memory.blocks() == oracle.blocks()
    assert (counters.accepted, counters.duplicates, counters.rejects, counters.late) == (
        oracle.accepted, oracle.duplicates, oracle.rejects, oracle.late,
    )  # fmt: skip
    assert state.stream_time_ms == oracle.stream_time_ms
    assert state.next_offsets == oracle.next_offsets
    assert sorted((id.interval_ms, id.backfill) for id in state.hot) == sorted(oracle.live)
    assert [(id.interval_ms, id.backfill) for id in state.evicted] == [
        block.place for block in oracle.closed
    ]
    numbers = [block.number for block in state.evicted.values()]
    assert numbers == list(range(1, state.evictions + 1))
    for id, block in state.hot.items():
        assert block.touched_ms == oracle.live[id.interval_ms, id.backfill].touched_ms


@given(
    few_or_many,
    sizes,
    st.sampled_from([1, 600, BIG_CACHE]),
    st.sampled_from([hash_keys, one_hash]),
    st.sampled_from([600, CONFIG.backfill_span_ms]),
)
def test_edits_make_what_the_oracle_says_however_the_input_is_cut(
    many: list[Step], sizes: list[int], cache_bytes: int, hash: Hash, backfill_ms: int
) -> None:
    messages, memory = produce(many), Memory(cache_bytes, hash, backfill_ms)
    for part in cut(messages, sizes):
        memory.append(part)
    oracle = Oracle(SPAN_MS, WINDOW_MS, backfill_ms=backfill_ms)
    assert_agrees(memory, judge(messages, oracle))


@given(few_or_many, sizes, sizes)
def test_block_ids_are_the_same_however_the_input_is_cut(
    many: list[Step], sizes: list[int], others: list[int]
) -> None:
    one, other = Memory(), Memory()
    for memory, way in ((one, sizes), (other, others)):
        for part in cut(produce(many), way):
            memory.append(part)
    assert one.events == other.events


@given(few_or_many, sizes, sizes, st.data())
def test_what_is_delivered_again_from_any_offset_changes_nothing(
    many: list[Step], sizes: list[int], others: list[int], data: st.DataObject
) -> None:
    messages, memory = produce(many), Memory()
    for part in cut(messages, sizes):
        memory.append(part)
    for part in cut(messages[data.draw(st.integers(0, len(messages) - 1)) :], others):
        memory.append(part)
    assert_agrees(memory, judge(messages))


def test_a_decision_looks_at_the_state_and_changes_nothing_by_itself() -> None:
    memory = Memory()
    memory.append([event(0, 0, 0), event(1, 1, SPAN_MS)])
    before = memory.state.encode()
    taken = frame([event(2, 2, 10 * WINDOW_MS), event(3, 2, 10 * WINDOW_MS)])
    arrivals = Arrivals.of(taken.events, SCHEMA.key, SCHEMA.payload, 0, hash_keys)
    decided = admit(memory.state, memory, arrivals, WINDOW_MS, CONFIG.backfill_span_ms)
    assert isinstance(next(decided), Evict)
    assert memory.state.encode() == before
