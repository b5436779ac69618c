"""The tail: events as they are published, from block logs alone, each once.

Manifests are looked at for a change (`stat`), and read if there is one; of each log, what was added
since. An evicted block stays in its manifest for the grace period after a chunk has covered it, so
whoever looks more often than that meets every event in a log, and merges change nothing.

What always holds:

- A log is read forward from where it was read before, a piece at a time, and not kept.
- A run that starts goes back to a commit: its manifest lists less of the logs of earlier runs, and
  what came after is read from the source once more, into logs of its own. So when it starts, what
  was known beyond that is looked up in the old logs, which stay for the grace period, and is left
  out when it comes again. Memory holds no more than what a crash undid.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import polars as pl
import pyarrow as pa

from forebay.query.frames import on_calendar
from forebay.query.partition import Directory
from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import MissingFile
from forebay.storage.base.layout import Layout, names_partition
from forebay.storage.base.watched import Watched
from forebay.storage.formats.log import Extent, LogReader
from forebay.storage.formats.schema import OFFSET, PARTITION, UPLOAD_TIME
from forebay.storage.formats.state import PartitionState

SORTED_ROWS = 65_536
"""At most so many events are held to be put in order."""
ORDER = [UPLOAD_TIME, PARTITION, OFFSET]
PLACE = [PARTITION, OFFSET]
Extents = Mapping[str, Extent]
Wanted = Callable[[pl.DataFrame], pl.DataFrame]


class Tail:
    """The events of data directories as they come; `wanted` keeps those of a frame that count.

    Raises MissingFile, Corruption or FormatVersion for what can't be read. Thread safety: one
    thread."""

    def __init__(self, roots: Sequence[Path], wanted: Wanted = lambda frame: frame) -> None:
        self._disk = Disk()
        self._roots = roots
        self._wanted = wanted
        self._partitions: dict[Path, _Partition] = {}
        for partition in self._known():
            partition.begin()

    @property
    def missed(self) -> int:
        """How many events went by unseen, for it was not looked within the grace period."""
        return sum(partition.missed for partition in self._partitions.values())

    def last(self, count: int) -> pl.DataFrame:
        """Of the events that were in logs when the tail began, the last `count` by upload time, in
        that order."""
        found = pl.DataFrame()
        blocks = [
            (block.last_ms, partition, block.extents)
            for partition in self._partitions.values()
            if partition.state is not None
            for block in partition.state.blocks
        ]
        for last_ms, partition, extents in sorted(blocks, key=lambda one: one[0], reverse=True):
            full = 0 < count <= found.height
            if not count or (full and last_ms < found[UPLOAD_TIME].dt.epoch("ms")[0]):
                break
            for frame in partition.rows(extents):
                held = pl.concat([found, self._wanted(frame)], how="diagonal")
                found = held.sort(ORDER).tail(count)
        return found

    def look(self) -> Iterator[pl.DataFrame]:
        """What came since the last look, in order of upload time: of all, or where that is more
        than SORTED_ROWS, of parts."""
        held: list[pl.DataFrame] = []
        for partition in self._known():
            for frame in partition.new(self._wanted):
                held.append(frame)
                if sum(one.height for one in held) >= SORTED_ROWS:
                    yield pl.concat(held, how="diagonal").sort(ORDER)
                    held = []
        if any(frame.height for frame in held):
            yield pl.concat(held, how="diagonal").sort(ORDER)

    def _known(self) -> list[_Partition]:
        """All partitions that there are now."""
        for root in self._roots:
            hot = Layout(root).hot("_").parent
            for entry in os.scandir(hot) if hot.is_dir() else ():
                path = hot / entry.name
                if path not in self._partitions and names_partition(entry.name) and entry.is_dir():
                    self._partitions[path] = _Partition(self._disk, root, entry.name)
        return [self._partitions[path] for path in sorted(self._partitions)]


class _Partition:
    """One partition: how far its logs were read, and what is to come again."""

    def __init__(self, disk: Disk, root: Path, name: str) -> None:
        self._disk = disk
        self._root = root
        self._name = name
        self._folder = Layout(root).hot(name)
        self._manifest = Watched[PartitionState | None](
            disk, Layout(root).manifest(name), self._read, None
        )
        self.state: PartitionState | None = None
        """As of the last look: all that it lists is known."""
        self.missed = 0
        self._logs: dict[str, LogReader] = {}
        self._undone = pl.DataFrame(schema={PARTITION: pl.String, OFFSET: pl.Int64})
        """Places of known events that crashes undid, and that have not come again yet."""

    def _read(self) -> PartitionState | None:
        return Directory(self._disk, self._root).state(self._name)

    def begin(self) -> None:
        """From here on, what comes is new."""
        self.state = self._manifest.read()

    def rows(self, extents: Sequence[Extent]) -> Iterator[pl.DataFrame]:
        """The events of a block."""
        for extent in extents:
            yield from self._frames(self._open(extent.file), extent)

    def new(self, wanted: Wanted) -> Iterator[pl.DataFrame]:
        """The events that are wanted of those that came since the last look."""
        before, state = self.state, self._manifest.read()
        if state is None or state is before:
            return
        known, extents = _extents(before), _extents(state)
        restarted = before is not None and before.incarnation != state.incarnation
        if restarted:
            self._undone = pl.concat([self._undone, *self._lost(known, extents)])
        rows = 0
        for frame in self._added(known, extents):
            rows += frame.height
            fresh = wanted(self._fresh(frame))
            if fresh.height:
                yield fresh
        if before is not None and not restarted:
            self.missed += max(0, state.counters.accepted - before.counters.accepted - rows)
        self.state = state

    def _added(self, known: Extents, extents: Extents) -> Iterator[pl.DataFrame]:
        """What was added to the logs."""
        self._logs = {file: log for file, log in self._logs.items() if file in extents}
        for file, extent in extents.items():
            if file in known and extent.bytes <= known[file].bytes:
                continue
            if file not in self._logs:
                self._logs[file] = self._open(file)
                if file in known:
                    self._logs[file].skip(known[file])
            yield from self._frames(self._logs[file], extent)

    def _lost(self, known: Extents, extents: Extents) -> Iterator[pl.DataFrame]:
        """The places of what is known and is listed no more."""
        for file, extent in known.items():
            left = extents.get(file)
            if left is not None and left.bytes >= extent.bytes:
                continue
            log = self._open(file)
            try:
                if left is not None:
                    log.skip(left)
                for frame in self._frames(log, extent, PLACE):
                    yield frame.select(PLACE)
            except MissingFile:  # it was covered by a chunk for long
                continue

    def _fresh(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Without what comes again."""
        if not self._undone.height:
            return frame
        met = frame.select(PLACE)
        frame = frame.join(self._undone, on=PLACE, how="anti", maintain_order="left")
        self._undone = self._undone.join(met, on=PLACE, how="anti")
        return frame

    def _open(self, file: str) -> LogReader:
        Directory(self._disk, self._root).require(self._folder / file)
        return LogReader(self._disk, self._folder, file)

    def _frames(
        self, log: LogReader, extent: Extent, columns: Sequence[str] | None = None
    ) -> Iterator[pl.DataFrame]:
        for found in log.pieces(extent, torn_ok=True):
            if batches := log.decode(found, columns):
                yield on_calendar(pl.DataFrame(pa.Table.from_batches(batches)))


def _extents(state: PartitionState | None) -> Extents:
    """All of a state, by their files."""
    blocks = [] if state is None else state.blocks
    return {extent.file: extent for block in blocks for extent in block.extents}
