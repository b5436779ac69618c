"""Ingest: events of a Kafka topic, each kept once, per second of CPU time.

Forebay ingests until every message is visible and committed; the ceiling consumes and decodes the
same and throws it away; `written` is the ceiling that also writes out what was decoded, and does
nothing else; each peer ends when all is durable in its own way. The broker and the sender are other
processes and are not counted. The contestants take turns, so that other load on the machine affects
all alike. Each also runs once over a topic of STARTUP_EVENTS: that shows its start-up cost, which
its figure includes, and which is also shown separately.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.job import Job
from benchmarks.measure import BUILD, Child, Failed, Figure, Usage
from benchmarks.peer import PEERS, Peer
from benchmarks.report import Bound, Report
from benchmarks.topic import Topic, broker, generated, github_events
from forebay.flows.cluster import WORKER_ENVIRONMENT
from tests.broker import Broker

STARTUP_EVENTS = 1_000
VARIANTS: dict[str, tuple[str, ...]] = {
    "plain": ("--broken", "0", "--late", "0"),
    "broken": ("--broken", "0.01", "--late", "0"),
    "duplicates": ("--broken", "0", "--late", "0", "--duplicates", "0.5"),
    "github": (),
}
"""Options of `forebay generate`; `github` has the sample's nested events of 3 kB instead."""

OURS = ("forebay", "ceiling", "written")
BOUNDS = {"of_ceiling": 0.8, "vs_duckdb": 1.2, "vs_chdb": 1.2}
STREAMING = 4.0
"""What a ratio must be at least; of streaming peers in Python, so many times theirs."""

Ingest = Callable[[Topic, Path], tuple[Usage, int | None]]
"""Takes a topic in, in a folder that is empty: what it took, and how many events it kept."""


@dataclass
class _Contestant:
    name: str
    ingest: Ingest
    startup_s: float = 0.0
    runs: list[Usage] = field(default_factory=list)
    unique: list[int | None] = field(default_factory=list)

    def entry(self, topic: Topic) -> dict[str, Any]:
        """The contestant's figures, as the report has them."""
        rates = [topic.messages / usage.cpu_s for usage in self.runs]
        cpu_s = Figure.of(usage.cpu_s for usage in self.runs)
        return {
            "events_per_cpu_s": Figure.of(rates).median,
            "spread": Figure.of(rates).spread,
            "us_per_event": 1e6 * cpu_s.median / topic.messages,
            "cpu_s": [usage.cpu_s for usage in self.runs],
            "startup_cpu_s": self.startup_s,
            "us_per_event_started": 1e6 * (cpu_s.median - self.startup_s) / topic.messages,
            "wall_s": Figure.of(usage.wall_s for usage in self.runs).median,
            "peak_bytes": max(usage.peak_bytes for usage in self.runs),
            "unique": self.unique,
            "unique_expected": topic.unique,
            "exact": all(count in (None, topic.unique) for count in self.unique),
        }


def run(events: int, runs: int, variant: str, peers: tuple[str, ...], command: str) -> Report:
    """Measure, show and write."""
    name = "ingest" if variant == "plain" else f"ingest-{variant}"
    report = Report(name, command, events, runs)
    folder = BUILD / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    schema = "github" if variant == "github" else "amplitude"
    contestants = [
        _Contestant("forebay", _forebay(schema)),
        _Contestant("ceiling", _ceiling(schema)),
        _Contestant("written", _ceiling(schema, written=True)),
    ]
    contestants += [_Contestant(peer.name, _peer(peer)) for peer in _installed(peers, report)]
    with broker(folder / "broker") as running:
        small = _topic(running, "small", variant, STARTUP_EVENTS, folder)
        topic = _topic(running, "events", variant, events, folder)
        for contestant in list(contestants):
            try:
                _once(contestant, small, folder)  # warms up the caches of compiled code
                contestant.startup_s = _once(contestant, small, folder)[0].cpu_s
            except Failed as error:
                _give_up(contestant, error, contestants, report)
        for number in range(runs):
            for contestant in list(contestants):
                try:
                    usage, unique = _once(contestant, topic, folder)
                except Failed as error:
                    _give_up(contestant, error, contestants, report)
                    continue
                contestant.runs.append(usage)
                contestant.unique.append(unique)
                took = f"{usage.cpu_s:.1f} s of CPU, {usage.wall_s:.1f} s"
                print(f"run {number + 1}, {contestant.name}: {took}", file=sys.stderr, flush=True)
    _fill(report, {one.name: one.entry(topic) for one in contestants})
    _show(report, variant)
    shutil.rmtree(folder, ignore_errors=True)
    return report


def _installed(names: tuple[str, ...], report: Report) -> list[Peer]:
    found = []
    for name in names:
        try:
            PEERS[name].install()
        except Failed as error:
            report.absent[name] = str(error)
        else:
            found.append(PEERS[name])
    return found


def _topic(running: Broker, name: str, variant: str, events: int, folder: Path) -> Topic:
    if variant == "github":
        return github_events(running, name, events, folder)
    return generated(running, name, events, *VARIANTS[variant])


def _once(contestant: _Contestant, topic: Topic, folder: Path) -> tuple[Usage, int | None]:
    """One run in a folder of its own, which is gone afterwards."""
    place = folder / contestant.name
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    try:
        return contestant.ingest(topic, place)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _give_up(
    contestant: _Contestant, error: Failed, contestants: list[_Contestant], report: Report
) -> None:
    """A peer that fails is absent; if ours fails, there is no benchmark."""
    if contestant.name in OURS:
        raise error
    contestants.remove(contestant)
    report.absent[contestant.name] = str(error)


def _forebay(schema: str) -> Ingest:
    def ingest(topic: Topic, folder: Path) -> tuple[Usage, int | None]:
        job = Job(topic, folder, schema=schema)
        return job.ingest(), job.unique()

    return ingest


def _ceiling(schema: str, *, written: bool = False) -> Ingest:
    def ingest(topic: Topic, folder: Path) -> tuple[Usage, int | None]:
        arguments = [topic.bootstrap, topic.name, str(topic.messages), schema]
        arguments += [str(folder)] if written else []
        command = [sys.executable, "-m", "benchmarks.ceiling", *arguments]
        return Child(command, folder / "log", WORKER_ENVIRONMENT).wait(600), None

    return ingest


def _peer(peer: Peer) -> Ingest:
    def ingest(topic: Topic, folder: Path) -> tuple[Usage, int | None]:
        return peer.ingest(topic, folder, WORKER_ENVIRONMENT), peer.unique(folder)

    return ingest


def _fill(report: Report, entries: dict[str, dict[str, Any]]) -> None:
    report.forebay, report.ceiling = entries.pop("forebay"), entries.pop("ceiling")
    written = report.ceiling["written"] = entries.pop("written")
    report.peers = entries
    report.bounds = {
        name: Bound(">=", BOUNDS.get(name, STREAMING))
        for name in ("of_ceiling", *(f"vs_{peer}" for peer in entries))
    }
    others = {"of_ceiling": report.ceiling, **{f"vs_{name}": e for name, e in entries.items()}}
    for ratios, cost in (
        (report.ratios, "us_per_event"),
        (report.ratios_started, "us_per_event_started"),
    ):
        ratios |= {name: other[cost] / report.forebay[cost] for name, other in others.items()}
        ratios["written_of_ceiling"] = report.ceiling[cost] / written[cost]
        ratios["of_written"] = written[cost] / report.forebay[cost]


def _show(report: Report, variant: str) -> None:
    entries = {
        "forebay": report.forebay,
        "ceiling": report.ceiling,
        "written": report.ceiling["written"],
        **report.peers,
    }
    columns = ("events/CPU-s", "spread", "µs/event", "start-up CPU s", "µs without", "wall s",
               "peak MB", "exact")  # fmt: skip
    rows = {
        name: (
            f"{entry['events_per_cpu_s']:,.0f}",
            f"{entry['spread']:.0%}",
            f"{entry['us_per_event']:.2f}",
            f"{entry['startup_cpu_s']:.1f}",
            f"{entry['us_per_event_started']:.2f}",
            f"{entry['wall_s']:.1f}",
            f"{entry['peak_bytes'] / 1e6:,.0f}",
            "-" if name in OURS[1:] else "yes" if entry["exact"] else f"no: {entry['unique']}",
        )
        for name, entry in entries.items()
    }
    report.show(f"ingest, {variant}: {report.events:,} events, {report.runs} runs", columns, rows)
