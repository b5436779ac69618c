"""Freshness: from produce until a reader's `scan()` has the event, by share of the greatest rate.

The greatest rate is that at which a job works off a topic that already holds the events. Then a
sender sends at shares of that rate while a reader in this process scans without a pause; the upload
time is the timestamp that the sender's client gave each message when it was produced, so an event's
age is known when a scan first has it. Broker, sender, job and reader share the machine, unlike
elsewhere. Each figure is the median of several runs.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

import forebay
from benchmarks.job import TIMEOUT_S, Job, taken
from benchmarks.lines import PLAIN
from benchmarks.measure import Child, Failed, Figure, scratch
from benchmarks.report import Bound, Report
from benchmarks.topic import Topic, broker, generated
from forebay.flows.sections import BROKER
from forebay.storage.base.times import now_ms
from forebay.storage.formats.schema import OFFSET, PARTITION, UPLOAD_TIME
from tests.broker import Broker

EVENTS = 1_000_000
SHARES = (0.2, 0.5, 0.8)
SECONDS = 20.0


def run(events: int, runs: int, command: str) -> Report:
    """Age of events when readers first see them, at 20, 50 and 80 % of the greatest rate."""
    report = Report("freshness", command, events, runs)
    with scratch("freshness") as folder, broker(folder / "broker") as running:
        rates = [_greatest_rate(running, f"max-{n}", events, folder) for n in range(runs)]
        greatest = Figure.of(rates)
        entries = {
            f"{share:.0%}": _medians(
                _paced(
                    running, f"paced-{100 * share:.0f}-{n}", share * greatest.median, events, folder
                )
                for n in range(runs)
            )
            for share in SHARES
        }
    report.forebay = {
        "events_per_s_max": greatest.median,
        "spread": greatest.spread,
        "at": entries,
        "exact": all(entry["exact"] for entry in entries.values()),
    }
    report.ratios = {
        f"p99_ms_at_{share.removesuffix('%')}": entry["p99_ms"] for share, entry in entries.items()
    }
    report.bounds = {"p99_ms_at_50": Bound("<=", 500)}
    columns = ("events/s", "p50 ms", "p99 ms", "spread", "p99.9 ms", "scan ms", "job CPU cores",
               "exact")  # fmt: skip
    report.show(
        f"freshness: at most {greatest.median:,.0f} events/s",
        columns,
        {
            share: (
                f"{entry['events_per_s']:,.0f}",
                *(f"{entry[name]:,.0f}" for name in ("p50_ms", "p99_ms")),
                f"{entry['p99_spread']:.0%}",
                *(f"{entry[name]:,.0f}" for name in ("p999_ms", "scan_ms")),
                f"{entry['job_cores']:.2f}",
                "yes" if entry["exact"] else "no",
            )
            for share, entry in entries.items()
        },
    )
    return report


def _greatest_rate(running: Broker, name: str, events: int, folder: Path) -> float:
    """Events per second of a job that works off a filled topic, from first event to last."""
    topic = generated(running, name, events, *PLAIN)
    job = Job(topic, folder / name, upload_time=BROKER)
    job.child.wait_until(lambda: taken(job.data) > 0, TIMEOUT_S)
    started_s, before = time.monotonic(), taken(job.data)
    job.child.wait_until(lambda: taken(job.data) >= topic.messages, TIMEOUT_S)
    took_s = time.monotonic() - started_s
    job.child.kill()
    if before >= topic.messages:
        raise Failed(f"{events} events are too few to measure a rate by")
    return (topic.messages - before) / took_s


def _medians(found: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """One entry from several runs."""
    runs = list(found)
    names = [name for name in runs[0] if name != "exact"]
    return {
        **{name: Figure.of(one[name] for one in runs).median for name in names},
        "p99_spread": Figure.of(one["p99_ms"] for one in runs).spread,
        "exact": all(one["exact"] for one in runs),
        "runs": runs,
    }


def _paced(running: Broker, name: str, rate: float, events: int, folder: Path) -> dict[str, Any]:
    """Send so many events per second while a job runs and a reader scans."""
    count = max(1_000, min(events, round(rate * SECONDS)))
    warm = generated(running, name, 1_000, *PLAIN)
    topic = Topic(warm.bootstrap, warm.name, 1_000 + count, 1_000 + count, 0)
    job = Job(topic, folder / topic.name, upload_time=BROKER)
    job.child.wait_until(lambda: taken(job.data) >= warm.messages, TIMEOUT_S)
    reader = _Reader(job.data)
    reader.scan()
    reader.ages.clear()
    sender = _sender(topic, count, rate, folder)
    started_s = time.monotonic()
    reader.follow(topic.messages, job.child, started_s + TIMEOUT_S)
    took_s = time.monotonic() - started_s
    sender.wait(TIMEOUT_S)
    usage = job.child.stop(TIMEOUT_S)
    ages_ms = np.concatenate(reader.ages).astype(np.float64)
    p50, p99, p999 = np.quantile(ages_ms, (0.5, 0.99, 0.999), method="higher").tolist()
    return {
        "events_per_s": rate,
        "p50_ms": p50,
        "p99_ms": p99,
        "p999_ms": p999,
        "scan_ms": took_s * 1000 / reader.scans,
        "job_cores": usage.cpu_s / usage.wall_s,
        "seen": len(ages_ms),
        "exact": len(ages_ms) == count and job.unique() == topic.unique,
    }


def _sender(topic: Topic, events: int, rate: float, folder: Path) -> Child:
    command = [sys.executable, "-m", "forebay", "generate", "--events", str(events)]
    command += ["--bootstrap", topic.bootstrap, "--topic", topic.name, "--rate", str(rate)]
    return Child([*command, "--seed", "1", *PLAIN], folder / f"{topic.name}.log", {})


class _Reader:
    """Scans a store again and again; notes how old each event was when it first saw it."""

    def __init__(self, data: Path) -> None:
        self._store = forebay.open(data)
        self._next: dict[str, int] = {}
        self.ages: list[npt.NDArray[np.int64]] = []
        self.scans = 0
        self.seen = 0

    def scan(self) -> None:
        """Take one look; the first must find every partition."""
        new = pl.col(OFFSET) >= min(self._next.values(), default=0)
        found = self._store.scan().select(PARTITION, OFFSET, UPLOAD_TIME).filter(new).collect()
        looked_ms = now_ms()
        self.scans += 1
        for (name,), rows in found.group_by(PARTITION):
            partition = str(name)
            fresh = rows.filter(pl.col(OFFSET) >= self._next.get(partition, 0))
            if fresh.height:
                self._next[partition] = int(fresh[OFFSET].to_numpy().max()) + 1
                times_ms = fresh[UPLOAD_TIME].dt.epoch("ms").to_numpy()
                self.ages.append(looked_ms - times_ms)
                self.seen += fresh.height

    def follow(self, messages: int, job: Child, deadline_s: float) -> None:
        """Scan until so many are seen. Raises Failed if the job ends or is too slow."""

        def all_seen() -> bool:
            self.scan()
            return self.seen >= messages

        job.wait_until(all_seen, deadline_s - time.monotonic())
