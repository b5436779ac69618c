"""Handing days over with the batch layer that comes along: real jobs, real runs, real kills."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import duckdb
import orjson
import polars as pl
import pytest
from click.testing import CliRunner
from duckdb_extensions import import_extension

import forebay
import forebay.query.view
import forebay.query.why
from forebay.cli.main import main
from forebay.flows.batch import missing_days, run_day
from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import BadInput
from forebay.storage.base.layout import Layout
from forebay.storage.base.times import DAY_MS, time_of
from forebay.storage.formats.boundary import Boundary, read_boundary
from forebay.storage.handoff import Handoff
from tests.batch_run import STEPS
from tests.days import (
    CONFIG,
    DAYS,
    EVER,
    HOUR_MS,
    PER_DAY,
    SHARED,
    MakeJob,
    a_job,
    assert_handed_over,
    batch,
    day,
    event,
    everything,
    feed,
    hand_over,
    ids,
    in_table,
    invoke,
    keys,
    messages,
    once,
    run_job,
    starts_ms,
    static,
    stopped,
)
from tests.job import LOOK_S, Job


@pytest.fixture
def job(filled: Path, make_job: MakeJob) -> Job:
    job = a_job(make_job)
    shutil.copytree(filled, job.folder)
    return job


# -- a run --------------------------------------------------------------------------------------


def test_run_hands_over_each_key_of_a_day_once_sorted_in_one_file(job: Job) -> None:
    report = run_day([job.data], CONFIG, day(0))
    assert (report.number, report.rows, report.duplicates) == (1, len(keys(0)), SHARED)
    assert_handed_over(job, 0)
    rows = in_table(job).select("upload_time", "source_partition", "_offset")
    assert rows.equals(rows.sort(pl.all()))
    metadata = batch(job).table
    assert metadata is not None
    snapshot = static(metadata).current_snapshot()
    assert snapshot is not None
    assert snapshot.summary is not None
    assert len(list(static(metadata).scan().plan_files())) == 1
    assert snapshot.summary["forebay.batch-number"] == "1"
    assert snapshot.summary["forebay.rows"] == str(len(keys(0)))
    lines = {part: sum(1 for _ in messages(part)) for part in "ab"}
    offsets = orjson.loads(snapshot.summary["forebay.offsets"] or "")[str(job.data)]
    assert offsets == {f"{p}.ndjson": {f"{p}.ndjson": lines[p]} for p in "ab"}


def test_each_day_has_one_file_of_its_own(job: Job) -> None:
    hand_over(job, 1)
    assert_handed_over(job, 1)
    found = sorted(path.parent.name for path in (job.data / "batch").rglob("*.parquet"))
    assert found == [f"upload_time_day={day(n)}" for n in range(2)]


def test_a_run_again_changes_nothing(job: Job) -> None:
    hand_over(job, 0)
    before = {path: path.read_bytes() for path in (job.data / "batch").rglob("*.json")}
    record = Layout(job.data).batch.read_bytes()
    report = run_day([job.data], CONFIG, day(0))
    assert (report.number, report.rows) == (1, len(keys(0)))
    assert report.outcome == "completed before"
    assert Layout(job.data).batch.read_bytes() == record
    after = {path: path.read_bytes() for path in (job.data / "batch").rglob("*.json")}
    assert after == before


@pytest.mark.long
def test_a_day_without_events_is_handed_over_and_what_comes_late_for_it_is_not_lost(
    make_job: MakeJob,
) -> None:
    job = a_job(make_job)
    feed(job, "a", [event("first", starts_ms(0)), event("last", starts_ms(2) + HOUR_MS)])
    run_job(job)
    hand_over(job, 0, 1)
    feed(job, "a", [event("late", starts_ms(1))])
    run_job(job)
    assert run_day([job.data], CONFIG, day(1)).outcome == "completed before"
    assert ids(forebay.open(job.data).late()) == once(["late"])
    feed(job, "a", [event("end", starts_ms(3))])
    run_job(job)
    hand_over(job, 2)
    assert ids(in_table(job)) == once(["first", "late", "last"])
    assert ids(forebay.open(job.data).scan("all")) == once(["first", "late", "last", "end"])


@pytest.mark.long
def test_catch_up_does_all_days_that_are_over(job: Job) -> None:
    done = invoke(job, "batch", "run", "--catch-up", "--json")
    assert done.returncode == 0, done.stderr
    reports = [orjson.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [(r["day"], r["number"], r["rows"]) for r in reports] == [
        (str(day(n)), n + 1, len(keys(n))) for n in DAYS
    ]
    assert_handed_over(job, 2)
    assert missing_days([job.data]) == []


@pytest.mark.long
def test_of_two_runs_at_once_one_is_refused(job: Job) -> None:
    with stopped(job, "writing", "--day", str(day(0))):
        second = invoke(job, "batch", "run", "--day", str(day(0)))
    assert second.returncode == 1
    assert "expected no other batch run, got one" in second.stderr
    assert len(second.stderr.strip().splitlines()) == 1
    hand_over(job, 0)
    assert_handed_over(job, 0)


@pytest.mark.parametrize(
    "step",
    [pytest.param(one, marks=[pytest.mark.long] * (one != "committed")) for one in STEPS],
)
def test_a_run_killed_at_any_step_is_done_by_the_next(job: Job, step: str) -> None:
    before = ids(forebay.open(job.data).scan())
    with stopped(job, step, "--day", str(day(0))):
        assert ids(forebay.open(job.data).scan("all")) == before
    assert ids(forebay.open(job.data).scan("all")) == before
    assert batch(job).covered_until_ms is None
    report = run_day([job.data], CONFIG, day(0))
    expected = "taken up" if step == "committed" else "written"
    assert (report.rows, report.outcome) == (len(keys(0)), expected)
    assert_handed_over(job, 0)
    hand_over(job, 1)
    assert_handed_over(job, 1)


@pytest.mark.long
def test_the_next_day_waits_for_one_whose_run_was_killed(job: Job) -> None:
    with stopped(job, "committed", "--day", str(day(0))):
        pass
    with pytest.raises(BadInput, match="expected 2024-05-01, a day that is sealed"):
        hand_over(job, 1)
    assert missing_days([job.data]) == [day(0), day(1), day(2)]
    hand_over(job, 0, 1)
    assert_handed_over(job, 1)


def test_a_run_that_fails_changes_nothing_that_a_query_sees(job: Job) -> None:
    before = ids(forebay.open(job.data).scan())
    (job.data / "batch").mkdir()
    (job.data / "batch" / "warehouse").write_text("in the way")
    failed = invoke(job, "batch", "run", "--day", str(day(0)))
    assert failed.returncode == 1
    store = forebay.open(job.data)
    assert ids(store.scan()) == ids(store.scan("all")) == before
    assert (batch(job).number, batch(job).covered_until_ms) == (0, None)
    (job.data / "batch" / "warehouse").unlink()
    hand_over(job, 0)
    assert_handed_over(job, 0)


@pytest.mark.long
def test_what_a_killed_run_left_torn_is_written_again(job: Job) -> None:
    with stopped(job, "writing", "--day", str(day(0))):
        pass
    (left,) = (job.data / "batch").rglob("*.parquet")
    left.write_bytes(b"torn" * 1000)
    hand_over(job, 0)
    assert_handed_over(job, 0)
    assert not left.exists()
    assert not (job.data / "batch" / "work").exists()
    assert not list((job.data / "batch" / "runs").iterdir())


def test_a_disk_that_is_full_is_told_in_one_line_and_what_was_written_is_deleted(
    make_job: MakeJob,
) -> None:
    job = a_job(make_job)
    own = [random.Random(n).randbytes(1000).hex() for n in range(300)]
    feed(job, "a", [event(key, starts_ms(0) + n) for n, key in enumerate(own)])
    feed(job, "a", [event("end", starts_ms(1) + HOUR_MS)])
    run_job(job)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("BATCH_FILE_BYTES", "100000")
        full = invoke(job, "batch", "run", "--day", str(day(0)))
    assert full.returncode == 1
    told = full.stderr
    assert told.startswith("Error: table forebay.events: expected to write its files, got OSError:")
    assert told.endswith("nothing was handed over\n")
    assert told.count("\n") == 1
    assert batch(job).covered_until_ms is None
    assert not list((job.data / "batch").rglob("*.parquet"))
    assert not list((job.data / "batch" / "runs").iterdir())
    hand_over(job, 0)
    assert ids(in_table(job)) == once(own)


# -- what comes late ----------------------------------------------------------------------------


def test_late_events_are_told_and_taken_by_the_next_run_without_doubling(job: Job) -> None:
    hand_over(job, 0)
    run_job(job)
    again = [event("a-0-5", starts_ms(0) + 5 * DAY_MS // PER_DAY)]
    feed(job, "a", [event("late-0", starts_ms(0) + HOUR_MS), *again])
    run_job(job)
    told = invoke(job, "batch", "late")
    assert "2024-05-01  " in told.stdout
    assert "late-0" in ids(forebay.open(job.data).late())
    assert ids(forebay.open(job.data).scan("all")) == everything(0, "late-0")
    hand_over(job, 1)
    assert ids(in_table(job)) == once(keys(0) | keys(1) | {"late-0"})
    assert not ids(forebay.open(job.data).late())
    run_job(job)
    feed(job, "a", [event("late-0", starts_ms(0) + HOUR_MS), *again, event("end", starts_ms(4))])
    run_job(job)
    assert ids(forebay.open(job.data).scan("all")) == everything(1, "late-0", "end")
    hand_over(job, 2, 3)
    assert ids(in_table(job)) == once(EVER | {"late-0"})
    assert ids(forebay.open(job.data).scan("all")) == once(EVER | {"late-0", "end"})


@pytest.mark.long
def test_late_copies_alone_make_no_file_for_their_day(job: Job) -> None:
    hand_over(job, 0)
    run_job(job)
    feed(job, "a", [event("a-0-5", starts_ms(0) + 5 * DAY_MS // PER_DAY)])
    run_job(job)
    assert forebay.open(job.data).late().select("id").collect()["id"].to_list() == ["a-0-5"]
    report = run_day([job.data], CONFIG, day(1))
    assert report.late == 1
    assert_handed_over(job, 1)
    found = sorted(path.parent.name for path in (job.data / "batch").rglob("*.parquet"))
    assert found == [f"upload_time_day={day(n)}" for n in range(2)]


@pytest.mark.long
def test_exported_late_events_are_those_of_the_late_table(job: Job, tmp_path: Path) -> None:
    hand_over(job, 0)
    feed(job, "b", [event("late-0", starts_ms(0))])
    run_job(job)
    file = tmp_path / "late.parquet"
    told = invoke(job, "batch", "late", "--export", str(file))
    assert told.returncode == 0, told.stderr
    assert ids(pl.read_parquet(file)) == once(["late-0"])


# -- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("done", "asked", "told"),
    [
        ([0, 1], 0, "as all before is sealed already"),
        ([0], 2, "expected 2024-05-02, the first day that is not handed over"),
        ([], 3, "expected a day that is over"),
    ],
    ids=["going back", "an earlier day is missing", "not over"],
)
def test_a_day_out_of_turn_is_refused(job: Job, done: list[int], asked: int, told: str) -> None:
    hand_over(job, *done)
    record = batch(job)
    with pytest.raises(BadInput, match=told):
        hand_over(job, asked)
    assert batch(job) == record


@pytest.mark.parametrize("start", ["run", "bytewax"])
def test_data_of_a_job_that_was_killed_is_not_sealed_until_it_has_run_again(
    job: Job, start: str
) -> None:
    process = getattr(job, start)()
    until_begun(job, process)
    job.kill(process)
    with pytest.raises(BadInput, match="there is neither: start it again"):
        hand_over(job, 0)
    run_job(job)
    hand_over(job, 0)
    assert_handed_over(job, 0)


def until_begun(job: Job, process: subprocess.Popen[bytes]) -> None:
    """Until the job has the data directory, and what the last run has left no longer counts."""
    layout = Layout(job.data)
    while layout.ended.exists() or not Disk().locked(layout.lock):
        try:
            code = process.wait(LOOK_S)
        except subprocess.TimeoutExpired:
            continue
        pytest.fail(f"the job ended with {code} before that:\n{job.told()}")


def test_without_the_extra_it_is_said_what_is_missing(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("forebay.flows.batch", "forebay.flows.batch_table"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyiceberg.catalog", None)
    monkeypatch.setenv("FOREBAY_DATA_DIR", str(job.data))
    told = CliRunner().invoke(main, ["batch", "run", "--catch-up"])
    assert told.exit_code == 1
    assert "expected the extra batch, got no pyiceberg" in told.output
    assert len(told.output.strip().splitlines()) == 1


def test_a_view_taken_over_a_handoff_is_taken_again(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    hand_over(job, 0)
    old = Boundary()
    answers = iter([old])
    monkeypatch.setattr(
        forebay.query.view,
        "read_boundary",
        lambda *where: next(answers, None) or read_boundary(*where),
    )
    assert forebay.open(job.data).receipt().batch_number == 1


# -- other readers ------------------------------------------------------------------------------


def test_pyarrow_duckdb_and_polars_read_the_same_rows_from_the_table(job: Job) -> None:
    hand_over(job, 1)
    metadata = batch(job).table
    expected = in_table(job).sort("source_partition", "_offset")
    assert len(expected) == len(keys(0) | keys(1))
    import_extension("avro")
    import_extension("iceberg")
    with duckdb.connect() as work:
        work.execute("load avro; load iceberg; set timezone = 'UTC'")
        found = work.sql(f"from iceberg_scan('{metadata}')").to_arrow_table()
    rows = pl.DataFrame(found).select(expected.columns).sort("source_partition", "_offset")
    assert rows.rows() == expected.rows()
    expected = expected.rename({"source_partition": "_partition"})
    below = pl.col("upload_time") < datetime.fromtimestamp(starts_ms(2) / 1000, UTC)
    all_layers = forebay.open(job.data).scan("all").filter(below).collect()
    assert all_layers.select(expected.columns).sort("_partition", "_offset").rows() == (
        expected.rows()
    )


def test_plain_duckdb_and_polars_read_the_chunks_in_their_hive_folders(job: Job) -> None:
    pattern = f"{job.data}/chunks/*/date=*/hour=*/*.parquet"
    view = forebay.open(job.data).view()
    places = sorted(
        pl.read_parquet([file.path for file in view.chunk_files], hive_partitioning=False)
        .select("_partition", "_offset")
        .rows()
    )
    assert len(places) > 1000
    wanted = (
        date(2024, 5, 2),
        len([f for f in view.chunk_files if "date=2024-05-02" in str(f.path)]),
    )
    with duckdb.connect() as work:
        rows = work.sql(f"select _partition, _offset from read_parquet('{pattern}')").fetchall()
        dates = work.sql(
            "select date, count(distinct filename)"
            f" from read_parquet('{pattern}', hive_partitioning = true, filename = true)"
            " where date = '2024-05-02' group by date"
        ).fetchall()
    assert sorted(rows) == places
    assert dates == [wanted]
    frame = pl.scan_parquet(pattern, hive_partitioning=True)
    assert sorted(frame.select("_partition", "_offset").collect().rows()) == places
    hours = frame.filter(pl.col("date") == date(2024, 5, 2)).select("hour").unique().collect()
    assert 1 < len(hours) <= 24


@pytest.mark.parametrize("raw", [True, False])
def test_columns_added_later_answer_from_raw_if_it_is_kept_in_hot_cold_and_batch(
    make_job: MakeJob, raw: bool
) -> None:
    job = a_job(make_job, BLOCKS_PER_CHUNK="1", RAW=str(raw).lower())
    noon_ms = starts_ms(0) + 12 * HOUR_MS
    before = [event(f"k{n}", starts_ms(0) + n * HOUR_MS, shop=f"s{n}") for n in range(12)]
    after = [event(f"k{n + 12}", noon_ms + n * HOUR_MS, shop=f"s{n + 12}") for n in range(13)]
    feed(job, "a", before)
    run_job(job)
    job.settings["COLUMNS"] = '[{"name": "id", "path": "id"}, {"name": "shop", "path": "shop"}]'
    feed(job, "a", after)
    run_job(job)
    expected = {f"k{n}": f"s{n}" if raw or n >= 12 else None for n in range(25)}

    def shops(rows: pl.LazyFrame) -> dict[str, str | None]:
        return dict(rows.select("id", "shop").collect().rows())

    store = forebay.open(job.data)
    assert shops(store.scan()) == expected
    row = store.partitions().row(0, named=True)
    assert min(row["hot_events"], row["cold_events"]) > 0
    hand_over(job, 0)
    assert dict(in_table(job).select("id", "shop").rows()) == {
        key: shop for key, shop in expected.items() if key != "k24"
    }
    assert shops(forebay.open(job.data).scan("all")) == expected
    # One that is declared when the table has the day: the table lacks it, then a file of it does.
    made = '{"name": "made", "path": "at", "type": "time"}'
    job.settings["COLUMNS"] = f"{job.settings['COLUMNS'][:-1]}, {made}]"
    for at_ms in (starts_ms(1) + 5 * HOUR_MS, starts_ms(2)):
        feed(job, "a", [event(f"k{at_ms}", at_ms)])
        run_job(job)
        store = forebay.open(job.data)
        early = pl.col("made") < time_of(noon_ms)
        found = store.scan("all").filter(early).select("id", made=pl.col("made").dt.epoch("ms"))
        assert sorted(found.collect().rows()) == sorted(
            (f"k{n}", starts_ms(0) + n * HOUR_MS) for n in range(12 if raw else 0)
        )
        text = "select count(made) from events_all where upload_time < $1"
        assert store.sql(text, [time_of(starts_ms(1))]).item() == (24 if raw else 0)
        if at_ms == starts_ms(2):
            hand_over(job, 1)
            assert "made" in in_table(job).columns
            assert store.scan("all").filter(early).collect().height == (12 if raw else 0)


# -- what is deleted ----------------------------------------------------------------------------


def going(job: Job) -> list[dict[str, object]]:
    told = invoke(job, "disk", "--dry-run", "--json")
    assert told.returncode == 0, told.stderr
    found: list[dict[str, object]] = orjson.loads(told.stdout[: told.stdout.rindex("]") + 1])
    return found


def chunk_names(job: Job) -> set[tuple[str, str]]:
    """By partition."""
    view = forebay.open(job.data).view()
    return {(p.state.partition, str(chunk.id)) for p in view.partitions for chunk in p.chunks}


@pytest.mark.long
def test_what_the_dry_run_says_goes_is_gone_after_the_next_tick(job: Job) -> None:
    assert going(job) == []
    hand_over(job, 0)
    told = going(job)
    names = {(str(i["partition"]), str(i["name"])) for i in told if i["what"] == "chunk"}
    assert len(names) >= 10
    assert {item["reason"] for item in told} == {"handed off"}
    assert names <= chunk_names(job)
    run_job(job)
    assert not chunk_names(job) & names
    assert forebay.open(job.data).partitions()["handed_off"].sum() == sum(
        int(str(item["rows"])) for item in told
    )
    assert_handed_over(job, 0)
    assert_why_looks_in_the_table(job)


def assert_why_looks_in_the_table(job: Job) -> None:
    """For what is deleted: `a-0-10` was sent twice, `a-9` never."""
    store = forebay.open(job.data)
    kept, copy = store.why({"id": "a-0-10"}).copies
    assert (kept.what, kept.where, kept.handed_off) == ("event", forebay.query.why.TABLE, True)
    assert kept.upload_time == datetime(2024, 5, 1, 1, tzinfo=UTC)
    assert (copy.what, copy.of, copy.certain) == ("duplicate", ("a.ndjson", kept.offset), True)
    (here,) = store.why({"id": "a-1-10"}).copies[:1]
    assert (here.handed_off, (here.where or "").split(" ")[0]) == (False, "chunk")
    told = [
        CliRunner().invoke(main, ["why", key], env=job.environment).output
        for key in ("a-0-10", "a-9")
    ]
    assert "in the batch layer's table; handed off" in told[0].splitlines()[0]
    assert told[1] == (
        "never seen, as far as is known here; events uploaded before 2024-05-02 00:00:00 are"
        " handed off to the batch layer, whose table does not have this key\n"
    )
    with pytest.MonkeyPatch.context() as patch:  # a host without the extra
        patch.setattr("forebay.query.iceberg.find_spec", lambda name: None)
        answer = store.why({"id": "a-1-10"})
        assert (answer.table, answer.copies[:1]) == (False, (here,))


def test_chunks_older_than_the_retention_go_whether_handed_over_or_not(job: Job) -> None:
    job.settings["RETENTION"] = "1d"
    told = going(job)
    assert {item["reason"] for item in told} == {"expired"}
    run_job(job)
    assert forebay.open(job.data).partitions()["expired"].sum() == sum(
        int(str(item["rows"])) for item in told
    )
    left = going(job)  # the files that wait for the grace period
    assert left
    assert {(item["what"], item["reason"]) for item in left} == {("file", "no catalog names it")}
    left = forebay.open(job.data).scan().select("upload_time").min().collect().item()
    oldest = datetime.fromtimestamp((starts_ms(2) - HOUR_MS) / 1000, UTC)
    assert oldest <= left <= oldest + timedelta(hours=4)


def test_beyond_retention_bytes_all_but_the_last_day_goes(job: Job) -> None:
    """Where the last day alone is larger than the bound."""
    letters = random.Random(7)
    large = [letters.randbytes(450_000).hex() for _ in range(4)]
    feed(job, "a", (event(key, starts_ms(3) + HOUR_MS) for key in large))
    run_job(job)
    job.settings["RETENTION_BYTES"] = "1MiB"
    told = [item for item in going(job) if item["what"] != "file"]
    assert {item["reason"] for item in told} == {"expired"}
    run_job(job)
    run_job(job)  # what was evicted in a run is deleted when that is surely committed
    store = forebay.open(job.data)
    found = store.partitions()
    assert found["expired"].sum() == sum(int(str(item["rows"])) for item in told)
    times = store.scan().select("upload_time").collect()["upload_time"]
    day, newest = timedelta(days=1), found["stream_time"].max()
    assert isinstance(newest, datetime)
    assert newest - day - timedelta(hours=4) <= times.min() <= newest - day  # type: ignore[operator]
    assert "the last day is never deleted" in job.told()


@pytest.mark.parametrize(("after", "warned"), [("36h", True), ("4d", False)])
def test_a_batch_layer_that_is_late_is_warned_of(
    make_job: MakeJob, after: str, warned: bool
) -> None:
    job = a_job(make_job, BATCH_LATE=after)
    feed(job, "a", messages("a"))
    run_job(job)
    assert "batch layer" not in job.told(), "there is none"
    assert invoke(job, "batch", "seal", "--through", str(day(1))).returncode == 0
    run_job(job)
    assert ("the batch layer is late" in job.told()) == warned


def test_a_handoff_of_another_folder_leaves_nothing_in_it(tmp_path: Path) -> None:
    """Nor in one that is not refused: all are looked at before any is locked."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder in (ours, theirs):
        folder.mkdir()
    (theirs / "letter.txt").write_text("dear")
    with (
        pytest.raises(BadInput, match="theirs: expected a data directory"),
        Handoff([ours, theirs]),
    ):
        pass
    assert list(ours.iterdir()) == []
    assert [path.name for path in theirs.iterdir()] == ["letter.txt"]


# -- bounds -------------------------------------------------------------------------------------

EVENTS = int(os.environ.get("BATCH_EVENTS", "300000"))
PEAK_BYTES = 700 << 20


@pytest.mark.executed
@pytest.mark.long
def test_memory_of_a_run_is_bounded_whatever_the_day(make_job: MakeJob) -> None:
    own = {"BLOCK_SPAN": "5m", "DEDUP_WINDOW": "10m", "BLOCKS_PER_CHUNK": "6", "RAW": "true"}
    job = a_job(make_job, **own, BATCH__MEMORY="64MiB", BATCH_ROWS="5000", GRACE="10m")
    pad = "x" * 380
    step_us = 86_000_000_000 // EVENTS
    lines = (
        event(f"{n:012d}", starts_ms(0) + n * step_us // 1000, pad=f"{n * 7919:x}{pad}")
        for n in range(EVENTS)
    )
    feed(job, "a", lines)
    feed(job, "a", [event("end", starts_ms(1))])
    run_job(job)
    done = subprocess.run(
        [sys.executable, "-m", "tests.batch_run", "batch", "run", "--day", str(day(0)), "--json"],
        env={**job.environment, "BATCH_SLICE_ROWS": "50000"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *_, report, peak = done.stdout.splitlines()
    print(report, peak)
    assert orjson.loads(report)["rows"] == EVENTS
    assert int(peak.split()[1]) < PEAK_BYTES


# -- several nodes, and one's own batch layer ---------------------------------------------------


@pytest.fixture
def other(make_job: MakeJob) -> Job:
    """Another node, with a partition of its own."""
    job = a_job(make_job)
    feed(job, "c", (event(f"c-{n}", starts_ms(n) + HOUR_MS) for n in range(4)))
    run_job(job)
    return job


def test_nodes_are_handed_over_as_one(job: Job, other: Job) -> None:
    roots = [job.data, other.data]
    for number in range(2):
        run_day(roots, CONFIG, day(number))
    below = {key for number in range(2) for key in keys(number)} | {"c-0", "c-1"}
    assert ids(in_table(job)) == once(below)
    assert in_table(other).height == len(below)
    expected = everything(1)
    expected.update(f"c-{n}" for n in range(4))
    assert ids(forebay.open(*roots).scan("all")) == expected


@pytest.mark.long
def test_a_handoff_that_was_completed_on_one_node_only_is_ended_by_the_next_run(
    job: Job, other: Job
) -> None:
    roots = [job.data, other.data]
    both = [option for root in roots for option in ("--data-dir", str(root))]
    run_day(roots, CONFIG, day(0))
    with stopped(job, "halfway", "--day", str(day(1)), *both):
        pass
    ends = [batch(one).covered_until_ms for one in (job, other)]
    assert ends == [starts_ms(2), starts_ms(1)]
    expected = everything(1)
    expected.update(f"c-{n}" for n in range(4))
    assert ids(forebay.open(*roots).scan("all")) == expected
    assert missing_days(roots) == [day(1), day(2)]
    run_day(roots, CONFIG, day(1))
    run_day(roots, CONFIG, day(2))
    assert {batch(one).covered_until_ms for one in (job, other)} == {starts_ms(3)}


@pytest.mark.long
def test_a_node_with_a_boundary_of_its_own_is_refused_before_anything_is_sealed(
    job: Job, other: Job
) -> None:
    hand_over(job, 0)
    with pytest.raises(BadInput, match="one boundary on all nodes"):
        run_day([job.data, other.data], CONFIG, day(1))
    assert batch(other) == Boundary()
    run_day([other.data], CONFIG, day(0))
    run_day([job.data, other.data], CONFIG, day(1))
    assert ids(forebay.open(job.data, other.data).scan())["c-2"] == 1


def test_what_was_not_sealed_is_not_completed(job: Job) -> None:
    with Handoff([job.data]) as handoff:
        with pytest.raises(BadInput, match="expected `seal` to have returned"):
            handoff.complete(0, late=True)
        handoff.seal(starts_ms(1))
        handoff.complete(0, late=True)
    assert batch(job).covered_until_ms == starts_ms(1)


def test_a_seal_within_the_next_day_is_completed_with_the_day(job: Job) -> None:
    hand_over(job, 0)
    noon_ms = starts_ms(1) + DAY_MS // 2
    with Handoff([job.data]) as handoff:
        handoff.seal(noon_ms)
    hand_over(job, 1)
    assert_handed_over(job, 1)


@pytest.mark.long
def test_an_own_batch_layer_reads_what_is_sealed_with_the_late_events(job: Job) -> None:
    assert invoke(job, "batch", "complete", "--through", "2024-05-02").returncode == 0
    feed(job, "a", [event("late", starts_ms(0) + HOUR_MS)])
    run_job(job)
    assert invoke(job, "batch", "seal", "--through", "2024-05-03").returncode == 0
    feed(job, "a", [event("too late", starts_ms(1) + HOUR_MS)])
    run_job(job)
    found = forebay.open(job.data).sql("select id from events_sealed")
    assert set(found["id"]) == keys(1) | {"late"}
    done = invoke(job, "batch", "complete", "--through", "2024-05-03", "--late")
    assert done.returncode == 0
    assert ids(forebay.open(job.data).late()) == once(["too late"])


def test_two_handoffs_in_one_process_are_refused_and_keep_their_locks(job: Job) -> None:
    with Handoff([str(job.data)]):
        for _ in range(2):
            with pytest.raises(BadInput, match="no other batch run"), Handoff([job.data]):
                pass
