"""The job over files some of which can't be read: each affects itself only, and the end tells."""

from __future__ import annotations

import gzip
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import zstandard as zstd

import forebay
from forebay.operators.sources.lines import KEPT_BYTES
from forebay.storage.base.errors import INCOMPLETE, PERMANENT
from forebay.storage.base.layout import Layout
from tests import engine
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
    return sorted(forebay.open(job.data).sql("select id from events").to_series().to_list())


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
    assert "all restart" not in job.told()
    assert Layout(job.data).ended.exists()

    cut.write_bytes(whole)
    assert job.ends(job.run(workers)) == 0
    assert sorted(set(ids(job)) - set(found)) == sorted(set(named("cut", 3000)) - set(read))


@pytest.mark.long
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


@pytest.mark.few(1)
@pytest.mark.parametrize("kind", ["renamed", "copied and longer", "compressed"])
def test_a_file_that_begins_as_another_did_is_told_of(job: Job, kind: str) -> None:
    events = job.folder / "events"
    (events / "a.ndjson").write_bytes(lines("a", 300))
    (events / "b.ndjson").write_bytes(lines("b", 300))
    (events / "empty.ndjson").write_bytes(b"")
    assert job.ends(job.run()) == 0
    assert "begins as the file" not in job.told()
    if kind == "renamed":
        (events / "a.ndjson").rename(events / "z.ndjson")
    elif kind == "copied and longer":
        (events / "z.ndjson").write_bytes(lines("a", 400))
    else:
        (events / "z.ndjson.gz").write_bytes(gzip.compress(lines("a", 300)))
    (events / "other.ndjson").write_bytes(lines("other", 300))
    (events / "empty too.ndjson").write_bytes(b"")
    job.ends(job.run())
    told = [line for line in job.told().splitlines() if "begins as the file" in line]
    assert len(told) == 1
    assert str(events / "z.ndjson") in told[0]
    assert "of partition a.ndjson did" in told[0]


@pytest.mark.parametrize(
    "kind", ["a folder of other things", "a path of no folder", "below a file"]
)
def test_a_data_directory_that_cannot_be_one_ends_the_job_at_once(job: Job, kind: str) -> None:
    (job.folder / "events" / "a.ndjson").write_bytes(lines("a", 10))
    mine = job.folder / "mine" / "thesis.txt"
    mine.parent.mkdir()
    mine.write_text("three years of work")
    data, expected = {
        "a folder of other things": (mine.parent, "thesis.txt"),
        "a path of no folder": (Path("/proc/forebay"), "expected a folder that can be made"),
        "below a file": (mine / "data", "expected a folder that can be made"),
    }[kind]
    job.settings["DATA_DIR"] = str(data)
    assert job.ends(job.run()) == PERMANENT
    assert expected in job.told()
    assert list(mine.parent.iterdir()) == [mine]


@pytest.mark.long
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
    reasons = forebay.open(job.data).sql(
        "select reason, count(*) as n from rejects group by reason order by reason"
    )
    assert reasons.rows() == [("bad json", 99), ("too large", 51)]


def peaks_bytes(pid: int) -> list[int]:
    """How much memory each child of a process has had at most; nothing of those that have ended."""
    with suppress(OSError, IndexError):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        told = [Path(f"/proc/{child}/status").read_text() for child in children]
        return [1024 * int(status.partition("VmHWM:")[2].split()[0]) for status in told]
    return []


@pytest.mark.long
def test_a_line_of_a_gigabyte_takes_no_memory_and_is_one_reject_over_a_kill_in_its_middle(
    job: Job,
) -> None:
    line_bytes = 1 << 30
    path = job.folder / "events" / "big.ndjson.zst"
    with path.open("wb") as file, zstd.ZstdCompressor(level=1).stream_writer(file) as packed:
        packed.write(lines("big", 100) + b'{"id":"')
        for _ in range(line_bytes >> 20):
            packed.write(b"x" * (1 << 20))
        packed.write(b'"}\n' + lines("big", 100, 100))
    assert path.stat().st_size < 1 << 20
    first = job.run()
    job.until(first, lambda found: found["accepted"].sum() >= 100, 0.005)
    job.kill(first)
    peaks = [0]
    second = job.run()
    while second.poll() is None:
        with suppress(subprocess.TimeoutExpired):
            second.wait(0.02)
        peaks += peaks_bytes(second.pid)
    assert second.returncode == 0, job.told()
    assert 0 < max(peaks) < line_bytes / 2
    assert ids(job) == sorted(named("big", 200))
    (reject,) = forebay.open(job.data).rejects().collect().to_dicts()
    assert (reject["_offset"], reject["reason"]) == (100, "too large")
    assert reject["detail"].startswith(f"{line_bytes + 9} bytes, at most 1048576 are taken")
    assert reject["message"] == b'{"id":"'.ljust(KEPT_BYTES, b"x")


FEW_FILES = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (136, 136))
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@pytest.mark.long
@pytest.mark.parametrize("workers", [pytest.param("1", marks=pytest.mark.long), "2"])
def test_more_files_than_a_process_may_open_are_all_read(job: Job, workers: str) -> None:
    """And with more workers than one, events of one batch of many partitions cross between them:
    each took the whole batch along, gigabytes in all."""
    engine.need()
    names = [f"f{n}" for n in range(80)]
    for name in names:
        (job.folder / "events" / f"{name}.ndjson").write_bytes(lines(name, 5))
    process = job.start("-c", FEW_FILES, "-m", "forebay", "run", "--workers", workers)
    assert job.ends(process) == 0, job.told()
    assert ids(job) == sorted(id for name in names for id in named(name, 5))
