"""The `blocks` step: `storage.blocks` as a stateful operator.

The snapshot is the commit record of the logs. At the close of an epoch all partitions of the worker
are flushed and their logs synced together, by threads, when the first of them is asked for its
snapshot. Between snapshots the manifest is published at most every publish interval; the wall clock
is used for that and for the grace period, and never evicts.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone

from bytewax.operators import StatefulBatchLogic
from typing_extensions import override

from storage.blocks import Blocks, BlocksConfig, Offer
from storage.files import Files
from storage.frame import Frame
from storage.keys import KeyCache
from storage.layout import Layout
from storage.state import PartitionState

SYNC_THREADS = 16


@dataclass
class _Worker:
    """What the partitions of one worker thread share."""

    cache: KeyCache
    partitions: list[Blocks] = field(default_factory=list)
    appended: bool = False
    """Whether anything was taken in since the last sync."""
    pool: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(SYNC_THREADS, thread_name_prefix="sync")
    )

    def sync(self) -> None:
        """Make all that was taken in durable, the logs of all partitions at once."""
        if not self.appended:
            return
        logs = [log for blocks in self.partitions for log in blocks.flush()]
        list(self.pool.map(lambda log: log.sync(), logs))
        self.appended = False


class _BlocksLogic(StatefulBatchLogic[Frame, Offer, bytes]):
    """One partition. Never discarded: its key lives as long as the data.

    The engine does not tell a builder its key, so a new partition is made on its first frame; one
    that resumes is made at once, and offers its evicted blocks on the first activation.
    """

    def __init__(self, step: BlocksStep, committed: bytes | None) -> None:
        self._step = step
        self._blocks: Blocks | None = None
        self._offers: list[Offer] = []
        self._notify_at: datetime | None = None
        self._publish_due = 0.0
        if committed is not None:
            state = PartitionState.decode(committed, "recovery snapshot of a partition")
            self._start(state.partition, state)
            self._notify_at = datetime.now(timezone.utc)

    def _start(self, partition: str, committed: PartitionState | None) -> Blocks:
        self._blocks = self._step.make(partition, committed)
        self._offers.append(self._blocks.start(_now_ms()))
        return self._blocks

    @override
    def on_batch(self, values: list[Frame]) -> tuple[list[Offer], bool]:
        blocks = self._blocks or self._start(values[0].partition, None)
        self._step.worker.appended = True
        for frame in values:
            offer = blocks.append(frame)
            if offer:
                self._offers.append(offer)
        wait_s = self._publish_due - time.monotonic()
        if wait_s <= 0:
            self._publish()
        elif self._notify_at is None:
            self._notify_at = datetime.now(timezone.utc) + timedelta(seconds=wait_s)
        return self._emit()

    @override
    def on_notify(self) -> tuple[list[Offer], bool]:
        self._publish()
        return self._emit()

    @override
    def on_eof(self) -> tuple[list[Offer], bool]:
        self._publish()
        return self._emit()

    @override
    def notify_at(self) -> datetime | None:
        return self._notify_at

    @override
    def snapshot(self) -> bytes:
        if self._blocks is None:
            raise AssertionError("bug: a snapshot was asked for before the first frame")
        self._step.worker.sync()
        return self._blocks.snapshot()

    def _publish(self) -> None:
        if self._blocks:
            self._blocks.tidy(_now_ms())
            self._blocks.publish()
        self._publish_due = time.monotonic() + self._step.publish_interval_s
        self._notify_at = None

    def _emit(self) -> tuple[list[Offer], bool]:
        offers, self._offers = self._offers, []
        return offers, self.RETAIN


class BlocksStep:
    """Builds the logic of each partition; one instance serves all workers of a process."""

    def __init__(
        self,
        config: BlocksConfig,
        layout: Layout,
        files: Files,
        *,
        publish_interval_s: float,
        cache_bytes: int,
    ) -> None:
        """`cache_bytes` bounds the dedup indexes and keys of one worker."""
        self.publish_interval_s = publish_interval_s
        self._config = config
        self._layout = layout
        self._files = files
        self._cache_bytes = cache_bytes
        self._local = threading.local()

    @property
    def worker(self) -> _Worker:
        """What belongs to the worker thread that asks."""
        if not hasattr(self._local, "worker"):
            self._local.worker = _Worker(KeyCache(self._cache_bytes))
        found: _Worker = self._local.worker
        return found

    def make(self, partition: str, committed: PartitionState | None) -> Blocks:
        blocks = Blocks(
            self._config, partition, self._layout, self._files, self.worker.cache, committed
        )
        self.worker.partitions.append(blocks)
        return blocks

    def __call__(self, committed: bytes | None) -> _BlocksLogic:
        """The builder that the stateful operator asks for."""
        return _BlocksLogic(self, committed)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
