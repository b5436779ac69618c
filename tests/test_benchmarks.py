"""The benchmarks run to their end on tiny loads, and count exactly. Their times are not looked at.

Engines that are compared in the query benchmark come from registries; here only Polars is asked,
which is at hand.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from benchmarks import (
    analytics,
    checkpoint,
    chunks,
    freshness,
    measure,
    memory,
    query,
    recovery,
    report,
    scale,
    serve,
)
from benchmarks.measure import Child, percentile
from benchmarks.report import Bound, Report
from tests.broker import missing

EVENTS = 5_000
KEYS = {
    "benchmark", "command", "events", "runs", "machine", "forebay", "ceiling", "peers", "ratios",
    "ratios_started", "bounds", "absent",
}  # fmt: skip


@pytest.fixture(autouse=True)
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the benchmarks write."""
    for module in (measure, report):
        monkeypatch.setattr(module, "BUILD", tmp_path)
    return tmp_path


def needs_kafka() -> None:
    if (lack := missing()) and not os.environ.get("REQUIRE_KAFKA"):
        pytest.skip(lack)


def check(run: Callable[[int, int, str], Report], events: int = EVENTS, runs: int = 1) -> Report:
    """Run it; what it wrote has the shape of a report, and every count in it was exact."""
    found = run(events, runs, "test")
    written = orjson.loads(found.write().read_bytes())
    assert written.keys() == KEYS
    assert written["forebay"]["exact"] is True
    assert written["ratios"].keys() >= written["bounds"].keys()
    assert all(isinstance(ratio, float) for ratio in written["ratios"].values())
    assert not list(found.write().parent.glob("*-scratch"))
    return found


@pytest.mark.long
def test_checkpoint_counts_what_a_job_wrote_and_times_snapshots(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checkpoint, "SNAPSHOTS", 3)
    entry = check(checkpoint.run).forebay
    (job,) = entry["jobs"]
    assert job["unique"] == EVENTS
    assert 0 < job["logs_bytes"] < job["bytes"]
    assert set(entry["snapshot"]) == {"500", "5000", "50000"}


@pytest.mark.long
def test_memory_holds_every_key_once_in_index_and_set() -> None:
    found = check(memory.run)
    assert found.forebay["index"]["15000"]["exact"]
    assert found.peers["python_set"]["15000"]["exact"]
    assert found.peers["pinot"] == {"published_bytes_per_key": 36}


@pytest.mark.long
def test_recovery_has_every_event_once_after_its_kills(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "HOT", (0.5,))
    entry = check(recovery.run, 200_000).forebay  # so many that a kill comes before their end
    assert entry["100000"]["unique"] == 300_000


@pytest.mark.long
def test_query_gets_the_same_answers_from_every_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query, "PEERS", {})
    monkeypatch.setattr(query, "ENGINES", ("polars",))
    entry = check(query.run).forebay
    assert entry["hot_events"] + entry["cold_events"] == EVENTS
    assert entry["cold_events"] > entry["hot_events"] > 0


@pytest.mark.long
def test_analytics_answers_every_question(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query, "PEERS", {})
    entry = check(analytics.run).forebay
    assert entry["exact"]
    assert entry["ms"].keys() == {"funnel", "retention", "segmentation"}


def test_chunks_have_every_event() -> None:
    assert check(chunks.run).forebay["rows"] == EVENTS


@pytest.mark.long
def test_freshness_sees_every_event_once(monkeypatch: pytest.MonkeyPatch) -> None:
    needs_kafka()
    monkeypatch.setattr(freshness, "SHARES", (0.5,))
    for entry in check(freshness.run, 20_000).forebay["at"].values():
        assert entry["seen"] > 0


@pytest.mark.long
def test_serve_answers_every_panel_while_ingest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    needs_kafka()
    monkeypatch.setattr(serve, "SECONDS", 3.0)
    monkeypatch.setattr(serve, "WARM_S", 2.0)
    entry = check(serve.run, 20_000).forebay
    assert entry["failed"] == 0
    assert entry["computed"] < entry["answers"] / 4
    assert len(entry["runs"][0]["panels"]) == 10


@pytest.mark.long
def test_scale_counts_exactly_with_files_and_at_a_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    needs_kafka()
    rate = replace(scale.BASE, group="rate", value="5000", rate=5_000)
    windows = [case for case in scale.CASES if case.name in ("window 15m", "window 6h")]
    monkeypatch.setattr(scale, "CASES", (*windows, rate))
    assert check(scale.run).forebay["rate 5000"]["exact"]


def test_percentile_is_the_smallest_value_that_covers_the_share() -> None:
    values = [float(value) for value in range(1, 101)]
    assert [percentile(values, share) for share in (0.5, 0.99, 1.0)] == [50, 99, 100]
    assert percentile([3.0, 1.0], 0.01) == 1.0


def test_bound_holds_on_its_limit_and_on_one_side_of_it() -> None:
    assert [Bound("<=", 2).holds(ratio) for ratio in (1.9, 2, 2.1)] == [True, True, False]
    assert [Bound(">=", 2).holds(ratio) for ratio in (1.9, 2, 2.1)] == [False, True, True]


def test_bytes_written_are_those_of_the_child_and_of_its_own_children(tmp_path: Path) -> None:
    write = "open({!r}, 'wb', 0).write(bytes({}))"
    inner = write.format(str(tmp_path / "inner"), 300_000)
    outer = write.format(str(tmp_path / "outer"), 200_000)
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}]); {outer}"
    usage = Child([sys.executable, "-c", code], tmp_path / "log", {}).wait(60)
    assert 500_000 <= usage.written_bytes < 510_000
