"""The file source: what is packed how, and where it is resumed, never changes what is read."""

from __future__ import annotations

import gzip
import os
import tracemalloc
import zlib
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from forebay.operators import process
from forebay.operators.process import unread
from forebay.operators.sources.content import WINDOW_BYTES, Position
from forebay.operators.sources.folder import FilesConfig, file_partitions
from forebay.operators.sources.input_files import FileSource
from forebay.operators.sources.lines import KEPT_BYTES, SCAN_BYTES_MAX
from forebay.operators.sources.messages import Messages
from forebay.operators.sources.unpack import PACKED_BYTES, PIECE_BYTES_MAX, unpack
from tests.input_files import CONTENT, LINES, MTIME_MS, PACKED, Match, messages, write


@pytest.fixture(autouse=True)
def _nothing_unread_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_unread", [])


SKIPPABLE = b"\x53\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"notes"
each_compressed = pytest.mark.parametrize("name", ["a.ndjson.gz", "a.ndjson.zst"])
each_packing = pytest.mark.parametrize("name", PACKED)


def read(
    path: Path,
    rows: int = 7,
    resume: Position | None = None,
    turns: int | None = None,
    line_bytes_max: int = 16 << 20,
) -> tuple[list[Messages], list[Position]]:
    """The items of one run of at most `turns`, and the snapshot after each."""
    config = FilesConfig(path, rows, line_bytes_max=line_bytes_max)
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
    assert [item.next_offset for item in items] == [5, 6]
    assert [line for line, *_ in positions] == [5, 6]


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


@each_compressed
def test_what_stands_behind_damage_is_left_to_a_run_that_finds_the_file_whole(
    tmp_path: Path, name: str
) -> None:
    lines = [os.urandom(2_000).hex().encode() for _ in range(200)]
    path = write(tmp_path, name, b"\n".join(lines) + b"\n")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * 0.7)])
    items, positions = read(path)
    first = messages(items)
    assert 0 < len(first) < len(lines)
    assert first == list(enumerate(lines))[: len(first)]
    assert unread() == [Match(rf"file {path}: expected the end of .*, got .* at offset \d+")]
    assert read(path, resume=positions[-1])[0] == []
    path.write_bytes(whole)
    assert messages([*items, *read(path, resume=positions[-1])[0]]) == list(enumerate(lines))


@each_compressed
@pytest.mark.parametrize("at", [0.4, 0.9])
def test_every_line_before_a_damaged_byte_is_read_though_one_read_has_both(
    tmp_path: Path, name: str, at: float
) -> None:
    """Text that repeats, so that one call unpacks all; the lines are counted from the damage."""
    content = b"".join(b'{"n":%d,"pad":"%b"}\n' % (n, b"x" * 200) for n in range(8_000))
    path = write(tmp_path, name, content)
    whole = path.read_bytes()
    assert len(whole) < PACKED_BYTES
    damaged = bytearray(whole)
    cut = int(len(whole) * at)
    damaged[cut : cut + 40] = os.urandom(40)
    path.write_bytes(whole[:cut])
    shorter = len(messages(read(path)[0]))  # those that surely stand before the damage
    path.write_bytes(damaged)
    found = messages(read(path)[0])
    assert len(found) >= shorter - 1 > 500
    assert [line for _, line in found][: shorter - 1] == content.split(b"\n")[: shorter - 1]
    assert str(path) in unread()[-1]


AS_GZIP_AND_ZSTD_TAKE_IT: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "zeros behind a member": ("a.ndjson.gz", lambda packed: packed + bytes(600_000), ""),
    "bytes behind a member": (
        "a.ndjson.gz", lambda packed: packed + b"garbage", "other bytes behind the last",
    ),
    "a member behind zeros": (
        "a.ndjson.gz", lambda packed: packed + bytes(512) + packed, "zeros or nothing",
    ),
    "an empty member between": (
        "a.ndjson.gz", lambda packed: gzip.compress(b"") + packed + gzip.compress(b""), "",
    ),
    "half of a member behind": (
        "a.ndjson.gz", lambda packed: packed + packed[:9], "the end of a gzip member",
    ),
    "one byte of a member behind": (
        "a.ndjson.gz", lambda packed: packed + b"\x1f", "the end of a gzip member",
    ),
    "zeros behind a frame": ("a.ndjson.zst", lambda packed: packed + bytes(512), "zstd frame or"),
    "bytes behind a frame": ("a.ndjson.zst", lambda packed: packed + b"garbage", "zstd frame or"),
    "skippable frames": (
        "a.ndjson.zst", lambda packed: SKIPPABLE + packed + SKIPPABLE, "",
    ),
    "half of a skippable frame": (
        "a.ndjson.zst", lambda packed: packed + SKIPPABLE[:-1], "the end of a zstd frame",
    ),
    "an empty frame between": (
        "a.ndjson.zst", lambda packed: packed + zstandard.compress(b"") + zstandard.compress(b""),
        "",
    ),
    "half of a magic behind": (
        "a.ndjson.zst", lambda packed: packed + packed[:3], "the end of a zstd frame",
    ),
    "no content size": ("a.ndjson.zst", lambda _: unsized(CONTENT), ""),
    "a wrong checksum": (
        "a.ndjson.zst", lambda _: unsized(CONTENT)[:-1] + b"\0", "zstd data, got damage",
    ),
    "a wrong CRC": (
        "a.ndjson.gz", lambda packed: packed[:-8] + bytes(4) + packed[-4:], "incorrect data check",
    ),
}  # fmt: skip


def unsized(content: bytes) -> bytes:
    """A frame as a stream writes it: without the size of its content, with a checksum."""
    packing = zstandard.ZstdCompressor(write_checksum=True).compressobj()
    return packing.compress(content) + packing.flush()


@pytest.mark.parametrize("what", AS_GZIP_AND_ZSTD_TAKE_IT)
def test_what_is_whole_is_what_gzip_and_zstd_take_and_the_rest_is_told(
    tmp_path: Path, what: str
) -> None:
    name, change, told = AS_GZIP_AND_ZSTD_TAKE_IT[what]
    path = write(tmp_path, name, CONTENT)
    path.write_bytes(change(path.read_bytes()))
    assert messages(read(path)[0]) == list(enumerate(LINES))
    assert unread() == ([Match(rf"file {path}: .*{told}.* at offset \d+")] if told else [])


@each_compressed
@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "an empty file"),
        (CONTENT, "a file that is not compressed"),
        (bytes(512), "something else"),
        (b"BZh91AY&SY", "bzip2 data"),
    ],
)
def test_file_that_is_not_what_its_name_says_has_no_messages_and_is_named(
    tmp_path: Path, name: str, content: bytes, told: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert messages(read(path)[0]) == []
    assert unread() == [
        Match(rf"file {path}: expected (gzip|zstd) data, as its name says, got {told} at offset 0")
    ]


def test_gzip_that_is_zstd_is_called_so(tmp_path: Path) -> None:
    path = tmp_path / "a.ndjson.gz"
    path.write_bytes(zstandard.compress(CONTENT))
    assert messages(read(path)[0]) == []
    assert "expected gzip data, as its name says, got zstd data" in unread()[0]


@pytest.mark.few(2)
@pytest.mark.parametrize("name", [name for name in PACKED if name != "a.ndjson"])
@given(edits=st.lists(st.tuples(st.integers(0, 4_000), st.binary(max_size=3)), min_size=1))
@example(edits=[(4, b"\xff")])
@example(edits=[(5, b"\xff\xff\xff")])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_whatever_is_damaged_ends_the_file_and_nothing_else(
    tmp_path: Path, name: str, edits: list[tuple[int, bytes]]
) -> None:
    """Each edit puts bytes in the place of others, or cuts the file there."""
    process._unread.clear()
    path = write(tmp_path, name, CONTENT)
    damaged = bytearray(path.read_bytes())
    for at, text in edits:
        at %= len(damaged) + 1
        damaged[at : at + len(text) if text else None] = text
    path.write_bytes(damaged)
    items, positions = read(path)
    assert len(unread()) <= 1
    position = positions[-1] if positions else (0, 0, 0, 0)
    assert position[0] == (items[-1].next_offset if items else 0)
    assert messages(read(path, resume=position)[0]) == []


def test_zstd_frame_with_a_larger_window_than_the_limit_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.ndjson.zst"
    long = zstandard.ZstdCompressionParameters(window_log=28, enable_ldm=True)
    packing = zstandard.ZstdCompressor(compression_params=long).compressobj()
    frame = packing.compress(CONTENT) + packing.flush()
    path.write_bytes(zstandard.compress(b"{}\n") + frame)
    assert messages(read(path)[0]) == [(0, b"{}")]
    assert "a window of at most 128 MiB, got 256 MiB" in unread()[0]


@each_compressed
def test_no_piece_is_much_larger_than_its_bound_whatever_it_unpacks_to(
    tmp_path: Path, name: str
) -> None:
    path = write(tmp_path, name, b"\n" * (64 << 20))
    with path.open("rb") as file:
        sizes = [len(piece) for piece in unpack(file, name)]
    assert sum(sizes) == 64 << 20
    assert max(sizes) <= PIECE_BYTES_MAX


OTHER: dict[str, Callable[[bytes], bytes]] = {
    "another file": lambda content: content.replace(b"pad", b"new") + content,
    "another file of the same length": lambda content: content.replace(b"pad", b"new"),
    "another beginning, the same end": lambda content: b"[" + content[1:],
    "the same beginning, another end": lambda content: content[:-9] + b"y" * 8 + b"\n",
    "a shorter file": lambda content: content[: len(content) // 2],
    "an empty file": lambda content: b"",
    "one line more in front": lambda content: b'{"n":-1}\n' + content,
    "a last line that went on": lambda content: content[:-1] + b" \n",
}
LONG = b"".join(b'{"n":%d,"pad":"%b"}\n' % (n, b"x" * (n % 90)) for n in range(4_000))


@pytest.mark.parametrize("content", [CONTENT, LONG], ids=["short", "long"])
@pytest.mark.parametrize("what", OTHER)
@each_packing
def test_file_that_is_not_the_one_read_before_is_left_alone_until_that_is_back(
    tmp_path: Path, name: str, what: str, content: bytes
) -> None:
    path = write(tmp_path, name, content)
    items, positions = read(path, rows=3000)
    write(tmp_path, name, OTHER[what](content))
    again, kept = read(path, resume=positions[-1])
    assert (again, kept) == ([], [])
    assert unread() == [
        Match(rf"file {path}: expected .* read before, got .*; give the new file a name of its own")
    ]
    assert resting(path, positions[-1]) == positions[-1]
    write(tmp_path, name, content + b"{}\n")
    found = messages([*items, *read(path, resume=positions[-1])[0]])
    assert found == list(enumerate([*content.split(b"\n")[:-1], b"{}"]))


def resting(path: Path, position: Position) -> Position | None:
    """The snapshot of a partition from which nothing is read."""
    config = FilesConfig(path)
    source = FileSource(config, file_partitions(config))
    partition = source.build_part("step", path.name, position)
    with pytest.raises(StopIteration):
        partition.next_batch()
    return partition.snapshot()


@each_packing
def test_snapshot_of_version_1_goes_on_and_is_followed_by_one_that_tells_files_apart(
    tmp_path: Path, name: str
) -> None:
    path = write(tmp_path, name, LONG)
    items, positions = read(path, rows=3000)
    first = positions[0][:2]
    rest, later = read(path, rows=500, resume=first)
    assert messages([items[0], *rest]) == list(enumerate(LONG.split(b"\n")[:-1]))
    assert later[-1] == positions[-1]
    write(tmp_path, name, OTHER["another file"](LONG)[7:])
    assert read(path, resume=first)[0] == []
    assert "expected the 3,000 lines" in unread()[-1]


@pytest.mark.parametrize("name", ["a.ndjson.gz", "a.ndjson.zst"])
def test_file_that_was_compressed_anew_goes_on(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, name, LONG)
    items, positions = read(path, rows=3000, turns=1)
    path.write_bytes(PACKED[name.replace("a.", "b.")](LONG))
    assert messages([*items, *read(path, resume=positions[-1])[0]]) == list(
        enumerate(LONG.split(b"\n")[:-1])
    )
    assert unread() == []


@each_packing
def test_edit_between_the_first_and_the_last_window_is_not_noticed(
    tmp_path: Path, name: str
) -> None:
    """What the checksums do not tell, for the price of two small reads."""
    _, positions = read(write(tmp_path, name, LONG), rows=10_000)
    middle = len(LONG) // 2
    assert WINDOW_BYTES < middle - 1 < len(LONG) - WINDOW_BYTES
    path = write(tmp_path, name, LONG[:middle] + b"?" + LONG[middle + 1 :] + b"{}\n")
    assert messages(read(path, resume=positions[-1])[0]) == [(4000, b"{}")]


@each_packing
def test_last_line_without_its_newline_may_go_on_with_a_carriage_return_or_nothing(
    tmp_path: Path, name: str
) -> None:
    path = write(tmp_path, name, b'{"a":1}\r\n{"a":2}')
    items, positions = read(path)
    assert messages(items) == [(0, b'{"a":1}\r'), (1, b'{"a":2}')]
    assert messages(read(path, resume=positions[-1])[0]) == []
    write(tmp_path, name, b'{"a":1}\r\n{"a":2}\r\n{"a":3}\r\n')
    items, later = read(path, resume=positions[-1])
    assert messages(items) == [(2, b'{"a":3}\r')]
    write(tmp_path, name, b'{"a":1}\r\n{"a":2}\r\n{"a":3}\r\n{}\n')
    assert messages(read(path, resume=later[-1])[0]) == [(3, b"{}")]


def reopened(path: Path, position: Position) -> Position | None:
    """The snapshot of a partition that was built and stopped before its first batch."""
    config = FilesConfig(path)
    partition = FileSource(config, file_partitions(config)).build_part("step", path.name, position)
    try:
        return partition.snapshot()
    finally:
        partition.close()


@each_packing
@pytest.mark.parametrize("pad", [b"", b"x" * (2 * WINDOW_BYTES)], ids=["short", "long"])
def test_snapshot_at_any_state_of_a_newline_that_was_lacking_is_gone_on_from(
    pad: bytes, tmp_path: Path, name: str
) -> None:
    """The file grows byte by byte; before each run that reads, one is stopped at its start."""
    first = b'{"a":"%b"}' % pad
    (item,), (position,) = read(write(tmp_path, name, first))
    found = messages([item])
    for content in (first + b"\r", first + b"\r\n", first + b"\r\n{}\r\n[]\n"):
        path = write(tmp_path, name, content)
        for _ in range(2):
            snapshot = reopened(path, position)
            assert snapshot is not None
            position = snapshot
        found += messages(read(path, resume=position)[0])
        assert unread() == []
    assert found == [(0, first), (1, b"{}\r"), (2, b"[]")]


@each_packing
@pytest.mark.parametrize("end", [b" \n", b"\r \n", b"\r\r\n", b"x"])
def test_line_that_was_read_without_its_newline_may_not_go_on(
    end: bytes, tmp_path: Path, name: str
) -> None:
    _, positions = read(write(tmp_path, name, b"{}"))
    path = write(tmp_path, name, b"{}" + end)
    assert read(path, resume=positions[-1]) == ([], [])
    assert "got other content" in unread()[-1]


@each_packing
def test_snapshot_that_has_the_carriage_return_at_its_place_is_gone_on_from(
    tmp_path: Path, name: str
) -> None:
    path = write(tmp_path, name, b'{"a":1}\r\n{}\n')
    crc = zlib.crc32(b'{"a":1}\r')
    assert messages(read(path, resume=(1, 8, crc, crc))[0]) == [(1, b"{}")]


def test_number_at_the_end_of_a_file_may_go_on(tmp_path: Path) -> None:
    items, positions = read(write(tmp_path, "a.ndjson", b"{}\n12"))
    assert messages(items) == [(0, b"{}")]
    path = write(tmp_path, "a.ndjson", b"{}\n123\n")
    assert messages(read(path, resume=positions[-1])[0]) == [(1, b"123")]


def test_file_that_is_truncated_while_it_is_read_is_told(tmp_path: Path) -> None:
    path = write(tmp_path, "a.ndjson", CONTENT * 1000)
    config = FilesConfig(path)
    partition = FileSource(config, file_partitions(config)).build_part("step", path.name, None)
    partition.next_batch()
    os.truncate(path, 5)
    with suppress(StopIteration):
        while True:
            partition.next_batch()
    assert "it was truncated meanwhile" in unread()[0]


@each_packing
def test_line_above_the_limit_costs_no_memory_and_no_neighbour(tmp_path: Path, name: str) -> None:
    line = b"x" * (50 << 20)
    path = write(tmp_path, name, b"a\n" + line + b"\nb\n")
    tracemalloc.start()
    try:
        items, positions = read(path, line_bytes_max=1 << 20)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    found = [value for item in items for value in item.values]
    assert [number for number, _ in messages(items)] == [0, 1, 2]
    assert found == [b"a", line[:KEPT_BYTES], b"b"]
    assert [list(item.lengths.values()) for item in items if item.lengths] == [[len(line)]]
    assert positions[-1][:2] == (3, len(line) + 5)
    assert peak < 16 << 20


@each_packing
@given(
    content=st.lists(st.sampled_from([b"\n", b"\r\n", b"a", b"{}", b"0123456789" * 3])).map(
        b"".join
    ),
    limit=st.integers(1, 30),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
def test_lines_are_numbered_and_gone_on_from_alike_whatever_is_cut(
    tmp_path: Path, name: str, content: bytes, limit: int
) -> None:
    """Of lines above the limit the beginning is given, with their lengths; the places at which a
    run can stop are those of one that cuts nothing."""
    path = write(tmp_path, name, content + b"\n")
    lines = dict(messages(read(path)[0]))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("forebay.operators.sources.lines.PIECE_BYTES_MAX", 0)
        patched.setattr("forebay.operators.sources.lines.KEPT_BYTES", 1)
        patched.setattr("forebay.operators.sources.lines.SCAN_BYTES_MAX", 4)
        patched.setattr("forebay.operators.sources.unpack.PIECE_BYTES_MAX", 3)
        place: Position | None = None
        found: list[Messages] = []
        while True:
            items, positions = read(path, 2, place, 1, limit)
            if not items:
                break
            found += items
            place = positions[-1]
    given = dict(messages(found))
    lengths = {
        int(item.offsets[row]): length for item in found for row, length in item.lengths.items()
    }
    assert given.keys() == lines.keys()
    for number, line in lines.items():
        assert lengths.get(number, len(given[number])) == len(line)
        assert given[number] == (line[:1] if number in lengths else line)
        # What is in one piece is there anyway; a block of zstd is one.
        assert number in lengths or len(line) <= max(limit, 3) or name.endswith(".zst")


def test_what_looks_at_a_long_line_lets_go_now_and_then_and_a_crash_in_it_reads_it_again(
    tmp_path: Path,
) -> None:
    path = write(tmp_path, "a.ndjson", b"{}\n" + b"x" * (3 * SCAN_BYTES_MAX) + b"\n{}\n")
    config = FilesConfig(path)
    partition = FileSource(config, file_partitions(config)).build_part("step", path.name, None)
    assert messages(partition.next_batch()) == [(0, b"{}")]
    place = partition.snapshot()
    assert [partition.next_batch(), partition.snapshot()] == [[], place]
    partition.close()
    items, _ = read(path, resume=place, line_bytes_max=1 << 20)
    assert [number for number, _ in messages(items)] == [1, 2]
    assert items[0].lengths == {0: 3 * SCAN_BYTES_MAX}


@pytest.mark.parametrize("end", [b'"}', b'"} \r', b'"', b"1"])
def test_last_line_above_the_limit_needs_no_newline_if_it_is_framed_as_an_object(
    tmp_path: Path, end: bytes
) -> None:
    path = write(tmp_path, "a.ndjson", b'{}\n{"a":"' + b"x" * (3 << 20) + end)
    items, positions = read(path, line_bytes_max=1)
    whole = end.strip().endswith(b"}")
    assert [number for number, _ in messages(items)] == [0, 1][: 1 + whole]
    with path.open("ab") as file:
        file.write(b"\n{}\n")
    more, _ = read(path, resume=positions[-1], line_bytes_max=1)
    assert [number for number, _ in messages([*items, *more])] == [0, 1, 2]


def test_blank_lines_without_end_are_passed_at_the_speed_of_reading(tmp_path: Path) -> None:
    """They took a microsecond each as lines."""
    blank = b"\n" * (16 << 20) + b"\r\n" * (8 << 20)
    path = tmp_path / "a.ndjson.zst"
    path.write_bytes(zstandard.compress(b"a\n" + blank + b"b\n") + zstandard.compress(blank))
    items, positions = read(path)
    assert messages(items) == [(0, b"a"), ((24 << 20) + 1, b"b")]
    assert positions[-1][:2] == (2 * (24 << 20) + 2, 2 * len(blank) + 4)
