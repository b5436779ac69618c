"""A store as an Arrow stream: read by the libraries of others, to its end or not, and damaged."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from polars.testing import assert_frame_equal

import forebay
import forebay.query.batches
import forebay.query.store
from forebay.query.store import stream
from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import BadInput, Corruption, MissingFile
from forebay.storage.base.layout import Layout
from forebay.storage.formats.boundary import Boundary
from forebay.storage.formats.schema import OFFSET
from tests.lane import IN_ORDER, NARROW, SCHEMA, Lane, Lanes, collected, events, filled, hand_off
from tests.partition import START_MS, event

ROOT = Path(__file__).parent.parent
SCRIPT_S = 60
ROWS = 30_000

ABANDONED = {
    "duckdb, printed": "print(duckdb.sql('select id from store limit 5'))",
    "duckdb, fetched": "rows = duckdb.sql('select id from store limit 5').fetchall()",
    "duckdb, kept": "kept = duckdb.sql('select id from store'); kept.fetchone()",
    "pyarrow": "reader = pa.RecordBatchReader.from_stream(store); reader.read_next_batch()",
    "polars": "pl.DataFrame(store)",
    "a lazy frame, by duckdb": "rows = stream(store.scan())\\n"
    "print(duckdb.sql('select id from rows limit 5'))",
}

QUICK = ("duckdb, kept",)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """More than the first batches that a reader asks for, in chunks and hot."""
    lane = Lane(tmp_path_factory.mktemp("large") / "data").start()
    for part in range(10):
        lane.take(*events(ROWS // 10 * part, ROWS // 10, 400 * part, step_ms=0))
    lane.blocks.publish()
    lane.merge()
    yield lane.root
    lane.files.close()


@pytest.mark.parametrize(
    "reader",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in ABANDONED],
)
def test_a_script_that_abandons_a_stream_ends_well_and_at_once(reader: str, large: Path) -> None:
    code = (
        "import sys, duckdb, polars as pl, pyarrow as pa, forebay.query.batches\n"
        "from forebay.query.store import stream\n"
        "forebay.query.batches.BATCH_ROWS = 500\n"
        "store = forebay.open(sys.argv[1])\n"
    ) + ABANDONED[reader].replace("\\n", "\n")
    done = subprocess.run(
        [sys.executable, "-c", code, str(large)], cwd=ROOT, capture_output=True, text=True,
        timeout=SCRIPT_S, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_a_stream_is_not_read_before_it_is_asked_for(
    large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forebay.query.batches.BATCH_ROWS", 100)
    read: list[int] = []
    export = forebay.query.batches._shaped

    def shaped(batch: pa.RecordBatch, *others: Any) -> Iterator[pa.RecordBatch]:
        read.append(batch.num_rows)
        return export(batch, *others)

    monkeypatch.setattr("forebay.query.batches._shaped", shaped)
    reader = forebay.open(large).stream()
    assert len(read) == 1
    for _ in range(3):
        reader.read_next_batch()
    assert len(read) == 3


def test_a_stream_has_the_rows_and_types_of_a_scan(lane: Lanes) -> None:
    one = filled(lane())
    store = forebay.open(one.root)
    hand_off(one.root, 1, START_MS + 450)
    expected = collected(store)
    found = pl.DataFrame(pa.table(store))
    assert 0 < found.height < len(one.rows)
    assert_frame_equal(found.sort(IN_ORDER), expected)


def test_columns_that_a_chunk_lacks_are_null_in_a_stream(lane: Lanes) -> None:
    one = lane(schema=NARROW).take(*events(0, 30, 0, step_ms=20)).publish().merge()
    snapshot = one.blocks.snapshot()
    one.crash()
    one.schema = SCHEMA
    one.start(snapshot).take(*events(30, 30, 600, step_ms=20)).publish().merge()
    store = forebay.open(one.root)
    assert_frame_equal(pl.DataFrame(store).sort(IN_ORDER), collected(store))
    assert pl.DataFrame(store)["number"].null_count() > 0


def test_the_late_table_can_be_streamed(lane: Lanes) -> None:
    one = lane().take(*events(0, 5, 0, step_ms=100)).publish()
    sealed = Boundary().sealed(START_MS + 300)
    Disk().replace(one.layout.batch, sealed.encode(), durable=False)
    one.blocks.notice(sealed)
    one.take(event(9, 99, 50, "p00")).publish()
    done = sealed.completed(0, late=False, table=None)
    Disk().replace(one.layout.batch, done.encode(), durable=False)
    store = forebay.open(one.root)
    assert store.stream("events_late").read_all()[OFFSET].to_pylist() == [9]
    assert store.stream("events").read_all()[OFFSET].to_pylist() == [3, 4]
    assert store.stream("rejects").read_all().num_rows == 0


@pytest.mark.parametrize("table", ["event", "events_sealed", "", 5, None])
def test_a_table_that_cannot_be_streamed_is_bad_input(table: object, lane: Lanes) -> None:
    store = forebay.open(lane().publish().root)
    with pytest.raises(BadInput, match="table: expected one of events, "):
        store.stream(table)  # type: ignore[arg-type]


def test_a_chunk_that_is_damaged_or_gone_is_told_as_ours(lane: Lanes) -> None:
    one = filled(lane())
    store = forebay.open(one.root)
    first, *others = [file.path for file in store.view().chunk_files]
    at = store.view().chunk_files[0].chunk.checksum.footer_start // 2
    whole = first.read_bytes()
    first.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(Corruption, match=f"{first.name}: checksum of bytes"):
        store.stream()
    first.write_bytes(whole)
    reader, foreign = store.stream(), pa.RecordBatchReader.from_stream(store)
    for path in others:
        path.rename(path.with_suffix(".gone"))
    with pytest.raises(MissingFile, match=others[0].name):
        reader.read_all()
    with pytest.raises(pa.ArrowException, match=others[0].name):
        foreign.read_all()


def test_a_stream_whose_first_file_has_gone_is_taken_of_a_new_view(
    lane: Lanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk was replaced between the view and the first batch."""
    one = filled(lane())
    views: list[object] = []
    read = forebay.query.batches.event_batches

    def gone_once(*arguments: Any) -> Iterator[pa.RecordBatch]:
        views.append(arguments)
        if len(views) == 1:
            raise MissingFile("chunk x: expected a file, none is there")
        yield from read(*arguments)

    monkeypatch.setattr("forebay.query.store.event_batches", gone_once)
    assert forebay.open(one.root).stream().read_all().num_rows == len(one.published)
    assert len(views) == 2


def test_a_reader_of_any_lazy_frame_is_one_too() -> None:
    found = stream(pl.LazyFrame({"n": [1, 2]}))
    assert found.read_all()["n"].to_pylist() == [1, 2]


def test_layout_is_not_touched_by_a_stream(lane: Lanes) -> None:
    one = filled(lane())
    before = sorted(Layout(one.root).root.rglob("*"))
    pa.table(forebay.open(one.root))
    assert sorted(Layout(one.root).root.rglob("*")) == before
