"""The journal: applies edits, to the state and to the logs; commits, and publishes.

What always holds: the state is what the edits have made of it, and nothing else changes it; a log
is only appended to, and every start writes to files of a new incarnation, so what a lost run wrote
belongs to no one. A snapshot is the commit record of the logs: it names the lengths that count, and
is returned when all of them are durable. What is published may be ahead of it.
"""

from __future__ import annotations

from pathlib import Path

from forebay.storage.base.disk import Disk
from forebay.storage.base.layout import BlockId, Layout, block_log_name
from forebay.storage.dedup.arrivals import Arrivals
from forebay.storage.formats.columns import arrow_schema
from forebay.storage.formats.hash_file import HashWriter
from forebay.storage.formats.hashes import I64, Hash
from forebay.storage.formats.log import Extent
from forebay.storage.formats.log_writer import GrowingLog
from forebay.storage.formats.state import BlockState, PartitionState
from forebay.storage.partition.commits import Commits
from forebay.storage.partition.drop_log import DropLog
from forebay.storage.partition.edits import (
    Assure,
    Count,
    Delete,
    Edit,
    Evict,
    Expire,
    Forget,
    Judge,
    List,
    Open,
    Reject,
    Replay,
    Take,
    Write,
)
from forebay.storage.partition.gc import Garbage
from forebay.storage.partition.known import KnownKeys
from forebay.storage.partition.reject_log import RejectLog
from forebay.storage.partition.rules import Rules

JOINS_MAX = 4
"""Files of rejects that are joined at a turn."""


class Journal:
    """Of one partition. Thread safety: one thread."""

    def __init__(
        self,
        disk: Disk,
        layout: Layout,
        rules: Rules,
        state: PartitionState,
        hash: Hash,
        known: KnownKeys,
        garbage: Garbage,
    ) -> None:
        """Go on with `state`, which is the journal's from now on."""
        self.state = state
        self.commits = Commits(state)
        self._disk = disk
        self._manifest = layout.manifest(state.partition)
        self._hot = layout.hot(state.partition)
        self._schema = arrow_schema(rules.schema)
        self._hash = hash
        self._known = known
        self._garbage = garbage
        self._rejects = RejectLog(
            disk,
            layout.rejects(state.partition),
            state.incarnation,
            state.rejects,
            state.reject_files,
            rules.rejects_bytes_max,
            rules.rejects_ms,
        )
        self._drops = DropLog(
            disk,
            layout.drops(state.partition),
            state.incarnation,
            state.drops,
            rules.drops_bytes_max,
            rules.schema.payload,
        )
        self._blocks: dict[BlockId, tuple[GrowingLog, HashWriter]] = {}
        for id in sorted(state.hot):
            known.resume(id, self._begin(state.hot[id]))
        self._unsynced: list[GrowingLog] = []
        self._published = b""
        self._assure()

    def apply(self, edit: Edit) -> None:
        """Carry out one edit."""
        if isinstance(edit, Evict):
            self._write(edit.block)
        edit.apply(self.state)
        match edit:
            case Open(block):
                log = self._begin(self.state.hot[block])
                self._known.open(block, log, self.state.stream_time_ms or 0)
            case Take(block, arrivals, rows):
                self._take(block, arrivals, rows)
            case Evict(block):
                del self._blocks[block]
                self._known.evict(block)
            case Forget(block):
                self._known.forget(block)
            case Judge():
                self._drops.note(edit.arrivals, edit.dropped, edit.differs, edit.late)
            case Reject(rows, found, arrived_ms):
                self._rejects.append(rows, found, arrived_ms)
            case Replay(extent, left) | Delete(extent, left):
                self._replace(self._rejects.rewrite(extent, left))
            case Expire(extent):
                self._replace(self._rejects.discard(extent))

    def reject_files(self) -> list[Extent]:
        """The files of rejects that there are now; none of them grows any more."""
        self._rejects.seal()
        self._list()
        return self._rejects.sealed

    def date_rejects(self, now_ms: int) -> None:
        """Correct the arrival times of rejects: none is later than now."""
        self._rejects.date(now_ms)
        self._list()

    def join_rejects(self) -> None:
        """Join small files of rejects, some at a time, so that few are listed."""
        for _ in range(JOINS_MAX):
            joined = self._rejects.join()
            if not joined:
                return
            self._replace(*joined)

    def expire_rejects(self, before_ms: int | None, now_ms: int) -> None:
        """Delete rejects that came before a time, or as long ago as they are kept."""
        self._expire(self._rejects.due(before_ms, now_ms))

    def flush(self) -> list[GrowingLog]:
        """Hand everything pending to the operating system; the logs that a sync would wait for."""
        for block in self._blocks:
            self._write(block)
        self._rejects.flush()
        self._expire(self._rejects.excess())
        self._drops.flush()
        self._replace(*self._drops.trim())
        logs = [log for log in self._unsynced if log.dirty]
        return [*logs, *self._rejects.unsynced(), *self._drops.sealed()]

    def snapshot(self) -> bytes:
        """Make everything taken in durable; the commit record for it."""
        for log in self.flush():
            log.sync()
        self._unsynced = []
        self._rejects.settle()
        self._drops.settle()
        self.apply(Count())
        self.commits.add(self.state)
        self._assure()
        return self.state.encode()

    def publish(self) -> None:
        """Let readers see everything taken in so far, if they don't already."""
        self.flush()
        manifest = self.state.encode()
        if manifest != self._published:
            self._disk.replace(self._manifest, manifest, durable=False)
            self._published = manifest

    def _expire(self, extents: list[Extent]) -> None:
        if extents:
            self._list()
        for extent in extents:
            self.apply(Expire(extent))

    def _replace(self, *paths: Path) -> None:
        """These files are no longer listed; others may be in their place."""
        for path in paths:
            self._garbage.replace(path, self.state.snapshots)
        self._list()

    def _list(self) -> None:
        self.apply(List(self._rejects.extents, self._rejects.files, self._drops.extents))

    def _assure(self) -> None:
        sure = self.commits.sure
        self.apply(Assure(sure.seal, sure.stream_time_ms))

    def _begin(self, block: BlockState) -> GrowingLog:
        """The log that goes on where the block's extents end."""
        name = block_log_name(block.id, self.state.incarnation)
        log = GrowingLog(self._disk, self._hot, name, self._schema, block.extents, block.row_bytes)
        self._blocks[block.id] = log, HashWriter(self._disk, self._hot, self._hash)
        return log

    def _take(self, block: BlockId, arrivals: Arrivals, rows: I64) -> None:
        events, keys = arrivals.pick(rows)
        log, _ = self._blocks[block]
        log.append(events)
        self._known.add(block, keys, arrivals.hashes[rows], arrivals.payload(rows))
        if log.full:
            self._write(block)

    def _write(self, block: BlockId) -> None:
        """Write what is pending of the block to its log."""
        log, hashes = self._blocks[block]
        if span := log.flush():
            hashes.append(span, self._known.settle(block, span))
            self.apply(Write(block, log.extents, log.row_bytes))
            if log not in self._unsynced:
                self._unsynced.append(log)
