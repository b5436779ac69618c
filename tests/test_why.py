"""Drops are explained: conflicts against an oracle, the drop log, and `forebay why`."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import orjson
import polars as pl
import pyarrow as pa
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import forebay
from forebay.cli.main import main
from forebay.cli.why import _reported as line_of
from forebay.query.view import NodeView, View, take_view
from forebay.query.why import TABLE, Copy, explain
from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import BadInput
from forebay.storage.base.layout import Layout
from forebay.storage.formats.boundary import Boundary
from forebay.storage.formats.columns import arrow_schema
from forebay.storage.formats.frame import REJECT_SCHEMA, Frame
from forebay.storage.formats.hashes import Hash
from forebay.storage.formats.log import LogReader
from forebay.storage.formats.payload import Probe, hash_payload
from forebay.storage.formats.schema import OFFSET, PARTITION, RAW, UPLOAD_TIME, Column, Schema
from forebay.storage.partition.rules import Rules
from tests.job import Job
from tests.oracle import Block, Key, Oracle, Place
from tests.partition import (
    BIG_CACHE,
    GRACE_MS,
    NAME,
    SCHEMA,
    SPAN_MS,
    START_MS,
    WINDOW_MS,
    OpenDisk,
    Partition,
    one_hash,
)

HOUR_MS = 3_600_000
WITH_PAYLOAD = replace(
    SCHEMA,
    columns=(
        *SCHEMA.columns[:2],
        Column("text", ("text",)),
        Column("number", ("number",), "int"),
        Column("flag", ("flag",), "bool"),
        Column("sent", ("sent",), "time"),
    ),
    raw=True,
    volatile=("sent",),
)
CONFIG = Rules(WITH_PAYLOAD, SPAN_MS, WINDOW_MS, GRACE_MS)
Values = tuple[str | None, int | None, bool | None]
NO_VALUES: Values = (None, None, None)


@dataclass(frozen=True)
class Event:
    """`upload_ms` counts from START_MS; `values` are the payload."""

    offset: int
    key: int
    upload_ms: int
    values: Values = NO_VALUES
    source: str = "s0"

    @property
    def keys(self) -> Key:
        return f"k{self.key // 2}", self.key % 2

    @property
    def place(self) -> Place:
        return self.source, self.offset


def frame(events: Sequence[Event], schema: Schema = WITH_PAYLOAD) -> Frame:
    """As `decode` would give them; each copy has a `sent` and a `raw` of its own."""
    rows = [
        {
            PARTITION: event.source,
            OFFSET: event.offset,
            UPLOAD_TIME: START_MS + event.upload_ms,
            "id": event.keys[0],
            "part": event.keys[1],
            **dict(zip(("text", "number", "flag"), event.values, strict=True)),
            "sent": event.offset,
            RAW: str(event.offset).encode(),
        }
        for event in events
    ]
    columns = [pa.array([row.get(f.name) for row in rows], f.type) for f in arrow_schema(schema)]
    return Frame(
        partition=NAME,
        source=events[0].source,
        first_offset=events[0].offset,
        next_offset=events[-1].offset + 1,
        events=pa.RecordBatch.from_arrays(columns, schema=arrow_schema(schema)),
        rejects=pa.RecordBatch.from_pylist([], schema=pa.schema([])),
    )


@pytest.fixture
def partition(tmp_path: Path) -> Iterator[Partition]:
    partition = Partition(tmp_path / "data", CONFIG)
    yield partition
    partition.files.close()


def conflicts(partition: Partition) -> int:
    partition.blocks.publish()
    return partition.manifest().counters.conflicts


def told(partition: Partition) -> list[tuple[int, str]]:
    """Offset and what became of it, of every row of the drop log."""
    found = []
    for extent in partition.manifest().drops:
        reader = LogReader(partition.files, partition.layout.drops(NAME), extent.file)
        for batch in reader.decode(reader.follow(extent), [OFFSET, "what"]):
            found += list(zip(*(column.to_pylist() for column in batch.columns), strict=True))
    return sorted(found)


# -- payload hashes -----------------------------------------------------------------------------

texts = st.one_of(st.none(), st.text(max_size=20), st.sampled_from(["", "a", "aaaaaaaa", "\0"]))
numbers = st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1), st.sampled_from([0, 1]))
flags = st.one_of(st.none(), st.booleans())
rows_of_values = st.lists(st.tuples(texts, numbers, flags, numbers), min_size=1, max_size=30)
TYPES = (pa.string(), pa.int64(), pa.bool_(), pa.timestamp("us", tz="UTC"))


@given(rows_of_values, st.integers(0, 5), st.integers(0, 5))
def test_payload_hashes_are_equal_if_and_only_if_the_payloads_are(
    rows: list[tuple[str | None, int | None, bool | None, int | None]], before: int, after: int
) -> None:
    columns = [
        pa.array(values, type) for values, type in zip(zip(*rows, strict=True), TYPES, strict=True)
    ]
    batch = pa.RecordBatch.from_arrays(columns, names=["a", "b", "c", "d"])
    hashes = hash_payload(batch).tolist()
    assert len(set(hashes)) == len({(*row[:2], row[2], row[3]) for row in rows})
    assert hash_payload(batch.select(["d", "a", "c", "b"])).tolist() == hashes
    part = slice(min(before, len(rows)), max(0, len(rows) - after))
    sliced = batch.slice(part.start, max(0, part.stop - part.start))
    assert hash_payload(sliced).tolist() == hashes[part]
    assert (
        Probe.of(batch, ["a", "c"]).over(("c",)).tolist()
        == hash_payload(batch.select(["c"])).tolist()
    )


def test_two_columns_may_not_swap_their_values() -> None:
    batch = pa.record_batch({"a": ["x", "y"], "b": ["y", "x"]})
    assert len(set(hash_payload(batch).tolist())) == 2


# -- conflicts ----------------------------------------------------------------------------------


@dataclass
class PayloadOracle(Oracle):
    """The rules, and: a duplicate conflicts if its payload is not that of the event kept, which is
    the one in a live block if there is one, else the one retained in its interval."""

    kept: list[tuple[Block, Event]] = field(default_factory=list)
    originals: dict[int, int] = field(default_factory=dict)
    dropped: list[tuple[int, str]] = field(default_factory=list)

    def take(self, event: Event) -> None:
        accepted, duplicates, late = self.accepted, self.duplicates, self.late
        upload_ms = START_MS + event.upload_ms
        self.event(event.place, event.keys, upload_ms)
        places = self.places_of(upload_ms)
        if self.accepted > accepted:
            self.kept.append((self.live[places[-1]], event))
            if self.late > late:
                self.dropped.append((event.offset, "late"))
        elif self.duplicates > duplicates:
            live = list(self.live.values())
            retained = [[b for b in self.closed if b.place == place] for place in places]
            (original, *_) = [
                kept
                for among in (live, *retained)
                for block, kept in self.kept
                if kept.keys == event.keys and any(block is one for one in among)
            ]
            self.originals[event.offset] = original.offset
            self.conflicts += original.values != event.values
            what = "conflict" if original.values != event.values else "duplicate"
            self.dropped.append((event.offset, what))


def judged(events: Sequence[Event]) -> PayloadOracle:
    oracle = PayloadOracle(SPAN_MS, WINDOW_MS)
    for event in events:
        oracle.take(event)
    return oracle


def test_retry_with_the_same_payload_and_a_new_upload_time_is_no_conflict(
    partition: Partition,
) -> None:
    partition.start()
    partition.blocks.append(
        frame([Event(0, 1, 0, ("a", 1, True)), Event(1, 1, 90, ("a", 1, True))]), 0
    )
    assert conflicts(partition) == 0
    assert partition.manifest().counters.duplicates == 1


@pytest.mark.parametrize(
    "other", [("b", 1, True), ("a", 2, True), ("a", 1, False), (None, 1, True), ("", 1, True)]
)
@pytest.mark.parametrize("apart", [False, True], ids=["one batch", "two batches"])
def test_same_key_with_another_payload_is_a_conflict(
    partition: Partition, other: Values, apart: bool
) -> None:
    partition.start()
    events = [Event(0, 1, 0, ("a", 1, True)), Event(1, 1, 1, other), Event(2, 2, 1, other)]
    for some in [events[:1], events[1:]] if apart else [events]:
        partition.blocks.append(frame(some), 0)
    assert conflicts(partition) == 1
    assert told(partition) == [(1, "conflict")]


@pytest.mark.parametrize("merged", [False, True], ids=["evicted", "merged"])
@pytest.mark.parametrize("forgotten", [False, True], ids=["listed", "forgotten"])
@pytest.mark.parametrize("restarted", [False, True], ids=["same run", "next run"])
@pytest.mark.parametrize("cache_bytes", [1, BIG_CACHE])
def test_conflict_with_an_event_of_an_hour_ago_is_found(
    partition: Partition, merged: bool, forgotten: bool, restarted: bool, cache_bytes: int
) -> None:
    partition.cache_bytes = cache_bytes
    partition.start()
    old = [Event(n, n, n * 10, (f"v{n}", n, None)) for n in range(30)]
    partition.take(frame([*old, Event(30, 99, HOUR_MS)]))
    if merged:
        partition.merge()
    if forgotten:
        partition.tidy(0)
        partition.tidy(GRACE_MS)
        partition.tidy(GRACE_MS)
    if restarted:
        snapshot = partition.blocks.snapshot()
        partition.crash()
        partition.start(snapshot)
    again = [replace(event, offset=31 + event.offset) for event in old]
    again = [replace(e, values=("other", 0, None)) if e.key % 3 == 0 else e for e in again]
    partition.take(frame(again))
    assert conflicts(partition) == 10
    assert partition.manifest().counters.duplicates == 30


def test_column_declared_later_makes_no_conflict_with_events_from_before(
    partition: Partition,
) -> None:
    columns = tuple(column for column in WITH_PAYLOAD.columns if column.name != "number")
    before = replace(WITH_PAYLOAD, columns=columns)
    partition.config = replace(CONFIG, schema=before)
    partition.start()
    partition.take(frame([Event(n, n, n, (f"v{n}", n, None)) for n in range(4)], before))
    snapshot = partition.blocks.snapshot()
    partition.crash()
    partition.config = CONFIG
    partition.start(snapshot)
    partition.take(frame([Event(4 + n, n, n, (f"v{n}", n, None)) for n in range(3)]))
    partition.take(frame([Event(7, 3, 3, ("other", 3, None))]))
    assert (conflicts(partition), partition.manifest().counters.duplicates) == (1, 4)


def test_conflicts_are_not_counted_if_that_is_asked(partition: Partition) -> None:
    partition.config = replace(CONFIG, conflicts=False)
    partition.start()
    partition.take(frame([Event(0, 1, 0, ("a", 1, True)), Event(1, 1, 1, ("b", 1, True))]))
    assert conflicts(partition) == 0
    assert told(partition) == [(1, "duplicate")]


sent = st.tuples(
    st.integers(0, 5),
    st.one_of(st.integers(-20, 40), st.integers(-3 * WINDOW_MS, 0), st.integers(0, 2 * WINDOW_MS)),
    st.sampled_from([NO_VALUES, ("a", 1, True), ("a", None, True)]),
)
many = st.one_of(st.lists(sent, min_size=1, max_size=8), st.lists(sent, min_size=40, max_size=100))
sizes = st.lists(st.integers(1, 30), min_size=1, max_size=5)


@given(
    many,
    sizes,
    st.sampled_from([1, 600, BIG_CACHE]),
    st.sampled_from([None, one_hash]),
    st.data(),
)
def test_conflicts_and_drops_are_the_oracles_however_input_is_cut_and_whatever_crashes(
    steps: list[tuple[int, int, Values]],
    sizes: list[int],
    cache_bytes: int,
    hash: Hash | None,
    data: st.DataObject,
) -> None:
    newest_ms, events = 2_000, []
    for offset, (key, after_ms, values) in enumerate(steps):
        events.append(Event(offset, key, newest_ms + after_ms, values))
        newest_ms = max(newest_ms, newest_ms + after_ms)
    oracle = judged(events)
    with tempfile.TemporaryDirectory() as folder:
        partition = Partition(
            Path(folder), CONFIG, cache_bytes=cache_bytes, hash=hash, files=OpenDisk()
        )
        try:
            partition.start()
            snapshot, low, turn = partition.blocks.snapshot(), 0, 0
            while low < len(events):
                high = low + sizes[turn % len(sizes)]
                partition.take(frame(events[low:high]))
                low, turn = high, turn + 1
                action = data.draw(st.sampled_from(["", "", "commit", "merge", "crash"]))
                if action == "commit":
                    snapshot = partition.blocks.snapshot()
                elif action == "merge":
                    partition.merge()
                elif action == "crash":
                    partition.crash()
                    partition.start(snapshot)
                    partition.merge()
                    low = partition.manifest().next_offsets.get("s0", 0)
                    snapshot = partition.blocks.snapshot()
            assert conflicts(partition) == oracle.conflicts
            assert partition.manifest().counters.duplicates == oracle.duplicates
            assert told(partition) == sorted(oracle.dropped)
            if hash is None:
                most = Counter(event.key for _, event in oracle.kept).most_common(1)
                assert_originals(why(partition, most[0][0]), oracle)
        finally:
            partition.files.close()


def assert_originals(copies: Sequence[Copy], oracle: PayloadOracle) -> None:
    """What is said of a copy for certain is so; if not for certain, it could be, and so could
    another."""
    kept = [copy.offset for copy in copies if copy.what == "event"]
    for copy in copies:
        if copy.what != "event":
            assert copy.of is not None
            assert copy.of[1] in kept
            assert copy.of[1] < copy.offset
            assert copy.of[1] == oracle.originals[copy.offset] or not copy.certain
            assert copy.certain or len([offset for offset in kept if offset < copy.offset]) > 1


# -- the drop log -------------------------------------------------------------------------------


def test_drop_log_is_bounded_and_its_oldest_rows_go_first(partition: Partition) -> None:
    partition.config = replace(CONFIG, drops_bytes_max=40_000)
    partition.start()
    rng = np.random.default_rng(1)
    offset = 0
    for _ in range(40):
        keys = rng.integers(0, 50, 300)
        partition.take(frame([Event(offset + n, int(key), 0) for n, key in enumerate(keys)]))
        offset += 300
        partition.blocks.snapshot()
        partition.blocks.publish()
        partition.tidy(GRACE_MS)
    kept = told(partition)
    assert sum(extent.bytes for extent in partition.manifest().drops) <= 40_000
    assert 1_000 < len(kept) < offset - 50
    assert [offset for offset, _ in kept] == list(range(offset - len(kept), offset))
    for _ in range(3):
        partition.blocks.snapshot()
    partition.tidy(0)
    partition.tidy(GRACE_MS)
    listed = {extent.file for extent in partition.manifest().drops}
    assert {path.name for path in partition.layout.drops(NAME).iterdir()} == listed


def test_no_drop_log_is_kept_if_it_may_have_no_bytes(partition: Partition) -> None:
    partition.config = replace(CONFIG, drops_bytes_max=0)
    partition.start()
    partition.take(frame([Event(0, 1, 0), Event(1, 1, 0)]))
    assert (conflicts(partition), partition.manifest().drops) == (0, [])


def test_lost_drop_log_is_not_missed(partition: Partition) -> None:
    partition.start()
    partition.take(frame([Event(0, 1, 0), Event(1, 1, 0)]))
    snapshot = partition.blocks.snapshot()
    partition.crash()
    for log in partition.layout.drops(NAME).iterdir():
        log.write_bytes(log.read_bytes()[:-20])
    partition.start(snapshot)
    assert [copy.what for copy in why(partition, 1)] == ["event"]
    for log in partition.layout.drops(NAME).iterdir():
        log.unlink()
    assert [copy.what for copy in why(partition, 1)] == ["event"]


# -- why ----------------------------------------------------------------------------------------


def why(partition: Partition, key: int) -> tuple[Copy, ...]:
    partition.blocks.publish()
    store = forebay.open(partition.root)
    answer = store.why({"id": f"k{key // 2}", "part": key % 2})
    assert answer.key == {"id": f"k{key // 2}", "part": key % 2}
    return answer.copies


def time(upload_ms: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=START_MS + upload_ms)


def test_why_tells_where_each_event_is_and_of_what_each_copy_was_a_duplicate(
    partition: Partition,
) -> None:
    partition.start()
    partition.take(frame([Event(0, 1, 0, ("a", 1, True)), Event(1, 1, 5, ("b", 1, True))]))
    partition.take(frame([Event(2, 1, 6, ("a", 1, True)), Event(3, 2, HOUR_MS), Event(4, 3, 7)]))
    partition.take(frame([Event(5, 1, HOUR_MS, ("a", 1, True)), Event(6, 2, HOUR_MS + 1)]))
    kept, conflict, duplicate, again = why(partition, 1)
    assert kept == Copy("event", "s0", 0, time(0), where=kept.where)
    assert (again.what, again.offset) == ("event", 5)
    assert (conflict.what, conflict.offset, conflict.of) == ("conflict", 1, ("s0", 0))
    assert json.loads(conflict.detail or "") == {"text": "b", "number": 1, "flag": True}
    assert duplicate == Copy("duplicate", "s0", 2, time(6), of=("s0", 0))
    (late,) = why(partition, 3)
    assert (late.what, late.late) == ("event", True)
    assert why(partition, 7) == ()
    partition.take(frame([Event(7, 9, 2 * HOUR_MS)]))
    partition.merge()
    assert (why(partition, 1)[0].where or "").startswith("chunk ")
    assert [copy.what for copy in why(partition, 2)] == ["event", "duplicate"]


def originals(partition: Partition, key: int) -> list[tuple[int, tuple[str, int] | None, bool]]:
    """Of each copy: its offset, of what it was one, and whether that is certain."""
    copies = why(partition, key)
    return [(c.offset, c.of, c.certain) for c in copies if c.what not in ("event", "reject")]


def test_a_copy_is_of_an_event_that_came_before_it(partition: Partition) -> None:
    partition.start()
    partition.take(frame([Event(0, 1, 0), Event(1, 1, 200), Event(2, 1, 300)]))
    assert originals(partition, 1) == [(1, ("s0", 0), True)]


def test_a_copy_that_may_be_of_either_of_two_events_is_told_as_most_likely_of_one(
    partition: Partition,
) -> None:
    """The event at 300 was live when the copy came, as long as that can be seen."""
    partition.start()
    partition.take(frame([Event(0, 1, 0), Event(1, 1, 300), Event(2, 1, 50)]))
    assert originals(partition, 1) == [(2, ("s0", 1), True)]
    partition.take(frame([Event(3, 9, HOUR_MS)]))
    assert originals(partition, 1) == [(2, ("s0", 0), False)]
    (copy,) = (copy for copy in why(partition, 1) if copy.what == "duplicate")
    assert line_of(copy).endswith("duplicate of partition s0, offset 0 (most likely)")


@pytest.mark.parametrize("merged", [False, True], ids=["evicted", "merged"])
def test_a_copy_that_may_be_of_a_backfill_event_of_its_day_is_not_told_for_certain_as_anothers(
    partition: Partition, merged: bool
) -> None:
    """The event at 2310 was live until 2560; that at 500 counts for all backfill of its day."""
    partition.blocks_per_chunk = 1
    partition.start()
    times = [(9, 2000), (1, 500), (9, 2300), (1, 2310), (8, 2320), (1, 900), (7, 2600), (1, 800)]
    events = [
        Event(offset, key, ms, (str(offset), 1, True)) for offset, (key, ms) in enumerate(times)
    ]
    events[-1] = replace(events[-1], values=events[1].values)
    partition.take(frame(events[:6]))
    oracle = judged(events)
    assert oracle.originals == {5: 3, 7: 1}
    assert originals(partition, 1) == [(5, ("s0", 3), True)]
    partition.take(frame(events[6:]))
    if merged:
        partition.merge()
    assert originals(partition, 1) == [(5, ("s0", 1), False), (7, ("s0", 1), False)]
    assert told(partition)[1:] == [(5, "conflict"), (7, "duplicate")]
    assert_originals(why(partition, 1), oracle)


def test_a_copy_of_a_backfill_event_alone_is_told_for_certain_unless_part_of_its_day_is_gone(
    partition: Partition,
) -> None:
    partition.start()
    partition.take(frame([Event(0, 9, 2000), Event(1, 1, 500), Event(2, 9, 2300)]))
    partition.take(frame([Event(3, 1, 900)]))
    assert originals(partition, 1) == [(3, ("s0", 1), True)]
    batch = Boundary(1, START_MS + 300)
    Disk().replace(Layout(partition.root).batch, batch.encode(), durable=False)
    assert originals(partition, 1) == [(3, ("s0", 1), False)]


def test_offsets_of_two_sources_do_not_tell_which_event_came_before(partition: Partition) -> None:
    partition.start()
    partition.take(frame([Event(7, 1, 0, source="s1")]))
    partition.take(frame([Event(0, 1, 200)]))
    assert originals(partition, 1) == [(0, ("s1", 7), True)]  # it can be of no other
    partition.take(frame([Event(8, 1, 300, source="s1")]))
    assert originals(partition, 1) == [(0, ("s1", 8), False)]


def test_a_replayed_reject_may_be_of_an_event_of_a_later_offset(partition: Partition) -> None:
    partition.start()
    partition.take(frame([Event(5, 1, 0)]))
    partition.blocks.replayed(1)
    partition.blocks._admit(frame([Event(3, 1, 10)]).events)
    assert originals(partition, 1) == [(3, ("s0", 5), True)]


def test_event_that_was_handed_off_is_told_as_such(partition: Partition) -> None:
    partition.start()
    partition.take(frame([Event(0, 1, 0), Event(1, 2, HOUR_MS)]))
    batch = Boundary(1, START_MS + 1_000)
    Disk().replace(Layout(partition.root).batch, batch.encode(), durable=False)
    assert [copy.handed_off for n in (1, 2) for copy in why(partition, n)] == [True, False]
    assert forebay.open(partition.root).scan().collect().height == 1


def test_a_copy_in_any_partition_of_its_source_is_of_the_batch_layers_event(tmp_path: Path) -> None:
    """With `hash_partitions`, several have messages of a source."""
    roots = [tmp_path / name for name in "ab"]
    for root, key in zip(roots, (2, 1), strict=True):
        one = Partition(root, CONFIG).start()
        one.take(frame([Event(0, key, 0), Event(1, key, 5)]))
        one.blocks.publish()
        one.files.close()
    partitions = take_view(Disk(), roots).partitions
    emptied = [partition.only(lambda _: False) for partition in partitions]
    view = View((NodeView(roots[0], Boundary(), tuple(emptied)),))
    table = pl.LazyFrame(
        {PARTITION: ["s0"], OFFSET: [0], UPLOAD_TIME: [time(0)], "id": ["k0"], "part": [1]}
    )
    found = explain(view, {"id": "k0", "part": 1}, {}, table)
    kept, copy = found.copies
    assert (kept.where, kept.handed_off) == (TABLE, True)
    assert (copy.what, copy.of, copy.certain) == ("duplicate", ("s0", 0), True)


def test_the_batch_layers_event_may_be_a_backfill_one_that_a_copy_is_of(
    partition: Partition,
) -> None:
    partition.start()
    times = [(9, 2000), (1, 500), (9, 2300), (1, 2310), (9, 2600), (1, 800)]
    partition.take(frame([Event(offset, key, ms) for offset, (key, ms) in enumerate(times)]))
    partition.blocks.publish()
    (here,) = take_view(Disk(), [partition.root]).partitions
    here = here.only(lambda one: one.first_ms >= START_MS + 2000)
    view = View((NodeView(partition.root, Boundary(), (here,)),))
    table = pl.LazyFrame(
        {PARTITION: ["s0"], OFFSET: [1], UPLOAD_TIME: [time(500)], "id": ["k0"], "part": [1]}
    )
    copies = explain(view, {"id": "k0", "part": 1}, {}, table).copies
    assert [(c.what, c.of, c.certain) for c in copies] == [
        ("event", None, True),
        ("event", None, True),
        ("duplicate", ("s0", 1), False),
    ]


@pytest.mark.parametrize(
    "key",
    [
        {"id": "k0"},
        {"id": "k0", "part": 0, "x": 1},
        {"id": "k0", "part": "no"},
        {"id": 1, "part": 0},
        {"id": "k0", "part": None},
        {"id": "k0", "part": 2**70},
        {"id": "\ud800", "part": 0},
    ],
)
def test_key_of_another_shape_is_bad_input(partition: Partition, key: dict[str, object]) -> None:
    partition.start()
    partition.take(frame([Event(0, 1, 0)]))
    partition.blocks.publish()
    with pytest.raises(BadInput, match="why: "):
        forebay.open(partition.root).why(key)


def test_a_reject_with_true_where_the_key_has_one_does_not_have_the_key(
    partition: Partition,
) -> None:
    partition.start()
    documents = [b'{"id":"k0","part":true,"n":1}', b'{"id":"k0","part":1}']
    rejects = [
        {PARTITION: "s0", OFFSET: n, "reason": "too large", "message": document}
        for n, document in enumerate(documents)
    ]
    taken = frame([Event(2, 0, 0)])
    partition.take(
        replace(taken, first_offset=0, rejects=pa.RecordBatch.from_pylist(rejects, REJECT_SCHEMA))
    )
    partition.blocks.publish()
    paths = {"id": ("id",), "part": ("part",)}
    answer = forebay.open(partition.root).why({"id": "k0", "part": 1}, paths)
    assert [(copy.what, copy.offset, copy.certain) for copy in answer.copies] == [
        ("reject", 1, True)
    ]


def test_job_explains_every_message_of_a_key(
    make_job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [
        _line("a", 0), _line("b", 1), _line("a", 2), _line("a", 3, event_type="swipe"),
        _line("c", 4, server_upload_time="1970-01-01 00:00:00"), _line("d", 5)[:-20],
        _line("e", 6), _line("e", 6, uuid="other"),
    ]  # fmt: skip
    (tmp_path / "e.ndjson").write_bytes(b"\n".join(lines) + b"\n")
    job = make_job(FILES__PATH=str(tmp_path / "e.ndjson"))
    assert job.ends(job.run()) == 0, job.told()
    totals = job.partitions().select("accepted", "duplicates", "conflicts", "rejects").row(0)
    assert totals == (3, 3, 1, 2)

    def invoke(*arguments: str) -> str:
        result = CliRunner().invoke(main, ["why", *arguments, "--data-dir", str(job.data)])
        assert result.exit_code == 0, result.output
        return result.output

    kept, duplicate, conflict = invoke("device", "a").splitlines()
    assert kept.startswith(
        "kept: partition e.ndjson, offset 0, uploaded 2024-05-01 12:00:00.000; in"
    )
    assert "offset 2" in duplicate
    assert duplicate.endswith("duplicate of partition e.ndjson, offset 0")
    assert "offset 3" in conflict
    assert '"event_type":"swipe"' in conflict
    assert "offset 4: absurd upload time" in invoke(
        "--json", '{"device_id":"device","insert_id":"c"}'
    )
    assert "perhaps reject: partition e.ndjson, offset 5: bad json" in invoke("device", "d")
    assert invoke("device", "z") == "never seen, as far as is known here\n"
    found = json.loads(invoke("device", "e", "--format", "json"))
    assert [copy["what"] for copy in found["copies"]] == ["event", "duplicate"]


def _line(insert_id: str, second: int, **changes: str) -> bytes:
    event = {
        "device_id": "device",
        "event_type": "click",
        "uuid": "u",
        "server_upload_time": f"2024-05-01 12:00:{second:02d}",
        "event_properties": {"pad": "twenty bytes at the end"},
    }
    return orjson.dumps({"$insert_id": insert_id, **event, **changes})
