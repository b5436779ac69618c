"""Recovery: from the start after a SIGKILL until the first new event is visible.

A job reads files until so many events are visible and hot, and is killed; after each further start,
once readers see more than they saw before, it is killed again. Reingesting is what the job took at
first, from its start to the same number of events.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from benchmarks.job import TIMEOUT_S, Job, taken
from benchmarks.lines import Lines, lines
from benchmarks.measure import Figure, scratch
from benchmarks.report import Bound, Report

EVENTS = 10_000_000
HOT = (0.01, 0.1, 1.0)
"""How many events are hot, as shares of `events`."""
MORE_EVENTS = 500_000
"""What there is to go on with after a kill."""
WINDOW = "2h"
"""The load's hour is hot as a whole."""


def run(events: int, runs: int, command: str) -> Report:
    """Time from a start until the first new event is visible, against reingesting."""
    report = Report("recovery", command, events, runs)
    more = min(MORE_EVENTS, events)
    with scratch("recovery") as folder:
        entries = {}
        for hot in (round(share * events) for share in HOT):
            source = lines(folder / f"events-{hot}", hot + more)
            entries[hot] = _recover(source, folder / f"job-{hot}", hot, runs)
            shutil.rmtree(source.folder)
    report.forebay = {str(hot): entry for hot, entry in entries.items()}
    report.forebay["exact"] = all(entry["exact"] for entry in entries.values())
    report.ratios = {"vs_reingest": entries[max(entries)]["vs_reingest"]}
    report.bounds = {"vs_reingest": Bound(">=", 20)}
    report.show(
        f"recovery: {runs} kills each",
        ("ingest s", "recovery s", "spread", "CPU s", "ingest / recovery", "exact"),
        {
            f"{hot:,} hot": (
                f"{entry['ingest_s']:.1f}",
                f"{entry['recovery_s']:.2f}",
                f"{entry['spread']:.0%}",
                f"{entry['recovery_cpu_s']:.1f}",
                f"{entry['vs_reingest']:.1f}",
                "yes" if entry["exact"] else "no",
            )
            for hot, entry in entries.items()
        },
    )
    points = {f"{hot:,}": entry["recovery_s"] for hot, entry in entries.items()}
    report.plot("seconds", {"hot events": points})
    return report


def _recover(source: Lines, folder: Path, hot: int, runs: int) -> dict[str, Any]:
    """Kill a job at so many events, and restart it again and again."""
    ingest_s, _, seen = _until(source, folder, hot)
    times_s, cpu_s = [], []
    for _ in range(runs):
        took_s, used_s, seen = _until(source, folder, seen + 1)
        times_s.append(took_s)
        cpu_s.append(used_s)
    job = Job(source, folder, dedup_window=WINDOW)
    job.finish()
    found = Figure.of(times_s)
    return {
        "ingest_s": ingest_s,
        "recovery_s": found.median,
        "spread": found.spread,
        "recovery_cpu_s": Figure.of(cpu_s).median,
        "vs_reingest": ingest_s / found.median,
        "unique": job.unique(),
        "exact": job.unique() == source.unique,
    }


def _until(source: Lines, folder: Path, events: int) -> tuple[float, float, int]:
    """Start a job and kill it as soon as so many events are visible. Returns how long that took,
    how much CPU time, and how many were visible then."""
    started_s = time.monotonic()
    job = Job(source, folder, dedup_window=WINDOW)
    job.child.wait_until(lambda: taken(job.data) >= events, TIMEOUT_S)
    took_s = time.monotonic() - started_s
    cpu_s = job.child.kill().cpu_s
    return took_s, cpu_s, taken(job.data)
