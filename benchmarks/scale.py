"""Scale: CPU time for each event by workers, partitions, dedup window, size and rate.

One thing is varied at a time, the others stay as in BASE. All jobs read files, except those with a
rate, where a sender fills a topic while the job runs, with the time of sending as upload time. The
start-up cost is measured with a load of STARTUP_EVENTS and left out of the figures. Where windows
are compared no chunks are merged, because a longer window merges less; that load spans six hours,
so that as much is hot as the window says.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.job import TIMEOUT_S, Job, taken
from benchmarks.lines import PLAIN, lines
from benchmarks.measure import Child, Figure, Usage, scratch
from benchmarks.report import Bound, Report
from benchmarks.topic import Topic, broker, generate_command, generated
from tests.broker import Broker

EVENTS = 400_000
STARTUP_EVENTS = 1_000
NO_MERGES = {"blocks_per_chunk": "1000"}
RATE_SECONDS = 10
LIVE = (*PLAIN, "--now", "--rate")


@dataclass(frozen=True)
class Case:
    """One job; `group` and `value` say what is varied."""

    group: str
    value: str
    workers: int = 1
    partitions: int = 4
    window: str = "10m"
    span: str = "1h"
    bytes: int = 440
    rate: int = 0
    merges: bool = True

    @property
    def name(self) -> str:
        return f"{self.group} {self.value}"

    @property
    def load(self) -> tuple[str, ...]:
        return (
            "--partitions", str(self.partitions), "--span", self.span, "--bytes", str(self.bytes),
        )  # fmt: skip

    def start(self, source: Any, folder: Path) -> Job:
        own = {"dedup_window": self.window, **({} if self.merges else NO_MERGES)}
        return Job(source, folder, workers=self.workers, **own)


BASE = Case("", "")
WINDOWS = replace(BASE, group="window", span="6h", merges=False)
CASES = (
    *(replace(BASE, group="workers", value=str(n), workers=n) for n in (1, 2)),
    *(replace(BASE, group="partitions", value=str(n), partitions=n) for n in (1, 4, 16, 64, 256)),
    *(replace(WINDOWS, value=window, window=window) for window in ("15m", "1h", "6h")),
    *(replace(BASE, group="bytes", value=str(n), bytes=n) for n in (440, 3_000)),
    *(replace(BASE, group="rate", value=str(n), rate=n) for n in (1_000, 5_000, 20_000)),
    *(replace(BASE, group="live", value=str(n), rate=5_000, partitions=n) for n in (64, 256)),
)

RATIOS = {
    "window_6h_vs_15m": ("us_per_event", "window 6h", "window 15m"),
    "partitions_256_vs_4": ("us_per_event", "partitions 256", "partitions 4"),
    "live_256_vs_4_partitions": ("us_per_event", "live 256", "rate 5000"),
    "bytes_3000_vs_440": ("us_per_event", "bytes 3000", "bytes 440"),
    "rate_of_2_workers_vs_1": ("events_per_s", "workers 2", "workers 1"),
}


def run(events: int, runs: int, command: str) -> Report:
    """CPU time for each event by workers, partitions, dedup window, size and rate."""
    report = Report("scale", command, events, runs)
    with scratch("scale") as folder:
        entries = {case: _measured(case, events, runs, folder) for case in CASES if not case.rate}
        with broker(folder / "broker") as running:
            entries |= {case: _paced(case, running, events, folder) for case in CASES if case.rate}
    report.forebay = {case.name: entry for case, entry in entries.items()}
    report.forebay["exact"] = all(entry["exact"] for entry in entries.values())
    found = {case.name: entry for case, entry in entries.items()}
    report.ratios = {
        name: found[one][figure] / found[other][figure]
        for name, (figure, one, other) in RATIOS.items()
        if one in found and other in found
    }
    report.bounds = {"window_6h_vs_15m": Bound("<=", 1.1)}
    _show(report, entries)
    panels: dict[str, dict[str, float]] = {}
    for case, entry in entries.items():
        panels.setdefault(case.group, {})[case.value] = entry["us_per_event"]
    report.plot("CPU µs per event", panels)
    return report


def _measured(case: Case, events: int, runs: int, folder: Path) -> dict[str, Any]:
    """Jobs over files."""
    place = folder / case.name.replace(" ", "-")
    few = lines(place / "few", max(STARTUP_EVENTS, case.partitions), *case.load)
    source = lines(place / "events", events, *case.load)
    startup = [_once(case, few, place)[0] for _ in range(min(2, runs))]
    found = [_once(case, source, place) for _ in range(runs)]
    shutil.rmtree(place)
    startup_cpu_s = min(usage.cpu_s for usage in startup)
    startup_wall_s = min(usage.wall_s for usage in startup)
    cpu_s = Figure.of(usage.cpu_s - startup_cpu_s for usage, _ in found)
    wall_s = Figure.of(usage.wall_s - startup_wall_s for usage, _ in found)
    return {
        "us_per_event": 1e6 * cpu_s.median / events,
        "spread": cpu_s.spread,
        "events_per_s": events / wall_s.median,
        "startup_cpu_s": startup_cpu_s,
        "peak_bytes": max(usage.peak_bytes for usage, _ in found),
        "exact": all(unique == source.unique for _, unique in found),
    }


def _once(case: Case, source: Any, place: Path) -> tuple[Usage, int]:
    job = case.start(source, place / "job")
    found = job.finish(), job.unique()
    shutil.rmtree(place / "job")
    print(f"{case.name}: {found[0].cpu_s:.1f} s of CPU", file=sys.stderr, flush=True)
    return found


def _paced(case: Case, running: Broker, events: int, folder: Path) -> dict[str, Any]:
    """One job over a topic that fills at a rate; its CPU time, without start-up."""
    name, made = case.name.replace(" ", "-"), case.partitions
    load = ("--bytes", str(case.bytes), *LIVE)
    few = generated(running, name, STARTUP_EVENTS, *load, "1000000", partitions=made)
    count = min(events, RATE_SECONDS * case.rate)
    total = STARTUP_EVENTS + count
    topic = Topic(few.bootstrap, few.name, total, total, 0)
    place = folder / topic.name
    startup = case.start(few, place / "few").ingest()
    job = case.start(topic, place / "job")
    job.child.wait_until(lambda: taken(job.data) >= STARTUP_EVENTS, TIMEOUT_S)
    where = ("--seed", "1", "--bootstrap", topic.bootstrap, "--topic", topic.name)
    command = generate_command(count, *where, *load, str(case.rate))
    sender = Child(command, place / "sender.log", {})
    usage = job.ingest()
    sender.wait(TIMEOUT_S)
    return {
        "us_per_event": 1e6 * (usage.cpu_s - startup.cpu_s) / count,
        "spread": 0.0,
        "events_per_s": float(case.rate),
        "startup_cpu_s": startup.cpu_s,
        "peak_bytes": usage.peak_bytes,
        "exact": job.unique() == total,
    }


def _show(report: Report, entries: dict[Case, dict[str, Any]]) -> None:
    report.show(
        f"scale: {report.events:,} events, {report.runs} runs; start-up left out",
        ("CPU µs/event", "spread", "events/s", "start-up CPU s", "peak MB", "exact"),
        {
            case.name: (
                f"{entry['us_per_event']:.2f}",
                f"{entry['spread']:.0%}",
                f"{entry['events_per_s']:,.0f}",
                f"{entry['startup_cpu_s']:.1f}",
                f"{entry['peak_bytes'] / 1e6:,.0f}",
                "yes" if entry["exact"] else "no",
            )
            for case, entry in entries.items()
        },
    )
