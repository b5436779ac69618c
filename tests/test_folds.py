"""Folds: questions that count have the same answers from what is kept of blocks and chunks.

The oracle is the same function over all rows.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

import forebay
from forebay.query import analytics, folds
from forebay.query.analytics.events import Event, Roles, Where
from forebay.query.analytics.period import Period
from forebay.query.analytics.segmentation import Measure
from forebay.query.cold import scan_cold
from forebay.query.partition import ChunkFile
from forebay.query.store import of_one_view
from forebay.query.view import View
from forebay.storage.base.errors import MissingFile
from forebay.storage.formats.schema import UPLOAD_TIME
from tests.lane import Lane, Lanes, events, hand_off, time
from tests.partition import SPAN_MS, START_MS, event

ROLES = Roles("id", "text", "at")
EVENTS = 120
START = time(START_MS - START_MS % 3_600_000)


def periods(chance: random.Random) -> Period:
    first = START + timedelta(minutes=5 * chance.randrange(0, 6))
    last = first + timedelta(minutes=5 * chance.randint(1, 24))
    return Period(first, last, "5 min")


def question(chance: random.Random) -> dict[str, Any]:
    kinds = [Event(), Event("t1 é"), Event("t2 é", (Where("part", "is", (1,)),))]
    filters = [(), (Where("flag", "is", (True,)),), (Where("number", "greater", (1,)),)]
    return {
        "events": chance.sample(kinds, chance.randint(1, 3)),
        "period": periods(chance),
        "segment": chance.choice([*filters, (Where("n", "less", (50,)),)]),
        "by": chance.choice([None, "part", "flag", "text", "number", "id", "a.b"]),
        "limit": chance.choice([2, 100]),
        "compare": chance.random() < 0.2,
    }


def same(store: forebay.Store, asked: dict[str, Any], roles: Roles) -> float:
    """How many events both answers count."""
    found = store.segmentation(**asked, roles=roles, measure="totals")
    expected = analytics.segmentation(store.scan(), roles, **asked, measure="totals")
    for name, table in vars(expected).items():
        if isinstance(table, pl.DataFrame):
            assert_frame_equal(getattr(found, name), table)
    return float(expected.overall["value"].sum())


def minutes(store: forebay.Store) -> None:
    found = store.per_minute(90)
    rows = store.scan().group_by(minute=pl.col(UPLOAD_TIME).dt.truncate("1m")).agg(n=pl.len())
    expected = dict(rows.collect().rows())
    counted = {at: hot + cold for at, hot, cold in found.rows() if hot + cold}
    assert counted == {at: n for at, n in expected.items() if at >= found["minute"].min()}


@pytest.mark.parametrize("seed", range(2))
def test_answers_are_those_of_all_rows_over_the_life_of_blocks(
    seed: int, lane: Lanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    if seed % 2:  # some are not folded, some are forgotten
        monkeypatch.setattr(folds, "JUDGED_ROWS", 20)
        monkeypatch.setattr(folds, "STEP_ROWS", 10)
        monkeypatch.setattr(folds, "FEW_ROWS", 4)
        monkeypatch.setattr(folds, "KEPT_BYTES", 2_000)
    chance, one = random.Random(seed), lane()
    store, counted, at_ms, first = forebay.open(one.publish().root), 0.0, 0, 0
    for number in range(12):
        count, spread = chance.randint(1, 60), chance.choice([1, 5, 50])
        late = [event(first + n, first + n, max(0, at_ms - 900 * n), "p00") for n in range(3)]
        one.take(*late, *events(first + 3, count, at_ms, spread)).publish()
        first, at_ms = first + 3 + count, at_ms + count * spread
        if chance.random() < 0.4:
            one.merge()
        if number == 7:
            hand_off(one.root, 1, START_MS + at_ms // 3)
        for _ in range(2):
            counted += same(store, question(chance), chance.choice([ROLES, ON_ARRIVAL, NUMBERED]))
        minutes(store)
    view = store.last_view
    assert one.catalog().chunks
    assert view.covered_until_ms is not None
    assert counted > 100


ON_ARRIVAL, NUMBERED = Roles("id", "text", UPLOAD_TIME), Roles("number", "text", "at_us")


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows are read of chunks, and are folded of logs."""
    rows: list[int] = []
    cold, folded = scan_cold, folds.folded

    def of_chunk(files: Sequence[ChunkFile], *others: Any) -> list[pl.LazyFrame]:
        rows.append(sum(file.chunk.rows for file in files))
        return cold(files, *others)

    def of_log(some: pl.LazyFrame, *others: Any) -> pl.LazyFrame:
        rows.append(some.select(pl.len()).collect().item())
        return folded(some, *others)

    monkeypatch.setattr(folds, "scan_cold", of_chunk)
    monkeypatch.setattr(folds, "folded", of_log)
    return rows


def test_who_asks_again_has_only_what_is_new_read(
    lane: Lanes, read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folds, "STEP_ROWS", 1)
    one = grown(lane())
    store = forebay.open(one.root)
    day = Period(START, START + timedelta(days=1))
    hours = Period(START, START + timedelta(hours=30), "hour")

    def count(period: Period) -> float:
        found = store.segmentation("t1 é", period, by="part", roles=ROLES, measure="totals")
        return float(found.overall["value"].sum())

    kinds = [row["text"] for row in one.published]
    assert count(day) == kinds.count("t1 é")
    assert read == []  # as any other question reads
    assert count(day) == kinds.count("t1 é")
    assert sum(read) >= EVENTS
    read.clear()
    assert count(day) == count(hours) == kinds.count("t1 é")
    assert read == []
    one.take(*events(EVENTS, 10, 6 * SPAN_MS)).publish()
    assert count(day) == [row["text"] for row in one.published].count("t1 é") > kinds.count("t1 é")
    assert sum(read) == 10


def test_a_chunk_that_is_gone_meanwhile_is_a_missing_file(lane: Lanes, tmp_path: Path) -> None:
    one = grown(lane())
    [path, *_] = [one.layout.chunks(one.name) / chunk.file for chunk in one.catalog().chunks]
    store = forebay.open(one.root)
    day = Period(START, START + timedelta(days=1))

    def count() -> float:
        found = store.segmentation(Event(), day, roles=ROLES, measure="totals")
        return float(found.overall["value"].sum())

    def without(_: View) -> None:
        path.rename(tmp_path / "chunk")
        with pytest.raises((MissingFile, FileNotFoundError)):
            count()
        (tmp_path / "chunk").rename(path)

    first = count()
    of_one_view(store, without)
    assert count() == count() == first > 0


def test_chunks_of_other_times_are_not_read(lane: Lanes, read: list[int]) -> None:
    one = grown(lane())
    store = forebay.open(one.root)
    assert one.catalog().chunks
    for roles in (ROLES, ON_ARRIVAL):
        store.segmentation(Event(), roles=roles, measure="totals")
        beyond = Period(START + timedelta(days=3), START + timedelta(days=4))
        found = store.segmentation(Event(), beyond, roles=roles, measure="totals")
        assert found.overall["value"].sum() == 0
    assert read == []


def grown(one: Lane) -> Lane:
    """EVENTS in six blocks, the first of which are merged."""
    for block in range(6):
        one.take(*events(EVENTS // 6 * block, EVENTS // 6, block * SPAN_MS)).publish().merge()
    return one


@pytest.mark.parametrize("measure", ["uniques", "average", "frequency", "share"])
def test_users_are_never_taken_for_alike(measure: Measure, lane: Lanes) -> None:
    store = forebay.open(grown(lane()).root)
    period = Period(START, START + timedelta(days=1))
    found = store.segmentation(Event(), period, roles=ROLES, measure=measure)
    expected = analytics.segmentation(store.scan(), ROLES, [Event()], period, measure=measure)
    assert_frame_equal(found.overall, expected.overall)
    assert found.overall["value"].sum() > 0
