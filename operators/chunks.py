"""The `chunks` step: `storage.partition.chunks` as a sink, one writer a partition.

Offers are handled in order on one thread beside each worker, so that ingest never waits for a merge
and memory holds one merge at a time. The sink keeps nothing in snapshots: after a restart `blocks`
offers again whatever the catalog does not cover. A merge that fails fails the job at its next turn.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, field

from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition
from typing_extensions import override

from forebay.operators.measures import count_merges
from forebay.operators.process import PerThread, failure, note, noted, stopping
from forebay.operators.routing import partition_name
from forebay.storage.base.disk import Disk
from forebay.storage.base.layout import Layout
from forebay.storage.base.times import steady_ms
from forebay.storage.partition.chunks import Chunks
from forebay.storage.partition.offer import Offer


@dataclass
class _ChunksPartition(StatefulSinkPartition[Offer, None]):
    chunks: Chunks
    merger: ThreadPoolExecutor
    running: list[Future[None]] = field(default_factory=list)

    @override
    @noted
    def write_batch(self, values: list[Offer]) -> None:
        for offer in values:
            self.running.append(self.merger.submit(self._take, offer))
        self._check()

    def _take(self, offer: Offer) -> None:
        """The offer's time is when its turn comes: what it replaces stays for a grace period from
        then on."""
        before, started_s = self.chunks.merged, time.perf_counter()
        self.chunks.take(offer, steady_ms())
        if count := self.chunks.merged - before:
            count_merges(count, time.perf_counter() - started_s)

    @override
    @noted
    def snapshot(self) -> None:
        self._check()

    @override
    def close(self) -> None:
        """Wait for what is being merged; on a stop or a failure, leave merges that have not begun
        to the next run."""
        for future in self.running:
            if (stopping() or failure()) and future.cancel():
                continue
            if error := future.exception():
                note(error)

    def _check(self) -> None:
        """Raise what a merge raised."""
        for future in [future for future in self.running if future.done()]:
            self.running.remove(future)
            future.result()


@dataclass
class ChunksSink(FixedPartitionedSink[Offer, None]):
    """Chunks of all partitions that this run may see, of which this process writes its `own`: those
    whose blocks it has, which may be on no other host."""

    partitions: list[str]
    own: list[str]
    layout: Layout
    disk: Disk
    _: KW_ONLY
    blocks_per_chunk: int
    grace_ms: int
    merge_bytes: int
    compacted_ms: int
    met: Callable[[], None] = lambda: None
    """Called when the engine asks for partitions: all its processes have found each other then."""

    def __post_init__(self) -> None:
        self.partitions = sorted(self.partitions)
        self._merger = PerThread(lambda: ThreadPoolExecutor(1, thread_name_prefix="merge"))
        self._chunks: dict[str, Chunks] = {}

    @override
    def list_parts(self) -> list[str]:
        self.met()
        return self.own

    @override
    def part_fn(self, item_key: str) -> int:
        return self.partitions.index(partition_name(item_key))

    @override
    @noted
    def build_part(self, step_id: str, for_part: str, resume_state: None) -> _ChunksPartition:
        """The engine may rebuild a partition that has taken offers: when it loads a snapshot of a
        later epoch than that of the blocks that made them. The chunks stay the same."""
        if for_part not in self._chunks:
            self._chunks[for_part] = Chunks(
                for_part,
                self.layout,
                self.disk,
                self.blocks_per_chunk,
                self.grace_ms,
                self.merge_bytes,
                self.compacted_ms,
            )
        return _ChunksPartition(self._chunks[for_part], self._merger.get())
