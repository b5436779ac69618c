"""The partitions of one worker, in this process: blocks on real files, without an engine."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.events import SCHEMA
from forebay.flows.settings import Settings
from forebay.operators.blocks import SYNC_THREADS
from forebay.storage.base.layout import Layout
from forebay.storage.dedup.keys import KeyCache
from forebay.storage.formats.frame import Frame
from forebay.storage.partition.blocks import Blocks
from forebay.storage.partition.offer import Offer
from forebay.storage.partition.rules import Rules
from tests.partition import OpenDisk

SPAN_MS, WINDOW_MS, GRACE_MS = 300_000, 600_000, 600_000


class Partitions:
    """`forebay run` has one such set per worker. Settings are the defaults. Used in a `with`."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.layout, self.files = Layout(folder), OpenDisk()
        config = Rules(SCHEMA, SPAN_MS, WINDOW_MS, GRACE_MS)
        cache = KeyCache(int(Settings().cache_bytes))
        self._blocks = {
            name: Blocks(config, name, self.layout, self.files, cache, None) for name in names
        }
        self.offers: list[tuple[str, Offer]] = [
            (name, blocks.start(0)) for name, blocks in self._blocks.items()
        ]
        self._pool = ThreadPoolExecutor(SYNC_THREADS)

    def __enter__(self) -> Partitions:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()
        self.files.close()

    def append(self, frame: Frame) -> None:
        offer = self._blocks[frame.partition].append(frame, 0)
        if offer:
            self.offers.append((frame.partition, offer))

    def snapshot(self) -> int:
        """Commit as the `blocks` step does: one sync of all logs on threads, then each partition's
        record. Returns the bytes of the records."""
        logs = [log for blocks in self._blocks.values() for log in blocks.flush()]
        list(self._pool.map(lambda log: log.sync(), logs))
        return sum(len(blocks.snapshot()) for blocks in self._blocks.values())

    def publish(self) -> None:
        for blocks in self._blocks.values():
            blocks.publish()
