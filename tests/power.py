"""A file system that can lose power: the real one, and a note of what it has promised to keep.

Nothing of `storage.base.disk` is replaced: its real calls are made, and what they fsync is noted,
so a missing fsync shows. (The fsync itself is left out, for a test's power never really goes.)

What a disk may keep when power goes, and so what `lose_power` chooses from:

- of a directory, for each name: what it was at the directory's last fsync, what it is now, or what
  it was at any moment in between; each name on its own, so renames and deletions not followed by a
  directory fsync may or may not have happened, in any order;
- of a file: what it was at its last fsync, what it is now, or its synced part and then a torn end:
  cut at any byte, zeros in place of the end, or a hole of zeros in the unsynced part. A manifest
  that was replaced without an fsync can so be empty or torn under its right name.
"""

from __future__ import annotations

import os
import random
import shutil
import stat
from contextlib import ExitStack
from pathlib import Path
from typing import Literal
from unittest.mock import patch

from forebay.storage.base.disk import Appender
from tests.partition import OpenDisk

Mood = Literal["least", "most", "mixed"]
Image = dict[Path, bytes | None]
"""Every path below the root: a file's content, or None for a directory."""


class PowerDisk(OpenDisk):
    """Files below `root`, whose power can go. What is there at first is taken to be durable.

    `shadow` (a folder on the same disk) holds a hard link to each file that ever had a name, so
    that none is forgotten and no inode number used twice.
    """

    def __init__(self, root: Path, shadow: Path) -> None:
        super().__init__()
        self.root = root
        self._shadow = shadow
        self._patches = ExitStack()
        self._synced: dict[int, bytes] = {}
        self._listings: dict[Path, dict[str, int]] = {}
        self._between: dict[Path, list[int]] = {}
        shadow.mkdir(exist_ok=True)
        self._all_is_durable()

    def __enter__(self) -> PowerDisk:
        """From here on fsyncs are noted, whoever makes them."""
        self._patches.enter_context(patch.object(os, "fsync", self._note))
        self._patches.enter_context(patch.object(os, "fdatasync", self._note))
        return self

    def __exit__(self, *_: object) -> None:
        self._patches.close()
        self.close()

    # -- what storage asks for -------------------------------------------------------------------

    def create(self, path: Path) -> Appender:
        file = super().create(path)
        self._keep(path)
        return file

    def replace(self, path: Path, data: bytes, *, durable: bool) -> None:
        self._keep(path)
        super().replace(path, data, durable=durable)
        self._keep(path)

    def claim(self, path: Path, data: bytes) -> bool:
        self._keep(path)
        made = super().claim(path, data)
        self._keep(path)
        return made

    def publish(self, temporary: Path, path: Path) -> None:
        self._keep(temporary)
        self._keep(path)
        super().publish(temporary, path)

    def remove(self, path: Path) -> None:
        self._keep(path)
        super().remove(path)

    # -- power -----------------------------------------------------------------------------------

    def lose_power(self, rng: random.Random, mood: Mood | None = None) -> None:
        """Everything is closed, and of the files what a disk may keep is left: the least that it
        promised, the most that it was given, or what `rng` chooses."""
        self.close()
        moods: tuple[Mood, ...] = ("least", "most", "mixed", "mixed")
        chosen = rng.choice(moods) if mood is None else mood
        image: Image = {}
        self._survivors(self.root, rng, chosen, image)
        shutil.rmtree(self.root)
        self.root.mkdir()
        for path, content in image.items():
            if content is None:
                path.mkdir()
            else:
                path.write_bytes(content)
        self._all_is_durable()

    def _survivors(self, folder: Path, rng: random.Random, mood: Mood, image: Image) -> None:
        durable = self._listings.get(folder, {})
        now = _listing(folder) if folder.is_dir() else {}
        for name in sorted({*durable, *now}):
            path = folder / name
            choices = [durable.get(name), *self._between.get(path, []), now.get(name)]
            kept = {"least": choices[0], "most": choices[-1], "mixed": rng.choice(choices)}[mood]
            if kept is None:
                continue
            if path.is_dir():
                image[path] = None
                self._survivors(path, rng, mood, image)
            else:
                image[path] = self._content(kept, path, rng, mood)

    def _content(self, inode: int, path: Path, rng: random.Random, mood: Mood) -> bytes:
        link = self._shadow / str(inode)
        now = (link if link.exists() else path).read_bytes()
        synced = self._synced.get(inode, b"")
        if now == synced or mood == "most":
            return now
        if mood == "least" or not now.startswith(synced):
            return synced
        end = rng.randint(len(synced), len(now))
        kept, lost = now[:end], len(now) - end
        hole = rng.randint(len(synced), end)
        return rng.choice(
            (
                kept,
                kept + bytes(lost),
                now[:hole] + bytes(end - hole) + now[end:],
            )
        )

    # -- notes -----------------------------------------------------------------------------------

    def _keep(self, path: Path) -> None:
        """Hold on to the file that has this name now."""
        try:
            inode = path.stat().st_ino
        except FileNotFoundError:
            return
        link = self._shadow / str(inode)
        if not link.exists():
            link.hardlink_to(path)
        self._between.setdefault(path, []).append(inode)

    def _note(self, descriptor: int) -> None:
        about = os.fstat(descriptor)
        if stat.S_ISDIR(about.st_mode):
            folders = [self.root, *(path for path in self.root.rglob("*") if path.is_dir())]
            for folder in (path for path in folders if path.stat().st_ino == about.st_ino):
                self._listings[folder] = _listing(folder)
                for path in [path for path in self._between if path.parent == folder]:
                    del self._between[path]
        else:
            self._synced[about.st_ino] = self._whole(about.st_ino)

    def _whole(self, inode: int) -> bytes:
        link = self._shadow / str(inode)
        if link.exists():
            return link.read_bytes()
        named = [path for path in self.root.rglob("*") if path.stat().st_ino == inode]
        return named[0].read_bytes()

    def _all_is_durable(self) -> None:
        for link in self._shadow.iterdir():
            link.unlink()
        self._synced, self._listings, self._between = {}, {}, {}
        folders = [self.root, *(path for path in self.root.rglob("*") if path.is_dir())]
        for folder in folders:
            self._listings[folder] = _listing(folder)
            for name, inode in self._listings[folder].items():
                if (folder / name).is_file():
                    self._synced[inode] = (folder / name).read_bytes()


def _listing(folder: Path) -> dict[str, int]:
    return {entry.name: entry.inode() for entry in os.scandir(folder)}
