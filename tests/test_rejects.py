"""Rejects: read, filtered, exported as they came, and replayed by the real job.

Messages are decoded by the real decoder. One that is too large passes once the limit is raised; one
that is no JSON never does.
"""

from __future__ import annotations

import base64
import json
import os
import re
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import orjson
import polars as pl
import pytest
from click.testing import CliRunner

import forebay
from forebay.cli.main import main
from forebay.cli.summary import summary
from forebay.query.receipt import MESSAGES
from forebay.storage.formats.boundary import BoundaryWriter
from forebay.storage.formats.replay_request import read_request
from tests.job import Job
from tests.partition import (
    NAME,
    Partition,
)
from tests.replayed import BROKEN, CONFIG, SOURCE, decoded, message

ROOT = Path(__file__).parent.parent
SMALL, LARGE = 100, 10_000


@pytest.fixture
def partition(tmp_path: Path) -> Iterator[Partition]:
    partition = Partition(tmp_path / "data", CONFIG)
    yield partition
    partition.files.close()


# -- reading ------------------------------------------------------------------------------------


@pytest.fixture
def data(partition: Partition, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Five rejects of three reasons, one of them no UTF-8, and two events."""
    monkeypatch.chdir(tmp_path)
    partition.start()
    texts = [message(0, 0), b"", BROKEN, "{é".encode(), message(1, 1, large=True), b"[1]"]
    partition.take(decoded([*texts, message(1, 2)], 0, SMALL))
    partition.blocks.publish()
    return partition.root


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(main, [*arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_rejects_are_a_table_of_sql_beside_the_events(data: Path) -> None:
    store = forebay.open(data)
    counts = store.sql("select reason, count(*) as n from rejects group by reason order by reason")
    assert counts.rows() == [("bad json", 3), ("empty", 1), ("too large", 1)]
    both = store.sql(
        "select (select count(*) from rejects) as rejects, (select count(*) from events) as events"
    )
    assert both.rows() == [(5, 2)]
    assert store.sql(
        "select _offset from rejects where _offset > 2 order by _offset limit 1"
    ).rows() == [(3,)]


def test_bytes_past_the_committed_extent_are_no_rejects(data: Path, partition: Partition) -> None:
    (extent,) = partition.manifest().rejects
    path = partition.layout.rejects(NAME) / extent.file
    path.write_bytes(path.read_bytes() + b"never committed")
    assert forebay.open(data).rejects().collect().height == 5


def test_list_shows_those_meant_and_how_many_more_there_are(data: Path) -> None:
    listed = invoke("rejects", "list", "--data-dir", str(data), "--reason", "bad json")
    assert [line.split()[1] for line in listed.splitlines()[1:]] == ["2", "3", "5"]
    lines = invoke("rejects", "list", "--data-dir", str(data), "--json", "--limit", "2")
    rows = [json.loads(line) for line in lines.splitlines()[:2]]
    assert [row["_offset"] for row in rows] == [1, 2]
    assert "--limit shows more" in lines


def test_show_prints_the_reason_and_the_whole_message(data: Path) -> None:
    shown = invoke("rejects", "show", SOURCE, "3", "--data-dir", str(data))
    assert "reason       bad json: " in shown
    assert "{é" in shown
    assert "\\xff\\xfe" in invoke("rejects", "show", SOURCE, "2", "--data-dir", str(data))
    result = CliRunner().invoke(
        main, ["rejects", "show", SOURCE, "2", "--raw", "--data-dir", str(data)]
    )
    assert result.stdout_bytes == BROKEN
    result = CliRunner().invoke(main, ["rejects", "show", SOURCE, "0", "--data-dir", str(data)])
    assert result.exit_code == 1
    assert "expected a reject at s0 0" in result.output


def test_export_gives_every_message_back_byte_for_byte(data: Path, tmp_path: Path) -> None:
    expected = forebay.open(data).rejects().sort("_offset").collect()
    lines, table = tmp_path / "out.ndjson", tmp_path / "out.parquet"
    for file in (lines, table):
        assert "5 rejects" in invoke("rejects", "export", str(file), "--data-dir", str(data))
    assert pl.read_parquet(table).sort("_offset").equals(expected)
    rows = sorted(map(json.loads, lines.read_bytes().splitlines()), key=lambda r: r["_offset"])
    found = [
        base64.b64decode(row["message_base64"])
        if "message_base64" in row
        else row["message"].encode()
        for row in rows
    ]
    assert found == expected["message"].to_list()
    only = ("--reason", "no key", "--force")
    invoke("rejects", "export", str(table), "--data-dir", str(data), *only)
    assert pl.read_parquet(table).height == 0


def test_export_to_another_kind_of_file_is_refused(data: Path) -> None:
    result = CliRunner().invoke(main, ["rejects", "export", "x.csv", "--data-dir", str(data)])
    assert result.exit_code == 1
    assert "expected .ndjson, .jsonl, .parquet" in result.output


@pytest.mark.parametrize("command", ["list", "export", "replay", "delete"])
def test_a_mistyped_partition_is_an_error_and_no_empty_answer(
    command: str, data: Path, tmp_path: Path
) -> None:
    file = [str(tmp_path / "out.ndjson")] if command == "export" else []
    asked = ["rejects", command, *file, "--data-dir", str(data), "--partition", "S0"]
    result = CliRunner().invoke(main, asked)
    assert result.exit_code == 1
    assert "expected one that messages were read from, got 'S0'; did you mean 's0'?" in (
        result.output
    )
    assert not (tmp_path / "out.ndjson").exists()


# -- deletion -----------------------------------------------------------------------------------


def test_delete_asks_for_what_is_there_and_nothing_else(data: Path, partition: Partition) -> None:
    told = invoke("rejects", "delete", "--dry-run", "--data-dir", str(data))
    assert told == "3 bad json\n1 empty\n1 too large\n5 rejects would be deleted\n"
    dry = ("rejects", "delete", "--dry-run", "--data-dir", str(data), "--reason", "empty")
    assert invoke(*dry) == "1 empty\n1 reject would be deleted\n"
    assert not partition.layout.replay.exists()
    refused = CliRunner().invoke(main, ["rejects", "delete", "--data-dir", str(data)])
    assert refused.exit_code == 1
    assert "expected --yes where there is no terminal" in refused.output
    assert not partition.layout.replay.exists()
    asked = ("rejects", "delete", "--yes", "--data-dir", str(data), "--offset", "2")
    done = "1 bad json\nrequest 1: 1 reject; the job takes it up within seconds\n"
    waits = "request 1 is pending: delete rejects of offset 2; the job takes it up within seconds\n"
    assert invoke(*asked) == done  # the fixture has the lock, as a job has
    assert invoke(*asked) == waits + done
    own = ("--data-dir", str(data))
    assert invoke("rejects", "delete", "--dry-run", *own).startswith(waits)
    assert invoke("rejects", "list", *own).endswith(waits)
    assert waits in invoke("status", *own)
    (waiting,) = json.loads(invoke("status", "--json", *own))["pending_requests"]
    assert (waiting["number"], waiting["what"], waiting["node"]) == (1, "delete", str(data))
    request = read_request(partition.files, partition.layout, 1)
    assert request
    assert request.delete == {NAME: {SOURCE: 7}}
    for _ in partition.blocks.delete(request):
        pass
    partition.blocks.publish()
    assert forebay.open(data).rejects().collect()["_offset"].sort().to_list() == [1, 3, 4, 5]
    assert invoke(*asked) == "no rejects to delete\n"
    assert "pending" not in invoke("status", *own)
    assert "rejects_expired 1" in " ".join(summary(data))
    status = json.loads(invoke("status", "--json", "--data-dir", str(data)))
    assert (status["totals"]["rejects"], status["totals"]["rejects_expired"]) == (4, 1)
    assert sum(status["totals"][name] for name in MESSAGES) == 7


def test_delete_is_either_tried_or_done(data: Path, partition: Partition) -> None:
    arguments = ["rejects", "delete", "--dry-run", "--yes", "--data-dir", str(data)]
    told = CliRunner().invoke(main, arguments)
    assert told.exit_code == 2
    assert "expected --dry-run or --yes, got both" in told.output
    assert not partition.layout.replay.exists()


@pytest.mark.parametrize(("answer", "asked"), [("y", True), ("n", False)])
def test_delete_asks_at_a_terminal(
    data: Path, partition: Partition, monkeypatch: pytest.MonkeyPatch, answer: str, asked: bool
) -> None:
    monkeypatch.setattr("forebay.cli.rejects._at_terminal", lambda: True)
    arguments = ["rejects", "delete", "--data-dir", str(data)]
    told = CliRunner().invoke(main, arguments, input=f"{answer}\n", catch_exceptions=False).output
    assert "Delete 5 rejects? [y/N]" in told
    assert partition.layout.replay_request(1).exists() == asked


def test_ctrl_c_at_the_question_of_delete_deletes_nothing(data: Path, partition: Partition) -> None:
    """At a terminal, where Ctrl-C is a byte that is typed."""
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "forebay", "rejects", "delete", "--data-dir", str(data)]
    process = subprocess.Popen(
        ["setsid", "--ctty", *command], stdin=theirs, stdout=theirs, stderr=theirs,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    os.close(theirs)
    told = b""
    with os.fdopen(ours, "r+b", buffering=0) as terminal:
        while b"[y/N]" not in told:
            told += terminal.read(1024)
        terminal.write(b"\x03")
        with suppress(OSError):  # EIO: the terminal's other end has gone
            while True:
                if not select.select([terminal], [], [], 5)[0]:
                    terminal.write(b"\x03")  # the first came before it waited for an answer
                elif more := terminal.read(1024):
                    told += more
                else:
                    break
        assert process.wait(60) == 130
    assert told.startswith(b"3 bad json\r\n")
    assert b"Traceback" not in told
    assert b"Aborted" not in told
    assert not partition.layout.replay.exists()
    assert forebay.open(data).rejects().collect().height == 5


def test_disk_lists_files_of_rejects_and_says_which_go(
    data: Path, partition: Partition, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("disk", "--json", "--data-dir", str(data))

    def fates() -> list[tuple[str, str]]:
        found = json.loads(invoke(*arguments).rpartition("]")[0] + "]")
        return [(item["fate"], item["reason"]) for item in found if item["what"] == "rejects"]

    assert fates() == [("goes", "expired")]  # they came in 1970, by the partition's clock
    monkeypatch.setenv("FOREBAY_REJECTS_RETENTION", "0s")
    assert fates() == [("stays", "not old enough")]
    with BoundaryWriter(partition.files, partition.layout) as writer:
        writer.seal(partition.config.block_span_ms, [])
        writer.complete(0, late=False)
    assert fates() == [("goes", "handed off")]
    monkeypatch.undo()
    told = invoke("disk", "--dry-run", "--data-dir", str(data))
    assert re.match(r"goes: [\d,.]+ (bytes|KiB), 0 events, 5 rejects \(1 ", told)


def test_disk_says_what_it_leaves_out_of_its_listing(data: Path, partition: Partition) -> None:
    arguments = ["disk", "--data-dir", str(data)]
    items = len(json.loads(invoke(*arguments, "--json")))
    assert items > 1
    whole = invoke(*arguments)
    summary, listing = whole.split("\n\n")[1:]
    counts = [int(line.split()[-4]) for line in summary.splitlines()[1:]]
    assert sum(counts) == items == len(listing.splitlines()) - 1
    short = invoke(*arguments, "--limit", "1")
    assert short.startswith(whole.removesuffix(listing))
    assert short.endswith(f"\n{items - 1} more; --limit shows them\n")


# -- the real job -------------------------------------------------------------------------------


def test_job_replays_what_was_asked_exactly_once_over_a_kill(
    make_job: Callable[..., Job], tmp_path: Path
) -> None:
    lines = [_line(number) for number in range(4_000)]
    events = tmp_path / "events"
    events.mkdir()
    (events / "a.ndjson").write_bytes(b"".join(lines[:3_000]))
    job = make_job(FILES__PATH=str(events), MESSAGE_BYTES_MAX="300", EPOCH_INTERVAL="50ms")
    assert job.ends(job.run()) == 0, job.told()
    large = [n for n in range(3_000) if n % 3 == 0]
    assert job.partitions()["rejects"].sum() == len(large)
    asked = f"request 1: {len(large):,} rejects; no job runs, the next one does it\n"
    pending = "request 1 is pending: replay all rejects; no job runs, the next one does it\n"
    for told in (asked, pending + asked):
        assert invoke("rejects", "replay", "--data-dir", str(job.data)) == told
    (events / "a.ndjson").write_bytes(b"".join(lines))
    job.settings |= {"MESSAGE_BYTES_MAX": "1000", "BATCH_ROWS": "50"}
    killed = job.run()
    job.until(killed, lambda found: found["accepted"].sum() > 2_000)
    job.kill(killed)
    assert job.ends(job.run()) == 0, job.told()
    assert [offset for _, offset in job.places()] == list(range(4_000))
    counts = job.partitions().select("accepted", "duplicates", "rejects").row(0)
    assert counts == (4_000, 0, 0)
    assert invoke("rejects", "replay", "--data-dir", str(job.data)) == "no rejects to replay\n"


def test_job_deletes_what_was_asked_exactly_once_over_a_kill(
    make_job: Callable[..., Job], tmp_path: Path
) -> None:
    """Also with hash partitions, where there is no replay."""
    lines = [_line(number) for number in range(3_000)]
    events = tmp_path / "events"
    events.mkdir()
    (events / "a.ndjson").write_bytes(b"".join(lines[:2_000]))
    job = make_job(
        FILES__PATH=str(events), MESSAGE_BYTES_MAX="300", EPOCH_INTERVAL="50ms", GRACE="1s",
        HASH_PARTITIONS="2",
    )  # fmt: skip
    assert job.ends(job.run()) == 0, job.told()
    before = sum(n % 3 == 0 for n in range(2_000))
    told = invoke("rejects", "delete", "--yes", "--data-dir", str(job.data))
    assert told.endswith(f"request 1: {before:,} rejects; no job runs, the next one does it\n")
    (events / "a.ndjson").write_bytes(b"".join(lines))
    job.settings["BATCH_ROWS"] = "50"
    killed = job.run()
    job.until(killed, lambda found: found["rejects_expired"].sum() > 0)
    job.kill(killed)
    assert job.ends(job.run()) == 0, job.told()
    counts = job.partitions().select("accepted", "rejects", "rejects_expired").sum().row(0)
    after = sum(n % 3 == 0 for n in range(2_000, 3_000))
    assert counts == (3_000 - before - after, after, before)
    assert forebay.open(job.data).rejects().collect()["_offset"].min() == 2_001
    assert invoke("check", "--data-dir", str(job.data)).endswith("all as written\n")
    assert f"rejects_expired {before}" in job.told()


def test_replay_tells_whether_a_job_runs(data: Path, partition: Partition) -> None:
    partition.files.close()
    hold = "import sys, pathlib; from forebay.storage.base.disk import Disk; "
    hold += f"f = Disk().lock_name(pathlib.Path({str(partition.layout.writers)!r}), {NAME!r}); "
    hold += "print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as job:
        assert job.stdin
        assert job.stdout
        job.stdout.readline()
        assert "takes it up within seconds" in invoke("rejects", "replay", "--data-dir", str(data))
        job.stdin.close()
        job.wait()
    assert "no job runs" in invoke("rejects", "replay", "--data-dir", str(data))


def test_replay_of_hash_partitions_is_refused(make_job: Callable[..., Job], tmp_path: Path) -> None:
    (tmp_path / "a.ndjson").write_bytes(_line(1) + b"{\n")
    job = make_job(FILES__PATH=str(tmp_path / "a.ndjson"), HASH_PARTITIONS="2")
    assert job.ends(job.run()) == 0, job.told()
    result = CliRunner().invoke(main, ["rejects", "replay", "--data-dir", str(job.data)])
    assert result.exit_code == 1
    assert "hash partitions" in result.output
    asked = ("rejects", "list", "--data-dir", str(job.data), "--partition", "a.ndjson")
    assert "bad json" in invoke(*asked)


def _line(number: int) -> bytes:
    """Every third is larger than 300 bytes."""
    event = {
        "device_id": f"d{number % 10}",
        "$insert_id": f"i{number}",
        "server_upload_time": f"2024-05-01 12:{number // 100:02d}:{number % 60:02d}.000",
        "pad": "x" * (400 if number % 3 == 0 else 10),
    }
    return orjson.dumps(event) + b"\n"
