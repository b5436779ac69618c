"""The batch layer's table: whatever values, names and folders come, a day is handed over, and other
readers of Iceberg find in it what came.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import duckdb
import polars as pl
import pyarrow as pa
import pytest
from duckdb_extensions import import_extension
from pyiceberg.catalog import load_catalog
from pyiceberg.conversions import from_bytes
from pyiceberg.table import Table

import forebay
from forebay.flows import batch as flow
from forebay.flows.batch import run_day
from forebay.flows.batch_table import own_catalog
from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import BadInput
from forebay.storage.base.layout import Layout
from forebay.storage.base.times import DAY_MS
from forebay.storage.formats.boundary import Boundary, BoundaryWriter, read_boundary
from forebay.storage.formats.columns import arrow_schema
from forebay.storage.formats.frame import REJECT_SCHEMA, Frame
from forebay.storage.formats.schema import OFFSET, PARTITION, RAW, UPLOAD_TIME, Column, Schema
from tests.days import (
    CONFIG,
    HOUR_MS,
    PER_DAY,
    MakeJob,
    a_job,
    batch,
    day,
    event,
    everything,
    feed,
    hand_over,
    hand_over_as_before,
    ids,
    in_table,
    invoke,
    keys,
    once,
    run_job,
    starts_ms,
    static,
)
from tests.job import Job
from tests.lane import Lane

Row = dict[str, Any]


def node(root: Path, schema: Schema, *partitions: Sequence[Row]) -> Path:
    """A data directory whose job ended well: these events, typed as they are, and one of the next
    day, so that the first is over."""
    names = arrow_schema(schema).names
    for number, rows in enumerate(partitions):
        lane = Lane(root, f"p{number:02d}", schema=schema).start()
        end = {**rows[0], **{name: _other(rows[0][name]) for name in schema.key}}
        placed = [
            {UPLOAD_TIME: _time(starts_ms(0) + offset), **row, PARTITION: lane.name, OFFSET: offset}
            for offset, row in enumerate(rows)
        ]
        placed.append(
            {**end, UPLOAD_TIME: _time(starts_ms(1)), PARTITION: lane.name, OFFSET: len(rows)}
        )
        columns = [pa.array([r.get(n) for r in placed], arrow_schema(schema).field(n).type)
                   for n in names]  # fmt: skip
        events = pa.RecordBatch.from_arrays(columns, names=names)
        rejects = pa.RecordBatch.from_pylist([], REJECT_SCHEMA)
        offer = lane.blocks.append(Frame(lane.name, lane.name, 0, len(placed), events, rejects), 0)
        lane.offers += [offer] if offer else []
        lane.blocks.publish()
        lane.merge()
        lane.files.close()
    Layout(root).ended.touch()
    return root


def _other(value: Any) -> object:
    """Another value for a key."""
    if isinstance(value, datetime):
        return value + timedelta(days=1)
    return value + "-end" if isinstance(value, str) else value ^ 0x5555


def _time(ms: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)


def table(root: Path) -> Table:
    return load_catalog("forebay", **own_catalog(root / "batch")).load_table(CONFIG.table)


def metadata(root: Path) -> str:
    found = read_boundary(Disk(), Layout(root)).table
    assert found is not None
    return found


def by_pyiceberg(root: Path) -> pl.DataFrame:
    return cast(pl.DataFrame, pl.from_arrow(static(metadata(root)).scan().to_arrow()))


def by_duckdb(root: Path) -> pl.DataFrame:
    import_extension("avro")
    import_extension("iceberg")
    with duckdb.connect() as work:
        work.execute("load avro; load iceberg; set timezone = 'UTC'")
        found = work.execute("select * from iceberg_scan(?)", [metadata(root)]).to_arrow_table()
    return cast(pl.DataFrame, pl.from_arrow(found))


def by_polars(root: Path) -> pl.DataFrame:
    return pl.scan_iceberg(metadata(root)).collect()


def by_us(root: Path) -> pl.DataFrame:
    below = pl.col(UPLOAD_TIME) < _time(starts_ms(1))
    rows = forebay.open(root).scan("all").filter(below).rename({PARTITION: "source_partition"})
    return rows.collect()


READERS = (by_pyiceberg, by_duckdb, by_polars, by_us)


# -- values -------------------------------------------------------------------------------------

HOSTILE = (
    "z" * 15 + "\ud7ff".encode("utf-8", "surrogatepass").decode() + "x",
    "z" * 15 + "\ud7ff",
    "z" * 15 + "\U0010ffff" * 3,
    "\U0010ffff" * 16 + "x",
    "\U0010ffff" * 20_000,
    "\ue000\ud7ff" * 9,
    "\ufffd" * 17,
    "",
    "\0",
    "a\0b",
    "\0" * 40,
    "'; drop table duplicates; --",
    "é" * 70_000,
)
TEXTS = Schema(
    (Column("id", ("id",)), Column("s", ("s",))), ("id",), Column(UPLOAD_TIME, ("t",), "time")
)


@pytest.mark.few(4)
@pytest.mark.parametrize("text", HOSTILE, ids=[ascii(text[:18]) for text in HOSTILE])
def test_a_day_whose_greatest_text_is_hostile_is_handed_over(text: str, tmp_path: Path) -> None:
    """In each column that has text: the key, a declared one, `raw`."""
    rows = [{"id": name + text, "s": text, RAW: (name + text).encode()} for name in ("", "a")]
    root = node(tmp_path / "data", TEXTS, rows)
    assert run_day([root], CONFIG, day(0)).rows == 2
    for read in READERS:
        found = read(root).sort(OFFSET)
        assert found.select("id", "s", RAW).rows() == [(r["id"], r["s"], r[RAW]) for r in rows]


def test_text_and_bytes_have_no_bounds_in_the_table_and_times_and_whole_numbers_have_theirs(
    tmp_path: Path,
) -> None:
    columns = (Column("id", ("id",)), Column("n", ("n",), "int"), Column("x", ("x",), "float"))
    schema = Schema(columns, ("id",), Column(UPLOAD_TIME, ("t",), "time"))
    rows = [{"id": "a", "n": -5, "x": 0.5, RAW: b"a"}, {"id": "b", "n": 7, "x": 2.5, RAW: b"b"}]
    root = node(tmp_path / "data", schema, rows)
    run_day([root], CONFIG, day(0))
    found = table(root)
    names = {field.field_id: field for field in found.schema().fields}
    (task,) = found.scan().plan_files()

    def read(bounds: dict[int, bytes]) -> dict[str, object]:
        found = {names[n]: value for n, value in bounds.items()}
        return {f.name: from_bytes(f.field_type, v) for f, v in found.items()}  # type: ignore[arg-type]

    low, high = read(task.file.lower_bounds), read(task.file.upper_bounds)
    first, last = (round(_time(starts_ms(0) + n).timestamp() * 1_000_000) for n in (0, 1))
    assert low == {OFFSET: 0, UPLOAD_TIME: first, "n": -5}
    assert high == {OFFSET: 1, UPLOAD_TIME: last, "n": 7}
    assert set(task.file.null_value_counts) == set(names)
    after = f"upload_time > '{_time(starts_ms(0) + 1).isoformat()}'"
    assert not list(found.scan(row_filter=after).plan_files())


EDGES = [
    datetime(1, 1, 1, tzinfo=UTC),
    datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
    datetime(1969, 12, 31, 23, 59, 59, 999_000, tzinfo=UTC),
]
EXTREMES = Schema(
    (
        Column("id", ("id",), "int"),
        Column("at", ("at",), "time"),
        Column("at_s", ("at",), "time_s"),
        Column("at_us", ("at",), "time_us"),
        Column("x", ("x",), "float"),
        Column("flag", ("flag",), "bool"),
    ),
    ("id", "at_us"),
    Column(UPLOAD_TIME, ("t",), "time"),
)


def _floored(at: datetime, unit_us: int) -> datetime:
    return at - timedelta(microseconds=at.microsecond % unit_us)


@pytest.mark.few(1)
@pytest.mark.parametrize("floats", [[math.inf, -math.inf, math.nan], [math.nan] * 3, [-0.0, 0.0]])
def test_times_at_both_ends_and_extreme_numbers_are_handed_over_as_they_came(
    floats: list[float], tmp_path: Path
) -> None:
    numbers = [-(2**63), 2**63 - 1, 0]
    rows = [
        {"id": n, "at": _floored(at, 1000), "at_s": _floored(at, 1_000_000), "at_us": at, "x": x,
         "flag": None}
        for n, at, x in zip(numbers, EDGES, floats, strict=False)
    ]  # fmt: skip
    root = node(tmp_path / "data", EXTREMES, rows)
    assert run_day([root], CONFIG, day(0)).rows == len(rows)
    for read in READERS:
        found = read(root).sort(OFFSET).select(pl.col(*(c.name for c in EXTREMES.columns)))
        times = found.select(pl.col("at", "at_s", "at_us").cast(pl.Datetime("us", "UTC")))
        assert times.rows() == [(row["at"], row["at_s"], row["at_us"]) for row in rows], read
        assert found["id"].to_list() == numbers[: len(rows)]
        assert [math.copysign(1, x) for x in found["x"] if x == 0] == [
            math.copysign(1, x) for x in floats if x == 0
        ]
        assert str(found["x"].to_list()) == str(floats)


@pytest.mark.long
def test_rows_too_large_for_one_slice_are_handed_over_in_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as fit, by the size of those before; the first slice is small for that."""
    rows: list[Row] = [{"id": f"{n:04}", "s": "x" * 1000, RAW: b"y" * 1000} for n in range(400)]
    rows = [{**row, UPLOAD_TIME: _time(starts_ms(0) + 100 * n)} for n, row in enumerate(rows)]
    root = node(tmp_path / "data", TEXTS, rows)
    slices: list[int] = []
    slice_of = flow._Run._slice

    def seen(self: flow._Run, *arguments: Any) -> pl.DataFrame:
        frame = slice_of(self, *arguments)
        slices.append(len(frame))
        return frame

    monkeypatch.setattr(flow._Run, "_slice", seen)
    monkeypatch.setattr(flow, "FIRST_ROWS", 10)
    monkeypatch.setattr(flow, "SLICE_BYTES", 210_000)
    assert run_day([root], CONFIG, day(0)).rows == len(rows)
    assert slices[0] == 10
    assert set(slices[1:-1]) <= set(range(90, 111))
    assert by_pyiceberg(root)["id"].sort().to_list() == [row["id"] for row in rows]


@pytest.mark.long
def test_keys_as_large_as_messages_are_told_apart_within_the_memory_bound(tmp_path: Path) -> None:
    """More of them than fit; two that differ in their last byte, a copy in another partition, and
    one that is the digest of another."""
    large = [f"{n:03}" + "x" * 700_000 for n in range(200)]
    digest = hashlib.sha256(large[0].encode()).hexdigest()
    keys = [*large, large[0] + "y", large[0] + "z", digest, "h" + digest, "h" + digest[:-1]]
    schema = replace(TEXTS, columns=TEXTS.columns[:1], raw=False)
    root = node(tmp_path / "data", schema, [{"id": key} for key in keys], [{"id": large[7]}])
    report = run_day([root], CONFIG, day(0))
    assert (report.rows, report.duplicates) == (len(keys), 1)
    assert by_pyiceberg(root)["id"].sort().to_list() == sorted(keys)


@pytest.mark.long
def test_memory_that_does_not_do_is_told_by_its_setting_and_changes_nothing(
    tmp_path: Path,
) -> None:
    root = node(tmp_path / "data", TEXTS, [{"id": f"{n}", RAW: b""} for n in range(5000)])
    with pytest.raises(BadInput, match=r"batch.memory: expected enough, or room below .*work"):
        run_day([root], CONFIG.model_copy(update={"memory": 200_000}), day(0))
    assert run_day([root], CONFIG, day(0)).rows == 5000


# -- names --------------------------------------------------------------------------------------

NAMES = (
    *("place", "fresh", "sealed", "known", "duplicates", "t", "p", "o", "k0", "k1", "rowid"),
    *("source_partition", "upload_time_day", "UPLOAD_TIME", "_OFFSET", "_Partition", "rows"),
    *("start", "late", "select", "filename", "file_row_number", "hour", "date"),
)


@pytest.mark.few(6)
@pytest.mark.parametrize("type", ["string", pytest.param("int", marks=pytest.mark.long)])
@pytest.mark.parametrize("name", NAMES)
def test_a_key_column_of_any_name_keeps_its_events_apart(
    name: str, type: str, tmp_path: Path
) -> None:
    """Two partitions have one event in common."""
    columns = [Column(name, ("k",), type), Column("k0", ("n",), "int")]  # type: ignore[arg-type]
    schema = Schema(
        tuple(columns[:1] if name == "k0" else columns),
        (name,),
        Column(UPLOAD_TIME, ("t",), "time"),
    )
    values = [f"v{n}" if type == "string" else n for n in (1, 2, 3, 4, 9)]
    rows = [{"k0": 7, name: value, RAW: b""} for value in values]
    root = node(tmp_path / "data", schema, rows[:3], rows[2:])
    report = run_day([root], CONFIG, day(0))
    assert (report.rows, report.duplicates) == (5, 1)
    found = forebay.open(root).scan("all").filter(pl.col(UPLOAD_TIME) < _time(starts_ms(1)))
    assert found.collect()[name].sort().to_list() == values
    assert by_pyiceberg(root)[name].sort().to_list() == values


def test_keys_whose_names_differ_by_case_only_are_two(tmp_path: Path) -> None:
    schema = Schema(
        (Column("id", ("a",)), Column("ID", ("b",))),
        ("id", "ID"),
        Column(UPLOAD_TIME, ("t",), "time"),
    )
    pairs = [("x", "1"), ("x", "2"), ("y", "1"), ("y", "2")]
    rows = [{"id": a, "ID": b, RAW: b""} for a, b in pairs]
    root = node(tmp_path / "data", schema, rows)
    assert run_day([root], CONFIG, day(0)).rows == 4
    assert sorted(by_us(root).select("id", "ID").rows()) == pairs
    assert sorted(by_pyiceberg(root).select("id", "ID").rows()) == pairs


def test_a_column_that_the_table_can_not_take_is_told_with_the_table_and_changes_nothing(
    tmp_path: Path,
) -> None:
    root = node(tmp_path / "data", TEXTS, [{"id": "a", "s": "", RAW: b""}])
    catalog = load_catalog("forebay", **_made(root))
    catalog.create_namespace("forebay")
    catalog.create_table("forebay.events", pa.schema([("id", pa.int64())]))
    with pytest.raises(BadInput, match=r"table forebay.events: .*id"):
        run_day([root], CONFIG, day(0))
    assert read_boundary(Disk(), Layout(root)).covered_until_ms is None
    assert forebay.open(root).scan("all").collect().height == 2


def _made(root: Path) -> dict[str, str]:
    (root / "batch").mkdir()
    return own_catalog(root / "batch")


def test_a_table_that_is_gone_from_the_catalog_is_not_silently_begun_anew(tmp_path: Path) -> None:
    """A query over all layers would lose the days that are in the one before."""
    root = node(tmp_path / "data", TEXTS, [{"id": "a", "s": "", RAW: b""}])
    run_day([root], CONFIG, day(0))
    before = metadata(root)
    load_catalog("forebay", **own_catalog(root / "batch")).drop_table(CONFIG.table)
    with pytest.raises(BadInput, match=f"the last handoff named {before}; register that file"):
        run_day([root], CONFIG, day(0))
    load_catalog("forebay", **own_catalog(root / "batch")).register_table(CONFIG.table, before)
    assert run_day([root], CONFIG, day(0)).outcome == "completed before"


# -- tables made before -------------------------------------------------------------------------


@pytest.fixture
def old(filled: Path, make_job: MakeJob) -> Job:
    job = a_job(make_job)
    shutil.copytree(filled, job.folder)
    hand_over_as_before(job)
    return job


@pytest.mark.long
def test_a_table_made_before_is_read_and_goes_on_with_all_its_rows(old: Job) -> None:
    assert ids(forebay.open(old.data).scan("all")) == everything(0)
    places = _places(forebay.open(old.data))
    again_ms = starts_ms(0) + 5 * DAY_MS // PER_DAY
    feed(old, "a", [event("late-0", starts_ms(0) + HOUR_MS), event("a-0-5", again_ms)])
    run_job(old)
    hand_over(old, 1)
    through = once(keys(0) | keys(1) | {"late-0"})
    for read in (by_pyiceberg, by_duckdb, by_polars):
        found = read(old.data)
        assert ids(found) == through, read
        assert set(found["source_partition"]) == {"a.ndjson", "b.ndjson"}
        assert PARTITION not in found.columns
    assert ids(forebay.open(old.data).scan("all")) == everything(1, "late-0")
    assert _places(forebay.open(old.data)).items() >= places.items()
    properties = table(old.data).properties
    assert properties["commit.retry.num-retries"] == "0"
    assert properties["write.metadata.metrics.column.id"] == "counts"
    hand_over(old, 2)
    assert ids(in_table(old)) == through + once(keys(2))


def _places(store: forebay.Store) -> dict[str, tuple[str, int]]:
    rows = store.sql("select id, _partition, _offset from events_all where id like '%-0-%'")
    return {key: (partition, offset) for key, partition, offset in rows.rows()}


def test_a_table_made_before_gets_its_new_names_when_a_day_is_run_again(old: Job) -> None:
    copy = next(c for c in forebay.open(old.data).why({"id": "a-0-7"}).copies)
    assert run_day([old.data], CONFIG, day(0)).outcome == "completed before"
    assert "source_partition" in static(metadata(old.data)).schema().column_names
    assert ids(forebay.open(old.data).scan("all")) == everything(0)
    assert forebay.open(old.data).why({"id": "a-0-7"}).copies[0] == copy


def test_a_table_whose_events_have_a_source_partition_of_their_own_keeps_its_name(
    tmp_path: Path,
) -> None:
    columns = (Column("id", ("id",)), Column("source_partition", ("s",)))
    schema = Schema(columns, ("id",), Column(UPLOAD_TIME, ("t",), "time"), raw=False)
    rows = [{"id": f"{n}", "source_partition": f"mine{n}"} for n in range(3)]
    root = node(tmp_path / "data", schema, rows)
    run_day([root], CONFIG, day(0))
    found = forebay.open(root).scan("all").filter(pl.col(UPLOAD_TIME) < _time(starts_ms(1)))
    assert found.select(PARTITION, "source_partition").collect().sort(pl.all()).rows() == [
        ("p00", f"mine{n}") for n in range(3)
    ]


# -- folders ------------------------------------------------------------------------------------

FOLDERS = ("it's #1? 100% %41 [x] é a=b {y} *;&+", "#", "?", "%41", "a\nb", "-", "~", "$HOME")


@pytest.mark.parametrize(
    "name",
    [*FOLDERS[:2], *(pytest.param(name, marks=pytest.mark.long) for name in FOLDERS[2:])],
)
def test_a_data_directory_of_any_name_is_handed_over_where_it_is_and_read(
    name: str, make_job: MakeJob, tmp_path: Path
) -> None:
    job = a_job(make_job)
    job.folder = tmp_path / "place" / name
    job.settings["FILES__PATH"] = str(tmp_path / "events")
    (tmp_path / "events").mkdir()
    with (tmp_path / "events" / "a.ndjson").open("wb") as file:
        for n in range(4):
            file.write(event(f"k{n}", starts_ms(0) + n) + b"\n")
        file.write(event("end", starts_ms(1)) + b"\n")
    run_job(job)
    done = invoke(job, "batch", "run", "--catch-up")
    assert done.returncode == 0, done.stderr
    again = invoke(job, "batch", "run", "--day", str(day(0)))
    assert "4 events" in again.stdout
    assert "(completed before: nothing to do)" in again.stdout
    four = once(f"k{n}" for n in range(4))
    for read in READERS:
        assert ids(read(job.data)) == four
    told = invoke(job, "sql", "--format", "csv", "select id from events_all order by id")
    assert told.stdout.split()[1:6] == ["end", "k0", "k1", "k2", "k3"]
    assert [path.name for path in (tmp_path / "place").iterdir()] == [name]
    assert {path.name for path in job.folder.iterdir()} <= {"data", "job.log"}


def test_a_table_in_a_plain_folder_is_named_by_a_uri_and_in_another_by_its_path() -> None:
    assert own_catalog(Path("/srv/data"))["warehouse"] == "file:///srv/data/warehouse"
    assert own_catalog(Path("/srv/a b"))["warehouse"] == "/srv/a b/warehouse"


# -- what is told, and when ---------------------------------------------------------------------


def test_a_day_whose_run_was_killed_is_told_as_taken_up_and_a_day_done_before_as_that(
    tmp_path: Path, make_job: MakeJob
) -> None:
    job = a_job(make_job)
    feed(job, "a", [event("one", starts_ms(0)), event("end", starts_ms(1))])
    run_job(job)
    first = invoke(job, "batch", "run", "--day", str(day(0))).stdout
    assert "1 event," in first
    assert "(" not in first
    killed = batch(job)
    Layout(job.data).batch.write_bytes(Boundary(seal=killed.seal).encode())
    second = invoke(job, "batch", "run", "--day", str(day(0))).stdout
    assert "(written by a run that did not complete it; now completed)" in second
    third = invoke(job, "batch", "run", "--day", str(day(0))).stdout
    assert "(completed before: nothing to do)" in third


def test_the_table_is_on_disk_before_the_boundary_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is handed over is deleted from the data directory some time later."""
    root = node(tmp_path / "data", TEXTS, [{"id": "a", "s": "", RAW: b""}])
    seen: list[str] = []
    complete = BoundaryWriter.complete
    sync = os.sync

    def synced() -> None:
        seen.append("synced")
        sync()

    def completed(self: BoundaryWriter, *arguments: Any, **options: Any) -> Boundary:
        seen.append("completed")
        return complete(self, *arguments, **options)

    monkeypatch.setattr(os, "sync", synced)
    monkeypatch.setattr(BoundaryWriter, "complete", completed)
    run_day([root], CONFIG, day(0))
    assert seen == ["synced", "completed"]
