"""A week in a minute: a real job on a real Kafka, queries and batch runs all at once, and kills.

Seven days of upload times go by, with copies of moments and of days ago, and a trickle of events
for days that are over. Meanwhile `python -m tests.test_week DATA` asks for all layers again and
again; batch runs follow one another and are killed at every step; the job is killed and restarted.

What is checked: no answer of all layers has a key twice, nor lacks one that was surely committed
when an earlier answer had it; no answer of the real-time layer has anything below the boundary; at
the end every key ever sent is there once, and every day was handed over.

WEEK_DAYS, WEEK_SECONDS, WEEK_KILLS and WEEK_SEED make it longer, or another.
"""

from __future__ import annotations

import os
import random
import select
import subprocess
import sys
import threading
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import orjson
import polars as pl
import pytest
from confluent_kafka import Producer

import forebay
from forebay.query.view import View
from forebay.storage.base.disk import Disk
from forebay.storage.base.layout import Layout
from forebay.storage.base.times import DAY_MS
from forebay.storage.formats.boundary import read_boundary
from forebay.verify.reader import Seen
from tests.batch_run import STEPS, STOPPED
from tests.broker import Broker
from tests.days import HOUR_MS, SETTINGS, START_MS, ids
from tests.job import Job

pytestmark = [pytest.mark.kafka, pytest.mark.long]

DAYS = int(os.environ.get("WEEK_DAYS", "7"))
SECONDS = float(os.environ.get("WEEK_SECONDS", "40"))
KILLS = int(os.environ.get("WEEK_KILLS", "5"))
SEED = int(os.environ.get("WEEK_SEED", "1"))
PARTITIONS, PER_HOUR, HOURS, PACE_S = 3, 100, DAYS * 24 + 6, 0.1
LOOK_S, ASK_S = 0.25, 0.1
COPIES, LATE = 0.05, 0.05
REACH, DISORDER_MS, LATE_MS = 300, HOUR_MS // 2, 3 * DAY_MS
REFUSED = (
    "there is neither: start it again",
    "expected the job to commit the seal",
    "expected a day that is over",
)
"""What a batch run may say when the job is killed or started again under it. (The last one: a job
that runs answers for what it has committed, which may be less than what one has left behind.)"""


class Traffic:
    """Sends the week, and late events ever after. `log` has the key, an ever new number, and the
    upload time of each message; a key's partition is its number modulo the partitions."""

    def __init__(self, job: Job, rng: random.Random) -> None:
        self.log: list[tuple[int, int]] = []
        self.over = threading.Event()
        self._job = job
        self._rng = rng
        self._keys = 0
        self._topic = job.settings["KAFKA__TOPIC"]
        bootstrap = job.settings["KAFKA__BOOTSTRAP"]
        self._producer = Producer({"bootstrap.servers": bootstrap, "enable.idempotence": True})

    @property
    def keys(self) -> set[int]:
        return {key for key, _ in self.log}

    def send(self) -> None:
        """Hour by hour, a day at most ahead of the batch runs."""
        for hour in range(HOURS):
            now_ms = START_MS + hour * HOUR_MS
            while handed_over(self._job) < hour // 24 - 1 and not self.over.wait(PACE_S):
                self._send_late(now_ms)
            for n in range(PER_HOUR):
                self._send(now_ms + n * HOUR_MS // PER_HOUR)
            self._producer.poll(0)
            self.over.wait(SECONDS / HOURS)
        while not self.over.wait(PACE_S):
            self._send_late(now_ms)
        assert self._producer.flush(60) == 0

    def _send(self, now_ms: int) -> None:
        kind = self._rng.random()
        if kind < COPIES and self.log:
            self._produce(*self._rng.choice(self.log[-REACH:]))
        elif kind < COPIES + LATE:
            self._send_late(now_ms)
        else:
            self._send_new(now_ms, DISORDER_MS)

    def _send_late(self, now_ms: int) -> None:
        """What comes for days ago: new, or a copy of anything."""
        if self._rng.random() < 0.5 and self.log:
            self._produce(*self._rng.choice(self.log))
        else:
            self._send_new(now_ms, LATE_MS)

    def _send_new(self, now_ms: int, back_ms: int) -> None:
        self._keys += 1
        self._produce(self._keys, max(START_MS, now_ms - self._rng.randrange(back_ms)))

    def _produce(self, key: int, at_ms: int) -> None:
        self.log.append((key, at_ms))
        message = orjson.dumps({"id": f"{key}", "at": at_ms})
        self._producer.produce(self._topic, message, partition=key % PARTITIONS)


class Batches(threading.Thread):
    """Batch runs, one after another until told to stop; every other one is killed at some step."""

    def __init__(self, job: Job, rng: random.Random) -> None:
        super().__init__(daemon=True)
        self.over = threading.Event()
        self.runs = self.kills = 0
        self.faults: list[str] = []
        self._job = job
        self._rng = rng

    def run(self) -> None:
        while not self.over.is_set():
            for step in (self._rng.choice(STEPS), ""):
                self.once(step)

    def once(self, step: str) -> None:
        """A run that is killed when it comes to the step; to its end if there is none."""
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.batch_run", "batch", "run", "--catch-up", "--json"],
            env={**self._job.environment, "BATCH_STOP": step, "BATCH_SLICE_ROWS": "500"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.runs += 1
        assert process.stdout is not None
        if step and process.stdout.readline().strip() == STOPPED:
            process.kill()
            self.kills += 1
            process.communicate()
            return
        _, told = process.communicate()
        if process.returncode and not any(reason in told for reason in REFUSED):
            self.faults.append(told)


def crash_and_restart(job: Job, rng: random.Random) -> subprocess.Popen[bytes]:
    """Kill the job so many times within the week; the last one runs."""
    process = job.run()
    for share in sorted(rng.uniform(0.05, 0.95) for _ in range(KILLS)):
        goal = share * HOURS * PER_HOUR
        job.until(process, lambda found, goal=goal: read(found) >= goal, LOOK_S)  # type: ignore[misc]
        job.kill(process)
        process = job.run(rng.choice((1, 2)))
    return process


def read(found: pl.DataFrame) -> int:
    """Messages of all partitions."""
    return int(found["next_offset"].sum())


def handed_over(job: Job) -> int:
    """Days that were."""
    return len(read_boundary(Disk(), Layout(job.data)).history)


@pytest.fixture
def job(broker: Broker, make_job: Callable[..., Job]) -> Job:
    topic = f"t{uuid.uuid4().hex[:8]}"
    broker.create_topic(topic, PARTITIONS)
    kafka = {"BOOTSTRAP": broker.address, "TOPIC": topic, "GROUP": topic}
    own = {f"KAFKA__{name}": value for name, value in kafka.items()}
    return make_job(
        **{**SETTINGS, **own, "SOURCE": "kafka", "BATCH_ROWS": "200", "PUBLISH_INTERVAL": "50ms"}
    )


def test_a_week_of_handoffs_and_kills_loses_and_doubles_no_event(job: Job) -> None:
    print("seed", SEED)
    rng = random.Random(SEED)
    traffic = Traffic(job, random.Random(rng.random()))
    batches = Batches(job, random.Random(rng.random()))
    job.data.mkdir(parents=True)
    reader = subprocess.Popen(
        [sys.executable, "-m", "tests.test_week", str(job.data)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    sender = threading.Thread(target=traffic.send, daemon=True)
    sender.start()
    batches.start()
    process = crash_and_restart(job, rng)
    job.until(process, lambda _: handed_over(job) == DAYS, LOOK_S)
    batches.over.set()
    batches.join()
    traffic.over.set()
    sender.join()
    job.until(process, lambda found: read(found) == len(traffic.log), LOOK_S)
    told, _ = reader.communicate()
    report = Report(**orjson.loads(told))
    print(
        f"{len(traffic.log)} events of {len(traffic.keys)} keys, {report.answers} queries,"
        f" {handed_over(job)} handoffs, {KILLS} kills of the job,"
        f" {batches.kills} of {batches.runs} batch runs,"
        f" {report.lost} missing, {report.doubled} doubled, {report.below} below the boundary"
    )
    assert batches.faults == []
    assert (report.lost, report.doubled, report.below) == (0, 0, 0), report
    assert report.answers > 20
    assert handed_over(job) == DAYS
    assert_whole(job, traffic)
    assert job.stop(process) == 0, job.told()
    assert_whole(job, traffic)


def assert_whole(job: Job, traffic: Traffic) -> None:
    """Each key ever sent is there once, on its side of the boundary."""
    store = forebay.open(job.data)
    assert ids(store.scan("all")) == Counter({f"{key}": 1 for key in traffic.keys})
    boundary_ms = START_MS + DAYS * DAY_MS
    above = {f"{key}" for key, at_ms in traffic.log if at_ms >= boundary_ms}
    assert set(ids(store.scan())) == above


# -- the reader ---------------------------------------------------------------------------------


@dataclass
class Report:
    answers: int = 0
    lost: int = 0
    doubled: int = 0
    below: int = 0


def watch(data: Path, report: Report) -> None:
    """Ask until standard input ends, each answer against what earlier ones had."""
    store = forebay.open(data)
    partitions: dict[int, Seen] = defaultdict(Seen)
    while not select.select([sys.stdin], [], [], ASK_S)[0]:
        if store.partitions().is_empty():
            continue  # the job has not published anything yet
        before = progress(store.view())
        keys = store.sql("select id from events_all")["id"].cast(pl.Int64).to_list()
        after = progress(store.view())
        report.answers += 1
        report.doubled += sum(count - 1 for count in Counter(keys).values())
        found: dict[int, set[int]] = defaultdict(set)
        for key in keys:
            found[key % PARTITIONS].add(key)
        for number, now in before.items():
            report.lost += partitions[number].missing(found[number], now, after[number])
        oldest = store.sql("select min(upload_time) as at from events")["at"].item()
        covered = store.receipt().covered_until
        report.below += bool(covered and oldest and oldest < covered)


def progress(view: View) -> dict[int, tuple[int, int]]:
    """Incarnation and number of snapshots of each partition."""
    states = [partition.state for partition in view.partitions]
    return {
        int(state.partition.rpartition("-")[2]): (state.incarnation, state.snapshots)
        for state in states
    }


if __name__ == "__main__":
    result = Report()
    watch(Path(sys.argv[1]), result)
    os.write(1, orjson.dumps(vars(result)) + b"\n")
