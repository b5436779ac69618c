"""The reject log as it is written: which files there are of it, and which are due to go.

What always holds:

- A file is of one day at most (of an eighth of the time that rejects are kept, where that is below
  a day), by the wall clock at which its rejects were taken in. So files are deleted whole, and what
  is due waits for nothing that is not.
- Their number is bounded. Beyond FILES_MIN, neighbours of one day that fit in one file are joined;
  beyond FILES_MAX, neighbours of any days. Then any two neighbours have more than a full file, so
  there are at most FILES_MAX of them, or twice as many as full ones fit in the bound in bytes.
- What is listed is in order of arrival: a file that is rewritten keeps its place and its time.

Knows no clock: wall time comes in as an argument.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path

import pyarrow as pa

from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import Corruption, MissingFile
from forebay.storage.base.layout import reject_log_name
from forebay.storage.base.times import DAY_MS, FIRST_MS
from forebay.storage.formats.frame import REJECT_SCHEMA
from forebay.storage.formats.log import Extent
from forebay.storage.formats.log_writer import GrowingLog
from forebay.storage.formats.rejects import RejectFile, labels
from forebay.storage.formats.series import LogSeries

FILE_BYTES_MAX = 8 << 20
"""A replay holds, and rewrites, one file of rejects at a time."""
FILES_OF_BOUND = 8
"""Files that share the bound in bytes at least, so that an eighth of it goes at once at most."""
FILES_MIN, FILES_MAX = 16, 64


class RejectLog:
    """Thread safety: one thread. `bytes_max` and `kept_ms` as in `Rules`."""

    def __init__(
        self,
        disk: Disk,
        folder: Path,
        incarnation: int,
        extents: list[Extent],
        files: Mapping[str, RejectFile],
        bytes_max: int,
        kept_ms: int,
    ) -> None:
        """Go on after `extents`, those of the committed state, of which `files` tells."""
        self._folder = folder
        self._bytes_max = bytes_max
        self._kept_ms = kept_ms
        self._span_ms = max(1, kept_ms // FILES_OF_BOUND) if 0 < kept_ms < DAY_MS else DAY_MS
        self._file_bytes_max = max(1, min(FILE_BYTES_MAX, bytes_max // FILES_OF_BOUND))
        self._files = dict(files)
        self._apart: set[tuple[str, str]] = set()
        self._log = LogSeries(
            disk, folder, reject_log_name, incarnation, REJECT_SCHEMA, extents, self._file_bytes_max
        )

    # -- what there is -----------------------------------------------------------------------

    @property
    def extents(self) -> list[Extent]:
        """What is in files, oldest first; flushed but perhaps not durable."""
        return self._log.extents

    @property
    def sealed(self) -> list[Extent]:
        """Those of files that grow no more."""
        return self._log.sealed_extents

    @property
    def files(self) -> dict[str, RejectFile]:
        """What is known of each file in `extents`."""
        return {extent.file: self._files[extent.file] for extent in self.extents}

    def excess(self) -> list[Extent]:
        """The oldest files, which are beyond the bound in bytes. The one that grows stays."""
        over = sum(extent.bytes for extent in self.extents) - self._bytes_max
        gone = []
        for extent in self.sealed:
            if over <= 0:
                break
            gone.append(extent)
            over -= extent.bytes
        return gone

    def due(self, before_ms: int | None, now_ms: int) -> list[Extent]:
        """The files whose rejects all arrived before this time, or have been kept long enough."""
        ends = [] if before_ms is None else [before_ms]
        ends += [now_ms - self._kept_ms] if self._kept_ms else []
        end_ms = max(ends, default=FIRST_MS)
        due = {
            name
            for name, file in self._files.items()
            if file.arrived_ms is not None and file.arrived_ms < end_ms
        }
        if self._log.growing in due:
            self.seal()
        return [extent for extent in self.sealed if extent.file in due]

    # -- what changes ------------------------------------------------------------------------

    def append(self, rows: pa.RecordBatch, found: Mapping[str, int], now_ms: int) -> None:
        """Take rejects in that arrive now, and have these labels."""
        growing = self._files.get(self._log.growing)
        if growing and self._span_of(growing) != now_ms // self._span_ms:
            self.seal()
            growing = None
        counts = Counter(growing.labels if growing else {})
        counts.update(found)
        arrived_ms = max(now_ms, growing.arrived_ms or now_ms) if growing else now_ms
        self._files[self._log.growing] = RejectFile(arrived_ms, dict(counts))
        self._log.append(rows)

    def date(self, now_ms: int) -> None:
        """Files whose arrival was not recorded arrived now; so did those with a time in the future,
        which a wrong clock gave them."""
        for name, file in self._files.items():
            if file.arrived_ms is None or file.arrived_ms > now_ms:
                self._files[name] = RejectFile(now_ms, file.labels)

    def seal(self) -> None:
        """Seal this run's file: it grows no more."""
        self._log.seal()

    def flush(self) -> None:
        self._log.flush()

    def rewrite(self, extent: Extent, left: Iterable[pa.RecordBatch]) -> Path:
        """List a file with what is left of a sealed one in its place. Returns the path of the old
        one, which is left to the caller."""
        batches, counts = list(left), Counter[str]()
        for rows in batches:
            counts.update(labels(rows))
        arrived_ms = self._files.pop(extent.file).arrived_ms
        for new in self._log.rewrite(extent, batches):
            self._files[new.file] = RejectFile(arrived_ms, dict(counts))
        return self._folder / extent.file

    def discard(self, extent: Extent) -> Path:
        """Stop listing a sealed file. Returns its path, which is left to the caller."""
        del self._files[extent.file]
        return self._log.discard(extent)

    def join(self) -> list[Path]:
        """Join two neighbours, if there are more files than need be. Returns the paths of the old
        ones, which are left to the caller. A file that can't be read stays as it is."""
        while pair := self._neighbours():
            try:
                (new,) = self._log.join(pair)
                break
            except (Corruption, MissingFile):
                self._apart.add((pair[0].file, pair[1].file))
        else:
            return []
        old = [self._files.pop(extent.file) for extent in pair]
        counts: Counter[str] = Counter()
        for file in old:
            counts.update(file.labels)
        times = [file.arrived_ms for file in old if file.arrived_ms is not None]
        self._files[new.file] = RejectFile(max(times, default=None), dict(counts))
        return [self._folder / extent.file for extent in pair]

    def _neighbours(self) -> tuple[Extent, Extent] | None:
        """The two that cost least to join, if any are to be."""
        sealed = self.sealed
        if len(sealed) <= FILES_MIN:
            return None
        pairs = [
            (one, other)
            for one, other in pairwise(sealed)
            if one.bytes + other.bytes <= self._file_bytes_max
            and (len(sealed) > FILES_MAX or self._of_one_day(one, other))
            and (one.file, other.file) not in self._apart
        ]
        return min(pairs, key=lambda pair: pair[0].bytes + pair[1].bytes, default=None)

    def _of_one_day(self, one: Extent, other: Extent) -> bool:
        return self._span_of(self._files[one.file]) == self._span_of(self._files[other.file])

    def _span_of(self, file: RejectFile) -> int:
        return (file.arrived_ms or 0) // self._span_ms

    # -- what a commit waits for -------------------------------------------------------------

    def unsynced(self) -> list[GrowingLog]:
        """The files that a sync would wait for."""
        return self._log.unsynced()

    def settle(self) -> None:
        """All sealed files are durable now."""
        self._log.settle()
