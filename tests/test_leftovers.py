"""What runs note of the files that they make: a file is deleted once it is certainly in no table,
and nothing else is, whatever the folder of the notes has.
"""

from __future__ import annotations

import os
from pathlib import Path

import orjson
import pytest

from forebay.flows.leftovers import RunNote, clean

MINE, EARLIER = "seal-2", "seal-1"
FOREIGN = [b"{", b"\xff\xfe\n", b'{"a":1}\n', b'["seal-2"]\n', b'"seal-2"\n5\n', b"\n", b""]


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def made(notes: Path, seal: str, count: int = 2) -> RunNote:
    """A note with files that are there."""
    note = RunNote(notes, seal)
    for number in range(count):
        add(note, number)
    return note


def add(note: RunNote, number: int) -> str:
    file = note._path.parent.parent / f"{note.run}-{number}.parquet"
    note.add(str(file))
    file.touch()
    return str(file)


def left(notes: Path) -> set[str]:
    return {str(path) for path in notes.parent.glob("*.parquet")}


def test_files_of_seals_that_landed_go_but_for_those_that_are_named(notes: Path) -> None:
    mine, earlier, open_one = (made(notes, seal) for seal in (MINE, EARLIER, "seal-3"))
    landed: dict[str, list[str]] = {MINE: mine.files[:1], EARLIER: []}
    clean(notes, landed.get, os.remove)
    assert left(notes) == {mine.files[0], *open_one.files}
    assert [path.name for path in notes.iterdir()] == [open_one.run]
    assert not any(Path(file).exists() for file in earlier.files)


def test_a_note_that_was_deleted_while_its_run_is_at_work_begins_anew_with_its_seal(
    notes: Path,
) -> None:
    slow = made(notes, MINE)
    clean(notes, {MINE: []}.get, os.remove)
    assert list(notes.iterdir()) == []
    late = add(slow, 9)
    assert left(notes) == {late}
    clean(notes, {MINE: []}.get, os.remove)
    assert left(notes) == set()
    assert list(notes.iterdir()) == []


def test_a_note_whose_file_is_gone_is_dropped_with_all_but_the_named_files(notes: Path) -> None:
    note = made(notes, MINE, 3)
    Path(note.files[0]).unlink()
    (notes / note.run).unlink()
    note.drop(os.remove, note.files[1:2])
    assert left(notes) == {note.files[1]}
    assert list(notes.iterdir()) == []


@pytest.mark.parametrize("content", FOREIGN)
def test_a_file_that_is_no_note_stays_and_stops_nothing(notes: Path, content: bytes) -> None:
    mine = made(notes, MINE)
    for name in ("0" * 32, "README", ".hidden"):
        (notes / name).write_bytes(content)
    (notes / ("a" * 32)).mkdir()
    os.mkfifo(notes / ("b" * 32))
    before = {path.name for path in notes.iterdir()}
    clean(notes, {MINE: []}.get, os.remove)
    found = {path.name for path in notes.iterdir()}
    assert before - found == {mine.run}
    assert left(notes) == set()


def test_a_note_that_lists_what_its_run_can_not_have_made_deletes_none_of_it(notes: Path) -> None:
    mine = made(notes, MINE)
    other = notes.parent / "other.parquet"
    other.touch()
    forged = notes / ("c" * 32)
    forged.write_bytes(b"\n".join(map(orjson.dumps, [MINE, str(other), *mine.files])) + b"\n")
    clean(notes, {MINE: mine.files}.get, os.remove)
    assert left(notes) == {str(other), *mine.files}


def test_a_file_that_can_not_be_deleted_now_stays_on_record_until_it_can(notes: Path) -> None:
    mine = made(notes, MINE)

    def refuses(file: str) -> None:
        raise PermissionError(13, "Permission denied", file)

    mine.drop(refuses)
    clean(notes, {MINE: []}.get, refuses)
    assert [path.name for path in notes.iterdir()] == [mine.run]
    assert left(notes) == set(mine.files)
    clean(notes, {MINE: []}.get, os.remove)
    assert left(notes) == set()
    assert list(notes.iterdir()) == []
