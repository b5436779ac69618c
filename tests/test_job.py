"""The real job over files: launched in every documented way, stopped, killed, rescaled.

After each story the events that a query finds, and every counter, are those of the oracle.
"""

from __future__ import annotations

import gzip
import os
import random
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import orjson
import polars as pl
import pytest
import zstandard

import forebay
from forebay.cli.load import LoadSpec
from forebay.flows.cluster import BUILT, GO
from forebay.flows.recovery import begin, take_data_directory
from forebay.storage.base.errors import PERMANENT, MissingFile
from forebay.storage.base.layout import Layout
from tests import engine
from tests.job import NOW_MS, Generated, Job, assert_exact, children, generated, taken

MakeJob = Callable[..., Job]
SPEC = LoadSpec(
    events=60_000,
    partitions=3,
    seed=7,
    span_ms=45 * 60_000,
    late=0.002,
    broken=0.01,
    duplicates=0.05,
)
SAMPLE = Path(__file__).parent / "data" / "github-events-2021-07-21.ndjson.gz"


@pytest.fixture(scope="module")
def load() -> Generated:
    return generated(SPEC, "part-{:05d}.ndjson", NOW_MS)


@pytest.fixture
def job(load: Generated, make_job: MakeJob, tmp_path: Path) -> Job:
    """A job over the load's files, with small batches and chunks so that much happens."""
    events = tmp_path / "events"
    events.mkdir()
    for name, messages in load.messages.items():
        (events / name).write_bytes(b"\n".join(messages) + b"\n")
    return make_job(
        FILES__PATH=str(events), BATCH_ROWS="500", BLOCKS_PER_CHUNK="2", EPOCH_INTERVAL="100ms"
    )


@pytest.mark.parametrize(
    "workers",
    [pytest.param(1, marks=pytest.mark.long), pytest.param(2, marks=pytest.mark.executed)],
)
def test_forebay_run_gives_the_oracles_events(job: Job, load: Generated, workers: int) -> None:
    assert job.ends(job.run(workers)) == 0, job.told()
    assert_exact(job, load)
    assert job.partitions()["chunks"].sum() > 3


@pytest.mark.parametrize(
    "options",
    [
        pytest.param((), marks=pytest.mark.long),
        pytest.param(("-w", "2"), marks=pytest.mark.executed),
    ],
    ids=["one worker", "two threads"],
)
def test_bytewax_run_gives_the_oracles_events(
    job: Job, load: Generated, options: tuple[str, ...]
) -> None:
    assert job.ends(job.bytewax(*options)) == 0, job.told()
    assert_exact(job, load)


@pytest.mark.long
@pytest.mark.parametrize("start", ["run", pytest.param("bytewax", marks=pytest.mark.long)])
def test_sigterm_ends_with_a_snapshot_and_exit_0(job: Job, load: Generated, start: str) -> None:
    launch = getattr(job, start)
    first = launch()
    job.until(first, lambda found: taken(found) > load.count / 4)
    assert job.stop(first) == 0, job.told()
    stopped = job.partitions()
    assert taken(stopped) < load.count
    second = launch()
    resumed = job.until(second, lambda found: taken(found) > 0)
    assert taken(resumed) >= taken(stopped)
    assert job.ends(second) == 0, job.told()
    assert_exact(job, load)


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.long)])
def test_kills_at_random_moments_and_rescaling_lose_and_double_nothing(
    job: Job, load: Generated, seed: int
) -> None:
    print("seed", seed)
    rng = random.Random(seed)
    for workers in (1, 2, 1, 2):
        process = job.run(workers)
        goal = min(taken(job.partitions()) + rng.randrange(1, load.count // 4), load.count)
        job.until(process, lambda found, goal=goal: taken(found) >= goal)  # type: ignore[misc]
        job.kill(process)
    assert job.ends(job.run()) == 0, job.told()
    assert_exact(job, load)


@pytest.mark.long
def test_a_killed_worker_makes_all_start_again(job: Job, load: Generated) -> None:
    process = job.run(2)
    job.until(process, lambda found: taken(found) > load.count / 4)
    victim = children(process.pid)[0]
    os.kill(victim, signal.SIGKILL)
    assert job.ends(process) == 0, job.told()
    assert "all restart" in job.told()
    assert_exact(job, load)


@pytest.mark.long
@pytest.mark.executed
def test_workers_end_with_their_supervisor(job: Job, load: Generated) -> None:
    process = job.run(2)
    job.until(process, lambda found: taken(found) > 0)
    workers = [os.pidfd_open(child) for child in children(process.pid)]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    for worker in workers:
        ended, _, _ = select.select([worker], [], [], 30)
        os.close(worker)
        assert ended
    assert job.ends(job.run()) == 0, job.told()
    assert_exact(job, load)


@pytest.mark.long
def test_a_second_job_on_the_same_data_is_refused(job: Job, load: Generated) -> None:
    first = job.run()
    job.until(first, lambda found: taken(found) > 0)
    first.send_signal(signal.SIGSTOP)
    for worker in children(first.pid):
        os.kill(worker, signal.SIGSTOP)
    second = Job(job.folder / "second", {**job.settings, "DATA_DIR": str(job.data)})
    code = second.ends(second.run())
    assert code == PERMANENT
    assert "another job runs on this data directory" in second.told()
    job.kill(first)
    assert job.ends(job.run()) == 0, job.told()
    assert_exact(job, load)


def test_data_without_its_recovery_store_is_refused(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.manifest("p00").parent.mkdir(parents=True)
    layout.manifest("p00").touch()
    layout.ended.touch()
    with pytest.raises(MissingFile, match="expected the recovery store of the data"):
        take_data_directory(layout)
    assert layout.ended.exists()
    layout.recovery.mkdir()
    (layout.recovery / "part-0.sqlite3").touch()
    take_data_directory(layout).close()
    assert layout.ended.exists()
    begin(layout)
    assert not layout.ended.exists()


@pytest.mark.long
def test_another_dedup_key_is_a_clear_error_and_changes_nothing(job: Job, load: Generated) -> None:
    assert job.ends(job.run()) == 0, job.told()
    changed = Job(job.folder / "changed", {**job.settings, "DATA_DIR": str(job.data)})
    changed.settings["DEDUP_KEY"] = '["device_id"]'
    assert changed.ends(changed.run()) == PERMANENT
    assert "dedup_key: partition" in changed.told()
    assert_exact(job, load)


def test_a_column_added_later_is_read_from_raw_for_old_events(
    make_job: MakeJob, tmp_path: Path
) -> None:
    events = tmp_path / "events"
    events.mkdir()
    lines = [_event(number, number * 20_000) for number in range(200)]
    (events / "a.ndjson").write_bytes(b"".join(lines[:100]))
    job = make_job(FILES__PATH=str(events), BLOCKS_PER_CHUNK="1")
    assert job.ends(job.run()) == 0, job.told()
    (events / "a.ndjson").write_bytes(b"".join(lines))
    job.settings["COLUMNS"] = '[{"name": "colour", "path": "event_properties.colour"}]'
    assert job.ends(job.run()) == 0, job.told()
    found = forebay.open(job.data).scan().sort("_offset").select("_offset", "colour").collect()
    assert found["_offset"].to_list() == list(range(200))
    assert found["colour"].to_list() == ["red"] * 200


def test_a_file_that_is_gone_and_a_trace_that_a_killed_start_did_not_leave_stop_no_job(
    make_job: MakeJob, tmp_path: Path
) -> None:
    events = tmp_path / "events"
    events.mkdir()
    lines = [_event(number, number) for number in range(30)]
    (events / "a.ndjson").write_bytes(b"".join(lines[:10]))
    (events / "b.ndjson").write_bytes(b"".join(lines[20:]))
    job = make_job(FILES__PATH=str(events))
    assert job.ends(job.run()) == 0, job.told()
    traces = Layout(job.data).sources
    (traces / "a.ndjson").unlink()
    (events / "a.ndjson").write_bytes(b"".join(lines[:20]))
    (events / "b.ndjson").unlink()
    assert job.ends(job.run()) == 0, job.told()
    assert sorted(path.name for path in traces.iterdir()) == ["a.ndjson", "b.ndjson"]
    assert job.partitions()["accepted"].to_list() == [20, 10]


def test_copies_in_different_files_meet_when_divided_by_hash(
    make_job: MakeJob, tmp_path: Path
) -> None:
    events = tmp_path / "events"
    events.mkdir()
    lines = [_event(number, number * 100) for number in range(2000)]
    (events / "a.ndjson").write_bytes(b"".join(lines[:1500]))
    (events / "b.ndjson").write_bytes(b"".join(lines[500:]))
    job = make_job(FILES__PATH=str(events), HASH_PARTITIONS="3", BATCH_ROWS="100")
    assert job.ends(job.run(2)) == 0, job.told()
    partitions = job.partitions()
    assert partitions["accepted"].sum() == 2000
    assert partitions["duplicates"].sum() == 1000
    assert (
        forebay.open(job.data).sql("select count(distinct insert_id) as n from events").item()
        == 2000
    )
    job.settings["HASH_PARTITIONS"] = "4"
    assert job.ends(job.run()) == PERMANENT
    assert "hash_partitions:" in job.told()


@pytest.mark.few(1)
@pytest.mark.parametrize("packed", ["ndjson", "ndjson.gz", "ndjson.zst"])
def test_real_github_events_come_out_once_each(
    make_job: MakeJob, tmp_path: Path, packed: str
) -> None:
    lines = gzip.decompress(SAMPLE.read_bytes()).splitlines()
    text = b"\n".join([*lines, *lines[300:500]])
    packers: dict[str, Callable[[bytes], bytes]] = {
        "ndjson": bytes,
        "ndjson.gz": gzip.compress,
        "ndjson.zst": zstandard.compress,
    }
    events = tmp_path / f"github.{packed}"
    events.write_bytes(packers[packed](text))
    job = make_job(FILES__PATH=str(events), SCHEMA="github", BLOCKS_PER_CHUNK="3")
    assert job.ends(job.run()) == 0, job.told()
    documents = {(one := orjson.loads(line))["id"]: one for line in lines}
    found = forebay.open(job.data).scan().select("id", "type", "actor_login", "repo_id", "raw")
    rows = found.collect().to_dicts()
    assert sorted(row["id"] for row in rows) == sorted(documents)
    for row in rows:
        event = documents[row["id"]]
        assert (row["type"], row["actor_login"]) == (event["type"], event["actor"]["login"])
        assert row["repo_id"] == event["repo"]["id"]
        assert orjson.loads(row["raw"]) == event
    totals = job.partitions().select(pl.col("duplicates", "rejects").sum()).row(0)
    assert totals == (len(lines) + 200 - len(documents), 0)


def _event(number: int, after_ms: int) -> bytes:
    minute, ms = divmod(after_ms, 60_000)
    uploaded = f"2024-05-01 {minute // 60:02d}:{minute % 60:02d}:{ms / 1000:06.3f}"
    event = {
        "device_id": f"d{number % 10}",
        "$insert_id": f"i{number}",
        "event_type": "click",
        "server_upload_time": uploaded,
        "event_properties": {"colour": "red"},
    }
    return orjson.dumps(event) + b"\n"


WATCHED = """
import gc
from forebay.flows import worker

def cluster_main(*_, **__):
    print(gc.isenabled(), gc.get_threshold()[0] == worker.GARBAGE_OBJECTS)

def build(*_):
    print(gc.isenabled())

worker.cluster_main = cluster_main
from forebay.flows import realtime
realtime.build = build
raise SystemExit(worker.main(0, []))
"""


@pytest.mark.long
def test_worker_collects_garbage_once_it_runs_and_not_before(
    make_job: MakeJob, tmp_path: Path
) -> None:
    engine.need()
    job = make_job(FILES__PATH=str(tmp_path))
    (job.data / "recovery").mkdir(parents=True)
    ours, theirs = socket.socketpair()
    with (
        ours,
        theirs,
        subprocess.Popen(
            [sys.executable, "-c", WATCHED],
            env=job.environment,
            stdin=theirs.fileno(),
            stdout=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        theirs.close()
        assert ours.recv(1) == BUILT
        ours.send(GO)
        assert process.stdout is not None
        assert process.stdout.read() == "False\nTrue True\n"
