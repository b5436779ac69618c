"""The bound in bytes: what it leaves room for, in one partition and over all, and what is said."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import forebay
from forebay.cli.main import main
from forebay.flows.settings import load
from forebay.operators.disk_watch import EVERY_S, DiskWatch
from forebay.storage.formats.boundary import Boundary
from forebay.storage.partition import compaction
from forebay.storage.partition.expiry import LAST_DAY_MS, Kept, Room, room
from tests.partition import (
    SPAN_MS,
    START_MS,
    WINDOW_MS,
    OpenDisk,
    Partition,
    event,
)

HOUR_MS = 3_600_000
times = st.integers(0, 5 * LAST_DAY_MS)


@given(st.lists(st.tuples(times, st.integers(1, 100))), st.integers(0, 1000))
def test_the_oldest_go_until_the_rest_fits_and_the_last_day_never(
    parts: list[tuple[int, int]], bytes_max: int
) -> None:
    """As a loop has it that deletes one part after the other."""
    newest_ms = max((ms for ms, _ in parts), default=None)
    total = sum(size for _, size in parts)
    found = room(Kept(total, newest_ms, tuple(parts)), bytes_max)
    left, from_ms = sorted(parts), None
    while bytes_max and sum(size for _, size in left) > bytes_max:
        if left[0][0] > (newest_ms or 0) - LAST_DAY_MS:
            break
        from_ms = left.pop(0)[0]
    over = max(0, sum(size for _, size in left) - bytes_max) if bytes_max else 0
    assert found == Room(from_ms, over)


@given(st.lists(st.tuples(times, st.integers(1, 100))), st.integers(1, 1000), st.data())
def test_adding_up_while_some_have_deleted_gives_no_later_time(
    parts: list[tuple[int, int]], bytes_max: int, data: st.DataObject
) -> None:
    newest_ms = 6 * LAST_DAY_MS
    first = room(Kept(sum(size for _, size in parts), newest_ms, tuple(parts)), bytes_max)
    gone = [part for part in parts if first.from_ms is not None and part[0] <= first.from_ms]
    already = data.draw(st.lists(st.sampled_from(range(len(gone))), unique=True)) if gone else []
    left = [part for at, part in enumerate(sorted(parts)) if at not in already]
    again = room(Kept(sum(size for _, size in left), newest_ms, tuple(left)), bytes_max)
    assert (again.from_ms or 0) <= (first.from_ms or 0)


# -- one data directory -------------------------------------------------------------------------


@pytest.fixture
def partitions(tmp_path: Path) -> Iterator[list[Partition]]:
    """Two of one data directory: the first has events of four days, an hour apart, the second of
    the last two."""
    names = ("p00", "p01")
    found = [Partition(tmp_path / "data", name=n, blocks_per_chunk=4).start() for n in names]
    for partition, first in zip(found, (0, 48), strict=True):
        partition.append(*(event(h - first, h, h * HOUR_MS) for h in range(first, 96)))
        for _ in range(3):
            partition.blocks.snapshot()
        partition.merge()
        partition.blocks.publish()
    yield found
    for partition in found:
        partition.files.close()


def watch(partitions: list[Partition], bytes_max: int, clock: list[float]) -> DiskWatch:
    one = partitions[0]
    return DiskWatch(OpenDisk(), one.layout, bytes_max, WINDOW_MS, 60.0, clock=lambda: clock[0])


def size(partitions: list[Partition]) -> int:
    """What is kept: chunks, and blocks that none of them covers."""
    view = forebay.open(partitions[0].root).view()
    chunks = sum(chunk.checksum.bytes for one in view.partitions for chunk in one.chunks)
    blocks = [block for one in view.partitions for block in one.hot]
    return chunks + sum(extent.bytes for block in blocks for extent in block.extents)


def upload_hours(partitions: list[Partition]) -> list[int]:
    found = forebay.open(partitions[0].root).scan().select("upload_time").collect()["upload_time"]
    return sorted((int(time.timestamp() * 1000) - START_MS) // HOUR_MS for time in found)


def tick(partitions: list[Partition], from_ms: int | None) -> None:
    for partition in partitions:
        offer = partition.blocks.tick(Boundary(), 0, partition.now_ms, from_ms)
        partition.offers.append(offer)
        partition.merge()
        partition.blocks.publish()


@pytest.mark.long
def test_all_partitions_delete_what_is_older_than_the_one_time(
    partitions: list[Partition], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "CHUNKS_MIN", 1000)  # it makes what stays smaller still
    whole = size(partitions)
    found = watch(partitions, whole * 2 // 3, [0.0])
    from_ms = found.from_ms(Boundary(), ())
    assert from_ms is not None
    tick(partitions, from_ms)
    hours = upload_hours(partitions)
    assert size(partitions) <= whole * 2 // 3
    assert size(partitions) > whole / 2
    assert min(hours) == pytest.approx((from_ms - START_MS) / HOUR_MS, abs=4)
    expired = sum(partition.catalog().expired_rows for partition in partitions)
    assert expired + len(hours) == 96 + 48
    assert partitions[0].catalog().expired_rows >= expired - 4


def test_the_last_day_stays_whatever_the_bound(partitions: list[Partition]) -> None:
    from_ms = watch(partitions, 1, [0.0]).from_ms(Boundary(), ())
    tick(partitions, from_ms)
    hours = upload_hours(partitions)
    assert set(range(72, 96)) <= set(hours)
    assert min(hours) >= 68


def test_what_is_handed_off_is_not_counted(partitions: list[Partition]) -> None:
    whole = size(partitions)
    boundary = Boundary(1, START_MS - START_MS % SPAN_MS + 48 * HOUR_MS)
    handed = watch(partitions, whole * 3 // 4, [0.0])
    assert handed.from_ms(Boundary(), ()) is not None
    assert handed.from_ms(boundary, ()) is None


def test_a_partition_that_can_not_be_read_makes_the_others_delete_no_more(
    partitions: list[Partition],
) -> None:
    bytes_max = size(partitions) * 2 // 3
    before = watch(partitions, bytes_max, [0.0]).from_ms(Boundary(), ())
    partitions[1].layout.manifest("p01").write_bytes(b"torn")
    after = watch(partitions, bytes_max, [0.0]).from_ms(Boundary(), ())
    assert (after or 0) < (before or 0)


def test_live_blocks_of_a_partition_to_which_nothing_comes_go_too(tmp_path: Path) -> None:
    """Else a folder of files, each a partition, would keep the end of each for good."""
    partition = Partition(tmp_path / "data").start()
    partition.append(event(0, 0, 0), event(1, 1, SPAN_MS))
    partition.blocks.snapshot()
    touched_ms = START_MS + SPAN_MS
    tick([partition], touched_ms + WINDOW_MS - 1)
    assert len(partition.manifest().hot) == 1
    tick([partition], touched_ms + WINDOW_MS)
    for _ in range(3):
        partition.blocks.snapshot()
    tick([partition], touched_ms + WINDOW_MS)
    assert partition.catalog().expired_rows == 2
    assert upload_hours([partition]) == []
    partition.files.close()


# -- what is said -------------------------------------------------------------------------------


def test_it_is_said_before_anything_goes_then_that_it_goes_and_that_the_last_day_takes_more(
    partitions: list[Partition], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "forebay.disk")
    whole, clock = size(partitions), [0.0]

    def said(bytes_max: int, mine: tuple[str, ...] = ("p00",)) -> list[str]:
        caplog.clear()
        watch(partitions, bytes_max, clock).from_ms(Boundary(), mine)
        return [entry.getMessage() for entry in caplog.records]

    assert said(0) == []
    assert said(whole * 10) == []
    (near,) = said(int(whole * 1.05))
    assert "the oldest is deleted, though no batch layer took it" in near
    assert "data from 2023-11-1" in near
    (goes,) = said(whole * 2 // 3)
    assert "what is before 2023-11-1" in goes
    over, goes = said(1)
    assert "the last day is never deleted" in over
    assert "is deleted" in goes
    assert said(1, ("p01",)) == []


@pytest.mark.long
def test_the_same_is_said_once_a_day_and_added_up_once_in_an_interval(
    partitions: list[Partition],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, looks = [0.0], [0]
    found = watch(partitions, int(size(partitions) * 1.05), clock)
    look = DiskWatch._kept

    def counting(self: DiskWatch, name: str, boundary: Boundary) -> Kept:
        looks[0] += 1
        return look(self, name, boundary)

    monkeypatch.setattr(DiskWatch, "_kept", counting)
    for now, looked, told in ((0, 2, 1), (59, 2, 1), (60, 4, 1), (EVERY_S, 6, 2)):
        clock[0] = now
        found.from_ms(Boundary(), ("p00",))
        assert (looks[0], len(caplog.messages)) == (looked, told)
    found.from_ms(Boundary(1, START_MS), ("p00",))
    assert looks[0] == 8


def test_the_dry_run_says_what_the_next_tick_deletes(
    partitions: list[Partition], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, bytes_max = str(partitions[0].root), size(partitions) * 2 // 3
    monkeypatch.setenv("FOREBAY_DEDUP_WINDOW", "1s")
    small = load().model_copy(update={"retention_bytes": bytes_max})  # less than may be asked for
    monkeypatch.setattr("forebay.cli.disk.settings", lambda: small)
    arguments = ["disk", "--dry-run", "--data-dir", root]
    told = CliRunner().invoke(main, arguments, catch_exceptions=False).output.splitlines()
    tick(partitions, watch(partitions, bytes_max, [0.0]).from_ms(Boundary(), ()))
    expired = sum(partition.catalog().expired_rows for partition in partitions)
    assert expired
    assert told[0].startswith("goes: ")
    assert f", {expired:,} events (" in told[0]
    assert any(line.startswith("goes: expired ") for line in told)
