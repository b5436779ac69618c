"""The blocks of one partition, as the step of the dataflow drives them.

    frame ─► admission ─► edits ─► journal ─► state, logs, keys
                  ▲                   │
                  └── state, keys ◄───┘          gc ─► edits, files to delete

`admission` decides what becomes of events, `gc` what may be forgotten; both only look at the state.
`journal` carries out what they decided. A replayed reject comes in like any event, at the moment of
the replay, whatever its offset.
Knows nothing of bytewax, Kafka or the clock: wall time comes in as an argument.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa

from forebay.storage.base.disk import Disk
from forebay.storage.base.layout import Layout
from forebay.storage.base.watched import Watched
from forebay.storage.dedup.arrivals import Arrivals
from forebay.storage.dedup.keys import KeyCache
from forebay.storage.formats.boundary import Boundary
from forebay.storage.formats.catalog import Catalog, read_catalog
from forebay.storage.formats.frame import Frame
from forebay.storage.formats.hashes import Hash, KeyHash
from forebay.storage.formats.log import Extent
from forebay.storage.formats.log_writer import GrowingLog
from forebay.storage.formats.rejects import RejectFilter, labels
from forebay.storage.formats.replay_request import ReplayRequest
from forebay.storage.formats.state import BlockState, PartitionState
from forebay.storage.partition.admission import admit, unseen
from forebay.storage.partition.edits import Close, Edit, Evict, Forget, Progress, Reject, Replayed
from forebay.storage.partition.expiry import Expiry, Waiting, waiting
from forebay.storage.partition.gc import Garbage, files_of, forgettable, leaving, unlisted
from forebay.storage.partition.journal import Journal
from forebay.storage.partition.known import KnownKeys, uncovered
from forebay.storage.partition.offer import Offer, Tick
from forebay.storage.partition.owner import own
from forebay.storage.partition.replay import Redecode, deleted, redecoded
from forebay.storage.partition.resume import resumed
from forebay.storage.partition.rules import Rules


class Blocks:
    """All blocks of one partition. Thread safety: one thread."""

    def __init__(
        self,
        rules: Rules,
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
        self._rules = rules
        self._layout = layout
        self._disk = disk
        self._folder = layout.hot(partition)
        self._folders = (self._folder, layout.rejects(partition), layout.drops(partition))
        for folder in self._folders:
            disk.make_directory(folder)
        self._lock = own(disk, layout, partition)
        spans = rules.block_span_ms, rules.dedup_window_ms
        state = resumed(disk, layout, partition, committed, rules.schema, *spans)
        self._catalog = _watched_catalog(disk, layout, state)
        self._hash = hash or KeyHash(state.seed)
        self._garbage = Garbage(disk, rules.grace_ms)
        self._known = KnownKeys(disk, layout, state, rules, cache, self._hash, self._catalog)
        self._journal = Journal(disk, layout, rules, state, self._hash, self._known, self._garbage)
        self._requested = False

    @property
    def state(self) -> PartitionState:
        """What is known of the partition; to be looked at only."""
        return self._journal.state

    @property
    def settled(self) -> bool:
        """Whether the first snapshots of this run were taken (see `commits`)."""
        return self._journal.commits.settled

    def start(self, now_ms: int) -> Offer:
        """Publish the state resumed from. Returns the offer that must reach `chunks` first."""
        self._journal.date_rejects(now_ms)
        for folder in self._folders:
            self._garbage.doom(unlisted(folder, self.state), now_ms)
        self.publish()
        blocks = tuple(uncovered(self.state, self._catalog.read()))
        return self._offer(blocks, runs=self.state.runs)

    # -- events in ---------------------------------------------------------------------------

    def append(self, frame: Frame, now_ms: int) -> Offer | None:
        """Take a frame in; evicted blocks are offered in order of eviction. `now_ms` is used only
        as the time at which its rejects arrived."""
        if frame.first_offset < self.state.next_offsets.get(frame.source, 0):
            self._disk.step("orphan-snapshot")
        new = unseen(self.state, frame)
        self._journal.apply(Progress(frame, new is not None))
        if new is None:
            return None
        if new.rejects.num_rows:
            self._journal.apply(Reject(new.rejects, labels(new.rejects), now_ms))
        return self._admit(new.events)

    def _admit(self, events: pa.RecordBatch) -> Offer | None:
        if not events.num_rows:
            return None
        rules, at_ms = self._rules, self.state.stream_time_ms
        arrivals = Arrivals.of(events, rules.schema.key, rules.compared, at_ms, self._hash)
        how = rules.dedup_window_ms, rules.backfill_span_ms
        return self._apply(admit(self.state, self._known, arrivals, *how))

    def _apply(self, edits: Iterable[Edit]) -> Offer | None:
        """Carry out each edit before the next is asked for; what was evicted is offered."""
        evicted = []
        for edit in edits:
            self._journal.apply(edit)
            if isinstance(edit, Evict):
                evicted.append(self.state.evicted[edit.block])
        return self._offer(tuple(evicted)) if evicted else None

    def _offer(
        self,
        blocks: tuple[BlockState, ...],
        runs: dict[str, int] | None = None,
        tick: Tick | None = None,
    ) -> Offer:
        committed = self._journal.commits.sure.evictions
        declared = () if runs is None else self.state.declared
        return Offer(self.state.incarnation, blocks, committed, runs, tick, declared)

    # -- rejects -----------------------------------------------------------------------------

    def replay(self, request: ReplayRequest, redecode: Redecode) -> Iterator[Offer | None]:
        """Carry a request out, one file of rejects at each step; events may come in between.

        Each step is whole: a commit after it has a reject that passes as an event or a duplicate,
        a commit before it has it as a reject. A file that has expired meanwhile is left out.
        """
        for extent in self._in_turn(request):
            yield self._replay(extent, request.wanted, redecode)

    def delete(self, request: ReplayRequest) -> Iterator[None]:
        """Carry a deletion out, in the same way."""
        partition = self.state.partition
        next_offsets = (request.delete or {}).get(partition, {})
        for extent in self._in_turn(request):
            folder = self._layout.rejects(partition)
            if edit := deleted(self._disk, folder, extent, request.wanted, next_offsets):
                self._journal.apply(edit)
            yield

    def _in_turn(self, request: ReplayRequest) -> Iterator[Extent]:
        """The files of rejects, each if it is still there in its turn. None is joined with others
        before the request has been carried out."""
        self._requested = True
        for extent in self._journal.reject_files():
            if extent in self.state.rejects:
                yield extent
        self._requested = False
        self.replayed(request.number)

    def replayed(self, number: int) -> None:
        """Requests up to this one are done with."""
        self._journal.apply(Replayed(number))

    def _replay(self, extent: Extent, wanted: RejectFilter, redecode: Redecode) -> Offer | None:
        folder = self._layout.rejects(self.state.partition)
        replay, frames = redecoded(self._disk, folder, extent, wanted, redecode)
        if not frames:
            return None
        self._journal.apply(replay)
        offers = [self._admit(frame.events) for frame in frames]
        blocks = [block for offer in offers if offer for block in offer.blocks]
        return self._offer(tuple(blocks)) if blocks else None

    # -- handoff -----------------------------------------------------------------------------

    def notice(self, boundary: Boundary) -> bool:
        """Carry out the newest seal, if not yet done. Returns whether a commit is still needed."""
        seal = boundary.seal
        if seal is None:
            return False
        if self.state.seal is None or self.state.seal.number < seal.number:
            self._journal.apply(Close(seal))
        return self._journal.commits.sure.seal < seal.number

    def tick(
        self, boundary: Boundary, retention_ms: int, now_ms: int, from_ms: int | None = None
    ) -> Offer:
        """Have what may go deleted, including live blocks that are handed off or older than
        `from_ms`, and rejects that arrived before the boundary or are old enough now."""
        state, commits = self.state, self._journal.commits
        self._journal.expire_rejects(boundary.covered_until_ms, now_ms)
        evicted = self._apply(leaving(state, boundary, self._rules.dedup_window_ms, from_ms))
        retention = Expiry(boundary, state.stream_time_ms, retention_ms, from_ms)
        tick = Tick(retention, commits.evicted(state))
        return self._offer(evicted.blocks if evicted else (), tick=tick)

    def waiting(self, boundary: Boundary) -> Waiting | None:
        """What is yet to be handed over, if anything is."""
        return waiting(self.state, self._catalog.read(), boundary)

    # -- state out ---------------------------------------------------------------------------

    def flush(self) -> list[GrowingLog]:
        """Hand everything pending to the operating system; the logs that a sync would wait for."""
        return self._journal.flush()

    def snapshot(self) -> bytes:
        """Make everything taken in durable; the commit record for it."""
        return self._journal.snapshot()

    def publish(self) -> None:
        """Let readers see everything taken in so far, if they don't already."""
        self._journal.publish()

    def tidy(self, now_ms: int) -> None:
        """Forget evicted blocks that a chunk has covered for the grace period; delete what was
        forgotten another grace period ago, or replaced one ago, counted from when that was surely
        committed. Join small files of rejects."""
        sure, catalog = self._journal.commits.sure, self._catalog.read()
        self._known.keep(catalog)
        self._journal.date_rejects(now_ms)
        if not self._requested:
            self._journal.join_rejects()
        for edit in forgettable(self.state, catalog, sure, now_ms, self._rules.grace_ms):
            if isinstance(edit, Forget):
                self._garbage.doom(files_of(self.state, edit, self._folder), now_ms)
            self._journal.apply(edit)
        self._garbage.collect(sure, now_ms)


def _watched_catalog(disk: Disk, layout: Layout, state: PartitionState) -> Watched[Catalog]:
    """The catalog as a partition may believe it: without what an earlier run did not commit."""
    partition, runs, incarnation = state.partition, state.runs, state.incarnation
    path = layout.catalog(partition)

    def read() -> Catalog:
        return read_catalog(disk, path, partition).committed(runs, incarnation)

    return Watched(disk, path, read, Catalog(partition))
