"""A log series: one log in several files, each sealed at a size and replaced by the next.

It is for rows that belong to no block: rejects, drops. Files of earlier runs and sealed ones are
only listed; one file of this run grows. What always holds: a file's name is never used twice,
because its number rises within a run and the run's incarnation is in the name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pyarrow as pa

from forebay.storage.base.disk import Disk
from forebay.storage.formats.log import Extent
from forebay.storage.formats.log_writer import GrowingLog

Name = Callable[[int, int], str]
"""A file's name from its number and incarnation."""


class LogSeries:
    """`extents` is what a commit must name; `unsynced` what must be durable before it."""

    def __init__(
        self,
        disk: Disk,
        folder: Path,
        name: Name,
        incarnation: int,
        schema: pa.Schema,
        extents: Iterable[Extent],
        file_bytes_max: int,
    ) -> None:
        """Go on after `extents`, those of the committed state."""
        self._disk = disk
        self._folder = folder
        self._name = name
        self._incarnation = incarnation
        self._schema = schema
        self._sealed = list(extents)
        self._file_bytes_max = file_bytes_max
        self._number = len(self._sealed)
        self._unsynced: list[GrowingLog] = []
        self._log = self._new()

    @property
    def extents(self) -> list[Extent]:
        """What is in files, oldest first; flushed but perhaps not durable."""
        return [*self._sealed, *self._log.extents]

    @property
    def sealed_extents(self) -> list[Extent]:
        """Those of files that grow no more."""
        return list(self._sealed)

    @property
    def growing(self) -> str:
        """The name of the file that grows, which is made when there is something to write."""
        return self._log.name

    def append(self, batch: pa.RecordBatch) -> None:
        """Take rows in; pending until `flush`, or until a record batch's worth of them is."""
        self._log.append(batch)
        if self._log.full:
            self.flush()

    def flush(self) -> None:
        """Hand what is pending to the operating system; seal the file if it is full."""
        self._log.flush()
        if self._log.bytes >= self._file_bytes_max:
            self.seal()

    def seal(self) -> None:
        """Seal this run's file, and go on in the next."""
        self._log.flush()
        if self._log.extents:
            self._sealed += self._log.extents
            self._unsynced.append(self._log)
            self._log = self._new()

    def discard(self, extent: Extent) -> Path:
        """Stop listing a sealed file. The file itself is left to the caller."""
        self._sealed.remove(extent)
        return self._folder / extent.file

    def rewrite(self, extent: Extent, batches: Iterable[pa.RecordBatch]) -> tuple[Extent, ...]:
        """Put a file with these rows in the place of a sealed one; none if there are none. Returns
        what is new; the replaced file itself is left to the caller."""
        log = self._new()
        for batch in batches:
            log.append(batch)
            if log.full:
                log.flush()
        log.flush()
        return self._replace([extent], log)

    def join(self, extents: Sequence[Extent]) -> tuple[Extent, ...]:
        """Put one file in the place of sealed neighbours, with all that is in them. Raises
        MissingFile or Corruption if one of them can't be read; nothing has changed then. Returns
        what is new; the replaced files themselves are left to the caller."""
        log = self._new()
        log.copy(extents)
        return self._replace(extents, log)

    def _replace(self, extents: Sequence[Extent], log: GrowingLog) -> tuple[Extent, ...]:
        at = self._sealed.index(extents[0])
        self._sealed[at : at + len(extents)] = log.extents
        self._unsynced.append(log)
        return log.extents

    def unsynced(self, *, sealed_only: bool = False) -> list[GrowingLog]:
        """The files that a sync would wait for."""
        logs = self._unsynced if sealed_only else [*self._unsynced, self._log]
        return [log for log in logs if log.dirty]

    def settle(self) -> None:
        """All sealed files are durable now."""
        self._unsynced = []

    def _new(self) -> GrowingLog:
        self._number += 1
        name = self._name(self._number, self._incarnation)
        return GrowingLog(self._disk, self._folder, name, self._schema)
