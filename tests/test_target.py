"""Where commands write: no command deletes or overwrites what it did not make."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from forebay.cli.demo import MADE, MARKER, _is_ours
from forebay.cli.target import new_file, own_folder
from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import BadInput
from tests import engine
from tests.lane import Lane, filled

ROOT = Path(__file__).parent.parent


def invoke(*arguments: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """The command as a process of its own."""
    command = [sys.executable, "-m", "forebay", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )


def content(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


# -- the demo's folder --------------------------------------------------------------------------


def test_demo_refuses_a_folder_that_is_not_its_own_and_leaves_it_as_it_is(tmp_path: Path) -> None:
    engine.need()
    theirs = tmp_path / "theirs"
    (theirs / "data").mkdir(parents=True)
    (theirs / "data" / "important").write_text("years of work")
    before = content(theirs)
    done = invoke("demo", "--dir", theirs, "--events", "1000")
    assert done.returncode == 1
    assert f"{theirs}: expected a new or empty folder" in done.stderr
    assert done.stderr.count("\n") == 1
    assert content(theirs) == before


@pytest.mark.long
def test_demo_runs_again_in_its_own_folder_and_keeps_what_others_put_there(tmp_path: Path) -> None:
    engine.need()
    (tmp_path / "forebay.toml").write_text("no.such.setting = 1")
    arguments = ("demo", "--dir", "demo", "--events", "1000")
    first = invoke(*arguments, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    mine = tmp_path / "demo" / "mine.txt"
    mine.write_text("kept")
    again = invoke(*arguments, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "Every total equals the load's own" in again.stdout
    assert mine.read_text() == "kept"


@pytest.mark.parametrize("theirs", ["events/mine.ndjson", "data/mine.txt", "github/part.txt"])
def test_demo_deletes_nothing_that_somebody_put_into_what_it_made(
    tmp_path: Path, theirs: str
) -> None:
    folder = tmp_path / "demo"
    with own_folder(folder, MARKER, MADE, _is_ours):
        for name in ("events/part-00000.ndjson", "data/hot/x", "github/events.ndjson"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
    (folder / theirs).write_text("kept")
    with (
        pytest.raises(BadInput, match=f"got {Path(theirs).name}; move it elsewhere"),
        own_folder(folder, MARKER, MADE, _is_ours),
    ):
        pass
    assert (folder / theirs).read_text() == "kept"
    (folder / theirs).unlink()
    with own_folder(folder, MARKER, MADE, _is_ours):
        assert not (folder / "data").exists()


def test_a_folder_that_is_a_file_or_in_use_is_refused_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(BadInput, match="expected a folder to work in"),
        own_folder(tmp_path / "file", MARKER, (), bool),
    ):
        pass
    with (
        own_folder(tmp_path / "demo", MARKER, (), bool),
        pytest.raises(BadInput, match=MARKER),
        own_folder(tmp_path / "demo", MARKER, (), bool),
    ):
        pass


def test_a_folder_on_whose_data_a_job_runs_is_not_emptied(tmp_path: Path) -> None:
    engine.need()
    data = tmp_path / "demo" / "data"
    data.mkdir(parents=True)
    (tmp_path / "demo" / MARKER).touch()
    with Disk().lock(data / "lock"):
        done = invoke("demo", "--dir", tmp_path / "demo", "--events", "1000")
    assert done.returncode == 1
    assert "expected no job to run on it" in done.stderr
    assert (data / "lock").exists()


def test_a_link_in_a_folder_of_ours_is_removed_and_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    folder = tmp_path / "demo"
    with own_folder(folder, MARKER, ("data",), bool):
        (folder / "data").symlink_to(outside)
    with own_folder(folder, MARKER, ("data",), bool):
        assert not (folder / "data").is_symlink()
    assert (outside / "kept").exists()


def test_a_marker_that_is_a_link_makes_no_folder_ours(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / MARKER).symlink_to(tmp_path / "elsewhere")
    with (
        pytest.raises(BadInput, match="expected a new or empty folder"),
        own_folder(folder, MARKER, ("data",), bool),
    ):
        pass
    assert not (tmp_path / "elsewhere").exists()


# -- files --------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    lane = filled(Lane(tmp_path / "data").start())
    yield lane.root
    lane.files.close()


@pytest.mark.parametrize(
    "command", [("rejects", "export"), ("export",), ("batch", "late", "--export")], ids=" ".join
)
def test_an_export_overwrites_a_file_only_if_it_is_forced(
    command: tuple[str, ...], data: Path, tmp_path: Path
) -> None:
    file = tmp_path / ("out.parquet" if "batch" in command else "out.ndjson")
    file.write_text("mine")
    arguments = (*command, str(file), "--data-dir", str(data))
    refused = invoke(*arguments)
    assert refused.returncode == 1
    assert refused.stderr == (
        f"Error: {file}: expected no such file, got one; --force overwrites it\n"
    )
    assert file.read_text() == "mine"
    forced = invoke(*arguments, "--force")
    assert forced.returncode == 0, forced.stderr
    assert file.read_bytes() != b"mine"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_what_fails_while_it_is_written_leaves_neither_file_nor_trace(tmp_path: Path) -> None:
    def fails() -> None:
        with new_file(tmp_path / "out") as temporary:
            temporary.write_text("half")
            raise OSError("disk full")

    with pytest.raises(BadInput, match="out: expected to write it, got disk full"):
        fails()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    def late() -> None:
        with new_file(tmp_path / "out") as temporary:
            temporary.write_text("ours")
            (tmp_path / "out").write_text("theirs")

    with pytest.raises(BadInput, match="--force overwrites it"):
        late()
    assert content(tmp_path) == {"out": b"theirs"}


def test_what_a_killed_process_left_stops_no_later_one_with_its_process_id(
    tmp_path: Path,
) -> None:
    """In a container every command has the same id. Both are of this process here, and what the
    first has written so far stands there while the second runs."""
    with new_file(tmp_path / "out", force=True) as left:
        left.write_text("half")
        with new_file(tmp_path / "out") as temporary:
            temporary.write_text("whole")
        assert content(tmp_path) == {"out": b"whole", left.name: b"half"}


@pytest.mark.parametrize("made", ["folder", "pipe", "dangling link"])
def test_what_is_no_plain_file_is_never_replaced(made: str, tmp_path: Path) -> None:
    path = tmp_path / "out"
    if made == "folder":
        path.mkdir()
    elif made == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(BadInput, match="expected a plain file"), new_file(path, force=True):
        pass
    assert [one.name for one in tmp_path.iterdir()] == ["out"]


def test_a_link_to_a_file_stays_a_link_when_its_file_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    with new_file(tmp_path / "link", force=True) as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_a_file_in_a_folder_that_is_not_there_is_refused_in_a_line(tmp_path: Path) -> None:
    with (
        pytest.raises(BadInput, match="expected a file that can be written"),
        new_file(tmp_path / "none" / "out"),
    ):
        pass
