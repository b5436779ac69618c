"""The check of a data directory: it finds each damaged byte that counts, and nothing else."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import orjson
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

import forebay
from forebay.cli.main import main
from forebay.query import check as checking
from forebay.query.check import Fault, Report, check
from forebay.query.partition import Directory
from forebay.storage.base import record
from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import BadInput, MissingFile
from forebay.storage.formats.boundary import Boundary
from forebay.storage.formats.rejects import ALL
from forebay.storage.formats.replay_request import ask
from tests.partition import NAME, Message, Partition, event

CHANGED = 0x41


@pytest.fixture
def partition(tmp_path: Path) -> Iterator[Partition]:
    """Two chunks and hot blocks, rejects and drops; a handoff and a replay request."""
    partition = Partition(tmp_path / "data").start()
    for number in range(6):
        at = number * 10
        partition.append(*(event(at + n, at + n, number * 1_000) for n in range(8)))
        partition.append(event(at + 8, at, number * 1_000), Message(("s0", at + 9), None))
        partition.merge()
    partition.blocks.publish()
    files, layout = partition.files, partition.layout
    ask(files, layout, ALL, {NAME: 1})
    batch = Boundary().sealed(0).completed(0, late=False, table=None)
    files.replace(layout.batch, batch.encode(), durable=False)
    yield partition
    partition.crash()


def named(partition: Partition) -> dict[Path, int]:
    """Each file that counts, and how many of its bytes do."""
    layout, state, catalog = partition.layout, partition.manifest(), partition.catalog()
    small = [layout.batch, layout.replay_request(1), layout.manifest(NAME), layout.catalog(NAME)]
    found = {path: path.stat().st_size for path in small}
    for block in state.blocks:
        if block.id in catalog.covered:
            continue
        found |= {layout.hot(NAME) / extent.file: extent.bytes for extent in block.extents}
    found |= {layout.rejects(NAME) / extent.file: extent.bytes for extent in state.rejects}
    found |= {layout.drops(NAME) / extent.file: extent.bytes for extent in state.drops}
    return found | {layout.chunks(NAME) / c.file: c.checksum.bytes for c in catalog.chunks}


def of_kind(partition: Partition, kind: str) -> Path:
    return next(path for path in named(partition) if path.match(kind))


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= CHANGED
    path.write_bytes(content)


def faults(partition: Partition) -> list[Fault]:
    return check(Disk(), partition.root).faults


def test_every_file_that_counts_is_looked_at_and_sound(partition: Partition) -> None:
    counting = named(partition)
    assert {path.suffix for path in counting} == {".json", ".arrows", ".parquet"}
    found = check(Disk(), partition.root)
    assert found == Report(len(counting), sum(counting.values()))


def test_a_flipped_byte_is_found_in_its_file_and_not_past_its_place(partition: Partition) -> None:
    rng = random.Random(7)
    for path, size in named(partition).items():
        for at in {0, size - 1, *rng.sample(range(size), 10)}:
            good = path.read_bytes()
            flip(path, at)
            found = faults(partition)
            path.write_bytes(good)
            assert {fault.file for fault in found} == {str(path)}, (path, at)
            assert all(fault.offset is None or fault.offset <= at for fault in found), (path, at)
    assert faults(partition) == []


def first_byte(column: pq.ColumnChunkMetaData) -> int:
    start: int = column.dictionary_page_offset or column.data_page_offset
    return start


def test_a_flip_in_a_page_is_told_with_its_column_and_where_that_is(partition: Partition) -> None:
    """By the checksum of the piece it is in: of the columns there, those that can't be read, or
    all."""
    path = of_kind(partition, "*.parquet")
    content = path.read_bytes()
    with pq.ParquetFile(path) as file:
        groups = range(file.metadata.num_row_groups)
        columns = [
            file.metadata.row_group(group).column(index)
            for group in groups
            for index in range(file.metadata.num_columns)
        ]
    alone: set[str] = set()
    for column in columns:
        start = first_byte(column)
        name = column.path_in_schema
        for at in range(start, start + column.total_compressed_size, 4):
            flip(path, at)
            (found,) = faults(partition)
            path.write_bytes(content)
            assert found.offset == 0, at
            assert f"row group 0 column {name!r}" in found.what, at
            if found.what.count(" column ") == 1:
                alone.add(name)
    assert alone == {column.path_in_schema for column in columns}


def test_a_byte_past_what_counts_is_no_fault(partition: Partition) -> None:
    for path in named(partition):
        if path.suffix == ".arrows":
            with path.open("ab") as file:
                file.write(b"begun")
    assert faults(partition) == []


def test_a_log_or_chunk_without_its_end_is_told_but_not_a_drop_log(partition: Partition) -> None:
    for path, size in named(partition).items():
        if path.suffix == ".json":
            continue
        good = path.read_bytes()
        path.write_bytes(good[: size - 1])
        told = [(fault.file, fault.offset) for fault in faults(partition)]
        path.write_bytes(good)
        assert told == ([] if "drops" in path.parts else [(str(path), size - 1)])


def test_a_file_that_stays_missing_is_told_but_not_a_drop_log(
    partition: Partition, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "PAUSE_S", 0)
    for path in named(partition):
        if path.suffix == ".json":
            continue
        good = path.read_bytes()
        path.unlink()
        told = [fault.file for fault in faults(partition)]
        path.write_bytes(good)
        assert told == ([] if "drops" in path.parts else [str(path)])


def test_logs_of_a_block_that_a_chunk_covers_may_be_gone(partition: Partition) -> None:
    covered = partition.catalog().covered
    gone = [block for block in partition.manifest().blocks if block.id in covered]
    assert gone
    for block in gone:
        for extent in block.extents:
            (partition.layout.hot(NAME) / extent.file).unlink()
    assert faults(partition) == []


def test_rows_other_than_the_manifests_are_told(partition: Partition) -> None:
    path = partition.layout.manifest(NAME)
    body = orjson.loads(path.read_bytes())["body"]
    body["rejects"][0]["rows"] += 1
    path.write_bytes(record.encode("manifest", 2, body))
    found, counted = faults(partition)
    assert found.file.endswith(body["rejects"][0]["file"])
    assert "rows" in found.what
    assert counted.what.endswith("manifest.json: expected 6 rejects in files, as counted, got 7")


def test_what_the_job_does_meanwhile_is_no_fault(
    partition: Partition, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the manifest that was read first named is merged, and its logs are deleted."""
    counting = named(partition)
    parts = checking._parts
    views = 0

    def overtaken(directory: Directory, name: str, small: Report) -> Iterator[object]:
        nonlocal views
        views += 1
        found = list(parts(directory, name, small))
        if views == 1:
            partition.append(event(100, 100, 60_000), event(101, 101, 61_000))
            partition.merge()
            for _ in range(3):
                partition.blocks.snapshot()
            for after_ms in (0, partition.config.grace_ms, partition.config.grace_ms):
                partition.tidy(after_ms)
                partition.blocks.publish()
        yield from found

    monkeypatch.setattr(checking, "_parts", overtaken)
    assert faults(partition) == []
    assert views == 2
    assert any(path.suffix == ".arrows" and not path.exists() for path in counting)


def test_a_partition_is_checked_though_its_manifest_is_broken(partition: Partition) -> None:
    manifest, chunk = partition.layout.manifest(NAME), of_kind(partition, "*.parquet")
    flip(manifest, 100)
    flip(chunk, chunk.stat().st_size - 20)
    assert {fault.file for fault in faults(partition)} == {str(manifest), str(chunk)}


def test_a_manifest_that_is_gone_is_missing_though_a_catalog_is_there(partition: Partition) -> None:
    manifest = partition.layout.manifest(NAME)
    manifest.unlink()
    (fault,) = faults(partition)
    assert fault.file == str(manifest)
    assert "none is there" in fault.what
    with pytest.raises(MissingFile, match=str(manifest)):
        forebay.open(partition.root)
    store = forebay.open(partition.root, partial=True)
    (silent,) = store.receipt().silent_partitions
    assert silent.partition == NAME


def test_no_directory_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="expected a data directory"):
        check(Disk(), tmp_path / "away")


# -- the command --------------------------------------------------------------------------------


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["check", *map(str, arguments)])


def test_the_command_ends_with_0_if_all_is_as_written(partition: Partition) -> None:
    result = invoke("--data-dir", partition.root)
    assert result.exit_code == 0
    files = len(named(partition))
    assert result.stdout.startswith(f"{files} files, ")
    assert result.stdout.endswith(": all as written\n")


def test_the_command_prints_file_offset_and_what_and_ends_with_1(partition: Partition) -> None:
    path = of_kind(partition, "*.parquet")
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    result = invoke("--data-dir", partition.root)
    assert result.exit_code == 1
    head, row, total = result.stdout.splitlines()
    assert head.split() == ["file", "offset", "what"]
    assert row.split()[:2] == [str(path), str(size - 1)]
    assert f"expected {size} bytes, got {size - 1}" in row
    assert total.endswith("1 fault")
    told = invoke("--json", "--data-dir", partition.root)
    assert told.exit_code == 1
    what = f"chunk {path}: expected {size} bytes, got {size - 1}"
    found = orjson.loads(told.stdout)
    assert found["faults"] == [{"file": str(path), "offset": size - 1, "what": what}]
    assert found["files"] == len(named(partition))
