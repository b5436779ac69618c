"""Replay of rejects: what passes becomes an event exactly once, over any crash."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import forebay
from forebay.operators.blocks import BlocksStep
from forebay.storage.base import record
from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import BadInput, Corruption
from forebay.storage.base.layout import Layout
from forebay.storage.formats.frame import REASONS, REJECT_SCHEMA
from forebay.storage.formats.rejects import ALL, RejectFilter
from forebay.storage.formats.replay_request import ReplayRequest, ask, read_request
from forebay.storage.formats.schema import RAW
from forebay.storage.partition.offer import Offer
from tests import cases
from tests.oracle import Oracle, Place
from tests.partition import (
    GRACE_MS,
    NAME,
    SPAN_MS,
    START_MS,
    WINDOW_MS,
    OpenDisk,
    Partition,
)
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


@pytest.fixture
def partition(tmp_path: Path) -> Iterator[Partition]:
    partition = Partition(tmp_path / "data", CONFIG)
    yield partition
    partition.files.close()


def counted(partition: Partition) -> tuple[int, int, int]:
    partition.blocks.publish()
    counters = partition.manifest().counters
    return counters.accepted, counters.duplicates, counters.rejects


# -- replay -------------------------------------------------------------------------------------


def test_what_passes_becomes_an_event_of_its_own_offset_and_the_rest_stays_a_reject(
    partition: Partition,
) -> None:
    partition.start()
    large = message(1, 1, large=True)
    partition.take(decoded([message(0, 0), large, BROKEN, message(2, 2)], 0, SMALL))
    assert counted(partition) == (2, 0, 2)
    assert listed(partition) == [(1, "too large"), (2, "bad json")]
    replay(partition, LARGE)
    assert counted(partition) == (3, 0, 1)
    assert listed(partition) == [(2, "bad json")]
    assert partition.seen() == [(SOURCE, 0), (SOURCE, 1), (SOURCE, 3)]
    events = forebay.open(partition.root).scan().filter(pl.col("_offset") == 1).collect()
    assert events[RAW].to_list() == [large]
    assert partition.manifest().next_offsets == {SOURCE: 4}


def test_a_replayed_copy_of_an_event_is_a_duplicate(partition: Partition) -> None:
    partition.start()
    partition.take(decoded([message(0, 0), message(0, 5, large=True)], 0, SMALL))
    partition.take(decoded([message(1, 9, large=True), message(1, 9, large=True)], 2, SMALL))
    assert counted(partition) == (1, 0, 3)
    replay(partition, LARGE)
    assert counted(partition) == (2, 2, 0)
    assert partition.seen() == [(SOURCE, 0), (SOURCE, 2)]


def test_replay_that_nothing_passes_changes_no_file(partition: Partition) -> None:
    partition.start()
    partition.take(decoded([BROKEN, BROKEN], 0, SMALL))
    partition.blocks.publish()
    before = partition.manifest().rejects
    replay(partition, SMALL)
    partition.blocks.publish()
    assert partition.manifest().rejects == before
    assert partition.manifest().replays == 1


def test_replay_twice_is_replay_once(partition: Partition) -> None:
    partition.start()
    partition.take(decoded([message(n, n, large=n % 2 == 0) for n in range(10)], 0, SMALL))
    replay(partition, LARGE)
    once = counted(partition), partition.seen()
    replay(partition, LARGE)
    assert (counted(partition), partition.seen()) == once
    assert once[0] == (10, 0, 0)


def test_only_the_rejects_meant_are_tried_again(partition: Partition) -> None:
    partition.start()
    partition.take(decoded([message(n, n, large=True) for n in range(5)], 0, SMALL))
    replay(partition, LARGE, RejectFilter(offsets=(1, 3)))
    replay(partition, LARGE, RejectFilter(reasons=("bad json",)))
    replay(partition, LARGE, RejectFilter(partitions=("another",)))
    replay(partition, LARGE, RejectFilter(since_ms=START_MS + 4))
    assert counted(partition) == (3, 0, 2)
    assert [offset for offset, _ in listed(partition)] == [0, 2]


def test_replaced_file_can_be_read_for_the_grace_period_and_goes_then(partition: Partition) -> None:
    partition.start()
    partition.take(decoded([message(1, 1, large=True), BROKEN], 0, SMALL))
    partition.blocks.publish()
    store = forebay.open(partition.root)
    before = store.rejects()
    (old,) = partition.manifest().rejects
    replay(partition, LARGE)
    for _ in range(3):  # the first is surely stored then
        partition.tidy(GRACE_MS)
        partition.blocks.snapshot()
    partition.tidy(0)
    partition.blocks.publish()
    partition.tidy(GRACE_MS - 1)
    assert before.collect().height == 2
    partition.tidy(1)
    assert not (partition.layout.rejects(NAME) / old.file).exists()
    assert listed(partition) == [(1, "bad json")]


def test_replaced_file_stays_as_long_as_a_commit_may_name_it(partition: Partition) -> None:
    partition.start()
    partition.take(decoded([message(1, 1, large=True), BROKEN], 0, SMALL))
    snapshot = partition.blocks.snapshot()
    replay(partition, LARGE)
    for _ in range(5):
        partition.tidy(GRACE_MS)
    partition.crash()
    partition.start(snapshot)
    assert listed(partition) == [(0, "too large"), (1, "bad json")]


def test_file_names_stay_unique_however_often_a_run_replays(partition: Partition) -> None:
    partition.start()
    for n in range(6):
        partition.take(decoded([message(n, n, large=True), BROKEN], 2 * n, SMALL))
        partition.blocks.publish()
        replay(partition, LARGE)
    assert counted(partition) == (6, 0, 6)


def test_replay_follows_crash_between_any_two_of_its_files(partition: Partition) -> None:
    partition.start()
    for n in range(4):
        partition.take(decoded([message(n, n, large=True), BROKEN], 2 * n, SMALL))
        snapshot = partition.blocks.snapshot()
        partition.crash()
        partition.start(snapshot)
    for steps in range(5):
        going = partition.blocks.replay(ReplayRequest(1, ALL, {}), redecode(LARGE))
        for _ in range(steps):
            next(going, None)
        partition.blocks.publish()
        assert counted(partition) == (steps, 0, 8 - steps)
        middle = partition.blocks.snapshot()
        partition.crash()
        partition.start(middle)
        assert partition.manifest().replays == 0
        replay(partition, LARGE)
        assert counted(partition) == (4, 0, 4)
        partition.crash()
        partition.start(snapshot)
        assert counted(partition) == (0, 0, 8)


# -- whatever hypothesis finds ------------------------------------------------------------------


@dataclass(frozen=True)
class Sent:
    """One message: `key` None is broken for good."""

    offset: int
    key: int | None
    upload_ms: int
    large: bool

    @property
    def bytes(self) -> bytes:
        return BROKEN if self.key is None else message(self.key, self.upload_ms, large=self.large)

    @property
    def place(self) -> Place:
        return SOURCE, self.offset


@dataclass
class Model:
    """What the partition must hold: the oracle's events, and the rejects file by file."""

    oracle: Oracle = field(default_factory=lambda: Oracle(SPAN_MS, WINDOW_MS))
    files: list[list[Sent]] = field(default_factory=list)
    current: list[Sent] = field(default_factory=list)
    next: int = 0

    @property
    def rejects(self) -> list[int]:
        return sorted(sent.offset for file in [*self.files, self.current] for sent in file)

    def take(self, sent: Sent) -> None:
        self.next = sent.offset + 1
        if sent.key is None or sent.large:
            self.oracle.reject(sent.place)
            self.current.append(sent)
        else:
            self._event(sent)

    def _event(self, sent: Sent) -> None:
        assert sent.key is not None
        key = (f"k{sent.key // 2}", sent.key % 2)
        self.oracle.event(sent.place, key, START_MS + sent.upload_ms)

    def seal(self) -> None:
        self.files += [self.current] if self.current else []
        self.current = []

    def replay(self, offsets: Sequence[int]) -> None:
        self.seal()
        for file in list(self.files):
            passing = [s for s in file if s.key is not None and s.offset in offsets]
            if not passing:
                continue
            at = self.files.index(file)
            self.files[at] = [sent for sent in file if sent not in passing]
            self.files = [file for file in self.files if file]
            for sent in passing:
                self.oracle.rejects -= 1
                following = self.oracle.next_offsets.pop(SOURCE)
                self._event(sent)
                self.oracle.next_offsets[SOURCE] = following


sends = st.tuples(
    st.one_of(st.integers(0, 7), st.none()),
    st.one_of(st.integers(-20, 40), st.integers(-3 * WINDOW_MS, 2 * WINDOW_MS)),
    st.booleans(),
)


class Replays(RuleBasedStateMachine):
    """One partition that takes messages in, replays, commits and crashes, against the model."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[Sent] = []
        self.newest_ms = 3_000
        self.model = Model()
        self.commit: tuple[bytes | None, Model] = (None, Model())

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.partition = Partition(Path(self.folder.name), CONFIG, files=OpenDisk()).start()

    @rule(many=st.lists(sends, min_size=1, max_size=10))
    def take(self, many: list[tuple[int | None, int, bool]]) -> None:
        for key, after_ms, large in many:
            upload_ms = self.newest_ms + after_ms
            self.newest_ms = max(self.newest_ms, upload_ms)
            self.sent.append(Sent(len(self.sent), key, upload_ms, large))
        self._take_in(self.model.next)

    def _take_in(self, first: int) -> None:
        new = self.sent[first:]
        if new:
            self.partition.take(decoded([sent.bytes for sent in new], first, SMALL))
            for sent in new:
                self.model.take(sent)

    @rule(odd=st.sampled_from([None, 0, 1]))
    def replay(self, odd: int | None) -> None:
        meant = [s.offset for s in self.sent if odd is None or s.offset % 2 == odd]
        replay(self.partition, LARGE, RejectFilter(offsets=tuple(meant)) if meant else ALL)
        self.model.replay(meant)

    @rule()
    def snapshot(self) -> None:
        snapshot = self.partition.blocks.snapshot()
        self.commit = snapshot, copy.deepcopy(self.model)

    @rule(merge=st.booleans())
    def publish(self, merge: bool) -> None:
        self.partition.blocks.publish()
        if merge:
            self.partition.merge()

    @rule()
    def crash_and_replay(self) -> None:
        self.partition.crash()
        snapshot, model = self.commit
        self.partition.start(snapshot)
        self.model = copy.deepcopy(model)
        self.model.seal()
        self.partition.merge()
        self._take_in(self.model.next)

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "partition"):
            return
        self.partition.blocks.publish()
        oracle = self.model.oracle
        assert counted(self.partition) == (oracle.accepted, oracle.duplicates, oracle.rejects)
        assert self.partition.seen() == oracle.places()
        assert [offset for offset, _ in listed(self.partition)] == self.model.rejects
        assert self.partition.manifest().counters.rejects == sum(
            extent.rows for extent in self.partition.manifest().rejects
        )

    def teardown(self) -> None:
        if hasattr(self, "partition"):
            self.partition.files.close()
            self.folder.cleanup()


TestReplays = Replays.TestCase
TestReplays.settings = settings(stateful_step_count=25, max_examples=cases(10, 25, 2000))

times = st.one_of(st.none(), st.integers(-3, 12))


@given(
    st.lists(st.tuples(st.sampled_from(REASONS), st.sampled_from("ab"), st.integers(0, 9))),
    st.lists(st.sampled_from(REASONS), max_size=2),
    st.lists(st.sampled_from("abc"), max_size=2),
    st.lists(st.integers(0, 9), max_size=3),
    times,
    times,
)
def test_filter_means_what_a_plain_loop_means(
    rows: list[tuple[str, str, int]],
    reasons: list[str],
    partitions: list[str],
    offsets: list[int],
    since_ms: int | None,
    until_ms: int | None,
) -> None:
    batch = pa.RecordBatch.from_arrays(
        [
            pa.array([row[1] for row in rows], pa.string()),
            pa.array([row[2] for row in rows], pa.int64()),
            pa.array([row[2] for row in rows], pa.timestamp("ms", tz="UTC")),
            pa.array([row[0] for row in rows], pa.string()),
            pa.nulls(len(rows), pa.string()),
            pa.nulls(len(rows), pa.binary()),
        ],
        schema=REJECT_SCHEMA,
    )
    wanted = RejectFilter(tuple(reasons), tuple(partitions), tuple(offsets), since_ms, until_ms)
    assert wanted.rows(batch).tolist() == [
        (not reasons or reason in reasons)
        and (not partitions or source in partitions)
        and (not offsets or offset in offsets)
        and (since_ms is None or offset >= since_ms)
        and (until_ms is None or offset < until_ms)
        for reason, source, offset in rows
    ]


# -- requests -----------------------------------------------------------------------------------


def test_asking_twice_is_one_request_until_a_partition_begins_another_run(tmp_path: Path) -> None:
    files, layout = Disk(), Layout(tmp_path)
    first = ask(files, layout, ALL, {"p": 1})
    assert ask(files, layout, ALL, {"p": 1}) == first
    other = ask(files, layout, RejectFilter(reasons=("bad json",), until_ms=5), {"p": 1})
    assert ask(files, layout, ALL, {"p": 2}).number == 3
    assert [read_request(files, layout, number) for number in (1, 2, 4)] == [first, other, None]


@pytest.mark.parametrize("version", [1, 2])
def test_a_request_that_cannot_be_read_keeps_its_number_and_others_can_be_asked(
    tmp_path: Path, version: int
) -> None:
    files, layout = Disk(), Layout(tmp_path)
    ask(files, layout, ALL, {"p": 1})
    damaged = b"torn" if version == 1 else record.encode("replay", version, {})
    layout.replay_request(1).write_bytes(damaged)
    (layout.replay / ".000002.json.tmp").write_bytes(b"of one who was killed")
    second = ask(files, layout, ALL, {"p": 1})
    assert second.number == 2
    assert ask(files, layout, ALL, {"p": 1}) == second
    assert layout.replay_request(1).read_bytes() == damaged


def test_request_is_refused_while_another_is_written(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.replay.mkdir()

    class Busy(Disk):
        def lock(self, path: Path) -> object:  # type: ignore[override]
            raise BadInput("held")

    with pytest.raises(BadInput, match="no other request"):
        ask(Busy(), layout, ALL, {})


def test_unknown_reason_is_bad_input_that_names_the_known() -> None:
    with pytest.raises(BadInput, match=r"bad json.*got 'ugly'"):
        RejectFilter(reasons=("ugly",))


@pytest.mark.parametrize(
    "change", [{"number": "x"}, {"wanted": {"reasons": ["ugly"]}}, {"runs": 1}]
)
def test_request_with_a_field_of_another_kind_is_corruption(change: dict[str, object]) -> None:
    body = orjson.loads(ReplayRequest(1, ALL, {}).encode())["body"]
    with pytest.raises(Corruption, match="DATA/x"):
        ReplayRequest.decode(record.encode("replay", 2, {**body, **change}), "DATA/x")


def test_step_takes_requests_up_at_its_turns_and_leaves_out_one_it_cannot_read(
    tmp_path: Path,
) -> None:
    files, layout = OpenDisk(), Layout(tmp_path)
    step = BlocksStep(
        CONFIG,
        layout,
        files,
        publish_interval_s=0,
        tick_interval_s=3600,
        cache_bytes=1 << 20,
        retention_ms=0,
        batch_late_ms=3_600_000,
        redecode=redecode(LARGE),
    )
    logic = step(None)
    offers: list[Offer] = []
    large = [message(n, n, large=True) for n in range(3)]
    offers += logic.on_batch([decoded([*large, message(3, 3)], 0, SMALL)])[0]
    assert logic.notify_at() is not None
    layout.replay.mkdir()
    layout.replay_request(1).write_bytes(b"torn")
    ask_number_two = ReplayRequest(2, RejectFilter(offsets=(0, 1)), {})
    files.replace(layout.replay_request(2), ask_number_two.encode(), durable=False)
    for _ in range(4):
        offers += logic.on_notify()[0]
    logic.snapshot()
    store = forebay.open(tmp_path)
    assert store.rejects().collect()["_offset"].to_list() == [2]
    assert store.scan().collect().height == 3
    (state,) = [partition.state for partition in store.view().partitions]
    assert state.replays == 2
    assert [offer.blocks for offer in offers if offer.tick is None] == [()]
    files.close()
