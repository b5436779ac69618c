"""The folder of the file source: which files are read, under which names, and how many at once."""

from __future__ import annotations

import errno
import os
import socket
import zlib
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import pytest

from forebay.operators import process
from forebay.operators.process import unread
from forebay.operators.sources.content import Position
from forebay.operators.sources.folder import NAME_CHARS_MAX, FilesConfig, file_partitions
from forebay.operators.sources.input_files import OPEN_FILES_MAX, FileSource
from forebay.storage.base.errors import BadInput
from forebay.storage.base.layout import PartitionKey
from tests.input_files import CONTENT, LINES, Match, messages, write


@pytest.fixture(autouse=True)
def _nothing_unread_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_unread", [])


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


ODD: dict[str, tuple[Callable[[Path], None], str]] = {
    "a folder": (lambda path: path.symlink_to(path.parent), "expected a plain file, got a folder"),
    "a pipe": (os.mkfifo, "expected a plain file, got a pipe"),
    "a socket": (
        lambda path: socket.socket(socket.AF_UNIX).bind(str(path)),
        "expected a plain file, got a socket",
    ),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "expected a plain file, got a device"),
    "a link to nothing": (lambda path: path.symlink_to("nothing"), "got a link to nothing"),
    "a link to itself": (lambda path: path.symlink_to(path.name), "symbolic links"),
    "a read that fails": (lambda path: path.symlink_to("/proc/self/mem"), "Input/output error"),
}


@pytest.mark.parametrize("resume", [None, (3, 20), (3, 20, 1, 2)])
@pytest.mark.parametrize("what", ODD)
@pytest.mark.filterwarnings("ignore:unclosed")
def test_what_cannot_be_read_is_named_and_its_place_is_kept_and_the_others_are_read(
    tmp_path: Path, what: str, resume: Position | None
) -> None:
    make, told = ODD[what]
    make(tmp_path / "odd.ndjson")
    write(tmp_path, "a.ndjson", CONTENT)
    config = FilesConfig(tmp_path)
    source = FileSource(config, file_partitions(config))
    assert source.list_parts() == ["a.ndjson", "odd.ndjson"]
    odd = source.build_part("step", "odd.ndjson", resume)
    with pytest.raises(StopIteration):
        odd.next_batch()
    assert odd.snapshot() in (resume, (0, 0, 0, 0))
    assert unread() == [Match(rf"file {tmp_path}/odd.ndjson: .*{told}")]
    (item,) = source.build_part("step", "a.ndjson", None).next_batch()
    assert messages([item]) == list(enumerate(LINES))


@pytest.fixture
def nobody() -> Iterator[None]:
    """Root may read everything."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield
    os.seteuid(user)


def test_file_that_may_not_be_read_is_named_and_stops_no_other(
    tmp_path: Path, nobody: None
) -> None:
    if os.geteuid() == os.getuid():
        write(tmp_path, "a.ndjson", CONTENT).chmod(0)
    source = FileSource(FilesConfig(tmp_path), {PartitionKey("a", 0): tmp_path / "a.ndjson"})
    with pytest.raises(StopIteration):
        source.build_part("step", "a", None).next_batch()
    assert unread() == [f"file {tmp_path}/a.ndjson: Permission denied"]


def test_folder_that_may_not_be_listed_is_named_and_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("open", "closed"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, "a.ndjson", CONTENT)
    scandir = os.scandir

    def refusing(path: str) -> object:
        if path.endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert [key.name for key in file_partitions(FilesConfig(tmp_path))] == ["open_2f_a.ndjson"]
    assert unread() == [f"folder {tmp_path}/closed: Permission denied"]
    with pytest.raises(BadInput, match=r"files\.path: expected .* got: Permission denied"):
        file_partitions(FilesConfig(tmp_path / "closed"))


def test_file_that_vanishes_after_it_was_listed_stops_nothing_and_is_not_missed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path, "a.ndjson", CONTENT)
    config = FilesConfig(tmp_path)
    source = FileSource(config, file_partitions(config))
    path.unlink()
    for resume in (None, (3, 20, 1, 2)):
        partition = source.build_part("step", "a.ndjson", resume)
        with pytest.raises(StopIteration):
            partition.next_batch()
        assert partition.snapshot() == resume
    assert unread() == []
    assert caplog.text.count("is gone; what was read of it stays") == 1


def test_too_many_open_files_are_no_fault_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = FilesConfig(write(tmp_path, "a.ndjson", CONTENT))
    source = FileSource(config, file_partitions(config))

    def full(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "open", full)
    with pytest.raises(OSError, match="Too many open files"):
        source.build_part("step", "a.ndjson", None).next_batch()
    assert unread() == []


def test_so_many_files_are_open_at_once_and_the_others_wait_for_their_turn(tmp_path: Path) -> None:
    names = [f"{n:02}.ndjson" for n in range(3 * OPEN_FILES_MAX)]
    for name in names:
        (tmp_path / name).write_bytes(b"{}\n" * 3)
    config = FilesConfig(tmp_path, batch_rows=2)
    source = FileSource(config, file_partitions(config))
    waiting = {name: source.build_part("step", name, None) for name in names}
    before = len(os.listdir("/proc/self/fd"))
    found: list[list[str]] = []
    while waiting:
        found.append([])
        for name, partition in list(waiting.items()):
            try:
                found[-1] += [item.source for item in partition.next_batch()]
            except StopIteration:
                del waiting[name]
        assert len(os.listdir("/proc/self/fd")) <= before + OPEN_FILES_MAX
    wanted = [names[low : low + OPEN_FILES_MAX] for low in range(0, len(names), OPEN_FILES_MAX)]
    # The first two lines of each, the third, and then the next files.
    assert sorted(chain.from_iterable(found)) == sorted([*names, *names])
    assert found[0] == found[1] == wanted[0]
    assert all(len(one) <= OPEN_FILES_MAX for one in found)


NAMES = [b"\xff\xfe.ndjson", "\u4e2d\U0001f600 \n'.ndjson".encode(), b"%2e%2E;.json", b"-rf.jsonl"]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_a_partition_of_its_own(tmp_path: Path, name: bytes) -> None:
    (path,) = [tmp_path / os.fsdecode(name)]
    path.write_bytes(CONTENT)
    write(tmp_path, "a.ndjson", CONTENT)
    config = FilesConfig(tmp_path)
    found = file_partitions(config)
    assert set(found.values()) == {path, tmp_path / "a.ndjson"}
    source = FileSource(config, found)
    for part in source.list_parts():
        assert part.isascii()
        assert messages(source.build_part("step", part, None).next_batch()) == list(
            enumerate(LINES)
        )


def test_names_that_are_too_long_for_a_partition_are_told_apart_by_a_digest(
    tmp_path: Path,
) -> None:
    names = ["\u4e2d" * 80 + f"{end}.ndjson" for end in ("a", "b")]
    for name in names:
        (tmp_path / name).write_bytes(b"{}\n")
    found = file_partitions(FilesConfig(tmp_path))
    assert {path.name for path in found.values()} == set(names)
    assert {len(key.name) for key in found} == {NAME_CHARS_MAX}


def test_what_is_not_read_for_its_name_is_warned_of_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.ndjson", "a.ndjson.1", "b.ndjson.bz2", "C.JSON", "d.log.gz", "notes.txt"):
        (tmp_path / name).write_bytes(b"{}\n")
    (tmp_path / "more").symlink_to("/tmp")
    assert [key.name for key in file_partitions(FilesConfig(tmp_path))] == ["a.ndjson"]
    (record,) = caplog.records
    assert "not read: C.JSON, a.ndjson.1, b.ndjson.bz2 and 2 more" in record.getMessage()


def test_link_to_a_file_that_is_read_is_not_read_again_but_one_to_another_is(
    tmp_path: Path,
) -> None:
    (tmp_path / "events").mkdir()
    write(tmp_path / "events", "a.ndjson", CONTENT)
    write(tmp_path, "a.ndjson", CONTENT)
    (tmp_path / "events" / "latest.ndjson").symlink_to("a.ndjson")
    (tmp_path / "events" / "other.ndjson").symlink_to(tmp_path / "a.ndjson")
    (tmp_path / "link").symlink_to("events")
    for root in ("events", "link"):
        found = file_partitions(FilesConfig(tmp_path / root))
        assert {key.name for key in found} == {"a.ndjson", "other.ndjson"}


def test_forebays_own_folder_is_not_read_and_may_not_be_the_source(tmp_path: Path) -> None:
    own = tmp_path / "data"
    (own / "hot").mkdir(parents=True)
    (own / "hot" / "manifest.json").write_bytes(b"{}")
    write(tmp_path, "a.ndjson", CONTENT)
    (tmp_path / "link.json").symlink_to(own / "hot" / "manifest.json")
    found = file_partitions(FilesConfig(tmp_path, leave_out=own))
    assert [key.name for key in found] == ["a.ndjson"]
    for path in (own, own / "hot"):
        with pytest.raises(BadInput, match="expected a folder outside of data_dir"):
            file_partitions(FilesConfig(path, leave_out=own))


def test_no_file_at_all_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"files\.path: expected NDJSON files"):
        file_partitions(FilesConfig(tmp_path))
