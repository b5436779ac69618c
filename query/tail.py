"""The tail: events as they are published, from block logs alone, each once.

Manifests are looked at for a change (`stat`), and read if there is one; of each log, what was added
since. An evicted block stays in its manifest for the grace period after a chunk has covered it, so
whoever looks more often than that meets every event in a log, and merges change nothing.

What always holds:

- A log is read forward from where it was read before, a piece at a time, and not kept.
- A run that starts goes back to a commit: what came after it is read from the source again, and is
  in logs of that run once more. So what was shown since the last *sure* commit is remembered by
  source and offset, and left out when it comes again. A commit is sure two snapshots later, so
  that is no more than three epochs have; it stays until the new run has passed it.
- What was there when the tail began is not shown again either: until a run has passed the offsets
  of then, what is below them is known.
- A replayed reject has an offset that its run had passed before.
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
from forebay.storage.base.layout import Layout, names_partition
from forebay.storage.base.watched import Watched
from forebay.storage.formats.log import Extent, LogReader
from forebay.storage.formats.schema import OFFSET, PARTITION, UPLOAD_TIME
from forebay.storage.formats.state import PartitionState

SURE_AFTER = 3
"""So many snapshots after what a manifest shows, no crash can undo it: the next one has it, and of
those taken the last two can be lost."""
SORTED_ROWS = 65_536
"""At most so many events are held to be put in order."""
ORDER = [UPLOAD_TIME, PARTITION, OFFSET]
PLACE = [PARTITION, OFFSET]
SHOWN = {PARTITION: pl.String, OFFSET: pl.Int64, "snapshots": pl.Int64, "replayed": pl.Boolean}
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
    """One partition: how far its logs were read, and what may come again."""

    def __init__(self, disk: Disk, root: Path, name: str) -> None:
        self._disk = disk
        self._root = root
        self._name = name
        self._folder = Layout(root).hot(name)
        self._manifest = Watched[PartitionState | None](
            disk, Layout(root).manifest(name), self._read, None
        )
        self.state: PartitionState | None = None
        """As of the last look."""
        self.missed = 0
        self._logs: dict[str, LogReader] = {}
        self._begun: dict[str, Extent] = {}
        self._begun_offsets: Mapping[str, int] = {}
        self._begun_snapshots = 0
        self._unsettled = False
        self._passed: Mapping[str, int] = {}
        """Of each source, the next offset of the run that goes on now, as of the last look."""
        self._shown = pl.DataFrame(schema=SHOWN)
        """What a crash could undo; `snapshots` is null of what a new run has not passed yet."""

    def _read(self) -> PartitionState | None:
        return Directory(self._disk, self._root).state(self._name)

    def begin(self) -> None:
        """From here on, what comes is new."""
        self.state = state = self._manifest.read()
        if state is not None:
            self._begun = {one.file: one for block in state.blocks for one in block.extents}
            self._begun_offsets = self._passed = dict(state.next_offsets)
            self._begun_snapshots = state.snapshots

    def rows(self, extents: Sequence[Extent]) -> Iterator[pl.DataFrame]:
        """The events of a block."""
        for extent in extents:
            yield from self._frames(self._open(extent.file), extent)

    def new(self, wanted: Wanted) -> Iterator[pl.DataFrame]:
        """The events that are wanted of those that came since the last look."""
        before, state = self.state, self._manifest.read()
        if state is None or state is before:
            return
        restarted = before is not None and before.incarnation != state.incarnation
        if before is not None and restarted:
            self._unsettled |= before.snapshots < self._begun_snapshots + SURE_AFTER
            self._shown = self._shown.with_columns(snapshots=pl.lit(None, pl.Int64))
            self._passed = {}
        rows = 0
        for frame in self._added(state):
            rows += frame.height
            fresh = self._fresh(wanted(frame), state)
            if fresh.height:
                yield fresh
        if before is not None and not restarted:
            self.missed += max(0, state.counters.accepted - before.counters.accepted - rows)
        self.state, self._passed = state, dict(state.next_offsets)
        self._forget(state)

    def _added(self, state: PartitionState) -> Iterator[pl.DataFrame]:
        """What was added to the logs of a state."""
        extents = {one.file: one for block in state.blocks for one in block.extents}
        self._logs = {file: log for file, log in self._logs.items() if file in extents}
        self._begun = {file: one for file, one in self._begun.items() if file in extents}
        for file, extent in extents.items():
            begun = self._begun.get(file)
            if begun is not None and extent.bytes <= begun.bytes:
                continue
            if file not in self._logs:
                self._logs[file] = self._open(file)
                if begun is not None:
                    self._logs[file].skip(begun)
            yield from self._frames(self._logs[file], extent)

    def _open(self, file: str) -> LogReader:
        Directory(self._disk, self._root).require(self._folder / file)
        return LogReader(self._disk, self._folder, file)

    def _frames(self, log: LogReader, extent: Extent) -> Iterator[pl.DataFrame]:
        for found in log.pieces(extent, torn_ok=True):
            if batches := log.decode(found):
                yield on_calendar(pl.DataFrame(pa.Table.from_batches(batches)))

    def _fresh(self, frame: pl.DataFrame, state: PartitionState) -> pl.DataFrame:
        """Without what was shown, or known when the tail began; what is left is remembered."""
        again = self._shown.filter(pl.col("snapshots").is_null())
        passed = _offsets(frame, self._passed)
        if again.height:
            met = again.join(frame.select(PLACE), on=PLACE, how="semi").select(PLACE, met=True)
            snapshots = pl.when("met").then(state.snapshots).otherwise("snapshots")
            self._shown = (
                self._shown.join(met, on=PLACE, how="left")
                .with_columns(snapshots=snapshots)
                .drop("met")
            )
        if self._unsettled:
            begun = _offsets(frame, self._begun_offsets)
            old = (pl.col(OFFSET) < begun) & (pl.lit(passed) < begun)
            frame = frame.filter(~old)
            passed = _offsets(frame, self._passed)
        frame = frame.with_columns(replayed=pl.col(OFFSET) < passed)
        if again.height:
            frame = frame.join(again.select(PLACE), on=PLACE, how="anti", maintain_order="left")
        added = frame.select(*PLACE, "replayed", snapshots=pl.lit(state.snapshots, pl.Int64))
        self._shown = pl.concat([self._shown, added.select(list(SHOWN))])
        return frame.drop("replayed")

    def _forget(self, state: PartitionState) -> None:
        """What no crash can undo any more."""
        passed = _offsets(self._shown, state.next_offsets)
        of_this_run = ~pl.col("replayed") & (pl.col(OFFSET) < passed)
        known = pl.col("snapshots").fill_null(pl.when(of_this_run).then(state.snapshots))
        self._shown = self._shown.with_columns(snapshots=known).filter(
            pl.col("snapshots").is_null() | (pl.col("snapshots") + SURE_AFTER > state.snapshots)
        )
        if self._unsettled:
            self._unsettled = (
                any(
                    state.next_offsets.get(source, 0) < offset
                    for source, offset in self._begun_offsets.items()
                )
                or state.snapshots < self._begun_snapshots + SURE_AFTER
            )


def _offsets(frame: pl.DataFrame, of_source: Mapping[str, int]) -> pl.Series:
    """For each row, what is said of its source, or 0."""
    names = frame[PARTITION] if PARTITION in frame.columns else pl.Series(dtype=pl.String)
    known = {"source": list(of_source), "at": list(of_source.values())}
    table = pl.DataFrame(known, {"source": pl.String, "at": pl.Int64})
    rows = pl.DataFrame({"source": names})
    return rows.join(table, on="source", how="left", maintain_order="left")["at"].fill_null(0)
