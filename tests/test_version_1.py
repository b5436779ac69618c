"""A data directory of version 1, as that version's job left it: it opens, goes on and answers.

`golden/1/data.tar.gz` has it with the job's input: 34 events of one file, in five intervals, of
which three are in chunks. Ten events have times that no reader takes (years beyond 9999, epochs in
nanoseconds, 2**60) in columns of every unit, five of them in the dedup key; its rejects have a
broker time of that kind. These times are null wherever they come out.
"""

from __future__ import annotations

import csv
import io
import json
import tarfile
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import orjson
import polars as pl
import pyarrow as pa
import pytest
from click.testing import CliRunner

import forebay
from forebay.cli.main import main
from forebay.flows.batch import run_day
from forebay.flows.cross_partition import duplicates
from forebay.flows.sections import BatchSettings
from forebay.query.check import check
from forebay.storage.base.disk import Disk
from forebay.storage.base.layout import Layout
from forebay.storage.formats.boundary import read_boundary
from forebay.storage.formats.columns import arrow_schema
from forebay.storage.formats.frame import REJECT_SCHEMA, Frame
from forebay.storage.formats.schema import UPLOAD_TIME, Column, Schema
from forebay.storage.formats.state import read_manifest
from forebay.storage.partition.rules import Rules
from tests.job import Job
from tests.partition import NAME, Partition
from tests.records import GOLDEN_1

SETTINGS = {
    "SCHEMA": "none",
    "COLUMNS": orjson.dumps(
        [
            {"name": "id", "path": "id"},
            {"name": "n", "path": "n", "type": "int"},
            {"name": "f", "path": "f", "type": "float"},
            {"name": "b", "path": "b", "type": "bool"},
            {"name": "t", "path": "t", "type": "time"},
            {"name": "ts", "path": "ts", "type": "time_s"},
            {"name": "tu", "path": "tu", "type": "time_us"},
        ]
    ).decode(),
    "DEDUP_KEY": '["id", "t"]',
    "UPLOAD_TIME": "at",
    "BLOCKS_PER_CHUNK": "1",
    "EPOCH_INTERVAL": "100ms",
    "GRACE": "1s",
}
START_MS = 1_714_521_600_000
HOUR_MS = 3_600_000
BEGIN = datetime(2024, 5, 1, tzinfo=UTC)
NULLS = (10, 10, 6)
"""Of these events, in `t`, `ts` and `tu`: as microseconds four of the ten are good times."""
FAR = [*(f"far{n}" for n in range(5)), *(f"hot{n}" for n in range(5))]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    job = Job(tmp_path / "job", dict(SETTINGS))
    job.settings["FILES__PATH"] = str(job.folder / "events")
    job.folder.mkdir()
    with tarfile.open(GOLDEN_1 / "data.tar.gz") as archive:
        archive.extractall(job.folder, filter="data")
    return job


def test_each_event_is_found_once_and_hostile_times_are_null(job: Job) -> None:
    store = forebay.open(job.data)
    rows = store.scan().collect()
    assert rows.height == rows.select("_offset").n_unique() == 34
    far = rows.filter(pl.col("id").is_in(FAR))
    assert far.height == len(FAR)
    assert far.select("t", "ts", "tu").null_count().row(0) == NULLS
    others = rows.filter(pl.col("id").str.starts_with("a")).sort("_offset")
    assert others["t"].dt.epoch("ms").to_list() == [START_MS + n for n in range(20)]
    assert others["tu"].null_count() == 0
    assert all(row["raw"] for row in rows.to_dicts())
    assert store.scan().filter(pl.col("t").is_null()).select(pl.len()).collect().item() == 10
    assert (
        store.scan()
        .filter(pl.col("tu") > pl.datetime(2024, 1, 1, time_zone="UTC"))
        .select(pl.len())
        .collect()
        .item()
        == 20
    )
    assert pa.table(store).num_rows == 34


@pytest.mark.parametrize("kind", ["table", "json", "csv", "parquet"])
def test_every_format_prints_all_rows(job: Job, kind: str) -> None:
    text = "select * from events order by _offset"
    arguments = ["sql", text, "--format", kind, "--data-dir", str(job.data)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    if kind == "json":
        assert len(json.loads(result.stdout)) == 34
    elif kind == "csv":
        assert len(list(csv.reader(io.StringIO(result.stdout)))) == 35
    elif kind == "parquet":
        assert pl.read_parquet(io.BytesIO(result.stdout_bytes)).height == 34
    else:
        assert all(f"hot{n}" in result.stdout for n in range(5))


def test_rejects_with_a_hostile_broker_time_are_listed_shown_exported_and_explained(
    job: Job, tmp_path: Path
) -> None:
    there = ["--data-dir", str(job.data)]
    for command in (
        ["rejects", "list", *there],
        ["rejects", "show", "a.ndjson", "25", *there],
        ["rejects", "export", str(tmp_path / "out.ndjson"), *there],
        ["rejects", "export", str(tmp_path / "out.parquet"), *there],
        ["sql", "select * from rejects", *there],
        ["why", "a3", "2024-05-01T00:00:00.003Z", *there],
        ["why", "far0", "2024-05-01T00:00:00Z", *there],
    ):
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 0, (command, result.output, result.exception)
    lines = [orjson.loads(line) for line in (tmp_path / "out.ndjson").read_bytes().splitlines()]
    assert [line["broker_time"] for line in lines] == [None] * 3


def test_nothing_is_missing_or_damaged(job: Job) -> None:
    report = check(Disk(), job.data)
    assert report.faults == []
    assert report.files == 9


def test_the_job_goes_on_merges_what_is_hot_and_drops_what_is_known(job: Job) -> None:
    event = '{{"id":"{}","at":{},"t":{}}}\n'
    with (job.folder / "events" / "a.ndjson").open("a") as file:
        file.write(event.format("a3", START_MS + 3000, START_MS + 3))
        file.write(event.format("hot0", START_MS + 3 * HOUR_MS, 2**60))
        for hour in (5, 7, 9):
            file.write(event.format(f"new{hour}", START_MS + hour * HOUR_MS, START_MS))
    assert job.ends(job.run()) == 0, job.told()
    (row,) = job.partitions().to_dicts()
    found = {name: row[name] for name in ("accepted", "duplicates", "rejects", "next_offset")}
    assert found == {"accepted": 37, "duplicates": 2, "rejects": 4, "next_offset": 43}
    state = read_manifest(Disk(), Layout(job.data).manifest("a.ndjson"))
    assert state is not None
    assert state.seed == ""
    assert state.counters.rejected == {
        "bad json": 1,
        "no key": 1,
        "no upload time": 1,
        "no key: t": 1,
    }
    rows = forebay.open(job.data).scan().collect()
    assert rows.height == 37
    assert row["cold_events"] > 27
    assert rows.filter(pl.col("id").is_in(FAR)).select("t", "ts", "tu").null_count().row(0) == NULLS
    assert check(Disk(), job.data).faults == []


def test_its_rejects_are_replayed(job: Job) -> None:
    result = CliRunner().invoke(main, ["rejects", "replay", "--data-dir", str(job.data)])
    assert result.exit_code == 0, result.output
    assert job.ends(job.run()) == 0, job.told()
    (row,) = job.partitions().to_dicts()
    assert (row["accepted"], row["rejects"]) == (34, 3)


def test_events_with_a_hostile_time_in_their_key_are_no_duplicates_of_one_another(
    tmp_path: Path,
) -> None:
    at = pl.lit(BEGIN, pl.Datetime("us", "UTC"))
    ours = {"id": ["a", "a", "b", "b"], "t": [None, None, 1, 1], "_offset": [0, 1, 2, 3]}
    sealed = pl.LazyFrame(ours).with_columns(
        at.alias("upload_time"), pl.lit("p").alias("_partition")
    )
    known = sealed.filter(pl.col("_offset") == 1)
    elsewhere = known.with_columns(_offset=pl.lit(9, pl.Int64))
    for table, expected in ((sealed.clear(), [3]), (known, [1, 3]), (elsewhere, [3])):
        with duplicates(tmp_path / "work", 64 << 20) as found:
            assert found.find(sealed, table, ["id", "t"]) == len(expected)
            copies = found.between(BEGIN, BEGIN + timedelta(days=1))
            assert sorted(copies["_offset"]) == expected


def test_a_handoff_lands_events_that_differ_in_hostile_times_only_and_each_once(
    tmp_path: Path,
) -> None:
    columns = (Column("id", ("id",)), Column("t", ("t",), "time"))
    schema = Schema(columns, ("id", "t"), Column(UPLOAD_TIME, ("at",), "time"), raw=False)
    config = Rules(schema, HOUR_MS, 2 * HOUR_MS, 1000)
    one = Partition(tmp_path, config).start()
    times = [2**60, 2**60 + 1, 2**60 + 2, START_MS]
    ours = {
        "_partition": ["p00"] * 4,
        "_offset": range(4),
        UPLOAD_TIME: [START_MS] * 3 + [START_MS + 25 * HOUR_MS],
        "id": ["a"] * 4,
        "t": times,
    }
    types = arrow_schema(schema)
    arrays = [pa.array(ours[field.name], field.type) for field in types]
    no_rejects = pa.RecordBatch.from_pylist([], REJECT_SCHEMA)
    events = pa.RecordBatch.from_arrays(arrays, schema=types)
    one.take(Frame(NAME, NAME, 0, 4, events, no_rejects))
    one.blocks.publish()
    one.crash()
    one.layout.ended.touch()
    place = BatchSettings(memory=64 << 20)
    report = run_day([tmp_path], place, date(2024, 5, 1))
    assert (report.rows, report.duplicates) == (3, 0)
    landed = forebay.open(tmp_path).scan("all").sort("_offset").collect()
    assert landed["t"].to_list() == [None] * 3 + [BEGIN]
    # A copy that was restored to before the handoff seals the day anew.
    one.layout.batch.unlink()
    again = run_day([tmp_path], place, date(2024, 5, 1))
    assert (again.rows, again.duplicates) == (0, 3)
    assert forebay.open(tmp_path).scan("all").collect().height == 4


def test_its_day_is_handed_over(job: Job) -> None:
    with (job.folder / "events" / "a.ndjson").open("a") as file:
        file.write(f'{{"id":"next","at":{START_MS + 25 * HOUR_MS},"t":1}}\n')
    assert job.ends(job.run()) == 0, job.told()
    report = run_day([job.data], BatchSettings(memory=64 << 20), date(2024, 5, 1))
    assert (report.rows, report.duplicates) == (34, 0)
    assert read_boundary(Disk(), Layout(job.data)).number == 1
    rows = forebay.open(job.data).scan("all").collect()
    assert rows.height == 35
    assert rows.filter(pl.col("id").is_in(FAR)).select("t", "ts", "tu").null_count().row(0) == NULLS
