"""The supervisor over real processes that do as they are told: stops, failures, another start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from forebay.flows import cluster
from forebay.flows.cluster import Cluster
from forebay.flows.recovery import begin
from forebay.storage.base.errors import INCOMPLETE, PERMANENT
from forebay.storage.base.layout import Layout
from tests import engine
from tests.job import Job, until_written

engine.need()

MakeJob = Callable[..., Job]
LONG_S = 30.0


class Run:
    """A supervisor in a process of its own, over sham workers."""

    def __init__(self, folder: Path, sham: str) -> None:
        self.data = folder / "data"
        self.done = folder / "done"
        self.log = folder / "log"
        self.done.touch()
        workers = sham.count(",") + 1
        code = (
            "import logging, signal, sys\n"
            "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # whatever started the tests ignores
            "from pathlib import Path\n"
            "from forebay.flows.cluster import Cluster\n"
            "logging.basicConfig(level=logging.INFO)\n"
            f"sys.exit(Cluster(Path({str(self.data)!r}), {workers},"
            " module='tests.sham_worker').run())\n"
        )
        environment = {**os.environ, "SHAM": sham, "SHAM_LOG": str(self.done)}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code], env=environment, stderr=log, start_new_session=True
            )

    def until(self, text: str, count: int = 1) -> None:
        """Wait until the workers have done something so often."""
        until_written(self.done, text, count, self.process)

    def until_said(self, text: str) -> None:
        """Wait until the supervisor has said something."""
        until_written(self.log, text, 1, self.process)

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(LONG_S)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[[str], Run]]:
    runs = []

    def make(sham: str) -> Run:
        runs.append(Run(tmp_path, sham))
        return runs[-1]

    yield make
    for one in runs:
        if one.process.poll() is None:
            os.killpg(one.process.pid, signal.SIGKILL)
        one.process.wait()


MakeRun = Callable[[str], Run]


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("sham", "code", "well"),
    [
        ("build stop:0,build stop:0", 0, True),
        ("build stop:0,build stop:78", PERMANENT, False),
        ("build stop:1,build stop:78", PERMANENT, False),
        ("build stop:0,build stop:1", 1, False),
        ("build stop:101", 1, False),
        ("build stop:0,build stop:65", INCOMPLETE, True),
    ],
)
def test_exit_code_of_a_stop_tells_whether_it_ended_with_a_last_snapshot(
    sham: str, code: int, well: bool, run: MakeRun
) -> None:
    running = run(sham)
    running.until("runs", sham.count("build"))
    assert running.stop() == code, running.log.read_text()
    assert Layout(running.data).ended.exists() == well
    told = running.log.read_text()
    assert ("without a last snapshot" in told) == (code == 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_ctrl_c_and_a_closed_terminal_stop_gracefully(number: int, run: MakeRun) -> None:
    running = run("build stop:0")
    running.until("runs")
    assert running.stop(number) == 0, running.log.read_text()
    assert Layout(running.data).ended.exists()
    assert "0 stops" in running.done.read_text()


@pytest.mark.parametrize("ended", [True, False])
def test_a_stop_before_all_workers_have_built_is_at_once_and_leaves_all_as_it_was(
    ended: bool, tmp_path: Path, run: MakeRun
) -> None:
    """One waits for a broker, the other to be let go: a peer that came would wait for ever. To kill
    them after STOP_S would take longer than LONG_S."""
    assert cluster.STOP_S > LONG_S
    layout = Layout(tmp_path / "data")
    layout.root.mkdir()
    if ended:
        layout.ended.touch()
    running = run("hang,build stop:0")
    running.until("hangs")
    assert running.stop() == 0
    assert "runs" not in running.done.read_text()
    assert layout.ended.exists() == ended


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("end", "said"),
    [
        ("exit:1", "ended with 1"),
        ("kill:9", "was ended by signal 9 (Killed), as the system does when memory runs out"),
        ("kill:11", "was ended by signal 11 (Segmentation fault)"),
    ],
)
def test_a_stop_while_the_job_waits_to_start_again_is_no_success(
    end: str, said: str, run: MakeRun
) -> None:
    running = run(f"build {end}")
    running.until_said("all restart")
    assert running.stop() == 1
    told = running.log.read_text()
    assert f"a worker {said}, without a last snapshot; all restart in 1 s" in told
    assert "stopped before that" in told


@pytest.mark.long
def test_when_one_worker_asks_all_start_again_at_once_with_a_last_snapshot(run: MakeRun) -> None:
    running = run("build stop:0,build again stop:0,build stop:0")
    running.until("runs", 6)
    told = running.log.read_text()
    assert "all restart" not in told
    assert "ERROR" not in told
    assert running.done.read_text().count("stops") == 3
    assert running.stop() == 0, running.log.read_text()


@pytest.mark.long
@pytest.mark.parametrize("code", [1, 101])
def test_a_worker_that_fails_while_all_are_stopped_to_start_again_has_them_start_after_a_while(
    code: int, run: MakeRun
) -> None:
    running = run(f"build stop:0,build again stop:{code}")
    running.until("runs", 4)
    assert f"a worker ended with {code}, without a last snapshot; all restart in 1 s" in (
        running.log.read_text()
    )
    assert not Layout(running.data).ended.exists()
    assert running.stop() == 1


def test_an_error_that_would_come_again_ends_the_job_while_all_are_stopped_to_start_again(
    run: MakeRun,
) -> None:
    running = run(f"build stop:0,build again stop:{PERMANENT}")
    assert running.process.wait(LONG_S) == PERMANENT
    assert running.done.read_text().count("runs") <= 2  # a worker may be stopped before it says so
    assert not Layout(running.data).ended.exists()


@pytest.mark.few(1)
@pytest.mark.parametrize("code", [0, 1, PERMANENT])
def test_a_stop_while_all_are_stopped_to_start_again_ends_the_job(code: int, run: MakeRun) -> None:
    running = run(f"build again stop:0,build held:{code}")
    go = running.done.with_name("done.go")
    os.mkfifo(go)
    running.until("held")
    running.process.send_signal(signal.SIGTERM)
    go.open("wb").close()
    assert running.process.wait(LONG_S) == code, running.log.read_text()
    assert running.done.read_text().count("runs") == 2
    assert Layout(running.data).ended.exists() == (code == 0)


@pytest.mark.long
def test_a_stop_whose_end_cannot_be_noted_says_so_and_is_no_success(
    tmp_path: Path, run: MakeRun
) -> None:
    running = run("build stop:0,build stop:0")
    running.until("runs", 2)
    ended = Layout(running.data).ended
    ended.symlink_to(tmp_path / "nowhere" / "ended")  # can't be made, as on a full disk
    assert running.stop() == 1
    told = running.log.read_text()
    assert f"stopped: all workers ended with a last snapshot, but {ended}" in told
    assert "could not be made: No such file or directory" in told
    assert "without a last snapshot" not in told


def test_workers_that_do_not_stop_in_time_are_killed_and_that_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "STOP_S", 0.5)
    done = tmp_path / "done"
    done.touch()
    environment = {**os.environ, "SHAM": "build hang", "SHAM_LOG": str(done)}
    job = Cluster(tmp_path / "data", 1, module="tests.sham_worker", environment=environment)

    def stop() -> None:
        until_written(done, "hangs")
        job._events.put(None)

    threading.Thread(target=stop).start()
    with closing(job):
        assert job.once() == 1
    assert not Layout(tmp_path / "data").ended.exists()


def test_a_run_has_not_ended_well_from_its_first_moment_to_its_last(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.ended.touch()
    begin(layout)
    assert not layout.ended.exists()


def test_of_two_jobs_that_start_at_once_on_a_new_data_directory_one_runs(
    make_job: MakeJob, tmp_path: Path
) -> None:
    events = tmp_path / "events"
    events.mkdir()
    (events / "a.ndjson").write_bytes(b"{}\n")
    for turn in range(3):
        data = str(tmp_path / f"data-{turn}")
        jobs = [make_job(FILES__PATH=str(events), DATA_DIR=data) for _ in range(2)]
        codes = sorted(job.ends(process) for job, process in [(job, job.run()) for job in jobs])
        told = [job.told() for job in jobs]
        if codes == [0, 0]:  # one after the other
            continue
        assert codes == [0, PERMANENT], told
        refused = [text for text in told if "another job runs on this data directory" in text]
        assert len(refused) == 1
        assert "Traceback" not in "".join(told)


@pytest.mark.executed
@pytest.mark.parametrize(
    "closed",
    [
        *(pytest.param(one, marks=pytest.mark.long) for one in (">&-", "2>&-", "<&-")),
        "<&- >&- 2>&-",
    ],
)
def test_a_job_whose_standard_streams_are_closed_runs_to_its_end(
    closed: str, make_job: MakeJob, tmp_path: Path
) -> None:
    """What it opens must not take their place: workers inherit what is at 0, 1 and 2."""
    events = tmp_path / "events"
    events.mkdir()
    (events / "a.ndjson").write_bytes(b"{}\n")
    job = make_job(FILES__PATH=str(events))
    job.folder.mkdir(parents=True)
    command = f'exec "$0" -m forebay run {closed}'
    process = subprocess.Popen(["sh", "-c", command, sys.executable], env=job.environment)
    job.processes.append(process)
    assert process.wait(LONG_S) == 0
    assert job.partitions()["rejects"].to_list() == [1]
    assert Layout(job.data).lock.read_bytes() == b""


def test_workers_are_deaf_to_ctrl_c_until_they_can_stop_well(run: MakeRun) -> None:
    """A terminal sends it to them too, in the midst of their imports."""
    running = run("deaf build exit:0")
    assert running.process.wait(LONG_S) == 0
    running.until("0 deaf")


def test_a_stop_that_came_while_a_worker_was_deaf_is_heard() -> None:
    code = (
        "import os, signal\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "from forebay.operators.process import stop_on_signals, stopping\n"
        "assert not stopping()\n"
        "stop_on_signals()\n"
        "assert stopping()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.executed
def test_a_run_without_input_is_one_line_and_makes_nothing(tmp_path: Path) -> None:
    own = {name: text for name, text in os.environ.items() if not name.startswith("FOREBAY_")}
    done = subprocess.run(
        [sys.executable, "-m", "forebay", "run"], cwd=tmp_path, capture_output=True, text=True,
        env={**own, "PYTHONPATH": str(Path(__file__).parent.parent)}, timeout=LONG_S,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (PERMANENT, "")
    assert done.stderr.startswith("Error: files.path: expected NDJSON files at events (")
    assert done.stderr.count("\n") == 1
    assert [*tmp_path.iterdir()] == []


def test_bad_input_of_a_worker_is_a_line_without_the_name_of_a_class(
    make_job: MakeJob, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    job = make_job(FILES__PATH=str(tmp_path / "none"), DATA_DIR=str(tmp_path / "data"))
    assert job.ends(job.run()) == PERMANENT
    assert " ERROR files.path: expected NDJSON files at" in job.told()


def test_workers_find_each_other_without_a_refused_connection(
    make_job: MakeJob, tmp_path: Path
) -> None:
    events = tmp_path / "events"
    events.mkdir()
    for name in "abc":
        (events / f"{name}.ndjson").write_bytes(b"{}\n")
    job = make_job(FILES__PATH=str(events))
    assert job.ends(job.run(3)) == 0, job.told()
    assert "refused" not in job.told()
    assert "started 3 workers" in job.told()
