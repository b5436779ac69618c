"""Keys read back: after a restart, from hash files or logs, and from files that are damaged."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import Corruption
from forebay.storage.base.layout import incarnation_of
from forebay.storage.dedup.index import SAME_MAX, DedupIndex
from forebay.storage.dedup.key_sources import KeyColumns, LogKeys
from forebay.storage.dedup.keys import KNOWN_KEY_BYTES, Stored
from forebay.storage.formats.columns import arrow_schema
from forebay.storage.formats.hash_file import MAGIC, HashWriter, read_hashes
from forebay.storage.formats.hashes import I64, U64, Hash, KeyHash, hash_keys
from forebay.storage.formats.log import Extent, LogReader, Span
from forebay.storage.formats.log_writer import LogWriter
from forebay.storage.partition.chunks import Chunks
from tests import cases
from tests.partition import (
    GRACE_MS,
    NAME,
    SCHEMA,
    SPAN_MS,
    WINDOW_MS,
    Message,
    OpenDisk,
    Partition,
    assert_agrees,
    counts,
    event,
    frame,
    judge,
    one_hash,
)

HOUR_MS = 3_600_000


def restarted_with_three_hot_blocks(partition: Partition) -> list[Message]:
    """The messages that they are of."""
    partition.start()
    taken = [event(offset, offset, offset * SPAN_MS) for offset in range(3)]
    partition.append(*taken)
    snapshot = partition.blocks.snapshot()
    partition.crash()
    partition.start(snapshot)
    return taken


@pytest.mark.parametrize(
    ("cache_bytes", "loaded"), [(1, [False, False, True]), (1 << 20, [True] * 3)]
)
def test_a_restart_reads_back_the_keys_that_the_cache_has_room_for(
    partition: Partition, monkeypatch: pytest.MonkeyPatch, cache_bytes: int, loaded: list[bool]
) -> None:
    monkeypatch.setattr("forebay.storage.partition.known.LOAD_BYTES", 1)
    partition.cache_bytes = cache_bytes
    taken = restarted_with_three_hot_blocks(partition)
    known = partition.blocks._known
    known._load()
    assert [known._live[block].loaded for block in sorted(known._live)] == loaded
    again = [event(3 + number, number, number * SPAN_MS) for number in range(3)]
    partition.append(*again)
    partition.blocks.publish()
    assert_agrees(partition, judge([*taken, *again]))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[LogKeys]:
    """Whose logs were read back for their keys."""
    found: list[LogKeys] = []
    batches = LogKeys.batches

    def watched(keys: LogKeys) -> Iterator[Stored]:
        found.append(keys)
        return batches(keys)

    monkeypatch.setattr(LogKeys, "batches", watched)
    return found


def test_a_restart_reads_back_no_keys_of_blocks_that_the_next_event_evicts(
    partition: Partition, read: list[LogKeys]
) -> None:
    restarted_with_three_hot_blocks(partition)
    partition.append(event(3, 9, 3 * SPAN_MS + WINDOW_MS))
    assert not read
    partition.append(event(4, 0, 0))
    assert len(read) == 1


def test_each_log_is_read_back_once_if_the_cache_has_room_for_the_indexes_alone(
    partition: Partition, read: list[LogKeys]
) -> None:
    partition.cache_bytes = 3 * DedupIndex().nbytes + 1
    taken = restarted_with_three_hot_blocks(partition)
    more = [event(3 + number, 3 + number, 2 * SPAN_MS) for number in range(4)]
    for message in more:
        partition.append(message)
        assert partition.cache.bytes <= partition.cache_bytes
    assert len(read) == 3
    partition.blocks.publish()
    assert_agrees(partition, judge([*taken, *more]))


def other(run: Path) -> bytes:
    """A hash file that is whole, of another log."""
    partition = Partition(run)
    partition.start()
    partition.append(event(0, 7, 0))
    partition.blocks.snapshot()
    partition.files.close()
    (found,) = partition.layout.hot(NAME).glob("*.hashes")
    return found.read_bytes()


@pytest.mark.parametrize("beside", ["whole", "longer", "gone", "empty", "cut", "zeros", "other"])
def test_a_restart_reads_logs_for_their_keys_only_if_the_hash_files_do_not_tell(
    partition: Partition, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, beside: str
) -> None:
    partition.start()
    taken = [event(offset, offset, offset * SPAN_MS) for offset in range(3)]
    partition.append(*taken)
    partition.blocks.flush()
    if beside == "longer":
        snapshot = partition.blocks.snapshot()
        partition.append(event(3, 3, 2 * SPAN_MS))
        partition.blocks.flush()
    else:
        more = event(3, 3, 2 * SPAN_MS)
        partition.append(more)
        taken.append(more)
        snapshot = partition.blocks.snapshot()
    partition.crash()
    for file in partition.layout.hot(NAME).glob("*.hashes"):
        data = file.read_bytes()
        if beside == "gone":
            file.unlink()
        else:
            kept = {"empty": b"", "cut": data[:-1], "zeros": bytes(len(data))}.get(beside, data)
            file.write_bytes(other(tmp_path / file.name) if beside == "other" else kept)
    if beside in ("whole", "gone"):  # they stay, and what is gone is no one's loss
        partition.start(snapshot)
        partition.tidy(GRACE_MS)
        partition.tidy(GRACE_MS)
        partition.crash()
    logs_read: list[Extent] = []
    follow = LogReader.follow

    def watched(
        log: LogReader, extent: Extent, *, torn_ok: bool = False
    ) -> list[tuple[Span, memoryview]]:
        logs_read.append(extent)
        return follow(log, extent, torn_ok=torn_ok)

    monkeypatch.setattr(LogReader, "follow", watched)
    partition.start(snapshot)
    again = [event(4 + n, n, n * SPAN_MS) for n in range(3)] + [event(7, 9, 2 * SPAN_MS)]
    partition.append(*again)
    assert len(logs_read) == (0 if beside in ("whole", "longer") else 3)
    partition.blocks.publish()
    assert_agrees(partition, judge([*taken, *again]))


@pytest.mark.parametrize("gone", [(), (1,), (2,), (1, 2)])
def test_block_of_two_runs_is_read_back_though_the_hashes_of_one_are_gone(
    partition: Partition, gone: tuple[int, ...]
) -> None:
    partition.start()
    taken = [event(offset, offset, 0) for offset in range(6)]
    partition.append(*taken[:3])
    first = partition.blocks.snapshot()
    partition.crash()
    partition.start(first)
    partition.append(*taken[3:])
    second = partition.blocks.snapshot()
    partition.crash()
    for file in partition.layout.hot(NAME).glob("*.hashes"):
        if incarnation_of(file.name) in gone:
            file.unlink()
    partition.start(second)
    again = [event(6 + number, number, 0) for number in range(7)]
    partition.append(*again)
    partition.blocks.publish()
    assert counts(partition) == (7, 6)
    assert_agrees(partition, judge([*taken, *again]))


def test_name_of_a_hash_file_that_alone_survived_its_run_is_not_used_again(
    partition: Partition,
) -> None:
    partition.start()
    snapshot = partition.blocks.snapshot()
    hot = partition.layout.hot(NAME)
    (hot / "20240501T1205-000001.7.hashes").touch()
    partition.crash()
    partition.start(snapshot)
    assert partition.manifest().incarnation == 8


# -- damage --------------------------------------------------------------------------------------


def read_back(partition: Partition, merged: bool, flip: int) -> tuple[int, int]:
    """A redelivery of old events whose keys must be read back from a file with one flipped byte;
    accepted and duplicate events."""
    partition.cache_bytes = 1
    partition.start()
    old = [event(n, n, n % SPAN_MS) for n in range(200)]
    partition.append(*old, event(200, 999, HOUR_MS))
    if merged:
        partition.blocks_per_chunk = 1
        partition.chunks = Chunks(NAME, partition.layout, partition.files, 1, GRACE_MS)
        partition.merge()
    partition.blocks.snapshot()
    pattern = "chunks/**/*.parquet" if merged else "hot/**/20231114T2213*.arrows"
    file = sorted(partition.root.glob(pattern))[0]
    broken = bytearray(file.read_bytes())
    broken[flip % len(broken)] ^= 1 + flip % 255
    file.write_bytes(broken)
    if merged:
        partition.tidy(0)
        partition.tidy(GRACE_MS)
        partition.tidy(GRACE_MS)
    partition.append(*(event(201 + n, n, n % SPAN_MS) for n in range(200)))
    return counts(partition)


@pytest.mark.cases
@pytest.mark.parametrize("merged", [False, True], ids=["log", "chunk"])
def test_keys_read_back_from_a_flipped_file_are_right_or_corruption(
    merged: bool, tmp_path: Path
) -> None:
    """Never an event that is let in twice, nor one that is dropped as a duplicate of another."""
    rng = random.Random(merged)
    wrong: dict[int, str] = {}
    for number in range(cases(12, 40, 300)):
        flip = rng.randrange(10**6)
        partition = Partition(tmp_path / str(number))
        (tmp_path / str(number)).mkdir()
        try:
            counted = read_back(partition, merged, flip)
            if counted != (201, 200):
                wrong[flip] = f"accepted, duplicates: {counted}"
        except Corruption as error:
            if not re.search(r"\.(arrows|parquet)", str(error)):
                wrong[flip] = f"no file named: {error}"
        except (OSError, ValueError, OverflowError, pa.ArrowException) as error:
            wrong[flip] = f"{type(error).__name__}: {error}"[:120]
        finally:
            partition.files.close()
    assert not wrong, f"{len(wrong)} flips: {wrong}"


@pytest.mark.cases
def test_keys_read_again_from_a_flipped_log_are_right_or_corruption(tmp_path: Path) -> None:
    """Keys that the cache let go of are read back a batch at a time, by its place in the log."""
    disk = OpenDisk()
    writer = LogWriter(disk, tmp_path, "x.1.arrows", arrow_schema(SCHEMA))
    for low in (0, 20):
        writer.append(frame([event(n, n, n) for n in range(low, low + 20)]).events)
    disk.close()
    log = tmp_path / "x.1.arrows"
    data = log.read_bytes()
    wrong: dict[int, str] = {}
    columns = KeyColumns(SCHEMA.key, (), hash_keys)
    for at in range(0, len(data), cases(33, 11, 1)):
        keys = LogKeys(Disk(), tmp_path, columns, lambda: [writer.extent])
        (_, stored) = keys.batches()
        broken = bytearray(data)
        broken[at] ^= 1 + at % 255
        log.write_bytes(broken)
        try:
            if not keys.read(stored.place).equals(stored.keys):
                wrong[at] = "other keys"
        except Corruption as error:
            if log.name not in str(error):
                wrong[at] = f"no file named: {error}"
        except (OSError, ValueError, pa.ArrowException) as error:
            wrong[at] = f"{type(error).__name__}: {error}"[:120]
        log.write_bytes(data)
    assert not wrong, f"{len(wrong)} flips: {wrong}"


def test_keys_and_payloads_are_right_or_corruption_whatever_flipped_in_the_head_of_a_log(
    tmp_path: Path,
) -> None:
    """Where a hash file tells the hashes, the log's own schema is not read before a key is."""
    disk = OpenDisk()
    schema, payload = arrow_schema(SCHEMA), ("part", "upload_time")
    writer, beside = LogWriter(disk, tmp_path, "x.1.arrows", schema), HashWriter(disk, tmp_path)
    events = frame([event(n, n, n) for n in range(20)]).events
    span = writer.append(events)
    beside.append(span, hash_keys(events.select(list(SCHEMA.key)).columns))
    disk.close()

    def made() -> LogKeys:
        columns = KeyColumns(SCHEMA.key, payload, hash_keys)
        return LogKeys(Disk(), tmp_path, columns, lambda: [writer.extent])

    (stored,) = made().batches()
    assert stored.keys is None
    keys = events.select(list(SCHEMA.key))
    assert made().read(stored.place).equals(keys)
    assert made().payload(stored.place).names == payload
    log = tmp_path / "x.1.arrows"
    data = log.read_bytes()
    for at in range(span.start):
        for bit in (1, 0x80):
            broken = bytearray(data)
            broken[at] ^= bit
            log.write_bytes(broken)
            for again in (made().read, made().payload):
                with pytest.raises(Corruption, match=r"x\.1\.arrows"):
                    again(stored.place)
    log.write_bytes(data)
    assert made().read(stored.place).equals(keys)


def test_hashes_read_from_a_file_that_is_not_as_written_are_right_or_not_taken(
    tmp_path: Path,
) -> None:
    """Nor are those of a log that is not the one asked for."""
    disk = OpenDisk()
    writer = LogWriter(disk, tmp_path, "x.1.arrows", arrow_schema(SCHEMA))
    beside, whole = HashWriter(disk, tmp_path), []
    extents: list[Extent] = []
    for low in (0, 20):
        events = frame([event(n, n, n) for n in range(low, low + 20)]).events
        hashes = hash_keys(events.select(list(SCHEMA.key)).columns)
        whole.append((writer.append(events), hashes.tolist()))
        beside.append(whole[-1][0], hashes)
        extents.append(writer.extent)
    disk.close()

    def told(extent: Extent) -> list[tuple[Span, list[int]]] | None:
        found = read_hashes(Disk(), tmp_path, extent)
        return None if found is None else [(span, hashes.tolist()) for span, hashes in found]

    assert [told(extent) for extent in extents] == [whole[:1], whole]
    last = extents[-1]
    for wrong in (
        replace(last, crc=last.crc ^ 1),
        replace(last, bytes=last.bytes + 1),
        replace(last, rows=last.rows + 1),
        replace(last, rows=last.rows - 1),
    ):
        assert told(wrong) is None
    file = tmp_path / "x.1.hashes"
    data = file.read_bytes()
    for at in range(len(data)):
        flipped = bytearray(data)
        flipped[at] ^= 1 + at % 255
        torn, zeroed = data[:at], data[:at] + bytes(len(data) - at)
        for broken in (flipped, torn, zeroed):
            file.write_bytes(broken)
            assert told(last) is None or broken == data
    magic, records = data[: len(MAGIC)], data[len(MAGIC) :]
    first, second = records[: len(records) // 2], records[len(records) // 2 :]
    for reordered in (second + first, second, second * 2, first + first):
        file.write_bytes(magic + reordered)
        assert told(last) is None
    file.write_bytes(magic.replace(b"1", b"2") + records)
    assert told(last) is None


# -- many keys of one hash ------------------------------------------------------------------------


def crowded(partition: Partition) -> Iterator[list[Message]]:
    """Batches of keys that all have one hash, far more than an index takes: new ones, and each
    once more later, in other blocks too."""
    rng, keys = random.Random(7), list(range(6 * SAME_MAX))
    sent = [*keys, *rng.sample(keys, len(keys))]
    for low in range(0, len(sent), 50):
        part = enumerate(sent[low : low + 50], start=low)
        yield [event(offset, key, key // 100 * SPAN_MS) for offset, key in part]


@pytest.mark.parametrize("cache_bytes", [1, pytest.param(1 << 30, marks=pytest.mark.long)])
@pytest.mark.parametrize("merged", [pytest.param(False, marks=pytest.mark.long), True])
def test_keys_of_one_hash_are_told_apart_however_many_there_are(
    partition: Partition, cache_bytes: int, merged: bool
) -> None:
    partition.hash, partition.cache_bytes = one_hash, cache_bytes
    partition.start()
    taken: list[Message] = []
    for number, messages in enumerate(crowded(partition)):
        partition.append(*messages)
        taken += messages
        if number == 9:
            snapshot = partition.blocks.snapshot()
            partition.crash()
            partition.start(snapshot)
        if merged:
            partition.merge()
    partition.blocks.publish()
    assert_agrees(partition, judge(taken))


def test_a_key_whose_hash_many_others_have_costs_a_bounded_number_of_comparisons(
    partition: Partition, monkeypatch: pytest.MonkeyPatch
) -> None:
    partition.hash = one_hash
    partition.start()
    partition.append(*(event(n, n, 0) for n in range(20 * SAME_MAX)))
    found, looks = DedupIndex.find, []

    def counted(index: DedupIndex, hashes: U64, slots: I64) -> tuple[int, I64]:
        looks.append(len(hashes))
        return found(index, hashes, slots)

    monkeypatch.setattr(DedupIndex, "find", counted)
    first = 20 * SAME_MAX
    partition.append(*(event(first + n, first + n, 0) for n in range(100)))
    assert sum(looks) <= 100 * (SAME_MAX + 1)
    assert counts(partition) == (first + 100, 0)


def test_keys_of_a_crowd_count_towards_the_bound_of_the_cache(partition: Partition) -> None:
    partition.hash = one_hash
    partition.start()
    partition.append(*(event(n, n, 0) for n in range(10 * SAME_MAX)))
    before = partition.cache.bytes
    partition.append(event(10 * SAME_MAX, 10 * SAME_MAX - 1, 0))
    known = 10 * SAME_MAX - SAME_MAX
    assert partition.cache.bytes >= before + known * KNOWN_KEY_BYTES
    (keys,) = partition.blocks._known._live.values()
    keys.close()
    assert partition.cache.bytes == 0


def test_each_partition_indexes_its_keys_under_a_seed_of_its_own_for_ever(tmp_path: Path) -> None:
    seeds = []
    for name in "ab":
        partition = Partition(tmp_path / name).start()
        partition.append(event(0, 0, 0))
        snapshot = partition.blocks.snapshot()
        seeds.append(partition.manifest().seed)
        partition.crash()
        partition.start(snapshot)
        assert partition.manifest().seed == seeds[-1]
        partition.files.close()
    assert len(set(seeds)) == 2
    assert all(re.fullmatch("[0-9a-f]{32}", seed) for seed in seeds)
    keys = [pa.array(["device"]), pa.array(["id"])]
    hashes: list[Hash] = [hash_keys, *map(KeyHash, seeds)]
    assert len({int(hash(keys)[0]) for hash in hashes}) == 3
