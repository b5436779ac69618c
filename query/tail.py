"""The tail: events as they are published, read only from block logs, each once.

Manifests are watched for changes (`stat`), and read if there is one; from each log, only what was
added since. An evicted block stays in its manifest for the grace period after a chunk has covered
it. So whoever looks more often finds every event in a log, and merges change nothing.

What always holds:

- A log is read forward from where it was last read, a piece at a time, and not kept.
- A run that starts goes back to a commit: its manifest lists less of the logs of earlier runs, and
  the source redelivers what came after, into new logs. So at that moment, the known events beyond
  the commit are looked up in the old logs, which stay for the grace period, and are skipped when
  they are redelivered. Memory holds only what a crash undid.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import polars as pl

from forebay.query.frames import on_calendar, polars_schema
from forebay.query.partition import Directory, Log
from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import MissingFile
from forebay.storage.base.layout import Layout, names_partition
from forebay.storage.base.watched import Watched
from forebay.storage.decoding.from_raw import NONE_DECLARED, from_raw_of
from forebay.storage.formats.columns import parse_types
from forebay.storage.formats.log import Extent, LogReader
from forebay.storage.formats.schema import OFFSET, PARTITION, UPLOAD_TIME
from forebay.storage.formats.state import PartitionState

SORTED_ROWS = 65_536
"""Maximum number of events that are held for sorting."""
ORDER = [UPLOAD_TIME, PARTITION, OFFSET]
PLACE = [PARTITION, OFFSET]
Extents = Mapping[str, Extent]
Wanted = Callable[[pl.DataFrame], pl.DataFrame]


class Tail:
    """The events of data directories as they arrive; `wanted` selects those of a frame to keep.

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
        """How many events were missed because no look came within the grace period."""
        return sum(partition.missed for partition in self._partitions.values())

    def last(self, count: int) -> pl.DataFrame:
        """The last `count` by upload time of the events that were in logs when the tail began, in
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
        """The events since the last look, in order of upload time; if there are more than
        SORTED_ROWS, each part is in order."""
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
        """All current partitions."""
        for root in self._roots:
            hot = Layout(root).hot("_").parent
            for entry in os.scandir(hot) if hot.is_dir() else ():
                path = hot / entry.name
                if path not in self._partitions and names_partition(entry.name) and entry.is_dir():
                    self._partitions[path] = _Partition(self._disk, root, entry.name)
        return [self._partitions[path] for path in sorted(self._partitions)]


class _Partition:
    """One partition: how far its logs were read, and what will be redelivered."""

    def __init__(self, disk: Disk, root: Path, name: str) -> None:
        self._disk = disk
        self._root = root
        self._name = name
        self._folder = Layout(root).hot(name)
        self._manifest = Watched[PartitionState | None](
            disk, Layout(root).manifest(name), self._read, None
        )
        self.state: PartitionState | None = None
        """The state at the last look: all that it lists is known."""
        self.missed = 0
        self._readers: dict[str, LogReader] = {}
        self._undone = pl.DataFrame(schema={PARTITION: pl.String, OFFSET: pl.Int64})
        """Places of known events that crashes undid, and that were not redelivered yet."""

    def _read(self) -> PartitionState | None:
        return Directory(self._disk, self._root).state(self._name)

    def begin(self) -> None:
        """From now on, events are new."""
        self.state = self._manifest.read()

    def rows(self, extents: Sequence[Extent]) -> Iterator[pl.DataFrame]:
        """The events of a block."""
        for extent in extents:
            log = self._log(extent, self.state)
            yield from self._frames(log, log.open(), self.state)

    def new(self, wanted: Wanted) -> Iterator[pl.DataFrame]:
        """The wanted events since the last look."""
        before, state = self.state, self._manifest.read()
        if state is None or state is before:
            return
        known, extents = _extents(before), _extents(state)
        restarted = before is not None and before.incarnation != state.incarnation
        if restarted:
            self._undone = pl.concat([self._undone, *self._lost(known, extents)])
        rows = 0
        for frame in self._added(known, extents, state):
            rows += frame.height
            fresh = wanted(self._fresh(frame))
            if fresh.height:
                yield fresh
        if before is not None and not restarted:
            self.missed += max(0, state.counters.accepted - before.counters.accepted - rows)
        self.state = state

    def _added(
        self, known: Extents, extents: Extents, state: PartitionState
    ) -> Iterator[pl.DataFrame]:
        """The rows that were added to the logs."""
        self._readers = {file: one for file, one in self._readers.items() if file in extents}
        for file, extent in extents.items():
            if file in known and extent.bytes <= known[file].bytes:
                continue
            log = self._log(extent, state)
            if file not in self._readers:
                self._readers[file] = log.open()
                if file in known:
                    self._readers[file].skip(known[file])
            yield from self._frames(log, self._readers[file], state)

    def _lost(self, known: Extents, extents: Extents) -> Iterator[pl.DataFrame]:
        """The places of known events that are no longer listed."""
        for file, extent in known.items():
            left = extents.get(file)
            if left is not None and left.bytes >= extent.bytes:
                continue
            log = self._log(extent, None)
            reader = log.open()
            try:
                if left is not None:
                    reader.skip(left)
                for table in log.added(reader, PLACE):
                    yield pl.DataFrame(table)
            except MissingFile:  # a chunk covered it long ago
                continue

    def _fresh(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Without redelivered events."""
        if not self._undone.height:
            return frame
        met = frame.select(PLACE)
        frame = frame.join(self._undone, on=PLACE, how="anti", maintain_order="left")
        self._undone = self._undone.join(met, on=PLACE, how="anti")
        return frame

    def _log(self, extent: Extent, state: PartitionState | None) -> Log:
        path = self._folder / extent.file
        Directory(self._disk, self._root).require(path)
        from_raw = NONE_DECLARED if state is None else from_raw_of(state.declared)
        return Log(self._disk, path, extent, torn_ok=True, from_raw=from_raw)

    def _frames(
        self, log: Log, reader: LogReader, state: PartitionState | None
    ) -> Iterator[pl.DataFrame]:
        """The rows not read yet, with all columns."""
        dtypes = polars_schema(parse_types(state.schema)) if state is not None else {}
        for table in log.added(reader):
            frame = on_calendar(pl.DataFrame(table))
            absent = [name for name in dtypes if name not in frame.columns]
            yield frame.with_columns(pl.lit(None, dtypes[name]).alias(name) for name in absent)


def _extents(state: PartitionState | None) -> Extents:
    """All extents of a state, by file."""
    blocks = [] if state is None else state.blocks
    return {extent.file: extent for block in blocks for extent in block.extents}
