"""What a question does not need is not read again or at all, and answers stay exact: hot blocks of
other times, and manifests that are as they were."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

import polars as pl
import pyarrow.compute as pc
import pytest

import forebay
from forebay.query import pruning
from forebay.query.frames import arrow_of, polars_schema
from forebay.query.hot import HotCache
from forebay.query.partition import Partition
from forebay.query.pruning import GROUPS, grouped, pruned
from forebay.storage.formats.schema import UPLOAD_TIME
from forebay.storage.formats.state import PartitionState
from tests.lane import Lanes, collected, events, filled, time
from tests.partition import SPAN_MS, START_MS

BLOCKS, EACH = 12, 6
TIME = pl.col(UPLOAD_TIME)


@pytest.fixture
def store(lane: Lanes, monkeypatch: pytest.MonkeyPatch) -> forebay.Store:
    """Hot blocks one after the other, a few events in each, some of them at both ends."""
    monkeypatch.setattr(pruning, "STEP_MS", SPAN_MS)
    one = lane()
    for block in range(BLOCKS):
        at = block * SPAN_MS
        one.take(*events(block * EACH, EACH - 1, at, (SPAN_MS - 1) // (EACH - 2)))
    return forebay.open(one.publish().root)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many hot blocks each answer read."""
    blocks: list[int] = []
    frames = HotCache.frames

    def noted(
        self: HotCache,
        partitions: Sequence[Partition],
        schema: dict[str, pl.DataType],
        where: pl.Expr | None = None,
    ) -> Iterator[pl.DataFrame]:
        blocks.append(sum(len(one.hot) for one in partitions))
        return frames(self, partitions, schema, where)

    monkeypatch.setattr(HotCache, "frames", noted)
    return blocks


def at(block: float) -> datetime:
    return time(START_MS + int(block * SPAN_MS))


def test_the_last_minutes_are_read_of_the_blocks_that_have_them(
    store: forebay.Store, read: list[int]
) -> None:
    last = f"{UPLOAD_TIME} >= '{at(BLOCKS - 1):%Y-%m-%d %H:%M:%S.%f}+00'"
    assert store.sql(f"select count(*) from events where {last}").item() == EACH - 1
    assert sum(read) <= -(-BLOCKS // GROUPS)
    read.clear()
    assert store.scan().filter(at(BLOCKS - 1) <= TIME).collect().height == EACH - 1
    assert read == [1]
    assert store.sql("select count(*) from events").item() == BLOCKS * (EACH - 1)
    assert read[1:] == [BLOCKS]


def test_of_times_that_no_block_has_nothing_is_read(store: forebay.Store, read: list[int]) -> None:
    text = f"select count(*) from events where {UPLOAD_TIME} > now() - interval 5 minutes"
    assert store.sql(text).item() == 0
    assert read == []
    assert store.scan().filter(at(BLOCKS) <= TIME).collect().height == 0
    assert read == [0]


@pytest.mark.parametrize("seed", range(3))
def test_answers_are_those_of_all_rows(store: forebay.Store, seed: int) -> None:
    rows, chance = store.scan().collect(), random.Random(seed)
    for _ in range(20):
        low = at(chance.uniform(-1, BLOCKS + 1))
        high = low + timedelta(milliseconds=chance.choice([1, SPAN_MS // 2, 3 * SPAN_MS]))
        expected = rows.filter((low <= TIME) & (high > TIME))["_offset"].sort().to_list()
        found = store.scan().filter((low <= TIME) & (high > TIME)).select("_offset")
        assert found.collect()["_offset"].sort().to_list() == expected
        text = (
            f"select _offset from events where {UPLOAD_TIME} >= ? and {UPLOAD_TIME} < ? order by 1"
        )
        assert store.sql(text, [low, high])["_offset"].to_list() == expected
        either = (low > TIME) | (pl.col("part") == 3)
        some = rows.filter(either)["_offset"].sort().to_list()
        assert store.scan().filter(either).collect()["_offset"].sort().to_list() == some


def test_each_block_is_in_one_group_whose_times_hold_it(store: forebay.Store) -> None:
    partitions = store.view().events
    groups = grouped(partitions)
    assert 1 < len(groups) <= GROUPS
    found = [block.id for _, some in groups for one in some for block in one.hot]
    assert sorted(map(str, found)) == sorted(str(b.id) for one in partitions for b in one.hot)
    for between, some in groups:
        for block in (block for one in some for block in one.hot):
            assert between.first_ms is not None
            assert between.end_ms is not None
            assert between.first_ms <= block.first_ms <= block.last_ms < between.end_ms
            assert between.first_ms % SPAN_MS == 0


@pytest.mark.parametrize(
    "where",
    [
        None,
        pc.field("part") == 3,
        pc.field("nowhere") == 3,
        pc.field(UPLOAD_TIME) == "yesterday",
        pc.field(UPLOAD_TIME).cast("int64") > 2**62,
    ],
)
def test_what_says_nothing_of_times_leaves_all(
    store: forebay.Store, where: pc.Expression | None
) -> None:
    view = store.view()
    kept = pruned(view.events, where, arrow_of(polars_schema(view.schema)))
    assert [len(one.hot) for one in kept] == [BLOCKS]


def test_a_manifest_is_decoded_again_only_when_it_has_other_bytes(
    lane: Lanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = filled(lane())
    decoded: list[str] = []
    decode = PartitionState.decode

    def noted(data: bytes, name: str) -> PartitionState:
        decoded.append(name)
        return decode(data, name)

    store = forebay.open(one.root)
    monkeypatch.setattr(PartitionState, "decode", noted)
    assert collected(store).height == len(one.published)
    assert decoded == []
    one.take(*events(5_000, 5, 2_000)).publish()
    decoded.clear()
    assert collected(store).height == len(one.published)
    assert len(decoded) == 1
