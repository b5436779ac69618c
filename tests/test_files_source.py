"""The file source: what is packed how, and where it is resumed, never changes what is read."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from operators.files import FilesConfig, FileSource, Position, file_partitions
from operators.messages import Messages
from storage.errors import BadInput, Corruption

MTIME_MS = 1_700_000_000_000
LINES = [b'{"n":%d,"pad":"%b"}' % (n, b"x" * (n * 7 % 90)) for n in range(200)]
CONTENT = b"\n".join(LINES) + b"\n"


def plain(content: bytes) -> bytes:
    return content


def zstd_frames(content: bytes) -> bytes:
    """Two frames, as of a file that was appended to."""
    half = len(content) // 2
    return b"".join(map(zstandard.compress, (content[:half], content[half:])))


def gzip_members(content: bytes) -> bytes:
    half = len(content) // 2
    return gzip.compress(content[:half]) + gzip.compress(content[half:])


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "a.ndjson": plain,
    "a.ndjson.gz": gzip.compress,
    "b.ndjson.gz": gzip_members,
    "a.ndjson.zst": zstandard.compress,
    "b.ndjson.zst": zstd_frames,
}
each_packing = pytest.mark.parametrize("name", PACKED)


def write(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(PACKED[name](content))
    os.utime(path, ns=(MTIME_MS * 10**6, MTIME_MS * 10**6))
    return path


def read(
    path: Path, rows: int = 7, resume: Position | None = None, turns: int | None = None
) -> tuple[list[Messages], list[Position]]:
    """The items of one run of at most `turns`, and the snapshot after each."""
    config = FilesConfig(path, rows)
    source = FileSource(config, file_partitions(config))
    (part,) = source.list_parts()
    partition = source.build_part("step", part, resume)
    items: list[Messages] = []
    positions: list[Position] = []
    try:
        while turns is None or len(items) < turns:
            items += partition.next_batch()
            position = partition.snapshot()
            assert position is not None
            positions.append(position)
    except StopIteration:
        pass
    finally:
        partition.close()
    return items, positions


def messages(items: Sequence[Messages]) -> list[tuple[int, bytes]]:
    for item in items:
        assert len(item.offsets) == len(item.values) == len(item.times_ms)
    return [
        (offset, value)
        for item in items
        for offset, value in zip(item.offsets.tolist(), item.values, strict=True)
    ]


@each_packing
@pytest.mark.parametrize("rows", [1, 7, 1_000])
def test_every_packing_reads_the_same(tmp_path: Path, name: str, rows: int) -> None:
    items, _ = read(write(tmp_path, name, CONTENT), rows)
    assert messages(items) == list(enumerate(LINES))
    assert max(len(item.values) for item in items) == min(rows, len(LINES))


@each_packing
def test_resume_from_every_snapshot_goes_on_where_it_was(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, name, CONTENT)
    items, positions = read(path)
    for at, position in enumerate(positions, start=1):
        rest, _ = read(path, rows=11, resume=position)
        assert messages([*items[:at], *rest]) == list(enumerate(LINES))


@each_packing
def test_last_line_needs_no_newline_and_what_is_appended_later_is_read(
    tmp_path: Path, name: str
) -> None:
    items, positions = read(write(tmp_path, name, b"a\n{}"))
    assert messages(items) == [(0, b"a"), (1, b"{}")]
    path = write(tmp_path, name, b"a\n{}\nc\n")
    assert messages(read(path, resume=positions[-1])[0]) == [(2, b"c")]


@each_packing
def test_last_line_that_is_not_whole_is_left_to_a_later_run(tmp_path: Path, name: str) -> None:
    items, positions = read(write(tmp_path, name, b'a\n{"b":'))
    assert messages(items) == [(0, b"a")]
    path = write(tmp_path, name, b'a\n{"b":1}\n')
    assert messages(read(path, resume=positions[-1])[0]) == [(1, b'{"b":1}')]


@each_packing
def test_blank_lines_are_no_messages_but_keep_their_numbers(tmp_path: Path, name: str) -> None:
    items, positions = read(write(tmp_path, name, b"\n\na\n\r\nb\n\n"), rows=2)
    assert messages(items) == [(2, b"a"), (4, b"b")]
    assert [item.next_offset for item in items] == [2, 4, 6]
    assert [line for line, _ in positions] == [2, 4, 6]


def test_items_follow_one_another_and_tell_the_end(tmp_path: Path) -> None:
    items, _ = read(write(tmp_path, "a.ndjson", CONTENT))
    for item, following in pairwise(items):
        assert item.next_offset == following.first_offset
    assert items[-1].end_offset == items[-1].next_offset == len(LINES)
    assert {item.source for item in items} == {"a.ndjson"}


def test_modification_time_stands_for_the_brokers_timestamp(tmp_path: Path) -> None:
    items, _ = read(write(tmp_path, "a.ndjson", b"a\nb\n"))
    assert np.unique(items[0].times_ms).tolist() == [MTIME_MS]


@each_packing
def test_empty_file_has_no_messages(tmp_path: Path, name: str) -> None:
    items, _ = read(write(tmp_path, name, b""))
    assert messages(items) == []


@each_packing
@given(content=st.lists(st.sampled_from([b"\n", b"\r", b"a", b"\0", b"\xff"])).map(b"".join))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
def test_any_content_is_lines(tmp_path: Path, name: str, content: bytes) -> None:
    path = write(tmp_path, name, content)
    wanted = [
        (number, line)
        for number, line in enumerate(content.split(b"\n")[:-1])  # the last one is not whole
        if line not in (b"", b"\r")
    ]
    items, positions = read(path, rows=2)
    assert messages(items) == wanted
    for at, position in enumerate(positions, start=1):
        assert messages([*items[:at], *read(path, resume=position)[0]]) == wanted


def test_long_line_is_read_whole(tmp_path: Path) -> None:
    line = b"x" * (9 << 20)
    items, _ = read(write(tmp_path, "a.ndjson", b"a\n" + line + b"\nb\n"))
    assert messages(items) == [(0, b"a"), (1, line), (2, b"b")]


@pytest.mark.parametrize("name", ["a.ndjson.gz", "a.ndjson.zst"])
def test_what_stands_behind_damage_is_left_to_a_run_that_finds_the_file_whole(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [os.urandom(2_000).hex().encode() for _ in range(200)]
    path = write(tmp_path, name, b"\n".join(lines) + b"\n")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * 0.7)])
    items, positions = read(path)
    first = messages(items)
    assert 0 < len(first) < len(lines)
    assert first == list(enumerate(lines))[: len(first)]
    assert f"{path}: expected the end of a compressed frame" in caplog.text
    assert read(path, resume=positions[-1])[0] == []
    path.write_bytes(whole)
    assert messages([*items, *read(path, resume=positions[-1])[0]]) == list(enumerate(lines))


@pytest.mark.parametrize("name", ["a.ndjson.gz", "a.ndjson.zst"])
def test_file_that_is_not_compressed_has_no_messages_and_is_named(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path, name, CONTENT)
    path.write_bytes(b"not compressed" + path.read_bytes())
    assert messages(read(path)[0]) == []
    assert f"{path}: can't be decompressed" in caplog.text


@pytest.mark.parametrize("name", ["a.ndjson.gz", "a.ndjson.zst"])
def test_file_truncated_since_the_snapshot_is_an_error_that_names_it(
    tmp_path: Path, name: str
) -> None:
    path = write(tmp_path, name, CONTENT)
    _, positions = read(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises((BadInput, Corruption), match=str(path)):
        read(path, resume=positions[-1])


@each_packing
def test_file_shorter_than_it_was_is_bad_input_that_names_it(tmp_path: Path, name: str) -> None:
    _, positions = read(write(tmp_path, name, CONTENT))
    path = write(tmp_path, name, CONTENT[: len(CONTENT) // 2])
    with pytest.raises(BadInput, match=f"{path}: expected at least"):
        read(path, resume=positions[-1])


def test_partition_is_named_after_its_path_and_numbered_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "sub dir").mkdir()
    for name in ("b.jsonl", "sub dir/a.json.gz", "ignored.txt"):
        (tmp_path / name).write_bytes(b"")
    found = file_partitions(FilesConfig(tmp_path))
    assert {key.name: path.name for key, path in found.items()} == {
        "b.jsonl": "b.jsonl",
        "sub_20_dir_2f_a.json.gz": "a.json.gz",
    }
    assert all(key.number == zlib.crc32(key.name.encode()) for key in found)
    (tmp_path / "a.ndjson").write_bytes(b"")
    assert set(found) < set(file_partitions(FilesConfig(tmp_path)))


def test_two_files_never_share_a_partition(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name in ("a/b.json", "a_2fb.json"):
        (tmp_path / name).write_bytes(b"")
    assert len(file_partitions(FilesConfig(tmp_path))) == 2


def test_no_file_at_all_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"files\.path: expected NDJSON files"):
        file_partitions(FilesConfig(tmp_path))
