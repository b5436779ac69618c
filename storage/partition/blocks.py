"""The blocks of one partition: exact dedup, append-only logs, eviction on stream time.

For each event, in offset order, as if it came alone:
1. stream time becomes the larger of itself and the event's upload time;
2. every live block with stream time - last touch >= the dedup window is evicted;
3. the event is a duplicate if its key is in a live block, whatever its interval, or in any
   retained block (evicted or merged) of the event's own interval;
4. else it is appended to the open block of its interval (a new one if there is none), which is
   touched at the stream time.
A seal closes the blocks below it between two events; what comes later for them opens late ones.
A batch is cut only where step 2 could evict, so the result does not depend on how input is cut.
A replayed reject comes in by the same steps, at the moment of the replay, whatever its offset.

What always holds: an offset below the partition's next offset is dropped, so any replay is safe;
a log is only appended to, and every start writes to files of a new incarnation; an evicted block
is listed, and its logs are kept, until a chunk has covered it for the grace period.
Knows nothing of bytewax, Kafka or the clock: wall time comes in as an argument.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from forebay.storage.base.disk import Disk
from forebay.storage.base.layout import (
    BlockId,
    Layout,
    block_log_name,
    hash_file_name,
    reject_log_name,
)
from forebay.storage.base.watched import Watched
from forebay.storage.dedup.duplicates import duplicates
from forebay.storage.dedup.keys import KeyCache
from forebay.storage.dedup.segment import Segment
from forebay.storage.formats.boundary import Boundary
from forebay.storage.formats.catalog import Catalog, read_catalog
from forebay.storage.formats.columns import arrow_schema
from forebay.storage.formats.frame import REJECT_SCHEMA, Frame
from forebay.storage.formats.hash_file import HashWriter
from forebay.storage.formats.hashes import I64, Hash, KeyHash
from forebay.storage.formats.log import Extent, GrowingLog
from forebay.storage.formats.rejects import RejectFilter, labels
from forebay.storage.formats.replay_request import ReplayRequest
from forebay.storage.formats.schema import OFFSET, Schema
from forebay.storage.formats.series import LogSeries
from forebay.storage.formats.state import BlockState, PartitionState
from forebay.storage.partition.commits import Commits
from forebay.storage.partition.drop_log import Drops
from forebay.storage.partition.live import LiveBlock, LiveBlocks
from forebay.storage.partition.offer import Offer, Tick
from forebay.storage.partition.replay import FILE_BYTES_MAX, Redecode, redecoded
from forebay.storage.partition.resume import (
    begun_or_resumed,
    next_incarnation,
    recount_rejects,
    require_logs,
    runs_with_chunks,
    unlisted,
)
from forebay.storage.partition.retained import Retained
from forebay.storage.partition.retention import Retention, Waiting, waiting

DROPS_BYTES_MAX = 16 << 20


@dataclass(frozen=True)
class BlocksConfig:
    """What the rules depend on; all times in ms.

    `conflicts`: whether the payloads of duplicates are compared. `drops_bytes_max` bounds the drop
    log; 0 keeps none.
    """

    schema: Schema
    block_span_ms: int
    dedup_window_ms: int
    grace_ms: int
    conflicts: bool = True
    drops_bytes_max: int = DROPS_BYTES_MAX


class Blocks:
    """All blocks of one partition. Thread safety: one thread."""

    def __init__(
        self,
        config: BlocksConfig,
        partition: str,
        layout: Layout,
        disk: Disk,
        cache: KeyCache,
        committed: PartitionState | None,
        hash: Hash | None = None,
    ) -> None:
        """Resume from the `committed` state, or begin. Keys are hashed by `hash`, by default under
        the state's own seed. Raises MissingFile or Corruption if a log that it names is not here,
        BadInput if it has events made under another key or block span."""
        self._config = config
        self._layout = layout
        self._disk = disk
        self._cache = cache
        self._folder = layout.hot(partition)
        self._folders = (self._folder, layout.rejects(partition), layout.drops(partition))
        self._schema = arrow_schema(config.schema)
        self._payload = (config.schema.payload or None) if config.conflicts else None
        for folder in self._folders:
            disk.make_directory(folder)
        self._lock = disk.lock(self._folder / "lock")
        path = layout.catalog(partition)
        self._catalog_file = Watched(
            disk,
            path,
            lambda: read_catalog(disk, path, partition).committed(
                self._state.runs, self._state.incarnation
            ),
            Catalog(partition),
        )
        incarnation = next_incarnation(disk, layout, partition, committed)
        self._state = state = begun_or_resumed(
            partition, committed, config.schema, config.block_span_ms
        )
        if committed:
            state.runs = runs_with_chunks(
                committed, read_catalog(disk, layout.catalog(partition), partition)
            )
        self._hash = hash or KeyHash(state.seed)
        state.incarnation = incarnation
        require_logs(disk, layout, state, self._catalog())
        recount_rejects(disk, layout, state)
        self._retained = Retained(
            disk, layout, partition, config.schema, config.block_span_ms, cache, self._hash
        )
        for block in self._uncovered():
            self._retained.add(block)
        self._live = LiveBlocks(config.dedup_window_ms)
        for block in sorted(state.hot, key=lambda block: block.id):
            self._live.add(self._reopen(block))
        if state.seal:
            self._live.seal(state.seal)
        self._rejects, self._drops = self._logs_beside()
        self._dirty: list[GrowingLog] = []
        self._commits = Commits(state)
        self._replaced: list[tuple[int, Path]] = []
        self._doomed: list[tuple[int, Path]] = []
        self._published = b""
        self._loaded = False

    def _logs_beside(self) -> tuple[LogSeries, Drops]:
        """Where what is no event goes."""
        state = self._state
        _, rejects, drops = self._folders
        return LogSeries(
            self._disk,
            rejects,
            reject_log_name,
            state.incarnation,
            REJECT_SCHEMA,
            state.rejects,
            FILE_BYTES_MAX,
        ), Drops(
            self._disk,
            drops,
            state.incarnation,
            state.drops,
            self._config.drops_bytes_max,
            self._config.schema.payload,
        )

    def start(self, now_ms: int) -> Offer:
        """Publish the state resumed from; the offer that must reach `chunks` before any other."""
        due = now_ms + self._config.grace_ms
        self._doomed = [
            (due, path) for folder in self._folders for path in unlisted(folder, self._state)
        ]
        self.publish()
        return Offer(self._state.incarnation, tuple(self._uncovered()), self._state.runs)

    def _uncovered(self) -> list[BlockState]:
        """The evicted blocks that no chunk covers."""
        covered = self._catalog().covered
        return [block for block in self._state.evicted if block.id not in covered]

    # -- events in ---------------------------------------------------------------------------

    def append(self, frame: Frame) -> Offer | None:
        """Take a frame in; evicted blocks are offered in order of eviction."""
        state = self._state
        following = state.next_offsets.get(frame.source, frame.first_offset)
        if frame.end_offset is not None:
            state.end_offsets[frame.source] = frame.end_offset
        if frame.first_offset < following:
            self._disk.step("orphan-snapshot")
        if frame.next_offset <= following:
            return None
        events, rejects = frame.events, frame.rejects
        if frame.first_offset < following:
            events, rejects = _from_offset(events, following), _from_offset(rejects, following)
        state.next_offsets[frame.source] = frame.next_offset
        state.counters.nulled += frame.nulled
        state.counters.skipped += frame.skipped
        if rejects.num_rows:
            self._count_rejects(rejects, 1)
            self._rejects.append(rejects)
        return self._admit(events)

    def _count_rejects(self, rejects: pa.RecordBatch, by: int) -> None:
        """Count them in, or with -1 out."""
        counters = self._state.counters
        counters.rejects += by * rejects.num_rows
        for label, count in labels(rejects).items():
            rest = counters.rejected.get(label, 0) + by * count
            counters.rejected[label] = rest
            if not rest:
                del counters.rejected[label]

    def _admit(self, events: pa.RecordBatch) -> Offer | None:
        """Steps 1 to 4 for each of these events; what was evicted is offered."""
        if not events.num_rows:
            return None
        config, state = self._config, self._state
        whole = Segment.of(
            events, config.schema.key, self._payload, state.stream_time_ms, self._hash
        )
        evicted: list[BlockState] = []
        for low, high in self._cuts(whole.stream, evicted):
            self._take(whole.part(low, high))
        return Offer(state.incarnation, tuple(evicted)) if evicted else None

    def _cuts(self, stream: I64, evicted: list[BlockState]) -> Iterator[tuple[int, int]]:
        """Segments within which no block can fall due; evicts what is due before each."""
        window = self._config.dedup_window_ms
        low = 0
        while low < len(stream):
            self._state.stream_time_ms = int(stream[low])
            due_ms = int(stream[low]) - window
            evicted += self._evict([b for b in self._live if b.touched_ms <= due_ms])
            limit = min(self._live.oldest_ms(int(stream[low])), int(stream[low])) + window
            high = int(np.searchsorted(stream, limit, side="left"))
            yield low, high
            self._state.stream_time_ms = int(stream[high - 1])
            low = high

    def _take(self, segment: Segment) -> None:
        """Steps 3 and 4 for events that no eviction divides."""
        if not self._loaded:
            self._live.load(self._cache)
            self._loaded = True
        dropped, differs = duplicates(
            segment,
            self._live.holding(segment.hashes),
            lambda interval: self._retained.of_interval(interval, self._catalog()),
            self._config.block_span_ms,
        )
        late = ~dropped & (segment.stream - segment.times >= self._config.dedup_window_ms)
        kept = np.flatnonzero(~dropped)
        counters = self._state.counters
        counters.accepted += len(kept)
        counters.duplicates += len(segment) - len(kept)
        counters.conflicts += int(np.count_nonzero(differs))
        counters.late += int(np.count_nonzero(late))
        self._drops.note(segment, dropped, differs, late)
        times = segment.times[kept]
        if self._state.seal:
            counters.after_seal += int(np.count_nonzero(times < self._state.seal.until_ms))
        intervals = times - times % self._config.block_span_ms
        _, firsts = np.unique(intervals, return_index=True)
        for interval in intervals[np.sort(firsts)]:  # blocks are numbered in order of events
            block = self._live.open_of(int(interval)) or self._open(int(interval))
            self._live.take(block, segment, kept[intervals == interval])
            if block.full:
                self._flush(block)
        self._cache.trim()

    def _catalog(self) -> Catalog:
        return self._catalog_file.read()

    # -- blocks ------------------------------------------------------------------------------

    def _open(self, interval: int) -> LiveBlock:
        self._state.sequence += 1
        seal = self._state.seal
        late = seal.number if seal and interval < seal.until_ms else 0
        far = np.iinfo(np.int64)
        id = BlockId(interval, self._state.sequence)
        block = self._reopen(BlockState(id, 0, int(far.max), int(far.min), (), late))
        self._live.begin(block, self._state.stream_time_ms or 0)
        return block

    def _reopen(self, state: BlockState) -> LiveBlock:
        name = block_log_name(state.id, self._state.incarnation)
        log = GrowingLog(self._disk, self._folder, name, self._schema, state.extents)
        hashes = HashWriter(self._disk, self._folder, self._hash)
        keys = self._retained.of_log(log)
        return LiveBlock(
            state.id, log, hashes, keys, state.touched_ms, state.first_ms, state.last_ms, state.late
        )

    def _evict(self, due: Iterable[LiveBlock]) -> list[BlockState]:
        evicted = []
        for block in due:
            self._flush(block)
            self._state.evictions += 1
            evicted.append(replace(block.state, number=self._state.evictions))
            self._retained.add(evicted[-1], block.keys)
            self._live.remove(block)
        self._state.evicted += evicted
        return evicted

    def _flush(self, block: LiveBlock) -> None:
        if block.flush() and block.log not in self._dirty:
            self._dirty.append(block.log)

    @property
    def settled(self) -> bool:
        """Whether the first snapshots of this run were taken (see `commits`)."""
        return self._commits.settled

    # -- handoff -----------------------------------------------------------------------------

    def notice(self, batch: Boundary) -> bool:
        """Carry out the newest seal, if that is not done; whether a commit must still follow."""
        state, seal = self._state, batch.seal
        if seal is None:
            return False
        if state.seal is None or state.seal.number < seal.number:
            state.seal = seal
            self._live.seal(seal)
        return self._commits.sure.seal < seal.number

    def tick(self, batch: Boundary, retention_ms: int) -> Offer:
        """Have what may go deleted. A live block goes too if it is handed off and was last touched
        a dedup window before the boundary: any event that a query still shows would evict it."""
        state = self._state
        sure_ms = (batch.covered_until_ms or 0) - self._config.dedup_window_ms
        going = [b for b in self._live if batch.handed_off(b) and b.touched_ms <= sure_ms]
        evicted = self._evict(going)
        tick = Tick(
            Retention(batch, state.stream_time_ms, retention_ms),
            self._commits.sure.evictions,
            self._commits.evicted(state),
        )
        return Offer(state.incarnation, tuple(evicted), tick=tick)

    def waiting(self, batch: Boundary) -> Waiting | None:
        """What is yet to be handed over, if anything is."""
        return waiting(self._present(), self._catalog(), batch)

    # -- rejects -----------------------------------------------------------------------------

    @property
    def replays(self) -> int:
        """Number of the last replay request carried out."""
        return self._state.replays

    def replay(self, request: ReplayRequest, redecode: Redecode) -> Iterator[Offer | None]:
        """Carry a request out, one file of rejects at each step; events may come in between.

        Each step is whole: a commit after it has a reject that passes as an event or a duplicate,
        a commit before it has it as a reject.
        """
        self._rejects.seal()
        for extent in self._rejects.sealed_extents:
            yield self._replay(extent, request.wanted, redecode)
        self.replayed(request.number)

    def replayed(self, number: int) -> None:
        """Requests up to this one need no more looking at."""
        self._state.replays = max(self._state.replays, number)

    def _replay(self, extent: Extent, wanted: RejectFilter, redecode: Redecode) -> Offer | None:
        _, folder, _ = self._folders
        left, passed, frames = redecoded(self._disk, folder, extent, wanted, redecode)
        if not frames:
            return None
        self._replaced.append((self._state.snapshots, self._rejects.discard(extent)))
        for batch in left:
            self._rejects.append(batch)
        for batch in passed:
            self._count_rejects(batch, -1)
        counters = self._state.counters
        counters.nulled += sum(frame.nulled for frame in frames)
        offers = [self._admit(frame.events) for frame in frames]
        blocks = [block for offer in offers if offer for block in offer.blocks]
        return Offer(self._state.incarnation, tuple(blocks)) if blocks else None

    # -- state out ---------------------------------------------------------------------------

    def flush(self) -> list[GrowingLog]:
        """Hand everything pending to the operating system; the logs that a sync would wait for."""
        for block in self._live:
            self._flush(block)
        self._rejects.flush()
        self._drops.flush()
        self._replaced += [(self._state.snapshots, path) for path in self._drops.trim()]
        logs = [log for log in self._dirty if log.dirty]
        return [*logs, *self._rejects.unsynced(), *self._drops.sealed()]

    def snapshot(self) -> bytes:
        """Make everything taken in durable; the commit record for it."""
        for log in self.flush():
            log.sync()
        self._dirty = []
        self._rejects.settle()
        self._drops.settle()
        self._state.snapshots += 1
        self._commits.add(self._state)
        return self._present().encode()

    def publish(self) -> None:
        """Let readers see everything taken in so far, if they don't already."""
        self.flush()
        manifest = self._present().encode()
        if manifest != self._published:
            path = self._layout.manifest(self._state.partition)
            self._disk.replace(path, manifest, durable=False)
            self._published = manifest

    def tidy(self, now_ms: int) -> None:
        """Forget evicted blocks that a chunk has covered for the grace period; delete what has been
        forgotten for another, or replaced for one once that is surely committed."""
        due = now_ms + self._config.grace_ms
        sure = self._commits.sure.snapshots
        self._doomed += [(due, path) for since, path in self._replaced if since < sure]
        self._replaced = [(since, path) for since, path in self._replaced if since >= sure]
        catalog = self._catalog()
        covered = catalog.covered
        self._retained.keep(catalog)
        kept = []
        for block in self._state.evicted:
            if block.id not in covered:
                kept.append(replace(block, covered_at_ms=None))
                continue
            since = now_ms if block.covered_at_ms is None else block.covered_at_ms
            committed = block.number is not None and block.number <= self._commits.sure.evictions
            if now_ms - since < self._config.grace_ms or not committed:
                kept.append(replace(block, covered_at_ms=since))
                continue
            self._doomed += [
                (due, self._folder / name)
                for extent in block.extents
                for name in (extent.file, hash_file_name(extent.file))
            ]
            self._retained.forget(block.id)
        self._state.evicted = kept
        for _, path in [doomed for doomed in self._doomed if doomed[0] <= now_ms]:
            self._disk.remove(path)
        self._doomed = [doomed for doomed in self._doomed if doomed[0] > now_ms]

    def _present(self) -> PartitionState:
        sure = self._commits.sure
        return replace(
            self._state,
            hot=[block.state for block in self._live],
            rejects=self._rejects.extents,
            drops=self._drops.extents,
            committed_seal=sure.seal,
            committed_ms=sure.stream_time_ms,
        )


def _from_offset(batch: pa.RecordBatch, first: int) -> pa.RecordBatch:
    """The rows of `batch` at offset `first` or later; offsets rise."""
    offsets = batch.column(OFFSET).to_numpy()
    return batch.slice(int(np.searchsorted(offsets, first, side="left")))
