"""The query module over real data directories, made as a job makes them.

What a store must hold is what tests/oracle.py says; what a query over it must answer is the same
query over these rows in memory. Every row's values follow from its offset.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

import forebay
from forebay.query.store import stream
from forebay.storage.base.errors import BadInput, Corruption
from forebay.storage.formats.schema import OFFSET, PARTITION, RAW, UPLOAD_TIME, Column
from tests.lane import (
    COLUMNS,
    EMPTY,
    IN_ORDER,
    NARROW,
    SCHEMA,
    Lane,
    Lanes,
    collected,
    events,
    filled,
    hand_off,
    in_memory,
    lane_frame,
    time,
)
from tests.partition import (
    GRACE_MS,
    START_MS,
    event,
)

# -- what a store holds -------------------------------------------------------------------------


def test_a_store_holds_exactly_the_oracles_events_hot_and_cold(lane: Lanes) -> None:
    one = filled(lane())
    store = forebay.open(one.root)
    assert_frame_equal(collected(store), in_memory(one.published))
    receipt = store.receipt()
    assert min(receipt.hot_rows, receipt.cold_rows) > 0
    assert min(one.oracle.duplicates, one.oracle.late, one.oracle.rejects) > 0


def test_events_by_minute_are_those_that_are_hot_and_cold(lane: Lanes) -> None:
    one = lane()
    assert forebay.open(one.root).per_minute().height == 0
    filled(one).take(*events(2000, 30, 200_000, 9_000)).publish()
    store = forebay.open(one.root)
    found = store.per_minute(10)
    receipt = store.receipt()
    assert (found["hot"].sum(), found["cold"].sum()) == (receipt.hot_rows, receipt.cold_rows)
    assert min(receipt.hot_rows, receipt.cold_rows) > 0
    assert found["minute"].diff().drop_nulls().unique().to_list() == [timedelta(minutes=1)]
    hand_off(one.root, 1, START_MS + 300)
    by_minute = store.scan().group_by(minute=pl.col(UPLOAD_TIME).dt.truncate("1m")).len()
    expected = dict(by_minute.collect().iter_rows())
    again = store.per_minute(10)
    assert {m: hot + cold for m, hot, cold in again.iter_rows() if hot + cold} == expected
    assert store.per_minute(1).equals(again.tail(1))
    for minutes in (0, 1441):
        with pytest.raises(BadInput, match="minutes: expected 1 to 1,440"):
            store.per_minute(minutes)


Step = tuple[str, int, int]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.integers(0, 30), st.integers(0, 1_500)),
        st.tuples(st.just("publish"), st.just(0), st.just(0)),
        st.tuples(st.just("merge"), st.just(0), st.just(0)),
        st.tuples(st.just("tidy"), st.sampled_from([1, GRACE_MS]), st.just(0)),
        st.tuples(st.just("query"), st.just(0), st.just(0)),
    ),
    max_size=40,
)


@contextmanager
def temporary_lane(**options: Any) -> Iterator[Lane]:
    with tempfile.TemporaryDirectory() as folder:
        one = Lane(Path(folder) / "data", **options).start()
        try:
            yield one.publish()
        finally:
            one.files.close()


def do(one: Lane, steps: Sequence[Step], offset: int = 0) -> Iterator[str]:
    """Carry the steps out, naming each."""
    for kind, number, upload_ms in steps:
        if kind == "take":
            one.take(event(offset, number, upload_ms, one.name))
            offset += 1
        elif kind == "publish":
            one.publish()
        elif kind == "merge":
            one.merge()
        elif kind == "tidy":
            one.publish().tidy(number)
        yield kind


@settings(max_examples=30)
@given(STEPS)
def test_at_every_moment_a_store_holds_exactly_what_was_published(steps: list[Step]) -> None:
    with temporary_lane() as one:
        store = forebay.open(one.root)
        for kind in do(one, steps):
            if kind == "query":
                assert_frame_equal(collected(store), in_memory(one.published))
        one.publish()
        assert_frame_equal(collected(store), in_memory(one.published))


@settings(max_examples=30)
@given(before=STEPS, after=STEPS)
def test_a_view_stays_the_same_until_it_is_collected_whatever_the_job_does(
    before: list[Step], after: list[Step]
) -> None:
    """Within the grace period."""
    calm = [step for step in after if step[:2] != ("tidy", GRACE_MS)]
    with temporary_lane() as one:
        for _ in do(one, [("take", 0, 0), *before]):
            pass
        expected = in_memory(one.publish().published)
        store = forebay.open(one.root)
        held = store.scan()
        for kind in do(one, calm, offset=1 + sum(step[0] == "take" for step in before)):
            if kind == "query":
                collected(store)
        assert_frame_equal(held.collect().sort(IN_ORDER), expected)


def test_an_empty_directory_has_no_events_and_the_system_columns(tmp_path: Path) -> None:
    store = forebay.open(tmp_path)
    assert collected(store).schema == EMPTY.select(PARTITION, OFFSET, UPLOAD_TIME).schema
    assert collected(store).height == 0
    assert store.sql("select count(*) as n from events").rows() == [(0,)]
    assert store.partitions().height == 0
    nodes = (forebay.NodeReceipt(str(tmp_path), 0, None),)
    assert store.receipt() == forebay.Receipt(0, None, 0, 0, (), (), (), nodes)
    assert pa.table(store).num_rows == 0


def test_partitions_of_one_node_are_one_table(lane: Lanes) -> None:
    lanes = [filled(lane(name=name), name) for name in ("p00", "p01")]
    rows = [one for each in lanes for one in each.published]
    assert_frame_equal(collected(forebay.open(lanes[0].root)), in_memory(rows))


def test_two_stores_in_one_query_keep_apart(lane: Lanes) -> None:
    one = lane().take(*events(0, 3, 0)).publish()
    before, store = forebay.open(one.root), forebay.open(one.root)
    earlier = before.scan()
    one.take(*events(3, 2, 30)).publish()
    later = store.scan()
    both = pl.concat([earlier, later]).select(OFFSET).collect()
    assert sorted(both[OFFSET]) == [0, 0, 1, 1, 2, 2, 3, 4]


# -- pushdown -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Filled:
    roots: tuple[Path, ...]
    store: forebay.Store
    rows: pl.DataFrame


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Filled]:
    """Two nodes with three partitions, read in small frames."""
    base = tmp_path_factory.mktemp("pair")
    lanes = [
        filled(Lane(base / node, name).start(), name)
        for node, name in (("a", "p00"), ("a", "p01"), ("b", "p02"))
    ]
    roots = (base / "a", base / "b")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("forebay.query.hot.YIELD_ROWS", 7)
        patch.setattr("forebay.query.store.STREAM_ROWS", 11)
        rows = in_memory([one for lane in lanes for one in lane.published])
        yield Filled(roots, forebay.open(*roots), rows)
    for lane in lanes:
        lane.files.close()


TIMES = st.integers(-200, 1_800).map(lambda ms: time(START_MS + ms))
SECONDS = st.integers(-1, 240).map(lambda s: time(START_MS) + timedelta(seconds=s))
PREDICATES = st.recursive(
    st.one_of(
        st.sampled_from(EMPTY.columns).map(lambda name: pl.col(name).is_null()),
        TIMES.map(lambda at: pl.col(UPLOAD_TIME) >= at),
        TIMES.map(lambda at: pl.col(UPLOAD_TIME) < at),
        SECONDS.map(lambda at: pl.col("at") <= at),
        SECONDS.map(lambda at: pl.col("at_s") == at),
        SECONDS.map(lambda at: pl.col("at_us") > at),
        st.integers(0, 90).map(lambda n: pl.col("id") == f"k{n}"),
        st.integers(0, 1).map(lambda n: pl.col("part") == n),
        st.integers(-3, 60).map(lambda n: pl.col("number") > n),
        st.integers(0, 4).map(lambda n: pl.col("text").str.starts_with(f"t{n}")),
        st.integers(0, 240).map(lambda n: pl.col(RAW) == b"\xff{%d}" % n),
        st.sampled_from(["p00", "p01", "p02", "p03"]).map(lambda name: pl.col(PARTITION) == name),
        st.lists(st.integers(0, 250), max_size=5).map(lambda ns: pl.col(OFFSET).is_in(ns)),
        st.just(pl.col("flag")),
        st.just(pl.col("part") == pl.col("number")),
        st.booleans().map(pl.lit),
    ),
    lambda inner: st.one_of(
        inner.map(lambda p: ~p),
        st.tuples(inner, inner).map(lambda two: two[0] & two[1]),
        st.tuples(inner, inner).map(lambda two: two[0] | two[1]),
    ),
    max_leaves=4,
)
ENGINES = st.sampled_from(["in-memory", "streaming"])


@given(
    predicate=PREDICATES,
    columns=st.lists(st.sampled_from(EMPTY.columns), unique=True, max_size=5),
    engine=ENGINES,
)
def test_a_projection_and_a_predicate_give_the_same_as_in_memory(
    pair: Filled, predicate: pl.Expr, columns: list[str], engine: Any
) -> None:
    wanted = [*IN_ORDER, *(name for name in columns if name not in IN_ORDER)]
    found = pair.store.scan().filter(predicate).select(wanted).collect(engine=engine)
    assert_frame_equal(found.sort(IN_ORDER), pair.rows.filter(predicate).select(wanted))


@given(predicate=PREDICATES, name=st.sampled_from(EMPTY.columns), engine=ENGINES)
def test_one_column_alone_gives_the_same_values_as_in_memory(
    pair: Filled, predicate: pl.Expr, name: str, engine: Any
) -> None:
    found = pair.store.scan().filter(predicate).select(name).collect(engine=engine)
    expected = pair.rows.filter(predicate).select(name)
    assert_frame_equal(found.sort(name), expected.sort(name))


@given(predicate=PREDICATES, start=st.integers(0, 30), count=st.integers(0, 40), engine=ENGINES)
def test_a_limit_gives_so_many_of_the_rows_in_memory_each_once(
    pair: Filled, predicate: pl.Expr, start: int, count: int, engine: Any
) -> None:
    found = pair.store.scan().filter(predicate).slice(start, count).collect(engine=engine)
    expected = pair.rows.filter(predicate)
    assert found.height == max(0, min(count, expected.height - start))
    assert not found.select(IN_ORDER).is_duplicated().any()
    common = expected.join(found.select(IN_ORDER), on=IN_ORDER, how="semi")
    assert_frame_equal(found.sort(IN_ORDER), common)


@given(predicate=PREDICATES, engine=ENGINES)
def test_a_limit_before_a_predicate_is_a_limit_of_all_rows(
    pair: Filled, predicate: pl.Expr, engine: Any
) -> None:
    whole = pair.store.scan().head(100).collect(engine=engine)
    found = pair.store.scan().head(100).filter(predicate).collect(engine=engine)
    assert whole.height == 100
    assert_frame_equal(found.sort(IN_ORDER), whole.filter(predicate).sort(IN_ORDER))


@given(predicate=PREDICATES, engine=ENGINES)
def test_a_count_needs_no_column(pair: Filled, predicate: pl.Expr, engine: Any) -> None:
    counted = pair.store.scan().filter(predicate).select(pl.len()).collect(engine=engine)
    assert counted.item() == pair.rows.filter(predicate).height
    assert pair.store.scan().select(pl.len()).collect(engine=engine).item() == pair.rows.height


def test_sql_answers_over_hot_and_cold(pair: Filled) -> None:
    text = """
        select part, count(*) as n, sum(number) as total from events
        where text like 't1%' group by part order by part
    """
    expected = (
        pair.rows.filter(pl.col("text").str.starts_with("t1"))
        .group_by("part")
        .agg(pl.len().alias("n"), pl.col("number").sum().alias("total"))
        .sort("part")
    )
    assert_frame_equal(pair.store.sql(text), expected, check_dtypes=False)
    assert pair.store.sql("select count(*) from events").item() == pair.rows.height


def test_a_query_that_is_not_valid_is_bad_input(pair: Filled) -> None:
    with pytest.raises(BadInput, match="nope"):
        pair.store.sql("select nope from events")


# -- other readers ------------------------------------------------------------------------------


def test_pyarrow_reads_the_same_rows_in_several_batches(pair: Filled) -> None:
    reader = pa.RecordBatchReader.from_stream(pair.store)
    batches = list(reader)
    assert len(batches) > 2
    found = pl.DataFrame(pa.Table.from_batches(batches, reader.schema))
    assert_frame_equal(found.sort(IN_ORDER), pair.rows)


def test_a_stream_asks_for_its_rows_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[pl.LazyFrame] = []
    monkeypatch.setattr(pl.LazyFrame, "collect", asked.append)
    found = stream(pl.LazyFrame({"n": [1, 2]}))
    assert pa.Table.from_batches(found)["n"].to_pylist() == [1, 2]
    assert asked == []


def test_duckdb_reads_the_same_rows(pair: Filled) -> None:
    store = pair.store
    assert store is not None
    with duckdb.connect() as connection:
        connection.execute("set timezone = 'UTC'")
        relation = connection.sql("select * from store order by _partition, _offset")
        found = pl.DataFrame(relation.to_arrow_table())
        count = connection.sql("select count(*) from store where part = 1").fetchall()
    assert_frame_equal(
        found.with_columns(pl.col(name).cast(pair.rows[name].dtype) for name in found.columns),
        pair.rows,
    )
    assert count == [(pair.rows.filter(pl.col("part") == 1).height,)]


def test_a_stream_filters_by_the_boundary_and_reads_again_each_time(lane: Lanes) -> None:
    one = lane().take(*events(0, 4, 0, step_ms=100)).publish()
    store = forebay.open(one.root)
    assert pa.table(store).num_rows == 4
    hand_off(one.root, 1, START_MS + 200)
    assert pa.table(store)[OFFSET].to_pylist() == [2, 3]


# -- nodes --------------------------------------------------------------------------------------


def test_several_nodes_are_one_table(pair: Filled) -> None:
    assert_frame_equal(collected(pair.store), pair.rows)
    alone = [collected(forebay.open(root)) for root in pair.roots]
    assert_frame_equal(pl.concat(alone).sort(IN_ORDER), pair.rows)


def test_a_node_that_is_missing_is_an_error(lane: Lanes, tmp_path: Path) -> None:
    one = filled(lane())
    with pytest.raises(BadInput, match=r"away: expected a readable data directory"):
        forebay.open(one.root, tmp_path / "away")


def test_with_partial_a_node_that_is_missing_is_left_out_and_named(
    lane: Lanes, tmp_path: Path
) -> None:
    one, away = filled(lane()), tmp_path / "away"
    store = forebay.open(one.root, away, partial=True)
    assert_frame_equal(collected(store), in_memory(one.published))
    assert store.receipt().silent_nodes == (str(away),)
    assert {p.node for p in store.receipt().partitions} == {str(one.root)}


def test_with_partial_a_node_may_go_and_come_back(lane: Lanes) -> None:
    lanes = [filled(lane(node, name), name) for node, name in (("a", "p00"), ("b", "p01"))]
    store = forebay.open(*(one.root for one in lanes), partial=True)
    away = lanes[1].root.rename(lanes[1].root.with_name("moved"))
    assert_frame_equal(collected(store), in_memory(lanes[0].published))
    assert store.receipt().silent_nodes == (str(lanes[1].root),)
    away.rename(lanes[1].root)
    rows = [one for each in lanes for one in each.published]
    assert_frame_equal(collected(store), in_memory(rows))
    assert store.receipt().silent_nodes == ()


def test_with_partial_damaged_rejects_of_one_partition_hide_no_others(lane: Lanes) -> None:
    lanes = [filled(lane(node, name), name) for node, name in (("a", "p00"), ("b", "p01"))]
    log = next((lanes[0].root / "rejects" / "p00").glob("*.arrows"))
    log.write_bytes(bytes(byte ^ 0x55 for byte in log.read_bytes()))
    store = forebay.open(*(one.root for one in lanes), partial=True)
    assert set(store.rejects().collect()[PARTITION]) == {"p01"}
    assert store.sql("select distinct _partition from rejects").rows() == [("p01",)]
    (silent,) = store.receipt().silent_partitions
    assert silent.partition == "p00"
    assert str(log) in silent.reason
    assert len(collected(store)) == sum(len(one.published) for one in lanes)  # events are whole
    with pytest.raises(Corruption, match=re.escape(str(log))):
        forebay.open(*(one.root for one in lanes)).sql("select * from rejects")


def test_with_partial_a_damaged_hot_log_hides_no_rejects(lane: Lanes) -> None:
    one = filled(lane())
    log = one.layout.hot(one.name) / one.manifest().blocks[0].extents[0].file
    log.write_bytes(bytes(byte ^ 0x55 for byte in log.read_bytes()))
    store = forebay.open(one.root, partial=True)
    rejects = store.rejects().select(pl.len()).collect().item()
    assert rejects > 0
    assert store.sql("select count(*) from rejects").item() == rejects
    assert store.receipt().silent_partitions == ()
    assert store.sql("select count(*) from rejects, events").item() == 0
    assert [silent.partition for silent in store.receipt().silent_partitions] == [one.name]


@pytest.mark.parametrize("again", ["data", "data/../data"])
def test_a_node_is_read_once(again: str, lane: Lanes, tmp_path: Path) -> None:
    lane()
    with pytest.raises(BadInput, match="once"):
        forebay.open(tmp_path / "data", tmp_path / again)
    with pytest.raises(BadInput, match="at least one"):
        forebay.open()


def test_nodes_that_give_a_column_two_types_are_refused_by_its_name(lane: Lanes) -> None:
    other = replace(SCHEMA, columns=(*COLUMNS[:2], Column("text", ("text",), "int")))
    roots = [lane("a").publish().root, lane("b", "p01", schema=other).publish().root]
    with pytest.raises(BadInput, match="'text'"):
        forebay.open(*roots).scan()


# -- receipt and partitions ---------------------------------------------------------------------


def test_receipt_and_partitions_tell_progress_counters_and_sizes(lane: Lanes) -> None:
    one = filled(lane())
    one.take(event(500, 700, 1_700, "p00"), end_offset=510).publish()
    hand_off(one.root, 4, START_MS + 300)
    store = forebay.open(one.root)
    rows = collected(store)
    (partition,) = store.partitions().to_dicts()
    oracle = one.oracle
    stream_time = time(oracle.stream_time_ms or 0)
    chunks = one.catalog().chunks
    cold = sum(chunk.rows for chunk in chunks)
    hot = len(one.published) - cold
    assert partition == {
        "node": str(one.root),
        "partition": "p00",
        "stream_time": stream_time,
        "next_offset": 501,
        "lag": 9,
        "accepted": oracle.accepted,
        "duplicates": oracle.duplicates,
        "conflicts": oracle.duplicates,  # no two rows have the same values
        "rejects": oracle.rejects,
        "rejects_expired": 0,
        "late": oracle.late,
        "nulled": 0,
        "skipped": 0,
        "hot_events": hot,
        "cold_events": cold,
        "after_seal": 0,
        "handed_off": 0,
        "expired": 0,
        "hot_blocks": len([*oracle.live, *oracle.closed]) - sum(len(c.blocks) for c in chunks),
        "chunks": len(chunks),
    }
    assert store.receipt() == forebay.Receipt(
        batch_number=4,
        covered_until=time(START_MS + 300),
        hot_rows=hot,
        cold_rows=cold,
        partitions=(forebay.PartitionReceipt(str(one.root), "p00", stream_time, {"p00": 501}),),
        silent_nodes=(),
        silent_partitions=(),
        nodes=(forebay.NodeReceipt(str(one.root), 4, time(START_MS + 300)),),
    )
    assert rows.height < hot + cold


def test_several_sources_of_a_partition_have_no_one_next_offset_and_add_up_their_lags(
    lane: Lanes,
) -> None:
    one = lane()
    for source, end in (("s0", 5), ("s1", 7), ("read beyond its end as last known", 0)):
        taken = lane_frame(source, [event(0, end, 0, source)], SCHEMA, end_offset=end)
        one.blocks.append(replace(taken, partition="p00"), 0)
    (partition,) = forebay.open(one.publish().root).partitions().to_dicts()
    assert (partition["next_offset"], partition["lag"]) == (None, 4 + 6)


# -- the boundary -------------------------------------------------------------------------------


@pytest.mark.few(4)
@pytest.mark.parametrize("until_ms", [-1, 0, 1, 130, 555, 1_000, 1_600, 10_000])
def test_covered_events_are_in_no_answer_be_they_hot_or_cold(until_ms: int, lane: Lanes) -> None:
    one = filled(lane())
    hand_off(one.root, 1, START_MS + until_ms)
    expected = in_memory(one.published).filter(pl.col(UPLOAD_TIME) >= time(START_MS + until_ms))
    store = forebay.open(one.root)
    assert_frame_equal(collected(store), expected)
    assert store.sql("select count(*) from events").item() == expected.height


@pytest.mark.few(2)
@pytest.mark.parametrize("bounds", [(100, 600), (600, 100), (None, 600), (600, None), (None, None)])
def test_the_furthest_boundary_of_any_node_holds_for_all(
    bounds: tuple[int | None, int | None], lane: Lanes
) -> None:
    lanes = [filled(lane(node, name), name) for node, name in (("a", "p00"), ("b", "p01"))]
    for number, (one, ms) in enumerate(zip(lanes, bounds, strict=True)):
        hand_off(one.root, number, None if ms is None else START_MS + ms)
    furthest = max((START_MS + ms for ms in bounds if ms is not None), default=0)
    rows = in_memory([one for each in lanes for one in each.published])
    store = forebay.open(*(one.root for one in lanes))
    assert_frame_equal(collected(store), rows.filter(pl.col(UPLOAD_TIME) >= time(furthest)))
    assert store.receipt().batch_number == 1


# -- columns over time --------------------------------------------------------------------------


def test_a_column_added_later_is_null_for_old_rows_hot_and_cold(lane: Lanes) -> None:
    one = lane(schema=NARROW).take(*events(0, 30, 0, step_ms=20)).merge()
    snapshot = one.publish().blocks.snapshot()
    assert one.catalog().chunks
    one.crash()
    one.schema = SCHEMA
    one.start(snapshot).merge().publish()
    assert_frame_equal(collected(forebay.open(one.root)), in_memory(one.published))
    one.take(*events(30, 60, 600, step_ms=20)).publish().merge()
    store = forebay.open(one.root)
    assert_frame_equal(collected(store), in_memory(one.published))
    assert min(store.receipt().hot_rows, store.receipt().cold_rows) > 0
    found = store.sql("select count(*) from events where number is null and _offset < 30")
    assert found.item() == 30


def test_a_column_no_longer_declared_keeps_its_old_values(lane: Lanes) -> None:
    one = lane().take(*events(0, 30, 0, step_ms=20)).merge()
    snapshot = one.publish().blocks.snapshot()
    one.crash()
    one.schema = NARROW
    one.start(snapshot).merge().take(*events(30, 60, 600, step_ms=20)).publish().merge()
    assert_frame_equal(collected(forebay.open(one.root)), in_memory(one.published))
