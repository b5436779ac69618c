"""Handing over, one partition at a time: seals, the boundary, late events, deletion, crashes.

Each key has one upload time, so whatever the dedup rules, an event is to be found exactly once: at
or after the boundary in `events`, before it in what the batch layer took or in the late table.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import forebay
from forebay.storage.base.errors import BadInput
from forebay.storage.formats.boundary import Boundary, BoundaryWriter, Seal, read_boundary
from forebay.storage.partition import compaction
from forebay.storage.partition.compaction import CHUNKS_MIN
from tests import cases
from tests.partition import (
    GRACE_MS,
    NAME,
    SPAN_MS,
    START_MS,
    WINDOW_MS,
    OpenDisk,
    Partition,
    event,
)

BASE_MS = START_MS - START_MS % SPAN_MS


def seal(partition: Partition, until_ms: int) -> Boundary:
    """Written, and carried out, but perhaps not committed."""
    with BoundaryWriter(partition.files, partition.layout) as writer:
        batch = writer.seal(until_ms, [SPAN_MS])
    partition.blocks.notice(batch)
    return batch


def confirm(partition: Partition) -> bytes:
    """Commit until no crash can undo the seal; the last snapshot."""
    snapshot = partition.blocks.snapshot()
    while partition.blocks.notice(read_boundary(partition.files, partition.layout)):
        snapshot = partition.blocks.snapshot()
    partition.blocks.publish()
    return snapshot


def complete(partition: Partition, *, late: bool = True) -> Boundary:
    with BoundaryWriter(partition.files, partition.layout) as writer:
        return writer.complete(partition.now_ms, late=late)


def tick(partition: Partition, retention_ms: int = 0) -> None:
    batch = read_boundary(partition.files, partition.layout)
    partition.offers.append(partition.blocks.tick(batch, retention_ms, partition.now_ms))
    partition.merge()
    partition.blocks.publish()


def offsets(rows: pl.LazyFrame) -> list[int]:
    return [int(offset) for offset in rows.select("_offset").collect()["_offset"].sort()]


def store(partition: Partition) -> forebay.Store:
    partition.blocks.publish()
    return forebay.open(partition.root)


def spread(partition: Partition, count: int, step_ms: int = SPAN_MS) -> None:
    """Events of different keys, one every `step_ms` from the start of a block on."""
    first = BASE_MS - START_MS
    partition.append(*(event(n, n, first + n * step_ms) for n in range(count)))


# -- the file -----------------------------------------------------------------------------------


def test_seals_and_boundary_never_go_back() -> None:
    sealed = Boundary().sealed(200)
    assert sealed.sealed(200) == sealed
    with pytest.raises(BadInput, match=r"expected 1970-01-01T00:00:00\.200Z or later"):
        sealed.sealed(100)
    done = sealed.completed(5, late=False, table=None)
    assert (done.number, done.covered_until_ms, done.late_from) == (1, 200, 0)
    assert done.completed(6, late=True, table=None) == done
    later = done.sealed(300).completed(7, late=True, table="t")
    assert (later.number, later.covered_until_ms, later.late_from, later.table) == (2, 300, 2, "t")
    with pytest.raises(BadInput, match="expected a seal to complete"):
        Boundary().completed(5, late=False, table=None)


def test_a_seal_between_the_ends_of_a_block_is_refused(partition: Partition) -> None:
    with (
        BoundaryWriter(partition.files, partition.layout) as writer,
        pytest.raises(BadInput, match="multiple of the block span"),
    ):
        writer.seal(SPAN_MS + 1, [SPAN_MS])
    assert read_boundary(partition.files, partition.layout) == Boundary()


# -- what is late -------------------------------------------------------------------------------


def test_event_for_a_sealed_time_is_seen_until_the_boundary_and_in_the_late_table_after(
    partition: Partition,
) -> None:
    partition.start()
    spread(partition, 12)
    seal(partition, BASE_MS + 5 * SPAN_MS)
    confirm(partition)
    partition.append(event(12, 100, BASE_MS - START_MS + 3 * SPAN_MS))
    found = store(partition)
    assert offsets(found.sealed()) == [0, 1, 2, 3, 4]
    assert offsets(found.scan()) == list(range(13))
    complete(partition)
    assert offsets(found.scan()) == list(range(5, 12))
    assert offsets(found.late()) == [12]
    assert partition.manifest().counters.after_seal == 1
    waits, taken = (found.why({"id": f"k{n // 2}", "part": n % 2}).copies for n in (100, 3))
    assert [copy.handed_off for copy in (*waits, *taken)] == [False, True]


def test_event_for_a_sealed_time_whose_block_is_in_the_cache_goes_to_another_block(
    partition: Partition,
) -> None:
    partition.start()
    spread(partition, 3)
    seal(partition, BASE_MS + 2 * SPAN_MS)
    confirm(partition)
    partition.append(event(3, 100, BASE_MS - START_MS + SPAN_MS))
    found = store(partition)
    assert offsets(found.sealed()) == [0, 1]
    assert [block.late for block in partition.manifest().hot.values()] == [0, 0, 1, 0]
    snapshot = confirm(partition)
    partition.crash()
    partition.start(snapshot)
    partition.append(event(4, 101, BASE_MS - START_MS + SPAN_MS))
    assert offsets(store(partition).sealed()) == [0, 1]
    assert [block.late for block in partition.manifest().hot.values()] == [0, 0, 1, 0]


def test_chunk_of_late_events_stays_until_they_were_taken(partition: Partition) -> None:
    partition.blocks_per_chunk = 1
    partition.start()
    spread(partition, 12)
    seal(partition, BASE_MS + 5 * SPAN_MS)
    confirm(partition)
    first = BASE_MS - START_MS
    partition.append(event(12, 100, first), event(13, 101, first + 20 * SPAN_MS))
    complete(partition, late=False)
    for _ in range(3):
        partition.blocks.snapshot()
    tick(partition)
    assert [chunk.late for chunk in partition.catalog().chunks if chunk.late] == [1]
    assert offsets(store(partition).late()) == [12]
    seal(partition, BASE_MS + 6 * SPAN_MS)
    confirm(partition)
    complete(partition, late=False)
    tick(partition)
    assert offsets(store(partition).late()) == [12]
    seal(partition, BASE_MS + 7 * SPAN_MS)
    confirm(partition)
    complete(partition, late=True)
    tick(partition)
    assert not any(chunk.late for chunk in partition.catalog().chunks)


def test_a_seal_is_confirmed_only_when_no_crash_can_undo_it(partition: Partition) -> None:
    partition.start()
    spread(partition, 3)
    before = partition.blocks.snapshot()
    number = seal(partition, BASE_MS + SPAN_MS).seal
    assert number is not None
    for _ in range(2):
        partition.blocks.snapshot()
        partition.blocks.publish()
        assert partition.manifest().committed_seal < number.number
    partition.blocks.snapshot()
    partition.blocks.publish()
    assert partition.manifest().committed_seal == number.number
    partition.crash()
    partition.start(before)
    partition.blocks.publish()
    assert partition.manifest().committed_seal < number.number


def test_redelivery_of_what_was_sealed_is_still_a_duplicate(partition: Partition) -> None:
    partition.start()
    spread(partition, 12)
    seal(partition, BASE_MS + 5 * SPAN_MS)
    first = BASE_MS - START_MS
    partition.append(*(event(12 + n, n, first + n * SPAN_MS) for n in range(12)))
    found = store(partition)
    assert offsets(found.scan()) == list(range(12))
    assert partition.manifest().counters.duplicates == 12


def test_late_events_are_taken_by_the_next_handoff_that_says_so(partition: Partition) -> None:
    partition.start()
    spread(partition, 12)
    seal(partition, BASE_MS + 4 * SPAN_MS)
    confirm(partition)
    complete(partition)
    partition.append(event(12, 100, BASE_MS - START_MS))
    seal(partition, BASE_MS + 6 * SPAN_MS)
    confirm(partition)
    found = store(partition)
    assert offsets(found.sealed()) == [4, 5, 12]
    complete(partition, late=False)
    assert offsets(found.late()) == [12]
    seal(partition, BASE_MS + 8 * SPAN_MS)
    confirm(partition)
    assert offsets(found.sealed()) == [6, 7, 12]
    complete(partition, late=True)
    assert offsets(found.late()) == []
    assert offsets(found.scan()) == [8, 9, 10, 11]


# -- what is deleted ----------------------------------------------------------------------------


def test_tick_drops_covered_chunks_and_files_go_a_grace_period_later(partition: Partition) -> None:
    partition.start()
    spread(partition, 12)
    partition.merge()
    assert len(partition.catalog().chunks) == 4
    seal(partition, BASE_MS + 3 * SPAN_MS)
    confirm(partition)
    complete(partition)
    tick(partition)
    chunks = partition.catalog().chunks
    assert [chunk.first_ms for chunk in chunks] == [BASE_MS + n * SPAN_MS for n in (2, 4, 6)]
    assert partition.catalog().handed_off_rows == 2
    assert offsets(store(partition).scan()) == list(range(3, 12))

    def files() -> int:
        return len(list(partition.layout.chunks(NAME).rglob("*.parquet")))

    assert files() == 4
    partition.tidy(GRACE_MS - 1)
    assert files() == 4
    partition.tidy(1)
    assert files() == 3


def test_idle_partition_gives_up_covered_blocks_without_chunks_once_no_event_can_miss_them(
    partition: Partition,
) -> None:
    partition.start()
    spread(partition, 4)
    for _ in range(3):
        partition.blocks.snapshot()
    boundary = BASE_MS + 4 * SPAN_MS
    seal(partition, boundary)
    confirm(partition)
    complete(partition)
    tick(partition)
    confirm(partition)
    partition.blocks.snapshot()
    partition.blocks.snapshot()
    tick(partition)
    live = [block.id.interval_ms for block in partition.manifest().hot.values()]
    assert live == [ms for ms in range(BASE_MS, boundary, SPAN_MS) if ms + WINDOW_MS > boundary]
    assert partition.catalog().chunks == ()
    assert partition.catalog().handed_off_rows == 4 - len(live)
    for _ in range(3):
        partition.tidy(GRACE_MS)
        partition.blocks.snapshot()
    assert len(list(partition.layout.hot(NAME).glob("*.arrows"))) == len(live)


def test_expired_chunks_go_though_no_batch_layer_took_them(partition: Partition) -> None:
    partition.start()
    spread(partition, 12)
    for _ in range(3):
        partition.blocks.snapshot()
    partition.merge()
    tick(partition, retention_ms=8 * SPAN_MS)
    assert partition.catalog().expired_rows == 2
    assert offsets(store(partition).scan()) == list(range(2, 12))


def test_chunks_of_uncommitted_evictions_are_not_dropped(partition: Partition) -> None:
    partition.start()
    partition.blocks.snapshot()
    spread(partition, 12)
    partition.merge()
    tick(partition, retention_ms=SPAN_MS)
    assert partition.catalog().expired_rows == 0


# -- whatever comes -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Sent:
    key: int
    upload_ms: int


class Handoffs(RuleBasedStateMachine):
    """One partition's life with handoffs in it. Each sent key must be in one place, whatever
    crashes, is merged, deleted or redelivered."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.partition = Partition(Path(self.folder.name), files=OpenDisk())
        self.log: list[Sent] = []
        self.clock_ms = 0
        self.taken = self.published = 0
        self.commit: tuple[bytes | None, int] = (None, 0)
        self.confirmed: Seal | None = None
        self.at_seal: Counter[int] = Counter()
        self.batch: set[int] = set()

    @initialize(per_chunk=st.integers(1, 3), compacted=st.sampled_from([2, CHUNKS_MIN]))
    def begin(self, per_chunk: int, compacted: int) -> None:
        compaction.CHUNKS_MIN = compacted
        self.partition.blocks_per_chunk = per_chunk
        self.partition.start()
        self.partition.blocks.publish()

    @property
    def record(self) -> Boundary:
        return read_boundary(self.partition.files, self.partition.layout)

    @rule(steps=st.lists(st.tuples(st.integers(-5, 3), st.booleans()), min_size=1, max_size=10))
    def send_and_take_in(self, steps: list[tuple[int, bool]]) -> None:
        """New events, some of them late, and copies of old ones."""
        for back, again in steps:
            if again and self.log:
                self.log.append(self.log[back * 7 % len(self.log)])
            else:
                self.clock_ms += max(0, back) * SPAN_MS // 2
                upload_ms = max(0, self.clock_ms + min(0, back) * SPAN_MS)
                self.log.append(Sent(len(self.log), BASE_MS - START_MS + upload_ms))
        self.partition.append(
            *(
                event(n, sent.key, sent.upload_ms)
                for n, sent in enumerate(self.log[self.taken :], self.taken)
            )
        )
        self.taken = len(self.log)

    @rule()
    def publish(self) -> None:
        self.partition.blocks.publish()
        self.published = self.taken

    @rule(after_ms=st.integers(0, GRACE_MS // 2))
    def commit_and_tidy(self, after_ms: int) -> None:
        self.partition.merge()
        self.commit = self.partition.blocks.snapshot(), self.taken
        self.partition.tidy(after_ms)

    @rule()
    def merge(self) -> None:
        self.partition.merge()

    @rule()
    def tick(self) -> None:
        tick(self.partition)
        self.published = self.taken

    @rule(back=st.integers(0, 2), confirmed=st.booleans())
    def seal(self, back: int, confirmed: bool) -> None:
        """Up to a time that was committed."""
        self.publish()
        reach_ms = self.partition.manifest().committed_ms
        until_ms = ((reach_ms or 0) // SPAN_MS - back) * SPAN_MS
        if reach_ms and until_ms > (self.record.seal.until_ms if self.record.seal else 0):
            seal(self.partition, until_ms)
            self.confirmed = None
            if confirmed:
                self.confirm()

    @precondition(lambda self: self.record.seal and not self.confirmed)
    @rule()
    def confirm(self) -> None:
        self.commit = confirm(self.partition), self.taken
        self.published = self.taken
        self.confirmed = self.record.seal
        if self._open():
            self.at_seal = self._keys(forebay.open(self.partition.root).sealed())

    def _open(self) -> bool:
        """Whether the confirmed seal is yet to be completed."""
        seal, covered_ms = self.confirmed, self.record.covered_until_ms
        return seal is not None and (covered_ms is None or covered_ms < seal.until_ms)

    @precondition(lambda self: self._open())
    @rule()
    def hand_over(self) -> None:
        """What was sealed has not changed since; the batch layer keeps one of each key."""
        taken = self._keys(forebay.open(self.partition.root).sealed())
        assert taken == self.at_seal
        assert max(taken.values(), default=1) == 1
        self.batch |= set(taken)
        complete(self.partition)

    @rule()
    def crash_and_resume(self) -> None:
        self.partition.crash()
        snapshot, self.taken = self.commit
        self.partition.start(snapshot)
        self.partition.blocks.notice(self.record)
        self.partition.blocks.publish()
        self.published = self.taken
        self.partition.append(
            *(
                event(n, sent.key, sent.upload_ms)
                for n, sent in enumerate(self.log[self.taken :], self.taken)
            )
        )
        self.taken = len(self.log)

    @invariant()
    def each_event_is_in_one_place(self) -> None:
        found = forebay.open(self.partition.root)
        boundary_ms = (self.record.covered_until_ms or 0) - START_MS
        seen, late = self._keys(found.scan()), self._keys(found.late())
        assert max([*seen.values(), *late.values()], default=1) == 1
        sent = {sent.key for sent in self.log[: self.taken] if sent.upload_ms >= boundary_ms}
        published = {
            sent.key for sent in self.log[: self.published] if sent.upload_ms >= boundary_ms
        }
        assert published <= set(seen) <= sent
        below = {s.key for s in self.log[: self.published] if s.upload_ms < boundary_ms}
        assert below <= self.batch | set(late)
        assert set(late) <= {s.key for s in self.log[: self.taken] if s.upload_ms < boundary_ms}

    def _keys(self, rows: pl.LazyFrame) -> Counter[int]:
        found = rows.select("id", "part").collect().rows()
        return Counter(2 * int(id[1:]) + part for id, part in found)

    def teardown(self) -> None:
        compaction.CHUNKS_MIN = CHUNKS_MIN
        self.partition.files.close()
        self.folder.cleanup()


TestHandoffs = Handoffs.TestCase
TestHandoffs.settings = settings(stateful_step_count=50, max_examples=cases(5, 20, 500))
