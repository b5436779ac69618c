"""The real job as a user runs it: processes over a data directory, to be stopped or killed.

Nothing here sleeps: between two looks at what is published it is the process that is awaited, and
a job that ends early, or says nothing new for STALL_S, fails the test with the end of its log.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl

import forebay
from forebay.cli.load import Load, LoadSpec
from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import BadInput
from forebay.storage.base.layout import Layout
from forebay.storage.formats.state import read_manifest
from tests import engine
from tests.oracle import Oracle, Place

NOW_MS = time.time_ns() // 1_000_000
"""About when the tests began."""
LOOK_S = 0.05
STALL_S = 90.0
ENDED_EARLY = "the job ended with {code} before that:\n{log}"


@dataclass
class Job:
    """One data directory and the processes on it. `settings` become FOREBAY_ variables."""

    folder: Path
    settings: dict[str, str]
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    started_before: int = 0
    prefix: tuple[str, ...] = ()
    """A program that starts the others, such as `ip netns exec NAME`."""

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def log(self) -> Path:
        return self.folder / "job.log"

    def run(self, workers: int = 1) -> subprocess.Popen[bytes]:
        """`forebay run`."""
        engine.need()
        self.started_before = self._started()
        return self.start("-m", "forebay", "run", "--workers", str(workers))

    def bytewax(self, *options: str) -> subprocess.Popen[bytes]:
        """The job as the engine documents it; it does not tell that it started."""
        engine.need()
        self.started_before = -1
        recovery = self.data / "recovery"
        if not recovery.is_dir():
            recovery.mkdir(parents=True)
            self.start("-m", "bytewax.recovery", str(recovery), "2").wait()
        run = (
            "-m",
            "bytewax.run",
            "forebay.flows.realtime",
            "-r",
            str(recovery),
            "-s",
            "1",
            "-b",
            "0",
        )
        return self.start(*run, *options)

    @property
    def environment(self) -> dict[str, str]:
        """What every process on this data directory is to find."""
        own = {f"FOREBAY_{name}": value for name, value in self.settings.items()}
        return {**os.environ, "FOREBAY_DATA_DIR": str(self.data), **own}

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [*self.prefix, sys.executable, *arguments],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """SIGKILL to every process of the job at once; nothing if it has ended."""
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def stop(self, process: subprocess.Popen[bytes], wait_s: float = STALL_S) -> int:
        """SIGTERM, once the supervisor listens to it; the exit code. Raises TimeoutExpired."""
        self.until(process, lambda _: self._started() > self.started_before)
        process.send_signal(signal.SIGTERM)
        return process.wait(wait_s)

    def _started(self) -> int:
        """How many runs have told that they started; one killed early has not."""
        return self.log.read_text().count("INFO started") if self.log.exists() else 0

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                self.kill(process)

    def ends(self, process: subprocess.Popen[bytes]) -> int:
        """Wait for the job to end by itself; the exit code."""
        return process.wait(2 * STALL_S)

    def until(
        self,
        process: subprocess.Popen[bytes],
        reached: Callable[[pl.DataFrame], bool],
        look_s: float = LOOK_S,
    ) -> pl.DataFrame:
        """The published partitions, as soon as `reached` says so of them, looked at so often."""
        last, since = None, time.monotonic()
        while True:
            found = self.partitions()
            if reached(found):
                return found
            if last is None or not found.equals(last):
                last, since = found, time.monotonic()
            assert time.monotonic() - since < STALL_S, f"nothing new: {found}\n{self.told()}"
            try:
                code = process.wait(look_s)
            except subprocess.TimeoutExpired:
                continue
            assert reached(self.partitions()), ENDED_EARLY.format(code=code, log=self.told())

    def partitions(self) -> pl.DataFrame:
        """What is published, nothing if there is no data directory yet."""
        try:
            return forebay.open(self.data).partitions()
        except BadInput:
            self.data.mkdir(parents=True, exist_ok=True)
            return forebay.open(self.data).partitions()

    def runs(self) -> dict[str, int]:
        """Which run of its own each partition has published last: a partition goes on from its
        last snapshot, which is behind what was published before a kill."""
        layout, disk = Layout(self.data), Disk()
        states = [read_manifest(disk, layout.manifest(name)) for name in layout.partitions()]
        return {state.partition: state.incarnation for state in states if state is not None}

    def told(self) -> str:
        return self.log.read_text(errors="replace")[-4000:] if self.log.exists() else ""

    def places(self) -> list[Place]:
        """Every event that a query finds, by partition and offset."""
        return sorted(
            forebay.open(self.data).scan().select("_partition", "_offset").collect().rows()
        )


def children(pid: int) -> list[int]:
    """The processes that a process has started and not yet waited for."""
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def until_written(
    file: Path, text: str, count: int = 1, by: subprocess.Popen[bytes] | None = None
) -> None:
    """Wait until `file` has a text so often, which nothing tells of; while `by` runs, if given."""
    deadline = time.monotonic() + STALL_S
    while file.read_text().count(text) < count:
        assert time.monotonic() < deadline, file.read_text()
        assert by is None or by.poll() is None, file.read_text()
        time.sleep(LOOK_S)


def taken(partitions: pl.DataFrame) -> int:
    """Messages counted in any way."""
    return int(
        partitions.select(pl.sum_horizontal("accepted", "duplicates", "rejects").sum()).item()
    )


@dataclass(frozen=True)
class Generated:
    """The messages of a load, by partition name, and what the oracle makes of them."""

    messages: Mapping[str, list[bytes]]
    oracles: Mapping[str, Oracle]

    @property
    def count(self) -> int:
        return sum(map(len, self.messages.values()))

    @property
    def places(self) -> list[Place]:
        return sorted(place for oracle in self.oracles.values() for place in oracle.places())


def generated(spec: LoadSpec, name: str, broker_ms: int, window_ms: int = 600_000) -> Generated:
    """A load whose partition N is called `name.format(N)`."""
    load = Load(spec)
    parts: list[list[bytes]] = [[] for _ in range(spec.partitions)]
    for slice in load.slices():
        for part, messages in zip(parts, slice, strict=True):
            part += messages
    named = {name.format(number): part for number, part in enumerate(parts)}
    oracles = {source: judged(source, part, broker_ms, window_ms) for source, part in named.items()}
    return Generated(named, oracles)


def judged(source: str, messages: Iterable[bytes], broker_ms: int, window_ms: int) -> Oracle:
    """The oracle over one partition's messages, read by `json` and the written rules."""
    oracle = Oracle(300_000, window_ms)
    for offset, message in enumerate(messages):
        place = (source, offset)
        try:
            event = json.loads(message.decode())
            key = (event["device_id"], event["$insert_id"])
            upload_ms = _time_ms(event["server_upload_time"])
        except (ValueError, KeyError, TypeError):
            oracle.reject(place)
            continue
        if upload_ms < 946_684_800_000 or upload_ms > broker_ms + 60_000:
            oracle.reject(place)
        else:
            oracle.event(place, key, upload_ms)
    return oracle


def _time_ms(text: str) -> int:
    """Whole milliseconds of "2024-05-01 12:05:00.123456", truncated."""
    if len(text) != len("2024-05-01 12:05:00.123456"):
        raise ValueError(f"expected a time, got {text!r}")
    moment = datetime.fromisoformat(f"{text}+00:00")
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


def assert_exact(job: Job, expected: Generated) -> None:
    """The events a query finds, and every counter, are the oracle's."""
    assert job.places() == expected.places
    partitions = {row["partition"]: row for row in job.partitions().to_dicts()}
    for source, oracle in expected.oracles.items():
        row = partitions[source]
        found = {name: row[name] for name in ("accepted", "duplicates", "rejects", "late")}
        assert found == {
            "accepted": oracle.accepted,
            "duplicates": oracle.duplicates,
            "rejects": oracle.rejects,
            "late": oracle.late,
        }, f"{source}\n{job.told()}"
        assert row["next_offset"] == len(expected.messages[source])
        assert row["hot_events"] + row["cold_events"] == oracle.accepted
