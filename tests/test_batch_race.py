"""Two batch runs on one table at once, each on a data directory of its own, so that no lock is in
the way: two hosts, or a copy that was restored. Real processes, stopped at each step of a commit;
and catalogs whose answer is lost. However it ends, the table has each row once.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest
from pyiceberg.catalog import load_catalog
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import CommitFailedException, CommitStateUnknownException
from pyiceberg.table import CommitTableResponse, Table

import forebay
from forebay.flows.batch import run_day
from forebay.flows.batch_table import SEAL, EventTable, own_catalog
from forebay.flows.sections import BatchSettings
from forebay.storage.base.errors import BadInput, Corruption
from forebay.storage.base.layout import Layout
from forebay.storage.formats.boundary import Boundary
from forebay.storage.handoff import Handoff
from tests.days import (
    CONFIG,
    MakeJob,
    a_job,
    batch,
    day,
    everything,
    ids,
    invoke,
    keys,
    once,
    starts_ms,
    stopped,
)
from tests.job import Job

DAY = ("--day", str(day(0)))
Make = Callable[[], object]
Answer = Callable[[Make], object]


@pytest.fixture
def place(tmp_path: Path) -> dict[str, str]:
    """A catalog that all data directories share."""
    (tmp_path / "shared").mkdir()
    return own_catalog(tmp_path / "shared")


@pytest.fixture
def pair(filled: Path, make_job: MakeJob, place: dict[str, str]) -> tuple[Job, Job]:
    """Two data directories with the same events; of neither a day is sealed."""
    jobs = a_job(make_job), a_job(make_job)
    for job in jobs:
        shutil.copytree(filled, job.folder)
        job.settings["BATCH__CATALOG"] = orjson.dumps(place).decode()
    return jobs


@pytest.fixture
def twins(pair: tuple[Job, Job]) -> tuple[Job, Job]:
    """The first day is sealed, by the same seal."""
    first, second = pair
    with Handoff([first.data]) as handoff:
        handoff.seal(starts_ms(1))
    shutil.copy(Layout(first.data).batch, Layout(second.data).batch)
    return pair


def table(place: dict[str, str]) -> Table:
    return load_catalog("forebay", **place).load_table(CONFIG.table)


def assert_once(place: dict[str, str], *jobs: Job) -> None:
    """The table has each row of the day once, no file is left over, and each data directory has
    handed the day over to it."""
    found = table(place)
    assert ids(_rows(found)) == once(keys(0))
    seals = [s.summary[SEAL] for s in found.snapshots() if s.summary and s.summary.get(SEAL)]
    assert len(seals) == len(set(seals)) > 0
    named = {task.file.file_path.removeprefix("file://") for task in found.scan().plan_files()}
    assert {str(path) for path in Path(found.location()[7:]).rglob("*.parquet")} == named
    for job in jobs:
        assert batch(job).covered_until_ms == starts_ms(1)
        assert ids(forebay.open(job.data, iceberg=place).scan("all")) == everything(0)
        assert not list((job.data / "batch" / "runs").glob("*"))


def _rows(found: Table) -> pl.DataFrame:
    return pl.DataFrame(found.scan().to_arrow())


def go_on(process: subprocess.Popen[str]) -> None:
    """From where it is stopped."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def _long(value: object) -> Any:
    return pytest.param(value, marks=pytest.mark.long)


# -- two runs of one seal -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "step", ["sealed", *map(_long, ("writing", "written", "checked", "committed"))]
)
def test_a_run_that_is_overtaken_at_any_step_ends_well_and_adds_nothing(
    twins: tuple[Job, Job], place: dict[str, str], step: str
) -> None:
    slow, fast = twins
    with stopped(slow, step, *DAY) as process:
        done = invoke(fast, "batch", "run", *DAY, "--json")
        assert done.returncode == 0, done.stderr
        go_on(process)
        assert process.wait(60) == 0
    outcome = "taken up" if step == "committed" else "written"
    assert orjson.loads(done.stdout.splitlines()[0])["outcome"] == outcome
    assert_once(place, slow, fast)


@pytest.mark.long
@pytest.mark.parametrize(
    "step", ["making", "sealed", _long("writing"), _long("written"), "checked"]
)
def test_of_two_runs_that_leave_a_step_at_the_same_time_both_end_well(
    twins: tuple[Job, Job], place: dict[str, str], step: str
) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(stopped(twins[0], step, *DAY))
        second = stack.enter_context(stopped(twins[1], step, *DAY))
        for process in (first, second):
            go_on(process)
        codes = [process.wait(60) for process in (first, second)]
    assert codes == [0, 0]
    assert_once(place, *twins)


@pytest.mark.long
@pytest.mark.parametrize("step", [_long("writing"), "checked", "committed"])
def test_after_an_overtaken_run_was_killed_the_next_run_removes_what_it_left(
    twins: tuple[Job, Job], place: dict[str, str], step: str
) -> None:
    slow, fast = twins
    with stopped(slow, step, *DAY):
        assert invoke(fast, "batch", "run", *DAY).returncode == 0
    done = invoke(slow, "batch", "run", *DAY, "--json")
    assert done.returncode == 0, done.stderr
    assert orjson.loads(done.stdout.splitlines()[0])["outcome"] == "taken up"
    assert_once(place, slow, fast)


# -- two runs in one directory, whose locks keep no one out --------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("killed", [_long(False), True], ids=["goes on", "killed"])
@pytest.mark.parametrize("step", [*map(_long, ("sealed", "writing", "written")), "checked"])
def test_two_runs_in_one_directory_leave_no_file_and_no_note(
    twins: tuple[Job, Job],
    place: dict[str, str],
    step: str,
    killed: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BATCH_UNLOCKED", "1")
    job, _ = twins
    with stopped(job, step, *DAY) as process:
        done = invoke(job, "batch", "run", *DAY)
        assert done.returncode == 0, done.stderr
        if not killed:
            go_on(process)
            assert process.wait(60) in (0, 1)
    assert_once(place, job)


# -- two seals of one day -----------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("step", ["sealed", _long("written"), "checked"])
def test_a_restored_copy_that_seals_a_day_anew_adds_none_of_its_rows_again(
    pair: tuple[Job, Job], place: dict[str, str], step: str
) -> None:
    slow, fast = pair
    with stopped(slow, step, *DAY) as process:
        done = invoke(fast, "batch", "run", *DAY, "--json")
        assert done.returncode == 0, done.stderr
        go_on(process)
        assert process.wait(60) == 0
    assert_once(place, slow, fast)


# -- answers that are lost ----------------------------------------------------------------------


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch) -> list[Answer]:
    """How the catalog answers the next commits that add rows."""
    answers: list[Answer] = []
    commit = SqlCatalog.commit_table

    def answered(self: SqlCatalog, at: Table, requirements: Any, updates: Any) -> object:
        adds = "add-snapshot" in {update.action for update in updates}
        make = partial(commit, self, at, requirements, updates)
        return answers.pop(0)(make) if adds and answers else make()

    monkeypatch.setattr(SqlCatalog, "commit_table", answered)
    return answers


def lost(error: Exception, *, made: bool) -> Answer:
    def answer(make: Make) -> object:
        if made:
            make()
        raise error

    return answer


UNKNOWN = CommitStateUnknownException("502 Bad Gateway")


@pytest.mark.few(2)
@pytest.mark.parametrize(
    "error", [UNKNOWN, ConnectionResetError("reset by peer")], ids=["unknown", "reset"]
)
@pytest.mark.parametrize("made", [True, False])
def test_a_commit_whose_answer_was_lost_lands_once(
    pair: tuple[Job, Job],
    place: dict[str, str],
    commits: list[Answer],
    error: Exception,
    made: bool,
) -> None:
    commits.append(lost(error, made=made))
    report = run_day([pair[0].data], _config(place), day(0))
    assert (report.rows, report.outcome) == (len(keys(0)), "written")
    assert commits == []
    assert_once(place, pair[0])


@pytest.mark.long
def test_a_catalog_that_never_takes_the_commit_is_told_and_a_later_run_does_the_day(
    pair: tuple[Job, Job], place: dict[str, str], commits: list[Answer]
) -> None:
    commits += [lost(CommitFailedException("always"), made=False)] * 20
    before = batch(pair[0])
    with pytest.raises(BadInput, match=r"expected the catalog .* got Commit.*always"):
        run_day([pair[0].data], _config(place), day(0))
    assert len(commits) == 14
    assert batch(pair[0]).covered_until_ms == before.covered_until_ms is None
    commits.clear()
    assert run_day([pair[0].data], _config(place), day(0)).outcome == "written"
    assert_once(place, pair[0])


def test_a_catalog_whose_reads_never_show_the_commit_is_reported(
    pair: tuple[Job, Job], place: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EventTable, "landed", lambda *_: None)
    monkeypatch.setattr(SqlCatalog, "commit_table", _taken_unseen(SqlCatalog.commit_table))
    with pytest.raises(BadInput, match=r"got no error, but a table without it, 6 times"):
        run_day([pair[0].data], _config(place), day(0))
    assert batch(pair[0]).covered_until_ms is None


def test_a_commit_that_is_taken_at_the_last_try_is_found(
    pair: tuple[Job, Job], place: dict[str, str], commits: list[Answer]
) -> None:
    commits += [lost(CommitFailedException("busy"), made=False)] * 5
    assert run_day([pair[0].data], _config(place), day(0)).outcome == "written"
    assert_once(place, pair[0])


@pytest.mark.long
def test_a_commit_that_was_refused_after_it_landed_is_corruption_and_not_completed(
    pair: tuple[Job, Job], place: dict[str, str], commits: list[Answer]
) -> None:
    """pyiceberg deletes the manifests of a commit that it takes for refused."""
    commits.append(lost(CommitFailedException("409 from a proxy that asked twice"), made=True))
    with pytest.raises(Corruption, match=r"to be readable, got .*; roll the table back"):
        run_day([pair[0].data], _config(place), day(0))
    assert batch(pair[0]).covered_until_ms is None
    assert set(ids(forebay.open(pair[0].data).scan())) >= keys(0)
    load_catalog("forebay", **place).drop_table(CONFIG.table)  # nothing is there before it
    run_day([pair[0].data], _config(place), day(0))
    assert_once(place, pair[0])


def test_a_seal_that_landed_twice_is_corruption_and_not_completed(
    pair: tuple[Job, Job], place: dict[str, str]
) -> None:
    job = pair[0]
    run_day([job.data], _config(place), day(0))
    found = table(place)
    snapshot = found.current_snapshot()
    assert snapshot is not None
    assert snapshot.summary is not None
    (file,) = [task.file.file_path for task in found.scan().plan_files()]
    shutil.copy(file.removeprefix("file://"), f"{file.removeprefix('file://')}.again")
    found.add_files([f"{file}.again"], snapshot_properties={SEAL: str(snapshot.summary[SEAL])})
    done = batch(job)
    Layout(job.data).batch.write_bytes(Boundary(seal=done.seal).encode())
    with pytest.raises(Corruption, match=r"expected one snapshot with seal .* more than once"):
        run_day([job.data], _config(place), day(0))
    assert batch(job).covered_until_ms is None


@pytest.mark.long
def test_a_day_that_was_rolled_back_before_it_was_completed_is_written_again(
    pair: tuple[Job, Job], place: dict[str, str]
) -> None:
    job = pair[0]
    run_day([job.data], _config(place), day(0))
    with stopped(job, "committed", "--day", str(day(1))):
        pass
    found = table(place)
    head = found.current_snapshot()
    assert head is not None
    assert head.parent_snapshot_id is not None
    found.manage_snapshots().rollback_to_snapshot(head.parent_snapshot_id).commit()
    assert ids(_rows(table(place))) == once(keys(0))
    assert run_day([job.data], _config(place), day(1)).outcome == "written"
    assert ids(_rows(table(place))) == once(keys(0) | keys(1))


def _config(place: dict[str, str]) -> BatchSettings:
    return CONFIG.model_copy(update={"catalog": place})


def _taken_unseen(commit: Callable[..., Any]) -> Callable[..., Any]:
    """Commits that add rows are taken without an error, and seen by no one."""

    def taken(self: SqlCatalog, at: Table, requirements: Any, updates: Any) -> object:
        if "add-snapshot" not in {update.action for update in updates}:
            return commit(self, at, requirements, updates)
        return CommitTableResponse(metadata=at.metadata, metadata_location=at.metadata_location)

    return taken
