"""Power goes at any moment, and the disk keeps what it likes of what was not synced.

`Power` lives the life of `tests.life.Life` (batches, late events, several sources, merges,
slow readers, stale snapshots), but its crashes are power losses. After each, a start from the last
committed snapshot must have exactly the oracle's events; before the start, a reader must find no
event that was never accepted, and none twice. Then single stories, and flipped bytes.
"""

from __future__ import annotations

import random
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

import forebay
from forebay.storage.base.disk import Appender, Disk
from forebay.storage.base.errors import Corruption, ForebayError, FormatVersion
from forebay.storage.base.layout import Layout
from forebay.storage.formats.hashes import Hash
from forebay.storage.formats.state import PartitionState
from forebay.storage.partition import compaction
from tests import LONG, cases
from tests.lane import Lane, filled
from tests.life import Life, hashes
from tests.oracle import Place
from tests.partition import (
    BIG_CACHE,
    GRACE_MS,
    NAME,
    Partition,
    assert_agrees,
    event,
    judge,
)
from tests.power import Mood, PowerDisk

ROOT = Path(__file__).parent.parent
HOUR_MS = 3_600_000


class Power(Life):
    """A life in which power goes."""

    files: PowerDisk
    ever: set[Place]
    """Events that some run has accepted: a manifest of an earlier run may come back."""

    @initialize(
        cache=st.sampled_from([1, 600, BIG_CACHE]),
        per_chunk=st.integers(1, 3),
        compacted=st.sampled_from([2, 4]),
        hash=hashes,
    )
    def begin(self, cache: int, per_chunk: int, compacted: int, hash: Hash | None) -> None:
        compaction.CHUNKS_MIN = compacted
        base = Path(self.folder.name)
        (base / "data").mkdir()
        self.files = PowerDisk(base / "data", base / "shadow").__enter__()
        self.partition = Partition(
            base / "data",
            cache_bytes=cache,
            blocks_per_chunk=per_chunk,
            hash=hash,
            files=self.files,
        )
        self.ever = set()
        self._start(self.commit)

    @rule(stale=st.booleans(), torn=st.just(True))
    def crash_and_resume(self, stale: bool, torn: bool) -> None:
        """Nothing but the process dies; what was not synced may go with a later loss."""
        self._crash(stale, None)

    @rule(stale=st.booleans(), seed=st.integers(0, 2**32))
    def lose_power_and_resume(self, stale: bool, seed: int) -> None:
        self._crash(stale, random.Random(seed))

    def _crash(self, stale: bool, rng: random.Random | None) -> None:
        self.partition.crash()
        self.ever |= set(self.oracle.places())
        if rng:
            self.files.lose_power(rng)
            self._read_as_it_is()
        if stale and self.orphan:
            self.commit = replace(self.orphan, positions=self.commit.positions)
        self.orphan, self.uncommitted, self.view = self.uncommitted or self.orphan, None, None
        self._start(self.commit)

    def _read_as_it_is(self) -> None:
        """A reader who comes before the job does: an error of ours, or events of ours, once."""
        try:
            seen = places_of(self.partition.root)
        except ForebayError:
            return
        assert len(set(seen)) == len(seen)
        assert set(seen) <= self.ever

    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            if hasattr(self, "files"):
                self.files.__exit__()


TestPower = Power.TestCase
TestPower.settings = settings(stateful_step_count=40, max_examples=cases(15, 30, 400))


def places_of(root: Path) -> list[Place]:
    """Every event that a query finds."""
    return sorted(forebay.open(root).scan().select("_partition", "_offset").collect().rows())


# -- single stories -----------------------------------------------------------------------------


@pytest.fixture
def partition(tmp_path: Path) -> Iterator[Partition]:
    (tmp_path / "data").mkdir()
    with PowerDisk(tmp_path / "data", tmp_path / "shadow") as files:
        yield Partition(tmp_path / "data", files=files)


def lose_power(partition: Partition, mood: Mood, seed: int = 0) -> None:
    assert isinstance(partition.files, PowerDisk)
    partition.crash()
    partition.files.lose_power(random.Random(seed), mood)


MESSAGES = [event(n, n % 40, 30 * n) for n in range(60)]
EVERY_MOOD: list[Mood] = ["least", "most", "mixed"]


def committed_story(partition: Partition, mood: Mood) -> list[Place]:
    """Events, evictions and chunks, all committed, and the logs of chunks deleted; then more of
    them, not committed; then power goes and the source replays what was not committed. What a
    query finds at the end."""
    partition.start()
    partition.append(*MESSAGES[:20])
    partition.blocks.snapshot()
    for after_ms in (0, 0, GRACE_MS, GRACE_MS):
        partition.tidy(after_ms)
        partition.blocks.publish()
        partition.blocks.snapshot()
    partition.append(*MESSAGES[20:40])
    partition.blocks.publish()
    snapshot = partition.blocks.snapshot()
    partition.merge()
    partition.append(*MESSAGES[40:])
    partition.blocks.publish()
    lose_power(partition, mood)
    partition.start(snapshot)
    assert partition.seen() == judge(MESSAGES[:40]).places()
    partition.merge()
    partition.append(*MESSAGES)
    partition.blocks.publish()
    partition.merge()
    assert_agrees(partition, judge(MESSAGES))
    return places_of(partition.root)


@pytest.mark.parametrize("mood", EVERY_MOOD)
def test_what_was_committed_is_there_and_the_rest_is_replayed(
    partition: Partition, mood: Mood
) -> None:
    assert committed_story(partition, mood) == judge(MESSAGES).places()


def _publish_unsynced(self: Disk, temporary: Path, path: Path) -> None:
    temporary.rename(path)
    self.sync_directory(path.parent)


def _replace_unsynced(self: Disk, path: Path, data: bytes, *, durable: bool) -> None:
    path.write_bytes(data)


BREAKAGES = {
    "log not synced": (Appender, "sync", lambda _: None),
    "directory not synced": (Disk, "sync_directory", lambda *_: None),
    "catalog not synced": (Disk, "replace", _replace_unsynced),
    "chunk not synced": (Disk, "publish", _publish_unsynced),
    "folders not synced": (
        Disk,
        "make_directory",
        lambda _, path: path.mkdir(parents=True, exist_ok=True),
    ),
}


@pytest.mark.mutant
@pytest.mark.parametrize("breakage", BREAKAGES)
def test_an_fsync_that_is_left_out_is_noticed_here(
    breakage: str, partition: Partition, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else these tests would prove nothing."""
    monkeypatch.setattr(*BREAKAGES[breakage])
    with pytest.raises((AssertionError, ForebayError, pa.ArrowInvalid)):
        assert committed_story(partition, "least") == judge(MESSAGES).places()


@pytest.mark.parametrize("committed", [True, False])
@pytest.mark.parametrize("content", [b"", b'{"forebay":"mani', bytes(300)], ids=["", "torn", "0"])
def test_a_torn_manifest_is_an_error_to_a_reader_and_nothing_to_a_start(
    content: bytes, committed: bool, partition: Partition
) -> None:
    partition.start()
    partition.append(*MESSAGES)
    snapshot = partition.blocks.snapshot() if committed else None
    partition.blocks.publish()
    partition.crash()
    manifest = partition.layout.manifest(NAME)
    manifest.write_bytes(content)
    with pytest.raises(Corruption, match=re.escape(str(manifest))):
        places_of(partition.root)
    partition.start(snapshot)
    partition.append(*MESSAGES)
    partition.blocks.publish()
    assert places_of(partition.root) == judge(MESSAGES).places()


def test_a_folder_that_a_killed_run_made_is_made_durable_by_the_next(
    partition: Partition, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first run dies between making a folder and syncing its parent; power goes much later."""

    class KilledError(BaseException):
        """Stands for SIGKILL."""

    def killed(*_: object) -> None:
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(Disk, "sync_directory", killed)
        for _ in range(2):
            with suppress(KilledError):
                partition.start()
            partition.files.close()
    partition.start()
    partition.append(*MESSAGES)
    snapshot = partition.blocks.snapshot()
    lose_power(partition, "least")
    partition.start(snapshot)
    assert partition.seen() == judge(MESSAGES).places()


# -- flipped bytes ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stored:
    """Two partitions of one node, p01 about to be damaged, and the rows of each."""

    root: Path
    lanes: dict[str, Lane]

    def file(self, kind: str) -> Path:
        """A file of p01 that counts."""
        layout = Layout(self.root)
        (view,) = (
            p for p in forebay.open(self.root).view().partitions if p.state.partition == "p01"
        )
        return {
            "manifest": lambda: layout.manifest("p01"),
            "catalog": lambda: layout.catalog("p01"),
            "log": lambda: view.block_logs[0].path,
            "chunk": lambda: view.chunk_paths[0],
        }[kind]()

    def rows(self, *names: str) -> int:
        return sum(len(self.lanes[name].published) for name in names)


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[Stored]:
    names = ("p00", "p01")
    lanes = {name: filled(Lane(tmp_path / "data", name).start(), name) for name in names}
    yield Stored(tmp_path / "data", lanes)
    for lane in lanes.values():
        lane.files.close()


KINDS = ["manifest", "catalog", "log", "chunk"]
OK = ("told", "same")
PROBE = """
import sys
from pathlib import Path
import polars as pl
import forebay
from forebay.storage.base.errors import ForebayError

root, file, good = map(Path, sys.argv[1:4])
verify = sys.argv[4] == "verify"
data, right = file.read_bytes(), pl.read_ipc(good)
for at in map(int, sys.argv[5:]):
    broken = bytearray(data)
    broken[at] ^= 1 + at % 255
    file.write_bytes(broken)
    print("at", at, flush=True)
    try:
        found = forebay.open(root, verify=verify).scan().collect().sort("_partition", "_offset")
        print("same" if found.equals(right) else "other rows", flush=True)
    except ForebayError as error:
        print("told" if str(file) in str(error) else f"not named: {error}"[:150], flush=True)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}"[:150].replace(chr(10), " "), flush=True)
    file.write_bytes(data)
"""


def verdicts(
    stored: Stored, file: Path, places: list[int], *, verify: bool = False
) -> dict[int, str]:
    """What a query makes of a flip at each of these places, in a process of its own, for it might
    be the end of the process."""
    good = stored.root.parent / "good.ipc"
    whole = forebay.open(stored.root).scan().collect().sort("_partition", "_offset")
    whole.write_ipc(good)
    data, found = file.read_bytes(), {}
    while left := [at for at in places if at not in found]:
        how = "verify" if verify else "as usual"
        arguments = [str(stored.root), str(file), str(good), how, *map(str, left)]
        done = subprocess.run(
            [sys.executable, "-c", PROBE, *arguments], cwd=ROOT, capture_output=True, text=True
        )
        file.write_bytes(data)
        lines = done.stdout.splitlines()
        assert lines, done.stderr[-2000:]
        for line, answer in zip(
            lines[::2], [*lines[1::2], f"died {done.returncode}"], strict=False
        ):
            found[int(line[3:])] = answer
    return found


@pytest.mark.few(2)
@pytest.mark.cases
@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_byte_is_told_with_its_file_or_changes_nothing(kind: str, stored: Stored) -> None:
    """In the pages of a chunk only with `verify`, for an engine reads few of them."""
    file = stored.file(kind)
    size = file.stat().st_size
    places = sorted(random.Random(kind).sample(range(size), min(size, cases(15, 60, 2000))))
    found = verdicts(stored, file, places, verify=kind == "chunk")
    wrong = {at: v for at, v in found.items() if v not in OK}
    assert not wrong, f"{len(wrong)} of {len(places)} flips of {file.name}: {wrong}"


@pytest.mark.cases
def test_a_flipped_byte_of_a_chunks_footer_is_always_told(stored: Stored) -> None:
    file = stored.file("chunk")
    size = file.stat().st_size
    footer = 8 + int.from_bytes(file.read_bytes()[-8:-4], "little")
    every = range(size - footer, size)
    places = [*every] if LONG else sorted(random.Random(footer).sample(every, cases(20, 80, 0)))
    found = verdicts(stored, file, places)
    assert set(found.values()) == {"told"}, found


def test_a_chunk_that_is_shorter_or_longer_is_told_with_its_offset(stored: Stored) -> None:
    file = stored.file("chunk")
    data = file.read_bytes()
    for content, offset in ((data[:-1], len(data) - 1), (b"", 0), (data + b"x", len(data) + 1)):
        file.write_bytes(content)
        with pytest.raises(Corruption, match=re.escape(str(file))) as told:
            forebay.open(stored.root)
        assert told.value.offset == offset


def test_a_footer_that_went_bad_is_told_by_a_store_that_is_opened_then(stored: Stored) -> None:
    """One that looked before knows the chunk, for its name is never used twice."""
    file = stored.file("chunk")
    before = forebay.open(stored.root)
    broken = bytearray(file.read_bytes())
    broken[-9] ^= 1
    file.write_bytes(broken)
    before.view()
    with pytest.raises(Corruption, match="checksum of the footer") as told:
        forebay.open(stored.root)
    assert told.value.offset == len(broken) - 8 - int.from_bytes(broken[-8:-4], "little")


def test_a_damaged_page_that_fails_a_query_is_told_with_its_chunk(stored: Stored) -> None:
    """Also without `verify`: when the engine gives up, the chunks are looked at."""
    file = stored.file("chunk")
    overwrite_pages(file)
    with pytest.raises(Corruption, match=rf"{re.escape(str(file))}: checksum of bytes 0\.\."):
        forebay.open(stored.root).sql("select * from events")


def overwrite_pages(chunk: Path) -> None:
    """All before its footer."""
    data = chunk.read_bytes()
    footer = 8 + int.from_bytes(data[-8:-4], "little")
    chunk.write_bytes(b"PAR1" + bytes(len(data) - footer - 4) + data[-footer:])


def test_a_page_that_goes_bad_under_a_stream_is_told_with_its_chunk(
    stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first batch was good; the engine gives up at the next."""
    store = forebay.open(stored.root)
    chunk = store.view().chunk_files[0].path
    iter_batches = pq.ParquetFile.iter_batches

    def goes_bad(file: pq.ParquetFile, *_: object, **options: Any) -> Iterator[pa.RecordBatch]:
        yield next(iter_batches(file, 1, **options))
        overwrite_pages(chunk)
        raise OSError("no such page")

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", goes_bad)
    found = pa.RecordBatchReader.from_stream(store)
    with pytest.raises(pa.ArrowInvalid, match=rf"{chunk.name}: checksum of bytes 0\.\."):
        found.read_all()


def test_a_flip_in_a_log_is_told_with_its_offset(stored: Stored) -> None:
    log = stored.file("log")
    broken = bytearray(log.read_bytes())
    broken[len(broken) // 2] ^= 1
    log.write_bytes(broken)
    with pytest.raises(Corruption, match=rf"{re.escape(str(log))}: .* bytes \d+\.\.\d+"):
        forebay.open(stored.root).scan().collect()


@pytest.mark.few(2)
@pytest.mark.parametrize("kind", KINDS)
def test_partitions_that_are_whole_stay_readable_beside_a_broken_one(
    kind: str, stored: Stored
) -> None:
    """With `partial`, as for a node that can't be read; the receipt says what is left out."""
    file = stored.file(kind)
    damage(file)
    store = forebay.open(stored.root, partial=True)
    assert store.scan().select("_partition").collect()["_partition"].unique().to_list() == ["p00"]
    assert store.sql("select count(*) from events").item() == stored.rows("p00")
    (silent,) = store.receipt().silent_partitions
    assert (silent.node, silent.partition) == (str(stored.root), "p01")
    assert str(file) in silent.reason
    assert store.receipt().silent_nodes == ()
    with pytest.raises(Corruption, match=re.escape(str(file))):
        forebay.open(stored.root).scan().collect()


def damage(file: Path) -> None:
    """No byte of it is as it was."""
    file.write_bytes(bytes(byte ^ 0x55 for byte in file.read_bytes()))


def test_a_log_torn_at_any_byte_gives_its_whole_batches_to_readers(stored: Stored) -> None:
    """And the other logs and partitions all they have."""
    log = stored.file("log")
    (view,) = (p for p in forebay.open(stored.root).view().partitions if p.folder == log.parent)
    (extent,) = (one.extent for one in view.block_logs if one.path == log)
    data, whole = log.read_bytes(), stored.rows("p00", "p01")
    for length in [*range(0, extent.bytes, 41), extent.bytes - 1]:
        log.write_bytes(data[:length])
        found = forebay.open(stored.root).scan().select("_partition", "_offset").collect().rows()
        assert len(set(found)) == len(found)
        assert whole - extent.rows <= len(found) < whole, f"cut at {length}"


# -- what the job reads back --------------------------------------------------------------------


def test_a_flipped_byte_of_a_snapshot_is_told(partition: Partition) -> None:
    partition.start()
    partition.append(*MESSAGES)
    snapshot = partition.blocks.snapshot()
    for at in range(0, len(snapshot), 7):
        broken = bytearray(snapshot)
        broken[at] ^= 1 + at % 255
        with pytest.raises((Corruption, FormatVersion), match="snapshot"):
            PartitionState.decode(bytes(broken), "snapshot")


@pytest.mark.parametrize("torn", [False, True], ids=["flipped", "shortened"])
def test_a_committed_log_that_changed_stops_a_start_or_its_first_use(
    torn: bool, partition: Partition
) -> None:
    partition.start()
    partition.append(*MESSAGES)
    snapshot = partition.blocks.snapshot()
    partition.crash()
    for log in partition.layout.hot(NAME).glob("*.arrows"):
        data = bytearray(log.read_bytes())
        data[len(data) // 2] ^= 1
        log.write_bytes(data[:-1] if torn else data)

    def go_on() -> None:
        partition.start(snapshot)
        partition.append(*(event(100 + n, n, 30 * n) for n in range(40)))

    with pytest.raises(Corruption, match=r"log .*\.arrows"):
        go_on()
