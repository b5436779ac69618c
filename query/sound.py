"""Sound chunks: those found to be what their catalog says.

A chunk's size is looked at in every view, its footer (or every byte, if asked) once in each store:
a name is never used twice, so what was right stays right but for a disk that fails meanwhile.
Thread safety: any thread.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from forebay.storage.base.disk import Disk
from forebay.storage.formats.catalog import Chunk
from forebay.storage.formats.chunk import chunk_metadata, columns_outside_years


class SoundChunks:
    """`whole`: look at every byte before a chunk is first used, not at the footer alone."""

    def __init__(self, disk: Disk, *, whole: bool = False) -> None:
        self._disk = disk
        self._whole = whole
        self._known: dict[Path, frozenset[str]] = {}

    def require(self, path: Path, chunk: Chunk) -> None:
        """Raise MissingFile, or Corruption with file and offset, unless the chunk is sound."""
        if path in self._known:
            chunk.checksum.require_size(self._disk, path)
            return
        metadata = chunk_metadata(self._disk, path, chunk)
        if self._whole:
            chunk.checksum.require_whole(self._disk, path)
        of_version_1 = not chunk.checksum.pieces
        self._known[path] = columns_outside_years(metadata) if of_version_1 else frozenset()

    def outside_years(self, path: Path) -> frozenset[str]:
        """The columns of a sound chunk that may have times which no reader takes."""
        return self._known.get(path, frozenset())

    def keep(self, paths: Iterable[Path]) -> None:
        """Forget all others."""
        self._known = {path: self._known[path] for path in paths if path in self._known}
