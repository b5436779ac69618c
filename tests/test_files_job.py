"""The job over files some of which can't be read: each affects itself only, and the end tells."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import pytest

import query
from storage.errors import INCOMPLETE
from storage.layout import Layout
from tests.job import Job

SETTINGS = {
    "SOURCE": "files",
    "SCHEMA": "none",
    "COLUMNS": '[{"name": "id", "path": "id"}]',
    "DEDUP_KEY": '["id"]',
    "UPLOAD_TIME": "at",
    "EPOCH_INTERVAL": "100ms",
}


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    events = tmp_path / "events"
    events.mkdir()
    job = Job(tmp_path, {**SETTINGS, "FILES__PATH": str(events)})
    yield job
    job.close()


def lines(name: str, count: int, start: int = 0) -> bytes:
    """Events with the ids NAME-START, ..."""
    return b"".join(
        b'{"id":"%b-%d","at":%d}\n' % (name.encode(), n, 1_714_521_600_000 + n)
        for n in range(start, start + count)
    )


def ids(job: Job) -> list[str]:
    return sorted(query.open(job.data).sql("select id from events").to_series().to_list())


def named(name: str, count: int) -> list[str]:
    return [f"{name}-{n}" for n in range(count)]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_file_that_is_cut_short_leaves_the_others_whole_and_is_named_at_the_end(
    job: Job, workers: int
) -> None:
    events = job.folder / "events"
    whole = gzip.compress(lines("cut", 3000))
    for name in ("a", "b", "c"):
        (events / f"{name}.ndjson").write_bytes(lines(name, 20_000))
    cut = events / "cut.ndjson.gz"
    cut.write_bytes(whole[: len(whole) // 2])
    assert job.ends(job.run(workers)) == INCOMPLETE
    found = ids(job)
    read = [id for id in found if id.startswith("cut-")]
    assert 0 < len(read) < 3000
    assert len(found) - len(read) == 60_000
    assert str(cut) in job.told().rpartition("the input has ended")[2]
    assert "start again" not in job.told()
    assert Layout(job.data).ended.exists()

    cut.write_bytes(whole)
    assert job.ends(job.run(workers)) == 0
    assert sorted(set(ids(job)) - set(found)) == sorted(set(named("cut", 3000)) - set(read))
