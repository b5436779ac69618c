"""Sound chunks: those found to be what their catalog says.

A chunk's size is looked at in every view, its footer (or every byte, if asked) once in each store:
a name is never used twice, so what was right stays right but for a disk that fails meanwhile.
Thread safety: any thread.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from storage.catalog import Chunk
from storage.chunk import chunk_metadata
from storage.files import Files


class SoundChunks:
    """`whole`: look at every byte before a chunk is first used, not at the footer alone."""

    def __init__(self, files: Files, *, whole: bool = False) -> None:
        self._files = files
        self._whole = whole
        self._known: set[Path] = set()

    def require(self, path: Path, chunk: Chunk) -> None:
        """Raise MissingFile, or Corruption with file and offset, unless the chunk is sound."""
        if path in self._known:
            chunk.checksum.require_size(self._files, path)
            return
        chunk_metadata(self._files, path, chunk)
        if self._whole:
            chunk.checksum.require_whole(self._files, path)
        self._known.add(path)

    def keep(self, paths: Iterable[Path]) -> None:
        """Forget all others."""
        self._known = self._known.intersection(paths)
