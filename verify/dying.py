"""A file system that ends its process, by SIGKILL, at a chosen step.

The dangerous steps have names. A `Death` chooses one of them, which occurrence of it, and when:
`before` it, `after` it, or with `half` of its bytes written. `moment` is not a step: it is so many
milliseconds after the first append. A SIGKILL loses what the process had in memory, but nothing
that it had handed to the operating system.

`snapshot-return after` is a moment too: the engine has the snapshot and is storing it, on threads
that nothing here sees, so the death comes a little later. Such a death often leaves a snapshot in
the store without its epoch, an orphan; `orphans` counts what a state resumed from one has dropped.
`read_back` counts how often a log, hash file or chunk was read.
"""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from typing_extensions import override

from forebay.storage.base.disk import Appender, Disk

WHOLE = ("before", "after")
TORN = ("before", "half", "after")
POINTS = {
    "log-append": TORN,
    "log-fsync": WHOLE,
    "snapshot-return": WHOLE,
    "manifest-publish": TORN,
    "chunk-write": TORN,
    "chunk-rename": WHOLE,
    "catalog-publish": TORN,
    "log-delete": WHOLE,
}
NTH_MAX = {
    "log-append": 40,
    "log-fsync": 20,
    "snapshot-return": 6,
    "manifest-publish": 12,
    "chunk-write": 2,
    "chunk-rename": 2,
    "catalog-publish": 2,
    "log-delete": 2,
}
"""How often a portion surely comes to each step, whatever the number of workers."""
MOMENT = "moment"
STORING_MS = 20
"""The engine stores a snapshot within about this time."""


@dataclass(frozen=True)
class Death:
    """Where to die; `nth` counts occurrences from 1, or milliseconds for a `moment`. `later_ms`:
    how long after a snapshot has returned."""

    point: str
    when: str
    nth: int
    later_ms: int = 0

    def __str__(self) -> str:
        later = f":{self.later_ms}" if self.later_ms else ""
        return f"{self.point}:{self.when}:{self.nth}{later}"

    @classmethod
    def parse(cls, text: str) -> Death:
        point, when, *numbers = text.split(":")
        return cls(point, when, *map(int, numbers))

    @classmethod
    def drawn(cls, rng: random.Random, point: str, nth_max: int, when: str = "") -> Death:
        """A death at this step; when is drawn as well, unless given."""
        when = when or rng.choice(POINTS[point])
        storing = (point, when) == ("snapshot-return", "after")
        return cls(point, when, rng.randint(1, nth_max), rng.randint(0, STORING_MS * storing))


def every_death(rng: random.Random, nth_max: Mapping[str, int]) -> list[Death]:
    """One death for each step and each time of it."""
    return [
        Death.drawn(rng, point, nth_max[point], when)
        for point, times in POINTS.items()
        for when in times
    ]


def kill_self() -> None:
    """A death that no handler sees and no buffer survives."""
    os.kill(os.getpid(), signal.SIGKILL)


class DyingDisk(Disk):
    """The real file system up to the death. Thread safety: any thread."""

    def __init__(self, death: Death | None, die: Callable[[], None] = kill_self) -> None:
        super().__init__()
        self._death = death
        self._die = die
        self._at = death
        if death and death.point == MOMENT:
            self._at = Death("log-append", MOMENT, 1, death.nth)
        self._left = self._at.nth if self._at else 0
        self._chunk: str | None = None
        self.orphans = 0
        self.read_back = 0
        self._lock = threading.Lock()

    def due(self, point: str) -> str | None:
        """`point` is about to happen. Returns when to die, or None to live on."""
        if self._at is None or point != self._at.point:
            return None
        with self._lock:
            self._left -= 1
            return self._at.when if self._left == 0 else None

    def around(
        self, point: str, act: Callable[[], object], half: Callable[[], object] = bool
    ) -> None:
        """Do `act`; or die before it, after it, or after `half` of it (nothing, by default)."""
        when = self.due(point)
        if when == "before":
            self.end()
        elif when == "half":
            half()
            self.end()
        act()
        if when == "after":
            self.end()
        elif when == MOMENT:
            self._die_later()

    def end(self) -> None:
        os.write(2, f"dies at {self._death}\n".encode())
        self._die()

    def _die_later(self) -> None:
        timer = threading.Timer(self._at.later_ms / 1000 if self._at else 0, self.end)
        timer.daemon = True
        timer.start()

    @override
    def read(self, path: Path, start: int = 0, end: int | None = None) -> bytes:
        with self._lock:
            self.read_back += path.suffix in (".arrows", ".hashes", ".parquet")
        return super().read(path, start, end)

    @override
    def create(self, path: Path) -> Appender:
        return _DyingAppender(path, self)

    @override
    def replace(self, path: Path, data: bytes, *, durable: bool) -> None:
        temporary = path.with_name(f".{path.name}.tmp")
        self.around(
            f"{path.stem}-publish",
            partial(super().replace, path, data, durable=durable),
            lambda: temporary.write_bytes(data[: len(data) // 2]),
        )

    @override
    def write(self, path: Path) -> BinaryIO:
        self._chunk = self.due("chunk-write")
        if self._chunk == "before":
            self.end()
        return super().write(path)

    @override
    def publish(self, temporary: Path, path: Path) -> None:
        if self._chunk == "half":
            os.truncate(temporary, temporary.stat().st_size // 2)
        if self._chunk:
            self.end()
        self.around("chunk-rename", partial(super().publish, temporary, path))

    @override
    def remove(self, path: Path) -> None:
        remove = partial(super().remove, path)
        if path.suffix == ".arrows":
            self.around("log-delete", remove)
        else:
            remove()

    @override
    def step(self, name: str) -> None:
        self.orphans += name == "orphan-snapshot"
        when = self.due(name)
        if when == "before":
            self.end()
        elif when == "after":
            self._die_later()


class _DyingAppender(Appender):
    def __init__(self, path: Path, disk: DyingDisk) -> None:
        super().__init__(path)
        self._disk = disk

    @override
    def append(self, data: bytes | memoryview) -> None:
        append = super().append
        half = data[: len(data) // 2]
        self._disk.around("log-append", partial(append, data), partial(append, half))

    @override
    def sync(self) -> None:
        self._disk.around("log-fsync", super().sync)
