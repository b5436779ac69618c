"""The `blocks` step: `storage.partition.blocks` as a stateful operator.

The snapshot is the commit record of the logs. At the close of an epoch all partitions of the worker
are flushed and their logs synced together, by threads, when the first of them is asked for its
snapshot. Between snapshots the manifest is published at most once per publish interval, or less
often where much waits to be read; the wall clock is used for that, for the grace period and to look
for replay requests, but never evicts.

A replay proceeds file by file between arriving batches, and runs to its end when the input ends.

`batch.json` is checked whenever it is time to publish: a seal is carried out then, and after that
needs only commits. A tick goes to `chunks` when the boundary has moved and at every tick interval.
(Not from a second source that wakes up once an hour: epochs wait for every input, so none would
close.)
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, field
from datetime import UTC, datetime, timedelta

from bytewax.operators import StatefulBatchLogic
from typing_extensions import override

from forebay.operators.disk_watch import DiskWatch
from forebay.operators.measures import measured
from forebay.operators.process import PerThread, noted, stopping
from forebay.operators.reject_watch import RejectWatch
from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import ForebayError
from forebay.storage.base.layout import Layout
from forebay.storage.base.text import count_text
from forebay.storage.base.times import steady_ms
from forebay.storage.base.watched import Watched
from forebay.storage.dedup.keys import KeyCache
from forebay.storage.formats.boundary import Boundary, watched_boundary
from forebay.storage.formats.frame import Frame
from forebay.storage.formats.replay_request import read_request
from forebay.storage.formats.state import PartitionState
from forebay.storage.partition.blocks import Blocks
from forebay.storage.partition.offer import Offer
from forebay.storage.partition.replay import Redecode
from forebay.storage.partition.rules import Rules

SYNC_THREADS = 16
IDLE_LOOK_S, EPOCH_LOOK_S = 5.0, 0.02
"""How often a partition to which nothing comes looks for a replay request or a seal; and how often
it wakes up where each epoch must commit its state: less than any epoch."""
BEHIND, BEHIND_PUBLISH_S = 5, 1.0
"""A partition is behind if more waits than so many times what is new since the last publication.
Readers see old events then, however often it publishes; and each publication costs a few ms."""
KEPT_BYTES_MAX, KEPT_EVERY_S = 10**10, 86_400.0
"""Beyond how much it is said that nothing deletes what is kept, and how often."""

log = logging.getLogger("forebay.blocks")


@dataclass
class _Worker:
    """What the partitions of one worker thread share."""

    cache: KeyCache
    boundary: Watched[Boundary]
    disk_watch: DiskWatch
    partitions: list[Blocks] = field(default_factory=list)
    rejects: RejectWatch = field(default_factory=RejectWatch)
    warn_due: float = 0.0
    kept_due: float = 0.0
    appended: bool = False
    """Whether anything was taken in since the last sync."""
    pool: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(SYNC_THREADS, thread_name_prefix="sync")
    )

    def sync(self) -> None:
        """Make everything taken in durable, the logs of all partitions at once."""
        if not self.appended:
            return
        with measured("sync"):
            logs = [log for blocks in self.partitions for log in blocks.flush()]
            list(self.pool.map(lambda log: log.sync(), logs))
        self.appended = False

    def from_ms(self, boundary: Boundary) -> int | None:
        """The upload time before which data has no room on disk, None if all has."""
        return self.disk_watch.from_ms(boundary, {one.state.partition for one in self.partitions})

    def warn(self, after_ms: int, retention: int, every_s: float) -> None:
        """Warn, now and then, that the batch layer is late, and with how much; or, if no handoff
        was ever begun, that the disk fills up, unless a `retention` (0: none) bounds that."""
        now = time.monotonic()
        if now < self.warn_due:
            return
        self.warn_due = now + every_s
        boundary = self.boundary.read()
        waiting = [w for p in self.partitions if (w := p.waiting(boundary))]
        late = [w for w in waiting if w.age_ms > after_ms]
        kept_bytes = sum(w.bytes for w in waiting)
        if boundary.seal is None:
            if kept_bytes > KEPT_BYTES_MAX and not retention and now >= self.kept_due:
                self.kept_due = now + KEPT_EVERY_S
                log.warning(
                    "%.1f GB are kept, and nothing deletes them: neither a batch layer takes days"
                    " over (`forebay batch run`), nor is `retention` or `retention_bytes` set",
                    kept_bytes / 1e9,
                )
        elif late:
            log.warning(
                "the batch layer is late: %.1f GB of %s wait for it, for up to %.1f h",
                sum(w.bytes for w in late) / 1e9,
                count_text(len(late), "partition"),
                max(w.age_ms for w in late) / 3_600_000,
            )


class _BlocksLogic(StatefulBatchLogic[Frame, Offer, bytes]):
    """One partition. Never discarded: its key lasts as long as the data.

    The engine does not tell a builder its key, so a new partition is made on its first frame; one
    that resumes is made at once, and offers its evicted blocks on the first activation.
    """

    def __init__(self, step: BlocksStep, committed: bytes | None) -> None:
        self._step = step
        self._blocks: Blocks | None = None
        self._offers: list[Offer] = []
        self._replay: Iterator[Offer | None] | None = None
        self._ticked: tuple[int, int] = (0, 0)
        self._tick_due = 0.0
        self._notify_at: datetime | None = None
        self._published_s = -math.inf
        self._new = self._waiting = 0
        if committed is not None:
            state = PartitionState.decode(committed, "recovery snapshot of a partition")
            self._start(state.partition, state)
            self._notify_at = datetime.now(UTC)

    def _start(self, partition: str, committed: PartitionState | None) -> Blocks:
        step, worker = self._step, self._step.worker
        blocks = Blocks(step.rules, partition, step.layout, step.disk, worker.cache, committed)
        self._blocks = blocks
        worker.partitions.append(blocks)
        self._offers.append(blocks.start(steady_ms()))
        # SUBTLE: only now, as a seal waits for the partitions that have published something: it
        # knows of this one, or this one sees the seal before it takes an event.
        blocks.notice(worker.boundary.read())
        return blocks

    @override
    @noted
    def on_batch(self, values: list[Frame]) -> tuple[list[Offer], bool]:
        blocks = self._blocks or self._start(values[0].partition, None)
        self._step.worker.appended = True
        for frame in values:
            self._step.worker.rejects.take(frame)
            offer = blocks.append(frame, steady_ms())
            if offer:
                self._offers.append(offer)
            self._new += frame.next_offset - frame.first_offset
            self._waiting = (frame.end_offset or frame.next_offset) - frame.next_offset
        self._turn_if_due()
        return self._emit()

    @override
    @noted
    def on_notify(self) -> tuple[list[Offer], bool]:
        self._notify_at = None
        if self._replay is not None:
            self._turn()
        else:
            self._turn_if_due()
        if self._blocks is not None and not self._blocks.settled:
            self._notify_in(EPOCH_LOOK_S)
        return self._emit()

    @override
    @noted
    def on_eof(self) -> tuple[list[Offer], bool]:
        while self._replay_some() and not stopping():
            pass
        self._hand_over()
        self._publish()
        return self._emit()

    @override
    def notify_at(self) -> datetime | None:
        return self._notify_at

    @override
    @noted
    def snapshot(self) -> bytes:
        if self._blocks is None:
            raise AssertionError("bug: a snapshot was asked for before the first frame")
        with measured("snapshot"):
            self._step.worker.sync()
            committed = self._blocks.snapshot()
        self._step.disk.step("snapshot-return")
        return committed

    def _turn_if_due(self) -> None:
        """Take a turn, or be called again when it is time to."""
        interval_s = self._step.publish_interval_s
        if 0 < BEHIND * self._new < self._waiting:
            interval_s = max(interval_s, BEHIND_PUBLISH_S)
        wait_s = self._published_s + interval_s - time.monotonic()
        if wait_s <= 0:
            self._turn()
        else:
            self._notify_in(wait_s)

    def _turn(self) -> None:
        """What is done at most once per publish interval, and now and then if nothing arrives."""
        more = self._replay_some()
        sealing = self._hand_over()
        self._publish()
        self._notify_in(0 if more else EPOCH_LOOK_S if sealing else IDLE_LOOK_S)

    def _hand_over(self) -> bool:
        """Seal and tick if it is time to. Returns whether a seal still needs commits."""
        blocks, step = self._blocks, self._step
        if blocks is None:
            return False
        boundary = step.worker.boundary.read()
        sealing = blocks.notice(boundary)
        now, moved = time.monotonic(), (boundary.number, boundary.late_from)
        if moved != self._ticked or now >= self._tick_due:
            self._ticked, self._tick_due = moved, now + step.tick_interval_s
            from_ms = step.worker.from_ms(boundary)
            self._offers.append(blocks.tick(boundary, step.retention_ms, steady_ms(), from_ms))
            retention = step.retention_ms or step.retention_bytes
            step.worker.warn(step.batch_late_ms, retention, step.tick_interval_s)
        return sealing

    def _publish(self) -> None:
        if self._blocks:
            self._blocks.tidy(steady_ms())
            self._blocks.publish()
        self._published_s = time.monotonic()
        self._new = 0
        self._notify_at = None

    def _notify_in(self, wait_s: float) -> None:
        """Be called again after this time, or sooner if that was asked for before."""
        due = datetime.now(UTC) + timedelta(seconds=wait_s)
        self._notify_at = due if self._notify_at is None else min(due, self._notify_at)

    def _replay_some(self) -> bool:
        """Replay a file of rejects, or delete from it, if requested. Returns whether there may be
        more to do."""
        redecode, blocks = self._step.redecode, self._blocks
        if blocks is None:
            return False
        if self._replay is None:
            number = blocks.state.replays + 1
            try:
                request = read_request(self._step.disk, self._step.layout, number)
            except ForebayError as error:
                log.error("replay request left out: %s", error)
                blocks.replayed(number)
                return True
            if request is None:
                return False
            if request.delete is not None:
                self._replay = blocks.delete(request)
            elif redecode is not None:
                self._replay = blocks.replay(request, redecode)
            else:
                blocks.replayed(number)
                return True
        self._step.worker.appended = True
        for offer in self._replay:
            self._offers += [offer] if offer else []
            return True
        self._replay = None
        return True

    def _emit(self) -> tuple[list[Offer], bool]:
        offers, self._offers = self._offers, []
        return offers, self.RETAIN


@dataclass
class BlocksStep:
    """Builds the logic of each partition; one instance serves all workers of a process.

    `cache_bytes` bounds the dedup indexes and keys of one worker. Without `redecode`, replay
    requests are ignored. There is a warning for data that waited for the batch layer longer than
    `batch_late_ms`. `retention_bytes` bounds the whole data directory; 0: no bound."""

    rules: Rules
    layout: Layout
    disk: Disk
    _: KW_ONLY
    publish_interval_s: float
    tick_interval_s: float
    cache_bytes: int
    retention_ms: int
    batch_late_ms: int
    retention_bytes: int = 0
    redecode: Redecode | None = None

    def __post_init__(self) -> None:
        self._worker = PerThread(
            lambda: _Worker(
                KeyCache(self.cache_bytes),
                watched_boundary(self.disk, self.layout),
                DiskWatch(
                    self.disk,
                    self.layout,
                    self.retention_bytes,
                    self.rules.dedup_window_ms,
                    self.tick_interval_s,
                ),
            )
        )

    @property
    def worker(self) -> _Worker:
        """What belongs to the worker thread that asks."""
        return self._worker.get()

    @noted
    def __call__(self, committed: bytes | None) -> _BlocksLogic:
        """The builder that the stateful operator asks for."""
        return _BlocksLogic(self, committed)
