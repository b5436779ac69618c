"""Leftovers: files that a run wrote for the table and that no snapshot names.

    DATA/batch/runs/RUN     JSON text by line: the seal's id, then the files, each before it is made

Two runs of one seal never share a file: its name begins with the run's id. Which files are left
over is certain once the seal has landed: any other run that has files for it finds it there, and
adds none. So files that a run's note for that seal lists and the seal's snapshot does not name are
deleted then, and never before. A file without a note is not ours, and stays; so does what is not
one of our notes, and a note, as long as a file that it lists can't be deleted.
"""

import os
import uuid
from collections.abc import Callable, Container
from pathlib import Path

import orjson

from forebay.storage.base.disk import Disk

Delete = Callable[[str], None]
"""Deletes a file of the table. Raises FileNotFoundError if there is none."""
RUN_ID = "[0-9a-f]" * 32
"""A pattern of names."""


class RunNote:
    """The files that one run creates for a seal, each on record before it is created."""

    def __init__(self, folder: Path, seal: str) -> None:
        self._file_system = Disk()
        self._file_system.make_directory(folder)
        self.run = uuid.uuid4().hex
        self.files: list[str] = []
        self._seal = seal
        self._path = folder / self.run
        self._append()

    def add(self, file: str) -> None:
        self._append(file)
        self.files.append(file)

    def drop(self, delete: Delete, named: Container[str] = ()) -> None:
        """Delete the files that are not `named`, none of which can be in the table any more, and
        the note."""
        if _delete([file for file in self.files if file not in named], delete):
            self._path.unlink(missing_ok=True)

    def _append(self, *lines: str) -> None:
        """Durably. Another run, which has landed this seal, may have deleted the note: it is then
        recreated."""
        with self._path.open("ab") as note:
            is_new = note.tell() == 0
            for line in (self._seal, *lines) if is_new else lines:
                note.write(orjson.dumps(line) + b"\n")
            note.flush()
            os.fsync(note.fileno())
        if is_new:
            self._file_system.sync_directory(self._path.parent)


def clean(folder: Path, named: Callable[[str], Container[str] | None], delete: Delete) -> None:
    """Delete what was made for seals that have landed, but is not `named` there; None is what a
    seal names that has not."""
    for note in sorted(folder.glob(RUN_ID)):
        seal, *files = _lines(note) or [""]
        kept = named(seal) if seal else None
        own = [file for file in files if file.rpartition("/")[2].startswith(f"{note.name}-")]
        if kept is not None and _delete([file for file in own if file not in kept], delete):
            note.unlink(missing_ok=True)


def _delete(files: list[str], delete: Delete) -> bool:
    """Whether none of them exists any more."""
    gone = True
    for file in files:
        try:
            delete(file)
        except FileNotFoundError:
            continue
        except OSError:
            gone = False
    return gone


def _lines(note: Path) -> list[str]:
    """All whole lines: a crash may have torn the last one, whose file was never made. None if it is
    not a note that can be read, or is gone."""
    try:
        whole, _, _ = Disk().read(note).rpartition(b"\n")
        lines = [orjson.loads(line) for line in whole.split(b"\n") if line]
    except (OSError, orjson.JSONDecodeError):
        return []
    return lines if all(isinstance(line, str) for line in lines) else []
