"""Analytics: a funnel, retention and segmentation beside DuckDB and ClickHouse over the same files.

A month of events, most of them by a few users, in sorted Parquet files; 15 % belong to the three
steps of the funnel. Every engine is asked each question once first, then in turns; the medians
count, and all answers must be the same.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.analysts import DAY_MS, DAYS, FIRST, QUESTIONS, STEPS
from benchmarks.engines import Rows
from benchmarks.measure import Failed, Figure, scratch
from benchmarks.query import Engine
from benchmarks.report import Bound, Report

EVENTS = 20_000_000
FILES = 20
ROW_GROUP_ROWS = 131_072
SHARES = (0.09, 0.04, 0.02)
"""Of events that are of each step; the others are of OTHER_KINDS kinds."""
OTHER_KINDS = 17
EVENTS_PER_USER = 40
ENGINES = ("forebay", "duckdb", "chdb")
MODULE = "benchmarks.analysts"


def run(events: int, runs: int, command: str) -> Report:
    """Questions of product analytics, to Forebay and to engines over the same Parquet files."""
    report = Report("analytics", command, events, runs)
    times: dict[str, dict[str, list[float]]] = {}
    answers: dict[str, dict[str, Rows]] = {}
    with scratch("analytics") as folder:
        write_events(folder, events)
        engines = []
        try:
            for name in ENGINES:
                try:
                    engine = Engine(name, folder, MODULE)
                    engines.append(engine)
                    answers[name] = {question: engine.ask(question)[1] for question in QUESTIONS}
                except Failed as error:
                    report.absent[name] = str(error)
                    continue
                times[name] = {question: [] for question in QUESTIONS}
            for question in QUESTIONS:
                for _ in range(runs):
                    for engine in engines:
                        if engine.name in times:
                            times[engine.name][question].append(engine.ask(question)[0])
        finally:
            for engine in engines:
                engine.close()
    entries = {
        name: {"ms": {q: 1000 * Figure.of(found).median for q, found in asked.items()}}
        for name, asked in times.items()
    }
    report.forebay = {
        "exact": all(found == answers["forebay"] for found in answers.values()),
        **entries.pop("forebay"),
    }
    report.peers = entries
    report.ratios = {
        f"vs_{name}_{question}": report.forebay["ms"][question] / entry["ms"][question]
        for name, entry in report.peers.items()
        for question in QUESTIONS
    }
    report.bounds = {
        ratio: Bound("<=", 1) for ratio in report.ratios if ratio.startswith("vs_chdb_")
    }
    exact = "all the same" if report.forebay["exact"] else "NOT the same"
    rows = {"forebay": report.forebay["ms"]} | {n: e["ms"] for n, e in report.peers.items()}
    report.show(
        f"analytics: {events:,} events; ms, answers {exact}",
        QUESTIONS,
        {name: [f"{ms[question]:,.0f}" for question in QUESTIONS] for name, ms in rows.items()},
    )
    return report


def write_events(folder: Path, events: int) -> None:
    """FILES files with all events in order of time, no two at one millisecond."""
    rng = np.random.default_rng(0)
    first_ms = round(datetime.combine(FIRST, datetime.min.time(), UTC).timestamp() * 1000)
    step_ms = DAYS * DAY_MS // events
    users = max(1, events // EVENTS_PER_USER)
    names = pl.Series([*STEPS, *(f"other {n}" for n in range(OTHER_KINDS))])
    shares = [*SHARES, *[(1 - sum(SHARES)) / OTHER_KINDS] * OTHER_KINDS]
    for number, part in enumerate(np.array_split(np.arange(events), FILES)):
        ms = first_ms + part * step_ms + rng.integers(0, max(1, step_ms), len(part))
        some = (rng.pareto(1.2, len(part)) * users / 50).astype(np.int64) % users
        frame = pl.DataFrame(
            {
                "event_time": pl.Series(ms).cast(pl.Datetime("ms", "UTC")),
                "user_id": "user-" + pl.Series(some).cast(pl.String),
                "event_type": names.gather(rng.choice(len(names), len(part), p=shares)),
            }
        )
        frame.write_parquet(
            folder / f"{number:02}.parquet", compression="zstd", row_group_size=ROW_GROUP_ROWS
        )
