"""The query while the job works, after a crash, and over files that are damaged.

What it must answer is, as in test_query, the same query over the rows in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pyarrow as pa
import pytest
from polars.testing import assert_frame_equal

import forebay
from forebay.query.view import View, take_view
from forebay.storage.base import record
from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import Corruption, ForebayError, MissingFile
from forebay.storage.formats.boundary import read_boundary
from forebay.storage.formats.schema import RAW
from tests.lane import (
    IN_ORDER,
    Lane,
    Lanes,
    collected,
    events,
    filled,
    in_memory,
)
from tests.partition import (
    GRACE_MS,
    SPAN_MS,
    event,
    judge,
)

# -- while the job works ------------------------------------------------------------------------


class Watched(Disk):
    """The real file system; notes what is read, and lets the job work before a read."""

    def __init__(self) -> None:
        self.reads: list[tuple[str, int, int]] = []
        self.before: Callable[[Path], None] = lambda path: None

    def read(self, path: Path, start: int = 0, end: int | None = None) -> bytes:
        self.before(path)
        data = super().read(path, start, end)
        self.reads.append((path.name, start, start + len(data)))
        return data

    def taken(self) -> list[tuple[str, int, int]]:
        """The reads of logs since the last call."""
        reads, self.reads = self.reads, []
        return [one for one in reads if one[0].endswith(".arrows")]


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    """The files that stores opened from now on read through."""
    files = Watched()
    monkeypatch.setattr("forebay.query.store.Disk", lambda: files)
    monkeypatch.setattr("forebay.query.view.PAUSE_S", 0)
    return files


def test_a_second_scan_reads_only_what_was_appended(lane: Lanes, watched: Watched) -> None:
    one = lane().take(*events(0, 5, 0)).publish()
    store = forebay.open(one.root)
    collected(store)
    size = one.hot_log().stat().st_size
    assert watched.taken() == [(one.hot_log().name, 0, size)]
    one.take(*events(5, 3, 50)).publish()
    grown = one.hot_log().stat().st_size
    assert_frame_equal(collected(store), in_memory(one.published))
    assert watched.taken() == [(one.hot_log().name, size, grown)]


def test_a_scan_of_what_is_known_reads_no_log_even_for_another_column(
    lane: Lanes, watched: Watched
) -> None:
    one = lane().take(*events(0, 5, 0)).publish()
    store = forebay.open(one.root)
    assert store.scan().select("id").collect().height == 5
    assert len(watched.taken()) == 1
    found = store.scan().select("part", "number").collect()
    assert_frame_equal(found, in_memory(one.published).select("part", "number"))
    assert collected(store).height == 5
    assert watched.taken() == []


@pytest.mark.parametrize("partial", [False, True])
def test_what_was_followed_in_parts_is_decoded_whole_once_it_is_asked_for(
    lane: Lanes, partial: bool
) -> None:
    """With `partial`, logs are followed by questions that read nothing of them."""
    one = lane().take(*events(0, 5, 0)).publish()
    store = forebay.open(one.root, partial=partial)
    assert store.sql("select count(*) as n from events").item() == 5
    for first in (5, 8):
        one.take(*events(first, 3, 10 * first)).publish()
        assert store.sql("select count(*) as n from events_late").item() == 0
    found = store.scan().select("part", "number").collect()
    assert_frame_equal(found, in_memory(one.published).select("part", "number"))
    assert_frame_equal(collected(store), in_memory(one.published))


def test_a_limit_reads_no_more_logs_than_it_needs(
    lane: Lanes, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forebay.query.hot.YIELD_ROWS", 1)
    one = lane().take(*events(0, 20, 0, step_ms=SPAN_MS // 10)).publish()
    assert len(one.manifest().blocks) == 2
    assert forebay.open(one.root).scan().head(3).collect().height == 3
    assert len(watched.taken()) == 1


def test_logs_that_are_hot_no_more_are_let_go(lane: Lanes, watched: Watched) -> None:
    one = lane().take(*events(0, 5, 0)).publish()
    first = one.hot_log()
    store = forebay.open(one.root)
    held = store.scan()
    assert held.collect().height == 5
    one.take(*events(5, 60, 400, step_ms=20)).publish().merge()
    collected(store)
    watched.taken()
    assert held.collect().height == 5
    assert watched.taken() == [(first.name, 0, first.stat().st_size)]


@pytest.mark.parametrize("file", ["batch.json", "manifest.json", "catalog.json"])
def test_a_view_taken_while_blocks_move_to_chunks_has_each_event_once(
    file: str, lane: Lanes, watched: Watched
) -> None:
    one = lane().take(*events(0, 60, 0, step_ms=20)).publish()
    expected = in_memory(one.published)
    store = forebay.open(one.root)
    moved: list[Path] = []

    def work(path: Path) -> None:
        if path.name == file and not moved:
            moved.append(path)
            one.merge().publish()

    watched.before = work
    assert_frame_equal(collected(store), expected)
    assert moved
    assert one.catalog().chunks


class Disturbed(forebay.Store):
    """A store whose job goes on just after a view was taken."""

    disturb: Callable[[], object] | None = None
    views = 0

    def view(self) -> View:
        view = super().view()
        self.views += 1
        if self.disturb is not None:
            self.disturb()
        return view


def merge_and_forget(one: Lane) -> None:
    """What is hot goes into a chunk, and its files go; once."""
    if not one.catalog().chunks:
        one.take(event(8, 8, 9_000, "p00")).publish().merge()
        for _ in range(3):
            one.blocks.snapshot()
        for _ in range(3):
            one.publish().tidy(GRACE_MS)


WITHOUT_RAW = "select * exclude (raw) from events"


def by_sql(rows: pl.DataFrame) -> pl.DataFrame:
    """As SQL gives them: times have microseconds."""
    return rows.drop(RAW).with_columns(pl.col(pl.Datetime).dt.cast_time_unit("us"))


def test_sql_asks_again_of_a_new_view_when_a_hot_file_has_gone(lane: Lanes) -> None:
    one = lane(blocks_per_chunk=1).take(*events(0, 8, 0)).publish()
    store = Disturbed([one.root])

    store.disturb, store.views = partial(merge_and_forget, one), 0
    found = store.sql(WITHOUT_RAW).sort(IN_ORDER)
    assert store.views > 1
    assert_frame_equal(found, by_sql(in_memory(one.published)))


def test_sql_asks_again_of_a_new_view_when_a_chunk_has_gone(lane: Lanes) -> None:
    one = filled(lane())
    kept = in_memory(one.published)
    first = one.catalog().chunks[0]
    covered = set(one.manifest().evicted) & set(first.blocks)
    assert covered == set(first.blocks)
    store = Disturbed([one.root])

    def withdraw() -> None:
        without = replace(one.catalog(), chunks=one.catalog().chunks[1:])
        one.files.replace(one.layout.catalog(one.name), without.encode(), durable=False)
        one.files.remove(one.layout.chunks(one.name) / first.file)
        store.disturb = None

    store.disturb, store.views = withdraw, 0
    assert_frame_equal(store.sql(WITHOUT_RAW).sort(IN_ORDER), by_sql(kept))
    assert store.views > 1


def test_a_stream_asks_again_of_a_new_view_when_a_hot_file_has_gone(lane: Lanes) -> None:
    one = lane(blocks_per_chunk=1).take(*events(0, 8, 0)).publish()
    store = Disturbed([one.root])

    store.disturb = partial(merge_and_forget, one)
    assert pa.table(store).num_rows == 9


def test_files_that_stay_missing_are_named(lane: Lanes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forebay.query.view.PAUSE_S", 0)
    one = filled(lane())
    one.files.remove(one.layout.chunks(one.name) / one.catalog().chunks[0].file)
    with pytest.raises(MissingFile, match=r"parquet is missing"):
        forebay.open(one.root)
    (silent,) = forebay.open(one.root, partial=True).receipt().silent_partitions
    assert (silent.node, silent.partition) == (str(one.root), one.name)
    assert "parquet is missing" in silent.reason


# -- after a crash ------------------------------------------------------------------------------


def crashed(one: Lane) -> Lane:
    """Merged a chunk of evictions that were never committed, then started again; `chunks` has not
    yet heard of it."""
    one.take(*events(0, 10, 0)).publish()
    snapshot = one.blocks.snapshot()
    one.take(*events(10, 60, 100, step_ms=20)).publish().merge()
    assert len(one.catalog().chunks) > 1
    one.crash()
    one.oracle = judge(events(0, 10, 0))
    return one.start(snapshot)


def test_a_chunk_of_a_withdrawn_run_does_not_count(lane: Lanes) -> None:
    one = crashed(lane())
    one.publish()
    manifest, chunks = one.manifest(), one.catalog().chunks
    assert manifest.incarnation > max(chunk.id.incarnation for chunk in chunks)
    committed = manifest.runs.get(str(chunks[0].id.incarnation), 0)
    assert committed < min(chunk.id.last for chunk in chunks)
    store = forebay.open(one.root)
    assert_frame_equal(collected(store), in_memory(one.published))
    assert store.receipt().cold_rows == 0
    one.merge()
    assert one.catalog().chunks == ()
    one.take(*events(10, 60, 100, step_ms=20)).publish().merge()
    assert_frame_equal(collected(store), in_memory(one.published))
    assert len(one.published) == 70


@pytest.mark.parametrize("partial", [False, True])
def test_a_view_during_which_the_boundary_moved_is_taken_again(
    partial: bool, lane: Lanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = filled(lane("p00"))
    numbers = iter([0, 1, 1, 1])
    monkeypatch.setattr(
        "forebay.query.view.read_boundary",
        lambda *of: replace(read_boundary(*of), number=next(numbers)),
    )
    receipt = forebay.open(one.root, partial=partial).receipt()
    assert (receipt.batch_number, receipt.silent_nodes) == (1, ())
    assert next(numbers, None) is None


def test_a_catalog_of_a_later_run_than_the_manifest_is_read_again(
    lane: Lanes, watched: Watched
) -> None:
    one = lane().take(*events(0, 10, 0)).publish()
    path = one.layout.manifest(one.name)
    old = path.read_bytes()
    crashed(one)
    one.merge().take(*events(10, 60, 100, step_ms=20)).publish().merge()
    new = path.read_bytes()
    path.write_bytes(old)
    tries: list[Path] = []

    def work(read: Path) -> None:
        if read.name == "catalog.json":
            tries.append(read)
            if len(tries) == 3:
                path.write_bytes(new)

    watched.before = work
    store = forebay.open(one.root)
    assert len(tries) == 4
    assert_frame_equal(collected(store), in_memory(one.published))


def test_a_catalog_that_stays_of_a_later_run_is_an_error(
    lane: Lanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forebay.query.view.PAUSE_S", 0)
    one = lane().take(*events(0, 10, 0)).publish()
    path = one.layout.manifest(one.name)
    old = path.read_bytes()
    crashed(one)
    one.merge().take(*events(10, 60, 100, step_ms=20)).publish().merge()
    path.write_bytes(old)
    with pytest.raises(MissingFile, match="later run"):
        forebay.open(one.root)


# -- damage -------------------------------------------------------------------------------------


def three_batches(one: Lane) -> list[int]:
    """Three flushes to one log; the size of the file after each."""
    sizes = []
    for n in range(3):
        one.take(*events(4 * n, 4, 4 * n, step_ms=1)).publish()
        sizes.append(one.hot_log().stat().st_size)
    return sizes


def cut(path: Path, size: int) -> None:
    """What a power loss may leave of a file."""
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.few(6)
@pytest.mark.parametrize("kept", [0, 1, 2])
@pytest.mark.parametrize("more", [0, 1, 7, 8, 60])
def test_a_torn_log_gives_its_whole_batches_however_often_it_is_read(
    kept: int, more: int, lane: Lanes
) -> None:
    one = lane()
    sizes = [0, *three_batches(one)]
    cut(one.hot_log(), sizes[kept] + more)
    store = forebay.open(one.root)
    expected = in_memory(one.published[: 4 * kept])
    assert_frame_equal(collected(store), expected)
    assert_frame_equal(collected(store), expected)
    assert store.scan().select(pl.len()).collect().item() == 4 * kept


def test_a_log_torn_after_it_was_read_gives_its_whole_batches_once(lane: Lanes) -> None:
    one = lane()
    one.take(*events(0, 4, 0)).publish()
    store = forebay.open(one.root)
    collected(store)
    one.take(*events(4, 4, 40)).publish()
    whole = one.hot_log().stat().st_size
    one.take(*events(8, 4, 80, step_ms=1)).publish()
    cut(one.hot_log(), whole + 1)
    for _ in range(3):
        assert_frame_equal(collected(store), in_memory(one.published[:8]))


def test_a_changed_byte_of_a_log_is_corruption_that_names_the_file(lane: Lanes) -> None:
    one = lane()
    three_batches(one)
    data = bytearray(one.hot_log().read_bytes())
    data[-30] ^= 1
    one.hot_log().write_bytes(data)
    store = forebay.open(one.root)
    with pytest.raises(Corruption, match=r"arrows: expected checksum"):
        store.sql("select * from events")


def test_a_chunk_that_is_no_parquet_is_corruption_that_names_the_file(lane: Lanes) -> None:
    one = filled(lane())
    chunk = one.catalog().chunks[0]
    (one.layout.chunks(one.name) / chunk.file).write_bytes(b"PAR?" * 100)
    with pytest.raises(Corruption, match="parquet"):
        forebay.open(one.root).sql("select * from events")


OUTSIDE = ("../x", "/etc/passwd", "a/../../x", "..", "", ".hidden", "x\n", "a\\..\\b\0", "a//b")


def rewrite(path: Path, kind: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the body of a record and give it a checksum that fits."""
    body = orjson.loads(path.read_bytes())["body"]
    change(body)
    path.write_bytes(record.encode(kind, 2, body))


@pytest.mark.few(3)
@pytest.mark.parametrize("name", OUTSIDE)
def test_a_manifest_cannot_name_a_log_outside_its_folder(name: str, lane: Lanes) -> None:
    one = filled(lane())

    def change(body: dict[str, Any]) -> None:
        body["hot"][0]["extents"][0]["file"] = name

    rewrite(one.layout.manifest(one.name), "manifest", change)
    with pytest.raises(ForebayError, match="plain relative path"):
        forebay.open(one.root)


@pytest.mark.few(3)
@pytest.mark.parametrize("name", OUTSIDE)
def test_a_catalog_cannot_name_a_chunk_outside_its_folder(name: str, lane: Lanes) -> None:
    one = filled(lane())

    def change(body: dict[str, Any]) -> None:
        body["chunks"][0]["file"] = name

    rewrite(one.layout.catalog(one.name), "catalog", change)
    with pytest.raises(ForebayError, match="plain relative path"):
        forebay.open(one.root)


@pytest.mark.parametrize("name", ["../../elsewhere/chunks/p00", "p01"])
def test_a_manifest_cannot_speak_for_a_partition_other_than_its_folders(
    name: str, lane: Lanes
) -> None:
    one, _ = filled(lane()), filled(lane("elsewhere"))

    def change(body: dict[str, Any]) -> None:
        body.update(partition=name, hot=[], evicted=[])

    rewrite(one.layout.manifest(one.name), "manifest", change)
    with pytest.raises(ForebayError):
        forebay.open(one.root)


WRONG: tuple[tuple[str, Callable[[dict[str, Any]], None]], ...] = (
    ("rows", lambda body: body["hot"][0]["extents"][0].update(rows="4")),
    ("bytes", lambda body: body["hot"][0]["extents"][0].update(bytes=None)),
    ("negative bytes", lambda body: body["hot"][0]["extents"][0].update(bytes=-1)),
    ("stream time", lambda body: body.update(stream_time_ms="noon")),
    ("offsets", lambda body: body.update(next_offsets=[1])),
    ("schema", lambda body: body.update(schema={"id": "struct"})),
    ("runs", lambda body: body.update(runs=[3])),
    ("counters", lambda body: body["counters"].update(accepted="many")),
    ("blocks", lambda body: body.update(hot={"a": 1})),
    ("no field", lambda body: body.pop("hot")),
)


def everything(root: Path) -> None:
    """Ask a store all that it can be asked."""
    store = forebay.open(root)
    collected(store)
    store.partitions()


@pytest.mark.few(4)
@pytest.mark.parametrize("change", [c for _, c in WRONG], ids=[name for name, _ in WRONG])
def test_a_manifest_with_a_field_of_another_kind_is_refused_not_a_crash(
    change: Callable[[dict[str, Any]], None], lane: Lanes
) -> None:
    one = filled(lane())
    rewrite(one.layout.manifest(one.name), "manifest", change)
    with pytest.raises(ForebayError):
        everything(one.root)


def test_a_view_is_taken_without_writing_or_locking_anything(lane: Lanes) -> None:
    one = filled(lane())
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in one.root.rglob("*")}
    collected(forebay.open(one.root))
    take_view(Disk(), [one.root])
    assert {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in one.root.rglob("*")} == before
