"""The job over files some of which can't be read: each affects itself only, and the end tells."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard as zstd

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


def test_a_file_replaced_under_its_name_stops_itself_only_and_loses_nothing(job: Job) -> None:
    events = job.folder / "events"
    (events / "a.ndjson").write_bytes(lines("old", 300))
    (events / "b.ndjson").write_bytes(lines("b", 300))
    assert job.ends(job.run()) == 0
    old = (events / "a.ndjson").read_bytes()
    (events / "a.ndjson").write_bytes(lines("new", 900))
    (events / "b.ndjson").write_bytes(lines("b", 600))
    assert job.ends(job.run()) == INCOMPLETE
    assert ids(job) == sorted(named("old", 300) + named("b", 600))
    last = job.told().rpartition("the input has ended")[2]
    assert f"file {events / 'a.ndjson'}: expected the 300 lines" in last
    assert "give the new file a name of its own" in last

    (events / "a.ndjson").rename(events / "c.ndjson")
    (events / "a.ndjson").write_bytes(old + lines("old", 100, 300))
    assert job.ends(job.run()) == 0
    assert ids(job) == sorted(named("old", 400) + named("b", 600) + named("new", 900))


def test_a_stop_ends_with_0_whatever_could_not_be_read_so_far(job: Job) -> None:
    events = job.folder / "events"
    (events / "a.ndjson").write_bytes(lines("a", 400_000))
    (events / "b.ndjson.gz").write_bytes(b"")
    process = job.run()
    job.until(process, lambda partitions: bool(partitions["accepted"].sum()))
    assert job.stop(process) == 0
    assert "b.ndjson.gz: expected gzip data" in job.log.read_text()
    assert job.ends(job.run()) == INCOMPLETE
    assert len(ids(job)) == 400_000


def test_odd_lines_are_rejects_and_cost_no_neighbour_however_they_are_packed(job: Job) -> None:
    """Lines that are too large, or of zeros as a crash of the writer leaves them; CRLF is none."""
    job.settings["MESSAGE_BYTES_MAX"] = "100KiB"
    packings: dict[str, Callable[[bytes], bytes]] = {
        "plain.ndjson": bytes, "gzip.ndjson.gz": gzip.compress, "zstd.ndjson.zst": zstd.compress,
    }  # fmt: skip
    for name, packed in packings.items():
        good = [line.replace(b"\n", b"\r\n") for line in lines(name, 50).splitlines(True)]
        odd = [b'{"id":"big","pad":"' + b"x" * 300_000 + b'"}\n', bytes(5_000) + b"\n", b"\0{}\n"]
        content = b"".join(line + odd[n % 3] for n, line in enumerate(good))
        (job.folder / "events" / name).write_bytes(packed(content))
    assert job.ends(job.run()) == 0
    assert ids(job) == sorted(id for name in packings for id in named(name, 50))
    reasons = query.open(job.data).sql(
        "select reason, count(*) as n from rejects group by reason order by reason"
    )
    assert reasons.rows() == [("bad json", 99), ("too large", 51)]
