"""A watched file: one that others replace, read again only when it has changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from forebay.storage.base.disk import Disk

T = TypeVar("T")


class Watched(Generic[T]):
    """What `read` makes of a file; `absent` as long as there is none."""

    def __init__(self, disk: Disk, path: Path, read: Callable[[], T], absent: T) -> None:
        self._disk = disk
        self._path = path
        self._read = read
        self._seen: tuple[int, int, int] | None = None
        self._value = absent

    def read(self) -> T:
        """The present value. Raises what `read` raises."""
        seen = self._disk.state(self._path)
        if seen is not None and seen != self._seen:
            self._value = self._read()
            self._seen = seen
        return self._value
