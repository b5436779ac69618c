"""Compaction and backfill: few files whatever the times, and each event once over crashes."""

from __future__ import annotations

import errno
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest

import forebay
from forebay.storage.base.layout import BlockId, ChunkId
from forebay.storage.base.times import DAY_MS
from forebay.storage.formats.catalog import Chunk
from forebay.storage.formats.checksum import Checksum
from forebay.storage.formats.log_writer import RowBytes
from forebay.storage.formats.ranges import SPILL_SUFFIX
from forebay.storage.partition.compaction import (
    CHUNKS_MIN,
    SMALL_BYTES,
    compacted_id,
    neighbours,
    span_ms,
)
from tests.job import Job
from tests.partition import (
    GRACE_MS,
    NAME,
    SPAN_MS,
    START_MS,
    WINDOW_MS,
    Message,
    OpenDisk,
    Partition,
    assert_agrees,
    event,
    judge,
)

# -- which chunks -------------------------------------------------------------------------------

PIECES = Checksum(0, 0, 0, 0).pieces


def chunk(n: int, size: int = 1000, **other: Any) -> Chunk:
    crc = "AAAAAA=="
    checksum = Checksum(size, 0, 0, 0, crc if size <= 256 << 10 else "")
    first_ms = START_MS + n * SPAN_MS
    return Chunk(
        **{
            "id": ChunkId(n, n, 1),
            "file": f"c{n}.parquet",
            "blocks": (BlockId(first_ms, n),),
            "batch": 0,
            "rows": 1,
            "checksum": checksum,
            "first_ms": first_ms,
            "last_ms": first_ms + 1,
            "schema": {},
            **other,
        }
    )


def test_as_many_small_neighbours_as_there_are_become_one_and_fewer_than_enough_do_not() -> None:
    chunks = [chunk(n) for n in range(1, CHUNKS_MIN + 3)]
    assert neighbours(reversed(chunks), 2, 0) == chunks
    assert neighbours(chunks[: CHUNKS_MIN - 1], 2, 0) == []
    assert compacted_id(chunks) == ChunkId(1, CHUNKS_MIN + 2, 1)


def test_a_chunk_of_an_eviction_that_a_crash_may_undo_is_left_alone() -> None:
    chunks = [chunk(n) for n in range(1, CHUNKS_MIN + 2)]
    last = chunks[-1].id.last
    assert neighbours(chunks, 1, last) == chunks
    assert neighbours(chunks, 1, last - 1) == chunks[:-1]
    assert neighbours(chunks, 1, last - 2) == []


@pytest.mark.parametrize(
    "other",
    [
        {"late": 1},
        {"blocks": (BlockId(START_MS, 9, backfill=True),)},
        {"first_ms": START_MS + DAY_MS, "last_ms": START_MS + DAY_MS},
        {"checksum": Checksum(100 << 10, 0, 0, 0, "AAAAAA==")},
        {"checksum": Checksum(SMALL_BYTES, 0, 0, 0)},
    ],
    ids=["late", "backfill", "another day", "another size", "large"],
)
def test_chunks_of_different_kinds_stay_apart(other: dict[str, Any]) -> None:
    chunks = [chunk(n) for n in range(1, CHUNKS_MIN + 1)]
    assert neighbours([*chunks[:-1], replace(chunks[-1], **other)], 2, 0) == []
    assert neighbours([*chunks, replace(chunk(99), **other)], 2, 0) == chunks


@pytest.mark.parametrize(
    ("retention_ms", "bytes_max", "found"),
    [
        (0, 0, DAY_MS),
        (30 * DAY_MS, 0, DAY_MS),
        (DAY_MS, 0, DAY_MS // 4),
        (0, 1 << 30, DAY_MS // 4),
        (3_600_000, 1 << 30, 900_000),
        (3, 0, 1),
    ],
)
def test_the_span_of_a_compacted_chunk_is_a_quarter_of_what_is_kept_and_a_day_at_most(
    retention_ms: int, bytes_max: int, found: int
) -> None:
    assert span_ms(retention_ms, bytes_max) == found


def test_chunks_of_different_spans_stay_apart_and_backfill_of_a_day_does_not() -> None:
    begin = START_MS // SPAN_MS // 6 * 6 * SPAN_MS
    times = [begin + n * SPAN_MS for n in range(6 + CHUNKS_MIN)]
    chunks = [chunk(n, first_ms=ms, last_ms=ms) for n, ms in enumerate(times)]
    assert neighbours(chunks, 2, 0, 6 * SPAN_MS) == chunks[:6]
    assert neighbours(chunks[6:], 2, 0, 6 * SPAN_MS) == chunks[6:]
    assert neighbours(chunks[3:9], 2, 0, 6 * SPAN_MS) == []
    backfill = [replace(c, blocks=(BlockId(START_MS, 9, backfill=True),)) for c in chunks]
    assert neighbours(backfill, 2, 0, 6 * SPAN_MS) == backfill


def test_what_is_made_of_chunks_of_several_runs_counts_where_the_newest_does() -> None:
    chunks = [
        chunk(3, id=ChunkId(3, 9, 1)),
        chunk(1, id=ChunkId(1, 2, 1)),
        chunk(4, id=ChunkId(10, 12, 4)),
    ]
    assert compacted_id(chunks) == ChunkId(1, 12, 4)


# -- on files -----------------------------------------------------------------------------------


def spread(count: int) -> list[Message]:
    """An event an interval, each evicting those a window before it."""
    return [event(n, n, n * SPAN_MS) for n in range(count)]


def confirmed(partition: Partition) -> bytes:
    """Snapshots until what was before them is sure; the last."""
    for _ in range(4):
        snapshot = partition.blocks.snapshot()
    return snapshot


def grow(partition: Partition) -> tuple[list[Message], bytes]:
    """A dozen chunks that are committed, none compacted; what came, and the last snapshot."""
    partition.blocks_per_chunk = 1
    partition.start()
    messages = spread(16)
    partition.append(*messages)
    partition.blocks.publish()
    partition.merge()
    return messages, confirmed(partition)


def test_small_chunks_become_one_once_no_crash_can_undo_them(partition: Partition) -> None:
    messages, _ = grow(partition)
    before = partition.catalog()
    assert len(before.chunks) >= CHUNKS_MIN
    manifest = partition.manifest()
    messages += [event(16, 16, 16 * SPAN_MS)]
    partition.append(messages[-1])
    partition.merge()
    after = partition.catalog()
    assert len(after.chunks) < CHUNKS_MIN
    assert after.covered >= before.covered
    partition.blocks.publish()
    assert_agrees(partition, judge(messages))
    assert set(partition.seen(manifest)) >= {("s0", n) for n in range(16)}
    folder = partition.layout.chunks(NAME)
    assert all((folder / one.file).exists() for one in before.chunks)  # for readers, until then
    partition.tidy(GRACE_MS)
    partition.tidy(1)
    assert {path.name for path in folder.rglob("*.parquet")} == {
        Path(one.file).name for one in partition.catalog().chunks
    }
    assert_agrees(partition, judge(messages))


def test_a_copy_of_what_is_in_a_compacted_chunk_is_a_duplicate(partition: Partition) -> None:
    messages, _ = grow(partition)
    more = [event(16, 16, 16 * SPAN_MS), event(17, 0, 0), event(18, 3, 3 * SPAN_MS)]
    partition.append(*more[:1])
    partition.merge()
    partition.append(*more[1:])
    partition.blocks.publish()
    assert partition.manifest().counters.duplicates == 2
    assert_agrees(partition, judge([*messages, *more]))


def test_a_damaged_chunk_is_left_alone_and_does_not_stop_what_comes(partition: Partition) -> None:
    messages, _ = grow(partition)
    broken, gone = partition.catalog().chunks[:2]
    path = partition.layout.chunks(NAME) / broken.file
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.write_bytes(data)
    (partition.layout.chunks(NAME) / gone.file).unlink()
    for n in range(16, 30):
        messages.append(event(n, n, n * SPAN_MS))
        partition.append(messages[-1])
        confirmed(partition)
        partition.merge()
    left = {one.file: one for one in partition.catalog().chunks}
    assert {broken.file, gone.file} <= left.keys()
    assert any(one.blocks[1:] for one in left.values())  # those that came later
    assert not [*partition.layout.chunks(NAME).rglob("*.tmp")]


def test_what_a_killed_merge_left_is_removed_after_the_next_start(partition: Partition) -> None:
    """Its unfinished file, and the spill of shuffled rows."""
    messages, _ = grow(partition)
    made = partition.layout.chunks(NAME) / partition.catalog().chunks[0].file
    left = [made.with_name(f"unfinished.parquet.tmp{suffix}") for suffix in ("", SPILL_SUFFIX)]
    for path in left:
        path.write_bytes(b"PAR1")
    snapshot = confirmed(partition)
    partition.crash()
    partition.start(snapshot)
    partition.tidy(0)
    assert all(path.exists() for path in left)
    partition.tidy(GRACE_MS)
    assert not any(path.exists() for path in left)
    assert_agrees(partition, judge(messages))


def test_a_longer_dedup_window_finds_copies_that_came_under_the_shorter_one(
    partition: Partition,
) -> None:
    partition.start()
    old, copy = event(1, 1, 0), event(3, 1, 0)
    partition.append(event(0, 0, 10 * WINDOW_MS), old, event(2, 2, 12 * WINDOW_MS))
    partition.merge()
    snapshot = confirmed(partition)
    partition.crash()
    partition.config = replace(partition.config, dedup_window_ms=100 * WINDOW_MS)
    partition.start(snapshot)
    partition.append(copy)
    partition.blocks.publish()
    assert partition.manifest().counters.duplicates == 1


def test_one_large_event_does_not_make_small_row_groups() -> None:
    batch = pa.RecordBatch.from_pydict({"raw": [b"x" * 400] * 1000})
    found = RowBytes()
    found.add(pa.RecordBatch.from_pydict({"raw": [b"x" * (1 << 20)]}))
    for _ in range(40):
        found.add(batch)
    assert found.value < 600
    for _ in range(20):
        found.add(pa.RecordBatch.from_pydict({"raw": [b"x" * (1 << 20)]}))
    assert found.value > 1 << 19


class FailingDisk(OpenDisk):
    """Fails for good at its `left`-th change; counts down only once it is `armed`."""

    def __init__(self) -> None:
        super().__init__()
        self.armed, self.left = False, 0

    def _change(self) -> None:
        if self.armed:
            self.left -= 1
            if self.left < 0:
                raise OSError(5, "the disk is gone")

    def write(self, path: Path) -> Any:
        self._change()
        return super().write(path)

    def publish(self, temporary: Path, path: Path) -> None:
        self._change()
        super().publish(temporary, path)
        self._change()

    def replace(self, path: Path, data: bytes, *, durable: bool) -> None:
        self._change()
        super().replace(path, data, durable=durable)
        self._change()

    def remove(self, path: Path) -> None:
        self._change()
        super().remove(path)


FULL = OSError(errno.ENOSPC, "no space left on device")


class FullFile(io.FileIO):
    """Has room for so many bytes."""

    def __init__(self, path: Path, room: int) -> None:
        super().__init__(path, "wb")
        self.room = room

    def write(self, data: Any) -> int:
        self.room -= super().write(bytes(data)[: max(0, self.room)])
        if self.room <= 0:
            raise FULL
        return len(data)


class FullDisk(OpenDisk):
    """Unless `room` is None, each chunk has so much of it, and can't be made durable."""

    room: int | None = None

    def write(self, path: Path) -> Any:
        return super().write(path) if self.room is None else FullFile(path, self.room)

    def publish(self, temporary: Path, path: Path) -> None:
        if self.room is not None:
            raise FULL
        super().publish(temporary, path)


@pytest.mark.parametrize("room", [0, 100, 1 << 30], ids=["nothing", "a beginning", "all but sync"])
def test_a_merge_that_fails_leaves_no_file_of_its_own(partition: Partition, room: int) -> None:
    partition.files = disk = FullDisk()
    messages, _ = grow(partition)
    before = {*partition.root.rglob("*.parquet*")}
    messages.append(event(16, 16, 16 * SPAN_MS))
    partition.append(messages[-1])
    disk.room = room
    with pytest.raises(OSError, match="no space left"):
        partition.merge()
    assert {*partition.root.rglob("*.parquet*")} == before
    disk.room = None
    partition.merge()
    partition.blocks.publish()
    assert_agrees(partition, judge(messages))


@pytest.mark.few(4)
@pytest.mark.parametrize("changes", range(12))
def test_a_compaction_that_dies_at_any_change_loses_and_doubles_nothing(
    partition: Partition, changes: int
) -> None:
    partition.files = disk = FailingDisk()
    messages, snapshot = grow(partition)
    more = event(16, 16, 16 * SPAN_MS)
    partition.append(more)
    disk.armed, disk.left = True, changes
    try:
        partition.merge()
    except OSError:
        died = True
    else:
        died = False
    disk.armed = False
    partition.crash()
    partition.start(snapshot)
    partition.append(more)
    partition.merge()
    partition.blocks.publish()
    assert_agrees(partition, judge([*messages, more]))
    confirmed(partition)
    for _ in range(3):
        partition.tidy(GRACE_MS)
    assert_agrees(partition, judge([*messages, more]))
    assert died or changes > 4


# -- few files ----------------------------------------------------------------------------------


def test_events_of_thousands_of_old_intervals_make_few_files(partition: Partition) -> None:
    partition.blocks_per_chunk = 6
    partition.start()
    partition.append(event(0, 0, 30 * DAY_MS))
    old = np.random.default_rng(1).permutation(8_000) * (300 * 1000)
    messages = [event(n, n, int(ms)) for n, ms in enumerate(old.tolist(), 1)]
    for low in range(0, len(messages), 1000):
        partition.append(*messages[low : low + 1000])
    for n in range(4):
        partition.append(event(8_001 + n, 8_001 + n, 30 * DAY_MS + (n + 1) * WINDOW_MS))
        partition.blocks.publish()
        confirmed(partition)
        partition.merge()
    files = [path for path in partition.root.rglob("*") if path.is_file()]
    assert len(files) < 100
    assert len(partition.seen()) == 8_005


@pytest.mark.long
def test_events_of_sparse_times_end_in_few_chunks(make_job: Any) -> None:
    """60,000 events over 72 h in 4 partitions: the second start has nothing left that a crash could
    undo, so it compacts what the first one made at once."""
    job: Job = make_job(
        DEDUP_KEY='["id"]',
        UPLOAD_TIME="at",
        SCHEMA="none",
        COLUMNS='[{"name": "id", "path": "id"}]',
    )
    folder = job.folder / "events"
    folder.mkdir(parents=True)
    step_ms = 72 * 3_600_000 // 15_000
    for part in "abcd":
        lines = (
            orjson.dumps({"id": f"{part}{n}", "at": 1_714_521_600_000 + n * step_ms})
            for n in range(15_000)
        )
        (folder / f"{part}.ndjson").write_bytes(b"\n".join(lines) + b"\n")
    job.settings.update(SOURCE="files", FILES__PATH=str(folder))
    for _ in range(2):
        assert job.ends(job.run()) == 0, job.told()
    store = forebay.open(job.data)
    chunks = store.files().height
    print(f"{chunks} chunks")
    assert chunks < 100
    assert store.scan().collect()["id"].n_unique() == 60_000
