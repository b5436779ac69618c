"""Merging: any rows come out once, in order, whatever the ranges; with the errors of files as they
were, and statistics by which readers leave out row groups."""

from __future__ import annotations

import errno
import os
import random
import re
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from forebay.flows.cluster import WORKER_ENVIRONMENT
from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import Corruption, MissingFile
from forebay.storage.formats import merge, ranges
from forebay.storage.formats.checksum import PIECE_BYTES, SummedFile
from forebay.storage.formats.chunk import column_range
from forebay.storage.formats.log import Extent
from forebay.storage.formats.log_writer import GrowingLog
from forebay.storage.formats.merge import log_rows, write_sorted
from forebay.storage.formats.ranges import SORTED_BY, SPILL_SUFFIX, Again, Group, Rows
from forebay.storage.partition.chunks import MERGE_BYTES
from tests.image import ROOT
from tests.merge_memory import SCHEMA

MEMORY = 64 << 20
Row = dict[str, object]


def rows_of(rng: random.Random, count: int, spread_ms: int, width: int) -> list[Row]:
    return [
        {
            "_partition": f"p{rng.randrange(3)}",
            "_offset": offset,
            "upload_time": 1_700_000_000_000 + rng.randrange(spread_ms),
            "id": f"k{offset}" if offset % 7 else None,
            "raw": rng.randbytes(rng.randrange(width)),
        }
        for offset in range(count)
    ]


def written(folder: Path, rows: list[Row], batch_rows: int, name: str = "a-1.1.arrows") -> Extent:
    log = GrowingLog(Disk(), folder, name, SCHEMA)
    for low in range(0, len(rows), batch_rows):
        log.append(pa.RecordBatch.from_pylist(rows[low : low + batch_rows], SCHEMA))
        log.flush()
    (extent,) = log.extents
    return extent


def group(folder: Path, extents: list[Extent], row_bytes: int) -> Group:
    inputs = [log_rows(Disk(), folder, extent) for extent in extents]
    return Group(inputs, sum(extent.rows for extent in extents), row_bytes)


def by_order(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: tuple(row[name] for name in SORTED_BY))


def read(path: Path) -> list[Row]:
    table = pq.read_table(path).cast(SCHEMA)
    times = table["upload_time"].cast(pa.int64())
    return table.set_column(2, "upload_time", times).to_pylist()  # type: ignore[no-any-return]


@pytest.mark.few(6)
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("spread_ms", [1, 1000, 300_000])
def test_rows_come_out_once_and_in_order_whatever_the_ranges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, spread_ms: int
) -> None:
    print("seed", seed)
    rng = random.Random(seed)
    monkeypatch.setattr(merge, "ROW_GROUP_ROWS", rng.choice([3, 50, 10_000]))
    monkeypatch.setattr(merge, "SHARE", rng.choice([1, 2_000, 1_000_000]))
    monkeypatch.setattr(ranges, "READS_MAX", rng.choice([0, 3, 1_000_000]))
    monkeypatch.setattr(ranges, "SAMPLES", rng.choice([1, 3, 128]))
    rows = rows_of(rng, rng.randrange(1, 400), spread_ms, 60)
    cut = rng.randrange(len(rows) + 1)
    extents = [
        written(tmp_path, part, rng.randrange(1, 60), f"{name}-1.1.arrows")
        for name, part in (("a", rows[:cut]), ("b", rows[cut:]))
        if part
    ]
    checksum = write_sorted(
        Disk(), tmp_path / "out", [group(tmp_path, extents, 100)], SCHEMA, MEMORY
    )
    assert read(tmp_path / "out") == by_order(rows)
    checksum.require_whole(Disk(), tmp_path / "out")
    assert checksum.metadata(Disk(), tmp_path / "out").num_rows == len(rows)


def test_a_log_is_read_in_pieces_smaller_than_a_batch_or_larger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(random.Random(1), 300, 1000, 2000)
    extent = written(tmp_path, rows, 20)
    for size in (100, 5_000, 1 << 20):
        monkeypatch.setattr("forebay.storage.formats.log.PIECE_BYTES", size)
        write_sorted(Disk(), tmp_path / "out", [group(tmp_path, [extent], 2000)], SCHEMA, MEMORY)
        assert read(tmp_path / "out") == by_order(rows)


def test_a_flipped_byte_of_a_log_is_corruption_and_a_missing_log_says_so(tmp_path: Path) -> None:
    extent = written(tmp_path, rows_of(random.Random(2), 100, 1000, 50), 10)
    path = tmp_path / extent.file
    good = path.read_bytes()
    for at in range(0, len(good), 97):
        path.write_bytes(good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :])
        with pytest.raises(Corruption):
            write_sorted(Disk(), tmp_path / "out", [group(tmp_path, [extent], 50)], SCHEMA, MEMORY)
    path.unlink()
    with pytest.raises(MissingFile):
        write_sorted(Disk(), tmp_path / "out", [group(tmp_path, [extent], 50)], SCHEMA, MEMORY)


class FullDisk(Disk):
    """Has room for so many bytes."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self._room = room

    def write(self, path: Path) -> BinaryIO:
        file = super().write(path)
        write: Callable[[bytes], int] = file.write

        def bounded(data: bytes) -> int:
            self._room -= len(data)
            if self._room < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(data)

        file.write = bounded  # type: ignore[method-assign,assignment]
        return file


@pytest.mark.parametrize("size", [8, PIECE_BYTES - 1, PIECE_BYTES, 3 * PIECE_BYTES + 77])
def test_a_checksum_is_that_of_the_bytes_however_they_are_written(
    tmp_path: Path, size: int
) -> None:
    rng = random.Random(size)
    data, path = rng.randbytes(size), tmp_path / "file"
    cuts = sorted([0, *(rng.randrange(size) for _ in range(9)), size])
    with path.open("wb") as file:
        summed = SummedFile(file)
        for low, high in pairwise(cuts):
            summed.write(data[low:high])
    found = summed.checksum(Disk(), path)
    assert (found.bytes, found.crc) == (size, zlib.crc32(data))
    starts = range(0, size, PIECE_BYTES)
    assert found.piece_crcs == [zlib.crc32(data[at : at + PIECE_BYTES]) for at in starts]
    found.require_whole(Disk(), path)


@pytest.mark.parametrize("room", [0, 100, 3000])
def test_an_error_of_the_file_keeps_its_number_and_names_the_file(
    tmp_path: Path, room: int
) -> None:
    extent = written(tmp_path, rows_of(random.Random(3), 500, 1000, 50), 100)
    with pytest.raises(OSError, match="No space left") as caught:
        write_sorted(
            FullDisk(room), tmp_path / "out", [group(tmp_path, [extent], 50)], SCHEMA, MEMORY
        )
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(tmp_path / "out")


@pytest.fixture
def shuffled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Group, list[Row]]:
    """Rows whose ranges each need all parts of the input: they come from the spill."""
    monkeypatch.setattr(merge, "SHARE", MEMORY // 5_000)
    monkeypatch.setattr(ranges, "READS_MAX", 1)
    rows = rows_of(random.Random(5), 500, 1000, 50)
    return group(tmp_path, [written(tmp_path, rows, 100)], 50), rows


def test_shuffled_rows_are_read_twice_however_many_ranges_there_are(
    tmp_path: Path, shuffled: tuple[Group, list[Row]]
) -> None:
    found, rows = shuffled
    reads: list[object] = []

    def counted(inputs: Rows) -> Rows:
        def parts(columns: Sequence[str] | None) -> Iterator[tuple[Again, pa.RecordBatch]]:
            for again, batch in inputs(columns):
                yield partial(counting, again), batch

        def counting(again: Again) -> pa.RecordBatch:
            reads.append(again)
            return again()

        return parts

    given = Group([counted(inputs) for inputs in found.inputs], found.rows, found.row_bytes)
    write_sorted(Disk(), tmp_path / "out", [given], SCHEMA, MEMORY)
    assert read(tmp_path / "out") == by_order(rows)
    assert len(reads) == len(set(reads)) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-1.1.arrows", "out"]


class FlippingDisk(Disk):
    """Gives back a byte of a spill other than it was written."""

    def read(self, path: Path, start: int = 0, end: int | None = None) -> bytes:
        data = super().read(path, start, end)
        return data[:-1] + bytes([data[-1] ^ 1]) if path.suffix == SPILL_SUFFIX else data


@pytest.mark.parametrize(
    ("disk", "error"), [(FullDisk(10_000), OSError), (FlippingDisk(), Corruption)]
)
def test_a_spill_that_fails_is_named_and_removed(
    tmp_path: Path, shuffled: tuple[Group, list[Row]], disk: Disk, error: type[Exception]
) -> None:
    with pytest.raises(error, match=re.escape(str(tmp_path / "out.spill"))):
        write_sorted(disk, tmp_path / "out", [shuffled[0]], SCHEMA, MEMORY)
    assert not (tmp_path / "out.spill").exists()


def test_row_groups_are_cut_by_size_and_each_reader_leaves_out_those_that_can_not_match(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merge, "ROW_GROUP_BYTES", 100_000)
    extent = written(tmp_path, rows_of(random.Random(4), 5_000, 300_000, 30), 500)
    path = tmp_path / "out.parquet"
    write_sorted(Disk(), path, [group(tmp_path, [extent], 100)], SCHEMA, MEMORY)
    metadata = pq.read_metadata(path)
    assert [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)] == [1000] * 5
    times = [metadata.row_group(n).column(2).statistics for n in range(5)]
    assert all(low.max <= high.min for low, high in pairwise(times))
    # What is left out is not read: the second to fourth row groups are zeros.
    end, _ = column_range(metadata, 1, 0)
    start, _ = column_range(metadata, 4, 0)
    data = path.read_bytes()
    path.write_bytes(data[:end] + bytes(start - end) + data[start:])
    before = times[0].max
    found = pl.scan_parquet(path).filter(pl.col("upload_time") < before).select("id").collect()
    assert 900 < found.height <= 1000
    told = duckdb.sql(
        f"select count(id) n, count(*) m from '{path}' where upload_time < '{before}'"
    )
    assert told.fetchall()[0][1] == found.height
    table = ds.dataset(path).to_table(columns=["id"], filter=ds.field("upload_time") < before)
    assert table.num_rows == found.height


@pytest.mark.executed
@pytest.mark.long
@pytest.mark.parametrize(
    ("rows", "width", "times"),
    [
        (1_200_000, 440, "one"),
        (1_200_000, 440, "shuffled"),
        (1_200_000, 440, "ordered"),
        (800, 1 << 20, "shuffled"),
    ],
)
def test_memory_of_a_merge_is_bounded(tmp_path: Path, rows: int, width: int, times: str) -> None:
    command = [sys.executable, "-m", "tests.merge_memory", str(tmp_path)]

    def run(*what: str) -> list[str]:
        environment = {**os.environ, **WORKER_ENVIRONMENT}
        done = subprocess.run(
            [*command, *what], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    block = run("write", str(rows), str(width), times)
    taken, found = map(int, run(str(MERGE_BYTES), *block))
    print(f"{rows} rows of {width} bytes, {times}: {taken >> 20} MiB above idle")
    assert found == rows
    assert taken < MERGE_BYTES
