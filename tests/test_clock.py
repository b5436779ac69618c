"""A wall clock that steps: what notices it, and the real job when it happens."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from forebay.flows.clock import RESTART_S, STEP_S, Clock
from forebay.storage.base import times
from tests import engine
from tests.broker import Broker
from tests.job import Job, taken, until_written
from tests.stepped_clock import SteppedClock
from tests.topic import event, insert_ids, kafka_job, send

engine.need()

MakeJob = Callable[..., Job]
BACK_S = 120


class Hands:
    """Two clocks that a test moves; `hurry` lets the steady one run on while they are read."""

    def __init__(self) -> None:
        self.wall_s, self.steady_s, self.hurry_s = 1e9, 50.0, 0.0

    def steady(self) -> float:
        self.steady_s += self.hurry_s
        return self.steady_s

    def pass_s(self, wall_s: float, steady_s: float) -> None:
        self.wall_s += wall_s
        self.steady_s += steady_s


@pytest.fixture
def hands() -> Hands:
    return Hands()


@pytest.fixture
def clock(hands: Hands) -> Clock:
    clock = Clock(lambda: hands.wall_s, hands.steady)
    assert clock.stepped_back_s() == 0
    return clock


def test_a_step_back_is_told_once_with_how_far_it_was(hands: Hands, clock: Clock) -> None:
    hands.pass_s(0.25 - BACK_S, 0.25)
    assert clock.stepped_back_s() == pytest.approx(BACK_S)
    hands.pass_s(0.25, 0.25)
    assert clock.stepped_back_s() == 0


def test_a_step_forward_is_none_and_what_takes_it_back_is_one(hands: Hands, clock: Clock) -> None:
    hands.pass_s(3600, 1)
    assert clock.stepped_back_s() == 0
    hands.pass_s(1 - 3600, 1)
    assert clock.stepped_back_s() == pytest.approx(3600)


def test_what_is_less_than_a_step_is_none_until_it_comes_to_one(hands: Hands, clock: Clock) -> None:
    hands.pass_s(1 - 0.9 * STEP_S, 1)
    assert clock.stepped_back_s() == 0
    hands.pass_s(1 - 0.2 * STEP_S, 1)
    assert clock.stepped_back_s() == pytest.approx(1.1 * STEP_S)


def test_a_process_that_rests_between_its_two_looks_has_seen_no_step(
    hands: Hands, clock: Clock
) -> None:
    before_s = hands.steady_s
    hands.hurry_s = 5
    assert clock.stepped_back_s() == 0
    hands.hurry_s = 0
    hands.wall_s += hands.steady_s - before_s
    assert clock.stepped_back_s() == 0


def test_a_grace_period_is_as_long_as_it_is_however_the_clock_is_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = times.steady_ms()
    monkeypatch.setattr(times, "now_ms", lambda: 0)
    assert 0 <= times.steady_ms() - before < 60_000
    assert abs(before - time.time() * 1000) < 60_000


@pytest.fixture
def stepped(tmp_path: Path) -> SteppedClock:
    return SteppedClock(tmp_path / "clock")


@pytest.fixture
def supervised(tmp_path: Path, stepped: SteppedClock) -> Iterator[subprocess.Popen[bytes]]:
    """A supervisor of two sham workers, whose clock is the test's."""
    code = (
        "import logging, sys\n"
        "from pathlib import Path\n"
        "from tests.stepped_clock import step_with\n"
        f"step_with(Path({str(stepped.file)!r}))\n"
        "from forebay.flows.cluster import Cluster\n"
        "logging.basicConfig(level=logging.INFO)\n"
        f"sys.exit(Cluster(Path({str(tmp_path / 'data')!r}), 2, module='tests.sham_worker').run())"
    )
    (tmp_path / "done").touch()
    own = {"SHAM": "build stop:0,build stop:0", "SHAM_LOG": str(tmp_path / "done")}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", code], env={**os.environ, **own}, stderr=log
        )
    yield process
    if process.poll() is None:
        process.kill()
    process.wait()


@pytest.mark.long
def test_all_workers_start_again_if_the_clock_steps_back_further_than_a_start_takes(
    tmp_path: Path, stepped: SteppedClock, supervised: subprocess.Popen[bytes]
) -> None:
    done, log = tmp_path / "done", tmp_path / "log"
    until_written(done, "runs", 2, supervised)
    stepped.step(-1)
    assert RESTART_S > 1
    until_written(log, "stepped back by 1.0 s; nothing is read for as long", 1, supervised)
    stepped.step(-BACK_S)
    until_written(done, "runs", 4, supervised)
    assert "stops" not in done.read_text()
    supervised.send_signal(signal.SIGTERM)
    assert supervised.wait(30) == 0
    told = log.read_text()
    found = re.findall(r"the wall clock stepped back by (\S+) s; all workers restart", told)
    assert len(found) == 1
    assert "ERROR" not in told


def test_a_job_whose_clock_steps_goes_on_at_once_and_is_exact(
    broker: Broker, make_job: MakeJob, stepped: SteppedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step forward is not noticed. One back silenced it for as long as the step is, the stop of
    the job too."""
    monkeypatch.setenv("STEPPED", str(stepped.file))
    job = kafka_job(make_job, broker, 1)
    job.started_before = 0
    job.folder.mkdir(parents=True)
    process = job.start("-m", "tests.stepped_clock", "supervisor", str(job.data), "1")
    send(job, [event(number) for number in range(10)])
    job.until(process, lambda found: taken(found) == 10)
    stepped.step(BACK_S)
    send(job, [event(number) for number in range(10, 20)])
    job.until(process, lambda found: taken(found) == 20)
    assert "all workers restart" not in job.log.read_text()
    stepped.step(-2 * BACK_S)
    since = time.monotonic()
    send(job, [event(number) for number in range(5, 30)])
    job.until(process, lambda found: taken(found) == 45)
    assert time.monotonic() - since < BACK_S / 2
    assert job.stop(process) == 0, job.told()
    assert insert_ids(job) == sorted(f"i{number}" for number in range(30))
    assert job.log.read_text().count("; all workers restart") == 1
