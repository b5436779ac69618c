"""Rejects on disk: what goes and when, how few files there are of them, and that each is counted
once, over any crash.

The last part is whatever hypothesis finds: messages, days that pass, handoffs, deletions, replays
and crashes, against a model that knows each message.
"""

from __future__ import annotations

import copy
import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import orjson
import pyarrow as pa
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import forebay
from forebay.operators.blocks import BlocksStep
from forebay.storage.base import record
from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import Corruption
from forebay.storage.base.layout import Layout
from forebay.storage.formats.boundary import Boundary
from forebay.storage.formats.frame import REJECT_SCHEMA
from forebay.storage.formats.log import Extent, read_log
from forebay.storage.formats.log_writer import GrowingLog
from forebay.storage.formats.rejects import ALL, RejectFilter
from forebay.storage.formats.replay_request import ReplayRequest
from forebay.storage.partition import reject_log
from forebay.storage.partition.reject_log import FILES_MAX, FILES_MIN
from tests import cases
from tests.partition import GRACE_MS, NAME, START_MS, OpenDisk, Partition
from tests.power import PowerDisk
from tests.replayed import (
    BROKEN,
    CONFIG,
    LARGE,
    SMALL,
    SOURCE,
    decoded,
    listed,
    message,
    redecode,
    replay,
)

DAY_MS = 86_400_000
WEEK = replace(CONFIG, rejects_ms=7 * DAY_MS)
NOON_MS = START_MS - START_MS % DAY_MS + DAY_MS // 2


@pytest.fixture
def partition(tmp_path: Path) -> Iterator[Partition]:
    """One that keeps rejects for a week, at noon of its first day."""
    partition = Partition(tmp_path / "data", WEEK, now_ms=NOON_MS).start()
    yield partition
    partition.files.close()


def reject(partition: Partition, count: int = 1, *, large: bool = False) -> None:
    """So many rejects come now; those that are large would pass a replay."""
    first = partition.blocks.state.next_offsets.get(SOURCE, 0)
    texts = [message(first + n, first, large=True) if large else BROKEN for n in range(count)]
    partition.take(decoded(texts, first, SMALL))


def tick(partition: Partition, boundary_ms: int | None = None) -> None:
    boundary = Boundary(1, boundary_ms) if boundary_ms is not None else Boundary()
    partition.offers.append(partition.blocks.tick(boundary, 0, partition.now_ms))
    partition.blocks.publish()


def counted(partition: Partition) -> tuple[int, int]:
    """Rejects and those that expired, as published; labels and files must agree."""
    partition.blocks.publish()
    state = partition.manifest()
    counters = state.counters
    assert sum(extent.rows for extent in state.rejects) == counters.rejects
    assert sum(counters.rejected.values()) == counters.rejects
    assert list(state.reject_files) == [extent.file for extent in state.rejects]
    for extent in state.rejects:
        assert sum(state.reject_files[extent.file].labels.values()) == extent.rows
    return counters.rejects, counters.rejects_expired


def offsets(partition: Partition) -> list[int]:
    partition.blocks.publish()
    return [offset for offset, _ in listed(partition)]


def on_disk(partition: Partition) -> set[str]:
    return {path.name for path in partition.layout.rejects(NAME).iterdir()}


def delete(
    partition: Partition, wanted: RejectFilter = ALL, next_offset: int | None = None
) -> None:
    """Carry a deletion out that is asked now, or was when so far had been read."""
    state = partition.blocks.state
    read = dict(state.next_offsets) if next_offset is None else {SOURCE: next_offset}
    request = ReplayRequest(state.replays + 1, wanted, {}, {NAME: read})
    for _ in partition.blocks.delete(request):
        pass


# -- what goes, and when ------------------------------------------------------------------------


def test_rejects_go_a_week_after_they_came_and_not_before(partition: Partition) -> None:
    reject(partition, 2)
    partition.tidy(DAY_MS)
    reject(partition, 3)
    partition.tidy(6 * DAY_MS)
    tick(partition)
    assert counted(partition) == (5, 0)
    partition.tidy(1)
    tick(partition)
    assert counted(partition) == (3, 2)
    assert offsets(partition) == [2, 3, 4]
    partition.tidy(DAY_MS)
    tick(partition)
    assert counted(partition) == (0, 5)


def test_a_file_that_takes_rejects_day_after_day_does_not_keep_them(partition: Partition) -> None:
    for _ in range(20):
        reject(partition)
        partition.tidy(DAY_MS)
        tick(partition)
    rejects, expired = counted(partition)
    assert (rejects, expired) == (7, 13)


def test_a_time_below_a_day_is_kept_to_an_eighth(tmp_path: Path) -> None:
    config = replace(CONFIG, rejects_ms=8_000)
    partition = Partition(tmp_path / "data", config, now_ms=NOON_MS).start()
    for _ in range(30):
        reject(partition)
        partition.tidy(1_000)
        tick(partition)
    assert counted(partition) == (8, 22)
    partition.files.close()


def test_a_handoff_takes_what_came_before_the_boundary(partition: Partition) -> None:
    """Up to midnight, that is, however the days are cut into files."""
    midnight_ms = NOON_MS + DAY_MS // 2
    reject(partition)
    partition.tidy(DAY_MS // 2 - 1)
    reject(partition)
    partition.tidy(1)
    reject(partition)
    tick(partition, midnight_ms)
    assert offsets(partition) == [2]
    assert counted(partition) == (1, 2)
    tick(partition, midnight_ms + 1)
    assert counted(partition) == (0, 3)


@pytest.mark.parametrize("broker_ms", [0, START_MS + 10**12])
def test_a_client_can_neither_keep_its_rejects_nor_have_them_deleted(
    partition: Partition, broker_ms: int
) -> None:
    frame = decoded([BROKEN], 0, SMALL)
    column = REJECT_SCHEMA.get_field_index("broker_time")
    times = pa.array([broker_ms], REJECT_SCHEMA.field(column).type)
    partition.take(replace(frame, rejects=frame.rejects.set_column(column, "broker_time", times)))
    tick(partition, NOON_MS)
    assert counted(partition) == (1, 0)
    partition.tidy(7 * DAY_MS + 1)
    tick(partition)
    assert counted(partition) == (0, 1)


def test_rejects_of_a_clock_that_was_ahead_are_not_kept_for_good(partition: Partition) -> None:
    partition.now_ms += 1000 * DAY_MS
    reject(partition)
    partition.now_ms = NOON_MS
    partition.tidy(7 * DAY_MS)
    tick(partition)
    assert counted(partition) == (1, 0)
    partition.tidy(7 * DAY_MS + 1)
    tick(partition)
    assert counted(partition) == (0, 1)


def test_beyond_the_bound_in_bytes_the_oldest_go(tmp_path: Path) -> None:
    bytes_max = 20_000
    config = replace(CONFIG, rejects_bytes_max=bytes_max)
    partition = Partition(tmp_path / "data", config, now_ms=NOON_MS).start()
    for _ in range(80):
        reject(partition, 3)
        partition.blocks.publish()
        sizes = [extent.bytes for extent in partition.manifest().rejects]
        assert sum(sizes) <= bytes_max
    rejects, expired = counted(partition)
    assert rejects + expired == 240
    assert sum(sizes) > bytes_max * 3 / 4
    assert offsets(partition) == list(range(expired, 240))
    partition.files.close()


# -- how few files ------------------------------------------------------------------------------


def restart(partition: Partition) -> None:
    snapshot = partition.blocks.snapshot()
    partition.crash()
    partition.start(snapshot)


@pytest.mark.long
def test_a_start_a_minute_with_one_reject_each_lists_few_files(partition: Partition) -> None:
    for _ in range(100):
        reject(partition)
        restart(partition)
        partition.tidy(60_000)
    assert len(partition.manifest().rejects) <= FILES_MIN + 1
    assert offsets(partition) == list(range(100))
    assert counted(partition) == (100, 0)


@pytest.mark.long
def test_years_without_a_handoff_list_few_files(tmp_path: Path) -> None:
    partition = Partition(tmp_path / "data", CONFIG, now_ms=NOON_MS).start()
    sizes = []
    for day in range(300):
        reject(partition)
        partition.tidy(DAY_MS)
        if day % 50 == 49:
            tick(partition)
            sizes.append(len(partition.blocks.snapshot()))
    assert len(partition.manifest().rejects) <= FILES_MAX + 1
    assert counted(partition) == (300, 0)
    assert offsets(partition) == list(range(300))
    assert max(sizes) < 1.5 * sizes[0]
    partition.files.close()


def test_a_replay_lists_no_more_files_than_before(partition: Partition) -> None:
    for _ in range(3):
        reject(partition, 2)
        reject(partition, large=True)
        restart(partition)
    before = [extent.rows for extent in partition.manifest().rejects]
    arrived = [file.arrived_ms for file in partition.manifest().reject_files.values()]
    partition.tidy(DAY_MS)
    replay(partition, LARGE)
    partition.blocks.publish()
    state = partition.manifest()
    assert (before, [extent.rows for extent in state.rejects]) == ([3, 3, 3], [2, 2, 2])
    assert [file.arrived_ms for file in state.reject_files.values()] == arrived


def test_joined_files_are_those_of_one_day_and_can_be_read_for_the_grace_period(
    partition: Partition,
) -> None:
    for _ in range(2):
        for _ in range(FILES_MIN):
            reject(partition)
            restart(partition)
        partition.blocks.publish()
        reader = forebay.open(partition.root).rejects()
        old = on_disk(partition)
        partition.tidy(DAY_MS)
    for _ in range(FILES_MIN):
        partition.tidy(0)
    partition.blocks.publish()
    assert len(partition.manifest().rejects) < 2 * FILES_MIN
    days = [file.arrived_ms for file in partition.manifest().reject_files.values()]
    assert {NOON_MS, NOON_MS + DAY_MS} == set(days)
    assert reader.collect().height == 2 * FILES_MIN
    for _ in range(3):
        partition.blocks.snapshot()
    partition.tidy(0)
    assert old <= on_disk(partition)
    partition.tidy(GRACE_MS)
    partition.blocks.publish()
    assert on_disk(partition) == {extent.file for extent in partition.manifest().rejects}


def test_a_log_copies_another_byte_for_byte_and_refuses_one_of_another_schema(
    tmp_path: Path,
) -> None:
    disk, one = Disk(), decoded([BROKEN, b""], 0, SMALL).rejects
    logs = [GrowingLog(disk, tmp_path, name, REJECT_SCHEMA) for name in ("a", "b", "both")]
    for log in logs[:2]:
        log.append(one)
        log.flush()
        log.append(one)
        log.flush()
    extents: list[Extent] = [*logs[0].extents, *logs[1].extents]
    logs[2].copy(extents)
    logs[2].append(one)
    logs[2].flush()
    (both,) = logs[2].extents
    assert (both.rows, both.bytes) == (10, (tmp_path / "both").stat().st_size)
    assert pa.Table.from_batches(read_log(disk, tmp_path, both)) == pa.Table.from_batches([one] * 5)
    few = one.select(["reason", "message"])
    other = GrowingLog(disk, tmp_path, "other", few.schema)
    other.append(few)
    other.flush()
    with pytest.raises(Corruption, match="expected the schema"):
        logs[2].copy(other.extents)
    assert logs[2].extents == (both,)


# -- crashes ------------------------------------------------------------------------------------


def test_what_expired_stays_until_no_restart_could_name_it_and_the_grace_period_is_over(
    partition: Partition,
) -> None:
    reject(partition, 2)
    partition.blocks.publish()
    (file,) = on_disk(partition)
    snapshot = partition.blocks.snapshot()
    store = forebay.open(partition.root)
    before = store.rejects()
    partition.tidy(8 * DAY_MS)
    tick(partition)
    assert counted(partition) == (0, 2)
    for _ in range(5):
        partition.tidy(GRACE_MS)
    assert before.collect().height == 2
    partition.crash()
    partition.start(snapshot)
    assert counted(partition) == (2, 0)
    tick(partition)
    assert counted(partition) == (0, 2)
    for _ in range(3):
        snapshot = partition.blocks.snapshot()
    partition.tidy(0)
    partition.tidy(GRACE_MS - 1)
    assert on_disk(partition) == {file}
    partition.crash()
    partition.start(snapshot)  # which knows no more of the file
    partition.tidy(GRACE_MS - 1)
    assert on_disk(partition) == {file}
    partition.tidy(1)
    assert on_disk(partition) == set()
    assert counted(partition) == (0, 2)


def test_a_state_of_a_build_that_noted_nothing_goes_on(partition: Partition) -> None:
    reject(partition, 2)
    reject(partition, 1, large=True)
    restart(partition)
    reject(partition, 3)
    body = orjson.loads(partition.blocks.snapshot())["body"]
    del body["reject_files"], body["counters"]["rejects_expired"]
    partition.crash()
    partition.start(record.encode("manifest", 2, body))
    assert counted(partition) == (6, 0)
    labels = [file.labels for file in partition.manifest().reject_files.values()]
    assert labels == [{"bad json": 2, "too large": 1}, {"bad json": 3}]
    partition.tidy(7 * DAY_MS)
    tick(partition)
    assert counted(partition) == (6, 0)  # they came when they were first looked at
    partition.tidy(1)
    tick(partition)
    assert counted(partition) == (0, 6)


# -- a file that can't be read ------------------------------------------------------------------


@pytest.fixture
def damaged(partition: Partition) -> Partition:
    """Of three files the second can't be read."""
    for _ in range(3):
        reject(partition)
        reject(partition, large=True)
        restart(partition)
    path = partition.layout.rejects(NAME) / partition.manifest().rejects[1].file
    path.write_bytes(b"\0" * path.stat().st_size)
    return partition


def test_a_damaged_file_expires_as_any_other(damaged: Partition) -> None:
    damaged.tidy(7 * DAY_MS + 1)
    tick(damaged)
    assert counted(damaged) == (0, 6)


def test_a_damaged_file_is_joined_with_no_other(damaged: Partition) -> None:
    for _ in range(2 * FILES_MIN):
        reject(damaged)
        restart(damaged)
        damaged.tidy(0)
    damaged.blocks.publish()
    rejects = damaged.manifest().rejects
    assert len(rejects) <= FILES_MIN + 1
    assert [extent.rows for extent in rejects][:2] == [2, 2]
    assert counted(damaged) == (6 + 2 * FILES_MIN, 0)


def test_a_damaged_file_goes_if_all_are_to_and_else_stays(damaged: Partition) -> None:
    delete(damaged, RejectFilter(reasons=("bad json",)))
    assert counted(damaged) == (4, 2)
    delete(damaged)
    assert counted(damaged) == (0, 6)


def test_a_damaged_file_of_an_earlier_build_keeps_no_job_from_its_start(
    damaged: Partition,
) -> None:
    body = orjson.loads(damaged.blocks.snapshot())["body"]
    del body["reject_files"]
    damaged.crash()
    damaged.start(record.encode("manifest", 2, body))
    labels = [file.labels for file in damaged.manifest().reject_files.values()]
    assert labels == [{"bad json": 1, "too large": 1}] * 3
    assert counted(damaged) == (6, 0)


# -- deletion as was asked ----------------------------------------------------------------------


def test_only_the_rejects_meant_are_deleted(partition: Partition) -> None:
    reject(partition, 3)
    reject(partition, 2, large=True)
    restart(partition)
    reject(partition, 2)
    delete(partition, RejectFilter(offsets=(0, 6)))
    assert offsets(partition) == [1, 2, 3, 4, 5]
    delete(partition, RejectFilter(reasons=("too large",)))
    assert offsets(partition) == [1, 2, 5]
    delete(partition, RejectFilter(partitions=("another",)))
    delete(partition, RejectFilter(until_ms=START_MS + 2))
    assert offsets(partition) == [2, 5]
    delete(partition)
    assert counted(partition) == (0, 7)
    assert partition.manifest().replays == 5


def test_what_came_after_a_deletion_was_asked_stays(partition: Partition) -> None:
    reject(partition, 3)
    delete(partition, ALL, next_offset=2)
    assert offsets(partition) == [2]
    partition.blocks.publish()
    request = ReplayRequest(2, ALL, {}, {"another": {SOURCE: 100}})
    assert list(partition.blocks.delete(request)) == [None]
    assert counted(partition) == (1, 2)


def test_step_deletes_without_a_decoder_and_leaves_replays_out(tmp_path: Path) -> None:
    """As with hash partitions."""
    files, layout = OpenDisk(), Layout(tmp_path)
    step = BlocksStep(
        CONFIG, layout, files, publish_interval_s=0, tick_interval_s=3600, cache_bytes=1 << 20,
        retention_ms=0, batch_late_ms=3_600_000,
    )  # fmt: skip
    logic = step(None)
    logic.on_batch([decoded([BROKEN, message(0, 0, large=True), BROKEN], 0, SMALL)])
    layout.replay.mkdir()
    for request in (ReplayRequest(1, ALL, {}), ReplayRequest(2, ALL, {}, {NAME: {SOURCE: 2}})):
        files.replace(layout.replay_request(request.number), request.encode(), durable=False)
    for _ in range(4):
        logic.on_notify()
    (state,) = [one.state for one in forebay.open(tmp_path).view().partitions]
    assert (state.replays, state.counters.rejects, state.counters.rejects_expired) == (2, 1, 2)
    files.close()


@pytest.mark.few(3)
@pytest.mark.parametrize("other", ["expire", "beyond the bound"])
@pytest.mark.parametrize("steps", range(4))
def test_a_replay_during_which_files_expire_has_each_reject_once(
    tmp_path: Path, steps: int, other: str
) -> None:
    bytes_max = 30_000 if other == "beyond the bound" else WEEK.rejects_bytes_max
    config = replace(WEEK, rejects_bytes_max=bytes_max)
    partition = Partition(tmp_path / "data", config, now_ms=NOON_MS).start()
    for _ in range(3):
        reject(partition, 2)
        reject(partition, 2, large=True)
        restart(partition)
    partition.tidy(7 * DAY_MS + 1)
    going = partition.blocks.replay(ReplayRequest(1, ALL, {}), redecode(LARGE))
    for _ in range(steps):
        next(going)
    if other == "expire":
        tick(partition)
    else:
        for _ in range(40):
            reject(partition, 2)
            partition.blocks.publish()
            partition.tidy(0)
    for _ in going:
        partition.tidy(0)
    rejects, expired = counted(partition)
    counters = partition.manifest().counters
    read = partition.manifest().next_offsets[SOURCE]
    assert counters.accepted + counters.duplicates + rejects + expired == read
    assert counters.accepted == 2 * steps
    assert len(set(offsets(partition)) | {at for _, at in partition.seen()}) == read - expired
    partition.files.close()


# -- whatever hypothesis finds ------------------------------------------------------------------


@dataclass
class Model:
    """Each message by its offset: when it came, and whether it would pass a replay."""

    sent: list[tuple[int, bool]] = field(default_factory=list)
    rejects: set[int] = field(default_factory=set)
    events: set[int] = field(default_factory=set)
    expired: set[int] = field(default_factory=set)


class Expiry(RuleBasedStateMachine):
    """One partition whose rejects come, go, are replayed and deleted, with commits, crashes and
    power losses."""

    files: PowerDisk

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.commit: tuple[bytes | None, Model] = (None, Model())
        self.log: list[tuple[int, bool]] = []

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        config, base = replace(WEEK, rejects_bytes_max=20_000), Path(self.folder.name)
        (base / "data").mkdir()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(reject_log, "FILES_MIN", 2)
        self.patch.setattr(reject_log, "FILES_MAX", 5)
        self.files = PowerDisk(base / "data", base / "shadow").__enter__()
        self.partition = Partition(base / "data", config, now_ms=NOON_MS, files=self.files).start()

    @rule(many=st.lists(st.booleans(), min_size=1, max_size=6))
    def take(self, many: list[bool]) -> None:
        self.log += [(self.partition.now_ms, passes) for passes in many]
        self._take_in()

    def _take_in(self) -> None:
        """What the source has beyond the committed state, all of it arriving now."""
        first, now = len(self.model.sent), self.partition.now_ms
        new = [passes for _, passes in self.log[first:]]
        if new:
            texts = [
                message(2 * (first + n), n, large=True) if passes else BROKEN
                for n, passes in enumerate(new)
            ]
            self.partition.take(decoded(texts, first, SMALL))
            self.model.rejects |= set(range(first, first + len(new)))
            self.model.sent += [(now, passes) for passes in new]

    @rule(ms=st.sampled_from([1, 3_600_000, DAY_MS, 3 * DAY_MS]))
    def wait(self, ms: int) -> None:
        self.partition.tidy(ms)

    @rule(handed_over=st.booleans())
    def tick(self, handed_over: bool) -> None:
        now = self.partition.now_ms
        midnight = now - now % DAY_MS
        end_ms = max(now - 7 * DAY_MS, midnight if handed_over else 0)
        tick(self.partition, midnight if handed_over else None)
        self._note_expired(lambda arrived_ms: arrived_ms < end_ms)
        stale = {at for at in self.model.rejects if self.model.sent[at][0] < end_ms - DAY_MS}
        assert not stale
        if handed_over:
            assert all(self.model.sent[at][0] >= midnight for at in self.model.rejects)

    def _note_expired(self, may_go: Callable[[int], bool]) -> None:
        gone = self.model.rejects - set(offsets(self.partition))
        assert all(may_go(self.model.sent[at][0]) for at in gone)
        self.model.rejects -= gone
        self.model.expired |= gone

    @rule(odd=st.sampled_from([None, 0, 1]))
    def delete(self, odd: int | None) -> None:
        meant = [at for at in self.model.rejects if odd is None or at % 2 == odd]
        if meant:
            delete(self.partition, ALL if odd is None else RejectFilter(offsets=tuple(meant)))
        self.model.rejects -= set(meant)
        self.model.expired |= set(meant)

    @rule()
    def replay(self) -> None:
        replay(self.partition, LARGE)
        passed = {at for at in self.model.rejects if self.model.sent[at][1]}
        self.model.rejects -= passed
        self.model.events |= passed

    @rule()
    def snapshot(self) -> None:
        self._flushed()
        self.commit = self.partition.blocks.snapshot(), copy.deepcopy(self.model)

    @rule(seed=st.one_of(st.none(), st.integers(0, 2**32)))
    def crash(self, seed: int | None) -> None:
        """The process dies; with a seed, power goes."""
        self.partition.crash()
        if seed is not None:
            self.files.lose_power(random.Random(seed))
        snapshot, model = self.commit
        self.model = copy.deepcopy(model)
        self.partition.start(snapshot)
        self._take_in()

    def _flushed(self) -> None:
        """Files beyond the bound go when they are flushed: the oldest, whatever they are."""
        self.partition.blocks.publish()
        gone = self.model.rejects - set(offsets(self.partition))
        if gone:
            self.model.rejects -= gone
            self.model.expired |= gone
            kept = [self.model.sent[at][0] for at in self.model.rejects]
            assert max(self.model.sent[at][0] for at in gone) <= min(kept, default=2**60)

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "partition"):
            return
        self._flushed()
        assert set(offsets(self.partition)) == self.model.rejects
        assert counted(self.partition) == (len(self.model.rejects), len(self.model.expired))
        state = self.partition.manifest()
        assert state.counters.accepted == len(self.model.events)
        assert {at for _, at in self.partition.seen()} == self.model.events
        assert state.next_offsets.get(SOURCE, 0) == len(self.model.sent)
        assert len(state.rejects) <= 2 * FILES_MIN
        assert {extent.file for extent in state.rejects} <= on_disk(self.partition)

    def teardown(self) -> None:
        if hasattr(self, "partition"):
            self.patch.undo()
            self.files.__exit__()
            self.folder.cleanup()


TestExpiry = Expiry.TestCase
TestExpiry.settings = settings(stateful_step_count=25, max_examples=cases(4, 20, 2000))
