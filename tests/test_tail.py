"""`forebay tail`: what it shows is each event once, whatever becomes of blocks and of the job."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import orjson
import polars as pl
import pytest
from click.testing import CliRunner, Result

import forebay
from forebay.cli.main import main
from forebay.query import tail
from forebay.query.tail import Tail
from forebay.storage.formats.schema import OFFSET
from forebay.storage.partition.commits import UNCOMMITTED_SNAPSHOTS_MAX
from tests import cases
from tests.job import Job
from tests.lane import Lane, Lanes, events, filled
from tests.partition import GRACE_MS, Partition
from tests.replayed import CONFIG, LARGE, SMALL, decoded, message, replay
from tests.shop import taken


def offsets(frames: Iterator[pl.DataFrame]) -> list[int]:
    return [offset for frame in frames for offset in frame[OFFSET]]


def accepted(root: Path) -> list[int]:
    return sorted(forebay.open(root).scan().select(OFFSET).collect()[OFFSET].to_list())


# -- what comes ---------------------------------------------------------------------------------


class Walk:
    """A partition that takes messages in, publishes, merges, replays rejects and crashes, at
    random; a source that goes back with it; and a tail that looks at times."""

    def __init__(self, root: Path, random: Random) -> None:
        self.random = random
        self.partition = Partition(root, CONFIG).start()
        self.sent: list[bytes] = []
        self.keys: list[int] = []
        """Not those of rejects; and copies come soon: whether others are kept depends on when
        rejects are replayed."""
        self.next = 0
        self.replays = 0
        self.commits: list[tuple[bytes | None, int]] = [(None, 0)]
        self.shown: list[int] = []
        self.tail: Tail | None = None

    def send(self) -> None:
        for _ in range(self.random.randint(1, 12)):
            n, large = len(self.sent), self.random.random() < 0.15
            copies = self.keys and not large and self.random.random() < 0.2
            key = self.random.choice(self.keys[-5:]) if copies else n
            self.keys += [] if large else [key]
            upload_ms = 10 * n + self.random.randint(0, 60)
            self.sent.append(message(key, upload_ms, large=large))
        self.read(len(self.sent))

    def read(self, until: int) -> None:
        """Take in what was sent, in pieces."""
        while self.next < until:
            last = min(until, self.next + self.random.randint(1, 8))
            self.partition.take(decoded(self.sent[self.next : last], self.next, SMALL))
            self.next = last
            self.look()

    def look(self) -> None:
        if self.random.random() < 0.4:
            self.partition.blocks.publish()
            if self.tail is None and len(self.sent) > 20:
                self.tail = Tail([self.partition.root])
                self.known = accepted(self.partition.root)
            elif self.tail is not None:
                self.shown += offsets(self.tail.look())

    def merge(self) -> None:
        self.partition.merge()
        self.partition.tidy(GRACE_MS // 5)

    def replay(self) -> None:
        replay(self.partition, LARGE)
        self.replays = self.partition.blocks.state.replays
        self.look()

    def snapshot(self) -> None:
        self.commits.append((self.partition.blocks.snapshot(), self.next))

    def crash(self) -> None:
        """The last two snapshots may be lost with it."""
        lost = self.random.randint(0, min(UNCOMMITTED_SNAPSHOTS_MAX, len(self.commits) - 1))
        del self.commits[len(self.commits) - lost :]
        snapshot, self.next = self.commits[-1]
        self.partition.crash()
        self.partition.start(snapshot)
        self.look()
        self.read(len(self.sent))
        while self.partition.blocks.state.replays < self.replays:
            self.replay()

    def go(self, steps: int) -> None:
        every = (self.send, self.send, self.send, self.merge, self.snapshot, self.snapshot)
        for _ in range(steps):
            self.random.choice((*every, self.replay, self.crash))()
        self.partition.blocks.publish()


@pytest.mark.few(1)
@pytest.mark.cases
@pytest.mark.parametrize("seed", range(cases(3, 10, 1000)))
def test_each_event_is_shown_once_over_merges_crashes_and_replays(
    seed: int, tmp_path: Path
) -> None:
    walk = Walk(tmp_path / "data", Random(seed))
    try:
        walk.go(40)
    finally:
        walk.partition.files.close()
    assert walk.tail is not None
    walk.shown += offsets(walk.tail.look())
    assert len(walk.shown) == len(set(walk.shown))
    assert not set(walk.shown) & set(walk.known)
    assert {*walk.shown, *walk.known} == set(accepted(walk.partition.root))
    assert walk.tail.missed == 0


def test_what_is_remembered_is_what_a_crash_undid(lane: Lanes) -> None:
    one = lane().take(*events(0, 5, 0))
    snapshot = one.blocks.snapshot()
    one.take(*events(5, 5, 50)).publish()
    found = Tail([one.root])
    [held] = found._partitions.values()
    one.take(*events(10, 5, 100)).publish()
    assert offsets(found.look()) == [*range(10, 15)]
    one.crash().start(snapshot)
    one.take(*events(5, 3, 50)).publish()
    assert offsets(found.look()) == []
    assert sorted(held._undone[OFFSET]) == [*range(8, 15)]
    one.take(*events(8, 9, 80)).publish()
    assert offsets(found.look()) == [15, 16]
    assert held._undone.height == 0


def test_logs_are_read_from_where_the_tail_began(
    lane: Lanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = lane().take(*events(0, 500, 0, step_ms=0)).publish()
    found = Tail([one.root])
    read, size = [0], one.hot_log().stat().st_size
    disk_read = found._disk.read

    def counted(path: Path, start: int = 0, end: int | None = None) -> bytes:
        data = disk_read(path, start, end)
        read[0] += len(data) if path == one.hot_log() and start else 0
        return data

    monkeypatch.setattr(found._disk, "read", counted)
    one.take(*events(500, 5, 1)).publish()
    assert offsets(found.look()) == [*range(500, 505)]
    assert read[0] == one.hot_log().stat().st_size - size


def test_nothing_is_read_where_nothing_was_published(
    lane: Lanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = lane().take(*events(0, 5, 0)).publish()
    found = Tail([one.root])
    assert offsets(found.look()) == []
    monkeypatch.delattr("forebay.storage.base.disk.Disk.read")
    assert offsets(found.look()) == []


def test_a_partition_that_is_new_is_shown_from_its_beginning(lane: Lanes) -> None:
    one = lane().take(*events(0, 3, 0)).publish()
    found = Tail([one.root])
    other = lane(name="p01").take(*events(0, 3, 0)).publish()
    assert other.root == one.root
    assert [frame.height for frame in found.look()] == [3]


def test_many_events_come_in_parts_and_few_in_order(
    lane: Lanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = lane().take(*events(0, 1, 0)).publish()
    found = Tail([one.root])
    one.take(*reversed(events(1, 20, 0, step_ms=-1))).publish()
    [frame] = found.look()
    assert frame["upload_time"].is_sorted()
    monkeypatch.setattr(tail, "SORTED_ROWS", 5)
    for n in range(1, 5):
        one.take(*events(20 * n + 1, 20, 150 * n, step_ms=5)).publish()
    parts = list(found.look())
    assert len(parts) > 1
    assert sum(part.height for part in parts) == 80


def test_what_went_by_unseen_is_counted(lane: Lanes) -> None:
    one = lane().take(*events(0, 3, 0)).publish()
    found = Tail([one.root])
    for n in range(1, 20):
        one.take(*events(10 * n, 10, 150 * n)).publish().merge()
        one.blocks.snapshot()
    one.tidy(1)
    one.tidy(2 * GRACE_MS)
    one.publish()
    shown = offsets(found.look())
    assert found.missed > 0
    assert len(shown) + found.missed == 190


# -- what was there -----------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 7, 10_000])
def test_it_begins_with_the_newest_of_all_logs(lane: Lanes, count: int) -> None:
    one = filled(lane())
    other: Lane = lane("other").take(*events(0, 20, 1_300)).publish()
    found = Tail([one.root, other.root])
    logs = pl.concat(
        frame
        for partition in found._partitions.values()
        for block in partition.state.blocks  # type: ignore[union-attr]
        for frame in partition.rows(block.extents)
    ).sort(tail.ORDER)
    last = found.last(count)
    assert last.height == min(count, logs.height)
    if count:
        assert last["upload_time"].to_list() == logs["upload_time"].to_list()[-count:]


# -- the command --------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    partition = taken(tmp_path / "data")
    yield partition.root
    partition.crash()


def invoke(data: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["tail", "--data-dir", str(data), *arguments])


def test_lines_are_aligned_and_the_newest_is_last(data: Path) -> None:
    printed = invoke(data, "-n", "2", "search", "purchase where price >= 2")
    assert (printed.exit_code, printed.stderr) == (0, "")
    assert printed.output.splitlines() == [
        "upload_time              kind      who",
        "2024-05-03 04:10:00.000  purchase  u4",
        "2024-05-03 05:00:00.000  search    u5",
    ]


def test_columns_and_filters_are_properties(data: Path) -> None:
    asked = ("-n", "1", "--where", "user_properties.plan is free", "--columns", "price, country")
    lines = invoke(data, *asked).output.splitlines()
    assert [line.split() for line in lines] == [
        ["upload_time", "price", "country"],
        ["2024-05-03", "05:20:00.000", "-", "NL"],
    ]


def test_json_has_all_columns_and_raw_the_message(data: Path) -> None:
    [line] = invoke(data, "-n", "1", "--format", "json").stdout_bytes.splitlines()
    assert json.loads(line)["who"] == "u5"
    [line] = invoke(data, "-n", "1", "--format", "raw").stdout_bytes.splitlines()
    assert json.loads(line) == {"user_properties": {"plan": "free"}}


def test_a_name_steers_no_terminal(tmp_path: Path, lane: Lanes) -> None:
    one = lane().take(*events(0, 1, 0)).publish()
    printed = invoke(one.root, "--columns", "text\x1b[31m")
    assert "\x1b" not in printed.output
    assert "text\\x1b[31m" in printed.output


@pytest.mark.parametrize(
    ("arguments", "warned"),
    [
        (["purchas"], "Warning: no event 'purchas' so far; did you mean 'purchase'?\n"),
        (["-n", "2", "--columns", "kind,contry"], "no property 'contry' in the newest events"),
    ],
)
def test_what_is_misspelt_is_warned_of(data: Path, arguments: list[str], warned: str) -> None:
    result = invoke(data, *arguments)
    assert (result.exit_code, result.stderr.count("\n")) == (0, 1)
    assert warned in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--where", "price >> 1"], 1, "such as price > 10"),
        (['{"event": "search", "first": true}'], 1, "got a user's first"),
        (["--lines", "-1"], 2, "not in the range"),
        (["--format", "xml"], 2, "'xml' is not one of"),
    ],
)
def test_a_fault_is_a_line(data: Path, arguments: list[str], code: int, said: str) -> None:
    result = invoke(data, *arguments)
    assert result.exit_code == code
    assert said in result.stderr


def test_it_follows_a_job_that_is_killed_and_goes_on(
    make_job: Callable[..., Job], tmp_path: Path
) -> None:
    """As a process; it ends quietly by Ctrl-C."""
    folder = tmp_path / "events"
    folder.mkdir()
    lines = [b'{"id":"%d","at":%d}\n' % (n, 1_714_521_600_000 + 500 * n) for n in range(4_000)]
    (folder / "a.ndjson").write_bytes(b"".join(lines[:10]))
    job = make_job(
        SCHEMA="none", COLUMNS='[{"name":"id","path":"id"}]', DEDUP_KEY='["id"]',
        UPLOAD_TIME="at", FILES__PATH=str(folder), EPOCH_INTERVAL="50ms", BATCH_ROWS="50",
    )  # fmt: skip
    assert job.ends(job.run()) == 0, job.told()
    command = [sys.executable, "-m", "forebay", "tail", "-f", "-n", "3", "--format", "raw"]
    following = subprocess.Popen(
        [*command, "--data-dir", str(job.data)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert following.stdout is not None
    shown = [orjson.loads(following.stdout.readline())["id"] for _ in range(3)]
    (folder / "a.ndjson").write_bytes(b"".join(lines))
    killed = job.run()
    job.until(killed, lambda found: found["accepted"].sum() > 1_000)
    job.kill(killed)
    assert job.ends(job.run()) == 0, job.told()
    while shown[-1] != "3999":
        shown.append(orjson.loads(following.stdout.readline())["id"])
    following.send_signal(signal.SIGINT)
    rest, said = following.communicate(timeout=60)
    assert (following.returncode, rest, said) == (0, b"", b"")
    assert sorted(map(int, shown)) == [*range(7, 4_000)]


def test_it_ends_when_its_reader_has_gone_and_nothing_comes(data: Path) -> None:
    reads, writes = os.pipe()
    command = [sys.executable, "-m", "forebay", "tail", "-f", "--data-dir", str(data)]
    following = subprocess.Popen(command, stdout=writes, stderr=subprocess.PIPE)
    os.close(writes)
    assert os.read(reads, 6) == b"upload"
    os.close(reads)
    _, said = following.communicate(timeout=60)
    assert (following.returncode, said) == (141, b"")
