"""Queries: what an answer takes beside engines over one sorted Parquet dataset of the same events.

A job ingests the load; at its end a sixth of the events are hot, the others in chunks. The dataset
has files of half an hour of upload time, sorted, zstd. Every engine is asked each question once
first, then in turns; the medians count, and all answers must be the same. The time of Forebay's
first answer, when nothing hot is decoded yet, is shown separately.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from os import link
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import orjson
import polars as pl

import forebay
from benchmarks.engines import QUESTIONS, Rows
from benchmarks.events import START_MS
from benchmarks.job import Job
from benchmarks.lines import lines
from benchmarks.measure import ROOT, Failed, Figure, scratch
from benchmarks.peer import PEERS
from benchmarks.report import Bound, Report
from forebay.storage.formats.state import by_id

EVENTS = 20_000_000
HOURS = 3
"""36 blocks of which 30 are merged, six to a chunk, and 6 hot."""
PART_MINUTES = 30
ROW_GROUP_ROWS = 131_072
ENGINES = ("polars", "duckdb", "chdb")
SQL = "sql"
"""Forebay too, asked in SQL."""
HOT, COLD = "forebay hot", "polars cold"
"""The hot blocks alone, and the chunks alone."""
SCANNED = QUESTIONS[:3]
"""The questions that read every event, by which hot and cold are compared."""


class Engine:
    """A process that answers (see `engines`, and other modules like it)."""

    def __init__(self, name: str, folder: Path, module: str = "benchmarks.engines") -> None:
        python = sys.executable
        if name in PEERS:
            PEERS[name].install()
            python = PEERS[name].python
        self.name = name
        self._process = subprocess.Popen(
            [python, "-m", module, name.split()[0], str(folder)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def ask(self, question: str) -> tuple[float, Rows]:
        """Wall seconds, and the answer."""
        if self._process.stdin is None or self._process.stdout is None:
            raise AssertionError("bug: an engine without pipes")
        self._process.stdin.write(question.encode() + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise Failed(f"engine {self.name} ended at {question!r}")
        answer = orjson.loads(line)
        return answer["wall_s"], answer["rows"]

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def run(events: int, runs: int, command: str) -> Report:
    """Six questions to Forebay, and to Polars, DuckDB and ClickHouse over the same events."""
    report = Report("query", command, events, runs)
    with scratch("query") as folder:
        source = lines(folder / "events", events, "--span", f"{HOURS}h", "--disorder", "0s")
        job = Job(source, folder / "job")
        job.finish()
        shutil.rmtree(source.folder)
        folders = _folders(job.data, folder)
        receipt = forebay.open(job.data)
        receipt.scan()
        hot, cold = receipt.receipt().hot_rows, receipt.receipt().cold_rows
        names = {"forebay": job.data, SQL: job.data, **dict.fromkeys(ENGINES, folders["sorted"])}
        names |= {HOT: folders["hot"], COLD: folders["cold"]}
        times, first, answers = _asked(names, runs, report)
    report.forebay = {
        "hot_events": hot,
        "cold_events": cold,
        "first_answer_ms": {q: 1000 * seconds for q, seconds in first["forebay"].items()},
        "exact": _same(answers) and answers["forebay"]["export"] == [[source.unique]],
        **_entry(times["forebay"]),
    }
    report.forebay["sql"] = _entry(times[SQL])
    report.peers = {name: _entry(times[name]) for name in ENGINES if name in times}
    _rate(report, times, hot, cold)
    _show(report)
    return report


def _folders(data: Path, folder: Path) -> dict[str, Path]:
    """The hot blocks alone, the chunks alone, and all events in sorted files."""
    shutil.copytree(data / "hot", folder / "hot" / "hot", copy_function=link)
    for partition in forebay.open(data).view().partitions:
        manifest = folder / "hot" / "hot" / partition.state.partition / "manifest.json"
        manifest.unlink()
        alone = replace(partition.state, hot=by_id(partition.hot), evicted={})
        manifest.write_bytes(alone.encode())
    cold, sorted_files = folder / "cold", folder / "sorted"
    cold.mkdir()
    sorted_files.mkdir()
    for number, path in enumerate(sorted(data.glob("chunks/**/*.parquet"))):
        link(path, cold / f"{number:05d}.parquet")
    events, time = forebay.open(data).scan(), pl.col("upload_time")
    step = timedelta(minutes=PART_MINUTES)
    low = datetime.fromtimestamp(START_MS / 1000, UTC)
    for number in range(HOURS * 60 // PART_MINUTES + 1):
        part = events.filter((time >= low + number * step) & (time < low + (number + 1) * step))
        frame = part.sort("upload_time").collect()
        if frame.height:
            path = sorted_files / f"{number:05d}.parquet"
            frame.write_parquet(path, compression="zstd", row_group_size=ROW_GROUP_ROWS)
    return {"hot": folder / "hot", "cold": cold, "sorted": sorted_files}


Times = dict[str, dict[str, list[float]]]


def _asked(
    names: dict[str, Path], runs: int, report: Report
) -> tuple[Times, dict[str, dict[str, float]], dict[str, dict[str, Rows]]]:
    """Times of all engines' answers, what the first ones took, and the answers."""
    engines = []
    times: Times = {}
    first: dict[str, dict[str, float]] = {}
    answers: dict[str, dict[str, Rows]] = {}
    try:
        for name, folder in names.items():
            try:
                engines.append(Engine(name, folder))
                warm = {question: engines[-1].ask(question) for question in QUESTIONS}
            except Failed as error:
                report.absent[name] = str(error)
                continue
            first[name] = {question: wall_s for question, (wall_s, _) in warm.items()}
            answers[name] = {question: rows for question, (_, rows) in warm.items()}
            times[name] = {question: [] for question in QUESTIONS}
        for question in QUESTIONS:
            for _ in range(runs):
                for engine in engines:
                    if engine.name in times:
                        times[engine.name][question].append(engine.ask(question)[0])
    finally:
        for engine in engines:
            engine.close()
    return times, first, answers


def _same(answers: dict[str, dict[str, Rows]]) -> bool:
    """Whether all engines that have all the events give the same answer."""
    whole = [answer for name, answer in answers.items() if name not in (HOT, COLD)]
    return all(answer == whole[0] for answer in whole)


def _entry(times: dict[str, list[float]]) -> dict[str, Any]:
    figures = {question: Figure.of(found) for question, found in times.items()}
    return {
        "ms": {question: 1000 * figure.median for question, figure in figures.items()},
        "spread": {question: figure.spread for question, figure in figures.items()},
    }


def _rate(report: Report, times: Times, hot_events: int, cold_events: int) -> None:
    """The ratios: geometric means over the questions. The best peer is the one whose own mean is
    best; beside it is the ratio with the best peer of each question."""
    mine, sql = report.forebay["ms"], report.forebay["sql"]["ms"]
    best = {q: min(peer["ms"][q] for peer in report.peers.values()) for q in QUESTIONS}
    hot_ms, cold_ms = (_entry(times[name])["ms"] for name in (HOT, COLD))
    report.forebay["hot_ns_per_event"] = {q: 1e6 * hot_ms[q] / hot_events for q in SCANNED}
    report.forebay["cold_ns_per_event"] = {
        q: 1e6 * cold_ms[q] / max(1, cold_events) for q in SCANNED
    }
    hot, cold_ns = report.forebay["hot_ns_per_event"], report.forebay["cold_ns_per_event"]
    vs = {
        f"vs_{name}": geometric_mean(mine[q] / peer["ms"][q] for q in QUESTIONS)
        for name, peer in report.peers.items()
    }
    report.ratios = {
        "vs_best": max(vs.values()),
        **vs,
        "vs_best_of_each_question": geometric_mean(mine[q] / best[q] for q in QUESTIONS),
        "hot_vs_cold": geometric_mean(hot[q] / cold_ns[q] for q in SCANNED),
        **{f"vs_best_{q.replace(' ', '_')}": mine[q] / best[q] for q in QUESTIONS},
        "sql_vs_best": max(
            geometric_mean(sql[q] / peer["ms"][q] for q in QUESTIONS)
            for peer in report.peers.values()
        ),
        **{f"sql_vs_best_{q.replace(' ', '_')}": sql[q] / best[q] for q in QUESTIONS},
    }
    report.bounds = {
        "vs_best": Bound("<=", 1),
        "sql_vs_best": Bound("<=", 1),
        "hot_vs_cold": Bound("<=", 2),
    }


def _show(report: Report) -> None:
    mine = report.forebay
    rows = {"forebay": mine["ms"], "its first answers": mine["first_answer_ms"]}
    rows["in SQL"] = mine["sql"]["ms"]
    rows |= {name: entry["ms"] for name, entry in report.peers.items()}
    hot, exact = mine["hot_events"], "all the same" if mine["exact"] else "NOT the same"
    report.show(
        f"query: {report.events:,} events, {hot:,} of them hot; ms, answers {exact}",
        QUESTIONS,
        {name: [f"{ms[question]:,.1f}" for question in QUESTIONS] for name, ms in rows.items()},
    )
