"""What a worker loads: nothing that it may never need, for each start would wait for it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import forebay
from tests.job import Job

LATER = ("polars", "duckdb", "pyiceberg")
SETTINGS = {
    "SOURCE": "files",
    "SCHEMA": "none",
    "COLUMNS": '[{"name": "id", "path": "id"}]',
    "DEDUP_KEY": '["id"]',
    "UPLOAD_TIME": "at",
}


@pytest.mark.executed
@pytest.mark.parametrize("span_s", [pytest.param(1, marks=pytest.mark.long), 3600])
def test_polars_is_loaded_at_the_first_merge_and_not_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, span_s: int
) -> None:
    events = tmp_path / "events"
    events.mkdir()
    lines = [f'{{"id":"{n}","at":{(1_714_521_600 + n * span_s) * 1000}}}\n' for n in range(20)]
    (events / "a.ndjson").write_text("".join(lines))
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    job = Job(tmp_path, {**SETTINGS, "FILES__PATH": str(events), "BLOCKS_PER_CHUNK": "1"})
    assert job.ends(job.bytewax()) == 0
    loaded = set(re.findall(r"^import time:.*\| +(\w+)$", job.log.read_text(), re.MULTILINE))
    assert "bytewax" in loaded
    store = forebay.open(job.data)
    assert store.scan().collect().height == 20
    merged = store.receipt().cold_rows > 0
    assert merged == (span_s > 1)
    assert loaded.isdisjoint(LATER) == (not merged)
