"""The blocks of one partition: exact dedup, append-only logs, eviction on stream time.

For each event, in offset order, as if it came alone:
1. stream time becomes the larger of itself and the event's upload time;
2. every live block with stream time - last touch >= the dedup window is evicted;
3. the event is a duplicate if its key is in a live block, whatever its interval, or in any
   retained block (evicted or merged) of the event's own interval;
4. else it is appended to the live block of its interval (a new one if there is none), which is
   touched at the stream time.
A batch is cut only where step 2 could evict, so the result does not depend on how input is cut.

What always holds: an offset below the partition's next offset is dropped, so any replay is safe;
a log is only appended to, and every start writes to files of a new incarnation; an evicted block
is listed, and its logs are kept, until a chunk has covered it for the grace period.
Knows nothing of bytewax, Kafka or the clock: wall time comes in as an argument.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from storage.catalog import Catalog, read_catalog
from storage.chunk import ChunkKeys
from storage.files import Files
from storage.frame import REJECT_SCHEMA, Frame
from storage.index import I64, U64, hash_keys
from storage.keys import Hash, KeyCache, KeySet, first_rows
from storage.layout import BlockId, Layout, block_log_name, reject_log_name
from storage.log import GrowingLog, LogKeys
from storage.resume import (
    CatalogFile,
    next_incarnation,
    require_logs,
    require_same,
    runs_with_chunks,
    united_schema,
    unlisted,
)
from storage.schema import OFFSET, UPLOAD_TIME, Schema, column_types
from storage.state import BlockState, PartitionState

PENDING_ROWS_MAX = 65_536
REJECT_LOG_BYTES_MAX = 64 << 20

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class BlocksConfig:
    """What the rules depend on; all times in ms."""

    schema: Schema
    block_span_ms: int
    dedup_window_ms: int
    grace_ms: int


@dataclass(frozen=True)
class Offer:
    """What `blocks` tells `chunks`: evicted blocks to merge. The first offer of a run carries the
    committed `runs` (see `PartitionState`): chunks of evictions that were never committed are to be
    withdrawn."""

    incarnation: int
    blocks: tuple[BlockState, ...]
    runs: dict[str, int] | None = None


@dataclass
class _LiveBlock:
    """A block in the cache."""

    id: BlockId
    log: GrowingLog
    keys: KeySet
    touched_ms: int
    first_ms: int
    last_ms: int

    @property
    def state(self) -> BlockState:
        return BlockState(self.id, self.touched_ms, self.first_ms, self.last_ms, self.log.extents)


class Blocks:
    """All blocks of one partition. Thread safety: one thread."""

    def __init__(
        self,
        config: BlocksConfig,
        partition: str,
        layout: Layout,
        files: Files,
        cache: KeyCache,
        committed: PartitionState | None,
        hash_keys: Hash = hash_keys,
    ) -> None:
        """Resume from the `committed` state, or begin. Raises MissingFile or Corruption if a log
        that it names is not here, BadInput if it was made under another key or block span."""
        self._config = config
        self._layout = layout
        self._files = files
        self._cache = cache
        self._hash = hash_keys
        self._folder = layout.hot(partition)
        self._schema = config.schema.arrow
        for folder in (self._folder, layout.rejects(partition)):
            files.make_directory(folder)
        self._lock = files.lock(self._folder / "lock")
        self._catalog_file = CatalogFile(files, layout, partition)
        incarnation = next_incarnation(files, layout, partition, committed)
        self._state = state = committed or PartitionState(
            partition, incarnation, config.schema.key, config.block_span_ms, {}
        )
        require_same(state, config.schema.key, config.block_span_ms)
        state.schema = column_types(united_schema(state, self._schema))
        if committed:
            state.runs = runs_with_chunks(
                committed, read_catalog(files, layout.catalog(partition), partition)
            )
        state.incarnation = incarnation
        covered = self._catalog().covered
        require_logs(files, self._folder, state, self._catalog())
        self._live = {block.id.interval_ms: self._reopen(block) for block in state.hot}
        self._evicted_keys = {
            block.id: KeySet(self._source(block), cache, hash_keys)
            for block in state.evicted
            if block.id not in covered
        }
        self._chunk_keys: dict[tuple[str, int], KeySet] = {}
        self._rejects = self._reject_log()
        self._dirty: list[GrowingLog] = []
        self._closing: list[GrowingLog] = []
        self._doomed: list[tuple[int, Path]] = []

    def start(self, now_ms: int) -> Offer:
        """Publish the state resumed from; the offer that must reach `chunks` before any other."""
        grace = self._config.grace_ms
        folders = (self._folder, self._layout.rejects(self._state.partition))
        self._doomed = [
            (now_ms + grace, path) for folder in folders for path in unlisted(folder, self._state)
        ]
        self.publish()
        covered = self._catalog().covered
        blocks = tuple(block for block in self._state.evicted if block.id not in covered)
        return Offer(self._state.incarnation, blocks, self._state.runs)

    # -- events in ---------------------------------------------------------------------------

    def append(self, frame: Frame) -> Offer | None:
        """Take a frame in; evicted blocks are offered in order of eviction."""
        state = self._state
        following = state.next_offsets.get(frame.source, frame.first_offset)
        if frame.end_offset is not None:
            state.end_offsets[frame.source] = frame.end_offset
        if frame.next_offset <= following:
            return None
        events, rejects = frame.events, frame.rejects
        if frame.first_offset < following:
            events, rejects = _from_offset(events, following), _from_offset(rejects, following)
        state.next_offsets[frame.source] = frame.next_offset
        state.counters.nulled += frame.nulled
        state.counters.skipped += frame.skipped
        if rejects.num_rows:
            self._reject(rejects)
        evicted: list[BlockState] = []
        if events.num_rows:
            times: I64 = events.column(UPLOAD_TIME).cast(pa.int64()).to_numpy()
            floor = times[0] if state.stream_time_ms is None else state.stream_time_ms
            stream: I64 = np.maximum.accumulate(np.maximum(times, floor))
            keys = events.select(list(self._config.schema.key))
            hashes = self._hash(keys.columns)
            for low, high in self._cuts(stream, evicted):
                part = slice(low, high)
                self._take(
                    events.slice(low, high - low),
                    keys.slice(low, high - low),
                    hashes[part],
                    times[part],
                    stream[part],
                )
        return Offer(state.incarnation, tuple(evicted)) if evicted else None

    def _cuts(self, stream: I64, evicted: list[BlockState]) -> Iterator[tuple[int, int]]:
        """Segments within which no block can fall due; evicts what is due before each."""
        window = self._config.dedup_window_ms
        low = 0
        while low < len(stream):
            self._state.stream_time_ms = int(stream[low])
            evicted += self._evict(int(stream[low]) - window)
            oldest = min((b.touched_ms for b in self._live.values()), default=int(stream[low]))
            limit = min(oldest, int(stream[low])) + window
            high = int(np.searchsorted(stream, limit, side="left"))
            yield low, high
            self._state.stream_time_ms = int(stream[high - 1])
            low = high

    def _take(
        self, events: pa.RecordBatch, keys: pa.RecordBatch, hashes: U64, times: I64, stream: I64
    ) -> None:
        """Steps 3 and 4 for events that no eviction divides."""
        fresh = ~self._duplicate(keys, hashes, times)
        rows = np.flatnonzero(fresh)
        if not fresh.all():
            events, keys = events.take(pa.array(rows)), keys.take(pa.array(rows))
            hashes, times, stream = hashes[rows], times[rows], stream[rows]
        first = first_rows(hashes, keys)
        if not first.all():
            rows = np.flatnonzero(first)
            events, keys = events.take(pa.array(rows)), keys.take(pa.array(rows))
            hashes, times, stream = hashes[rows], times[rows], stream[rows]
        counters = self._state.counters
        counters.accepted += len(rows)
        counters.duplicates += len(fresh) - len(rows)
        counters.late += int(np.count_nonzero(stream - times >= self._config.dedup_window_ms))
        intervals = times - times % self._config.block_span_ms
        _, firsts = np.unique(intervals, return_index=True)
        for interval in intervals[np.sort(firsts)]:  # blocks are numbered in order of events
            mine = np.flatnonzero(intervals == interval)
            block = self._live.get(int(interval)) or self._open(int(interval))
            whole = len(mine) == len(times)
            picked = pa.array(mine)
            block.log.append(events if whole else events.take(picked))
            block.keys.add(keys if whole else keys.take(picked), hashes[mine])
            block.touched_ms = int(stream[mine[-1]])
            block.first_ms = min(block.first_ms, int(times[mine].min()))
            block.last_ms = max(block.last_ms, int(times[mine].max()))
            if block.log.pending_rows >= PENDING_ROWS_MAX:
                self._flush(block)

    def _duplicate(self, keys: pa.RecordBatch, hashes: U64, times: I64) -> Mask:
        """Step 3, against what was there before this segment."""
        result: Mask = np.zeros(len(hashes), dtype=bool)
        for block in list(self._live.values()):
            result |= block.keys.contains(hashes, keys)
        intervals = times - times % self._config.block_span_ms
        for interval in np.unique(intervals):
            for retained in self._retained(int(interval)):
                rows = np.flatnonzero((intervals == interval) & ~result)
                if len(rows):
                    hit = retained.contains(hashes[rows], keys.take(pa.array(rows)))
                    result[rows[hit]] = True
        return result

    def _retained(self, interval: int) -> list[KeySet]:
        """Key sets of everything evicted or merged of this interval."""
        ids = {id for id in self._evicted_keys if id.interval_ms == interval}
        found = [self._evicted_keys[id] for id in sorted(ids)]
        for chunk in self._catalog().by_interval.get(interval, ()):
            if all(id in ids for id in chunk.blocks if id.interval_ms == interval):
                continue
            place = (chunk.file, interval)
            if place not in self._chunk_keys:
                path = self._layout.chunks(self._state.partition) / chunk.file
                end = interval + self._config.block_span_ms
                source = ChunkKeys(path, self._config.schema.key, interval, end)
                self._chunk_keys[place] = KeySet(source, self._cache, self._hash)
            found.append(self._chunk_keys[place])
        return found

    def _catalog(self) -> Catalog:
        return self._catalog_file.read(self._state.runs, self._state.incarnation)

    # -- blocks ------------------------------------------------------------------------------

    def _open(self, interval: int) -> _LiveBlock:
        self._state.sequence += 1
        far = np.iinfo(np.int64)
        empty = BlockState(
            BlockId(interval, self._state.sequence), 0, int(far.max), int(far.min), ()
        )
        block = self._live[interval] = self._reopen(empty)
        return block

    def _reopen(self, state: BlockState) -> _LiveBlock:
        name = block_log_name(state.id, self._state.incarnation)
        log = GrowingLog(self._files, self._folder, name, self._schema, state.extents)
        source = LogKeys(self._files, self._folder, self._config.schema.key, lambda: log.extents)
        make = KeySet if state.extents else KeySet.empty
        keys = make(source, self._cache, self._hash)
        return _LiveBlock(state.id, log, keys, state.touched_ms, state.first_ms, state.last_ms)

    def _source(self, block: BlockState) -> LogKeys:
        key = self._config.schema.key
        return LogKeys(self._files, self._folder, key, lambda: block.extents)

    def _evict(self, limit_ms: int) -> list[BlockState]:
        """Close the blocks last touched at or before `limit_ms`."""
        evicted = []
        for block in sorted(self._live.values(), key=lambda block: block.id):
            if block.touched_ms <= limit_ms:
                self._flush(block)
                self._state.evictions += 1
                evicted.append(replace(block.state, number=self._state.evictions))
                self._evicted_keys[block.id] = block.keys
                self._closing.append(block.log)
                del self._live[block.id.interval_ms]
        self._state.evicted += evicted
        return evicted

    def _flush(self, block: _LiveBlock) -> None:
        span = block.log.flush()
        if span:
            block.keys.settle(span)
            self._note_dirty(block.log)

    def _note_dirty(self, log: GrowingLog) -> None:
        if log not in self._dirty:
            self._dirty.append(log)

    # -- rejects -----------------------------------------------------------------------------

    def _reject(self, rejects: pa.RecordBatch) -> None:
        self._state.counters.rejects += rejects.num_rows
        self._rejects.append(rejects)
        if self._rejects.bytes >= REJECT_LOG_BYTES_MAX:
            self._flush_rejects()
            self._state.rejects += self._rejects.extents
            self._closing.append(self._rejects)
            self._rejects = self._reject_log()

    def _reject_log(self) -> GrowingLog:
        state = self._state
        name = reject_log_name(len(state.rejects) + 1, state.incarnation)
        folder = self._layout.rejects(state.partition)
        return GrowingLog(self._files, folder, name, REJECT_SCHEMA)

    def _flush_rejects(self) -> None:
        if self._rejects.flush():
            self._note_dirty(self._rejects)

    # -- state out ---------------------------------------------------------------------------

    def flush(self) -> list[GrowingLog]:
        """Hand everything pending to the operating system; the logs that a sync would wait for."""
        for block in self._live.values():
            self._flush(block)
        self._flush_rejects()
        return [log for log in self._dirty if log.dirty]

    def snapshot(self) -> bytes:
        """Make everything taken in durable; the commit record for it."""
        for log in self.flush():
            log.sync()
        self._dirty = []
        for log in self._closing:
            log.close()
        self._closing = []
        self._state.snapshots += 1
        return self._present().encode()

    def publish(self) -> None:
        """Let readers see everything taken in so far."""
        self.flush()
        path = self._layout.manifest(self._state.partition)
        self._files.replace(path, self._present().encode(), durable=False)

    def tidy(self, now_ms: int) -> None:
        """Forget evicted blocks that a chunk has covered for the grace period; delete what has been
        forgotten for another."""
        covered = self._catalog().covered
        kept = []
        for block in self._state.evicted:
            if block.id not in covered:
                kept.append(replace(block, covered_at_ms=None))
                continue
            since = now_ms if block.covered_at_ms is None else block.covered_at_ms
            if now_ms - since < self._config.grace_ms:
                kept.append(replace(block, covered_at_ms=since))
                continue
            due = now_ms + self._config.grace_ms
            self._doomed += [(due, self._folder / extent.file) for extent in block.extents]
            keys = self._evicted_keys.pop(block.id, None)
            if keys:
                keys.close()
        self._state.evicted = kept
        for _, path in [doomed for doomed in self._doomed if doomed[0] <= now_ms]:
            self._files.remove(path)
        self._doomed = [doomed for doomed in self._doomed if doomed[0] > now_ms]

    def _present(self) -> PartitionState:
        hot = [self._live[interval].state for interval in sorted(self._live)]
        rejects = [*self._state.rejects, *self._rejects.extents]
        return replace(self._state, hot=hot, rejects=rejects)


def _from_offset(batch: pa.RecordBatch, first: int) -> pa.RecordBatch:
    """The rows of `batch` at offset `first` or later; offsets rise."""
    offsets = batch.column(OFFSET).to_numpy()
    return batch.slice(int(np.searchsorted(offsets, first, side="left")))
