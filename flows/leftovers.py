"""Leftovers: files that a run wrote for the table and that no snapshot names.

    DATA/batch/runs/RUN     JSON text by line: the seal's id, then the files, each before it is made

Two runs of one seal never share a file: its name has the run's id. Which files are left over is
certain once the seal has landed: whoever else has files for it finds it there, and adds none. So
what the note of any run for that seal lists and its snapshot does not name is deleted then, and
never before. A file without a note is not ours, and stays.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Container
from pathlib import Path

import orjson

Delete = Callable[[str], None]
"""Deletes a file of the table. Raises FileNotFoundError if there is none."""


class Note:
    """The files that one run makes for a seal, each on record before it is made."""

    def __init__(self, folder: Path, seal: str) -> None:
        folder.mkdir(exist_ok=True)
        self.run = uuid.uuid4().hex
        self.files: list[str] = []
        self._path = folder / self.run
        self._append(seal)

    def add(self, file: str) -> None:
        self._append(file)
        self.files.append(file)

    def drop(self, delete: Delete) -> None:
        """Delete the files, of which none can be in the table any more, and the note."""
        _delete(self.files, delete)
        self._path.unlink()

    def _append(self, line: str) -> None:
        with self._path.open("ab") as note:
            note.write(orjson.dumps(line) + b"\n")
            note.flush()
            os.fsync(note.fileno())


def clean(folder: Path, seal: str, named: Container[str], delete: Delete) -> None:
    """After the seal has landed: delete what was made for it but is not `named` there."""
    for note in sorted(folder.glob("*")):
        found, *files = _lines(note) or [""]
        if found == seal:
            _delete([file for file in files if file not in named], delete)
            note.unlink(missing_ok=True)


def _delete(files: list[str], delete: Delete) -> None:
    for file in files:
        with contextlib.suppress(FileNotFoundError):
            delete(file)


def _lines(note: Path) -> list[str]:
    """All whole lines: a crash may have torn the last one, whose file was never made."""
    whole, _, _ = note.read_bytes().rpartition(b"\n")
    return [str(orjson.loads(line)) for line in whole.split(b"\n") if line]
