"""A worker of a job that is broken on purpose, so that tests can see the crash stories fail.

BROKEN names the bug that it has:

    keys       a restart forgets the dedup keys that only logs and chunks have
    hollow     a snapshot commits offsets, but not the events that are still in memory
    hasty      logs are deleted as soon as a chunk covers them, committed or not
    short      what was evicted is a duplicate of nothing any more
    credulous  an upload time of a far future is believed
    touchy     a message that is no event takes the region around it along
    forgetful  a replay lists the file of rejects still
    strict     an upload time that is ahead of the clock at all is not
    graceless  logs go as soon as a chunk has covered them for good, whoever reads them
    leaky      the cache of keys never lets go of any
    deaf       an append that fails is taken for one that succeeded
    unsettled  a partition of which nothing is heard is not committed in the first epochs
    parted     none, but its first epoch's snapshots are stored without the epoch, and it dies
    lasting    a chunk of evictions that were never committed stays
    wavering   stream time goes back to the upload time of the last event
    salted     the key of a partition's state is right for one number of workers only
    lenient    a log that is shorter than it was is read as far as it goes
    blind      a log whose checksum is another holds nothing
    mute       an error that ends a worker is told to no one
    boundless  a time may be of any year
    trimming   a number with a fraction is cut where an integer is expected
    seconds    what a chunk has of times in seconds is taken as they are stored there
    plodding   keys are looked up one by one, each in what is read back for it
    trusting   Kafka is read from where the consumer group says, as the consumer itself told it
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from forebay.flows import realtime, settings, worker
from forebay.operators import blocks as step
from forebay.operators.decode import DecodeConfig, Decoder, _Reasons
from forebay.operators.routing import route
from forebay.operators.sources import kafka
from forebay.operators.sources.messages import I64
from forebay.storage.base.disk import Appender
from forebay.storage.base.errors import Corruption
from forebay.storage.base.layout import Layout, PartitionKey
from forebay.storage.decoding import json_columns
from forebay.storage.decoding.exact import Exact
from forebay.storage.decoding.json_reader import REGION_ROWS
from forebay.storage.dedup.key_sources import ChunkKeys, LogKeys
from forebay.storage.dedup.keys import KeyCache, KeySet
from forebay.storage.formats import chunk
from forebay.storage.formats.catalog import Catalog
from forebay.storage.formats.columns import parse_types
from forebay.storage.formats.frame import Frame
from forebay.storage.formats.hashes import U64
from forebay.storage.formats.log import Extent, LogReader, Span
from forebay.storage.formats.schema import UPLOAD_TIME, Schema
from forebay.storage.partition import resume
from forebay.storage.partition.blocks import Blocks
from forebay.storage.partition.journal import Journal
from forebay.storage.partition.known import KnownKeys
from forebay.storage.partition.offer import Offer
from forebay.storage.partition.reject_log import RejectLog
from forebay.storage.partition.rules import Rules
from forebay.verify.dying import DyingDisk
from forebay.verify.worker import main

FAR_MS = 10**13
STORED_S = 1.0
"""In which the engine stores a snapshot, and less than it waits for a lock."""
HOLD = """
import sqlite3, sys
from pathlib import Path
for part in Path(sys.argv[1]).glob("part-*.sqlite3"):
    store = sqlite3.connect(part)
    if store.execute("select count(*) from fronts").fetchone()[0]:
        store.execute("begin immediate")
        print("held", flush=True)
        sys.stdin.read()
"""


def keys() -> None:
    for source in (LogKeys, ChunkKeys):
        source.batches = lambda self: iter(())  # type: ignore[method-assign]


def hollow() -> None:
    snapshot = Journal.snapshot

    def hollow_snapshot(self: Journal) -> bytes:
        self.flush = list  # type: ignore[method-assign]
        try:
            return snapshot(self)
        finally:
            del self.flush

    step._Worker.sync = lambda self: None  # type: ignore[method-assign]
    Journal.snapshot = hollow_snapshot  # type: ignore[method-assign]


def hasty() -> None:
    tidy = Blocks.tidy

    def hasty_tidy(self: Blocks, now_ms: int) -> None:
        tidy(self, now_ms)
        covered = self._catalog.read().covered
        for block in self.state.evicted.values():
            if block.id in covered:
                for extent in block.extents:
                    self._disk.remove(self._folder / extent.file)

    Blocks.tidy = hasty_tidy  # type: ignore[method-assign]


def short() -> None:
    KnownKeys._retained_in = lambda self, *_, backfill: []  # type: ignore[method-assign]


def _accept_ahead(skew_ms: int) -> None:
    def other(schema: Schema, _: int, *rest: Any) -> DecodeConfig:
        return DecodeConfig(schema, skew_ms, *rest)

    realtime.DecodeConfig = other  # type: ignore[attr-defined,assignment]


def credulous() -> None:
    _accept_ahead(FAR_MS)


def strict() -> None:
    _accept_ahead(0)


def graceless() -> None:
    def config(*args: Any) -> Rules:
        return replace(Rules(*args), grace_ms=0)

    realtime.Rules = config  # type: ignore[attr-defined,assignment]


def leaky() -> None:
    KeyCache.trim = lambda self: None  # type: ignore[method-assign]


def deaf() -> None:
    append = Appender.append

    def deaf_append(self: Appender, data: bytes | memoryview) -> None:
        with suppress(OSError):
            append(self, data)

    Appender.append = deaf_append  # type: ignore[method-assign]


def unsettled() -> None:
    take, notify_at = step._BlocksLogic.on_batch, step._BlocksLogic.notify_at
    heard_of: set[int] = set()

    def taking(self: step._BlocksLogic, values: list[Frame]) -> tuple[list[Offer], bool]:
        heard_of.add(id(self))
        return take(self, values)

    def at(self: step._BlocksLogic) -> datetime | None:
        return notify_at(self) if id(self) in heard_of else None

    step._BlocksLogic.on_batch = taking  # type: ignore[method-assign]
    step._BlocksLogic.notify_at = at  # type: ignore[method-assign]


def parted() -> None:
    """Another process holds the lock of that part of the engine's store which has the epochs."""
    files_step, left = DyingDisk.step, iter(range(2, -1, -1))

    def parting_step(self: DyingDisk, name: str) -> None:
        files_step(self, name)
        if name == "snapshot-return" and next(left) == 0:
            holder = subprocess.Popen(
                [sys.executable, "-c", HOLD, str(Layout(settings.load().data_dir).recovery)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            if holder.stdout is None or not holder.stdout.readline():
                raise AssertionError("expected a part with epochs, found none")
            threading.Timer(STORED_S, self._die).start()

    DyingDisk.step = parting_step  # type: ignore[method-assign]


def trusting() -> None:
    add, poll = kafka._Reader.add, kafka._Reader.poll

    def trusting_add(self: kafka._Reader, number: int, next_offset: int) -> kafka._Queue:
        (place,) = self._consumer.committed([self._place(number)])
        return add(self, number, place.offset if place.offset >= 0 else next_offset)

    def telling_poll(self: kafka._Reader) -> None:
        poll(self)
        for queue in self._queues.values():
            at = self._place(queue.number, queue.next_offset)
            self._consumer.commit(offsets=[at], asynchronous=False)

    kafka._Reader.add = trusting_add  # type: ignore[method-assign]
    kafka._Reader.poll = telling_poll  # type: ignore[method-assign]


def touchy() -> None:
    read = Decoder._read

    def touchy_read(
        self: Decoder, messages: pa.Array, values: list[bytes], reasons: _Reasons
    ) -> list[pa.Array]:
        found = read(self, messages, values, reasons)
        for row in np.flatnonzero(reasons.mask).tolist():
            for near in range(row - row % REGION_ROWS, row):
                reasons.flag_row("bad json", near, "near a bad one")
        return found

    Decoder._read = touchy_read  # type: ignore[method-assign]


def lasting() -> None:
    Catalog.committed = lambda self, *_: self  # type: ignore[method-assign]


def wavering() -> None:
    admit = Blocks._admit

    def wavering_admit(self: Blocks, events: pa.RecordBatch) -> Offer | None:
        offer = admit(self, events)
        if events.num_rows:
            self.state.stream_time_ms = events.column(UPLOAD_TIME).cast(pa.int64())[-1].as_py()
        return offer

    Blocks._admit = wavering_admit  # type: ignore[method-assign]


def salted() -> None:
    workers = len(sys.argv) - 2

    def key_for(partition: PartitionKey) -> str:
        keys = (f"{partition.name}~{salt}" for salt in count())
        return next(key for key in keys if (route(key) - partition.number) % workers == 0)

    realtime.state_key = key_for  # type: ignore[attr-defined,assignment]


def lenient() -> None:
    follow = LogReader.follow

    def as_far_as_it_goes(
        self: LogReader, extent: Extent, *, torn_ok: bool = False
    ) -> list[tuple[Span, memoryview]]:
        return follow(self, extent, torn_ok=True)

    LogReader.follow = as_far_as_it_goes  # type: ignore[method-assign]
    resume._require_logs = lambda *_: None


def blind() -> None:
    follow = LogReader.follow

    def blind_follow(
        self: LogReader, extent: Extent, *, torn_ok: bool = False
    ) -> list[tuple[Span, memoryview]]:
        try:
            return follow(self, extent, torn_ok=torn_ok)
        except Corruption:
            return []

    LogReader.follow = blind_follow  # type: ignore[method-assign]


def mute() -> None:
    worker._told = lambda error: int(error is not None)


def boundless() -> None:
    json_columns.outside_years = lambda _: None  # type: ignore[attr-defined,assignment]


def trimming() -> None:
    Exact.suspects = lambda *_: np.empty(0, np.int64)  # type: ignore[method-assign]


def seconds() -> None:
    def stored(types: dict[str, str]) -> pa.Schema:
        return pa.schema([(f.name, chunk._as_stored(f.type)) for f in parse_types(types)])

    opened = ChunkKeys._open

    def as_stored(self: ChunkKeys) -> chunk.ChunkReader:
        reader = opened(self)
        reader._types = stored(self._chunk.schema)
        return reader

    ChunkKeys._open = as_stored  # type: ignore[method-assign]


def plodding() -> None:
    find = KeySet.find

    def one_by_one(self: KeySet, hashes: U64, keys: pa.RecordBatch, asked: I64) -> I64:
        found = []
        for row in range(len(hashes)):
            self.close()
            found.append(find(self, hashes[row : row + 1], keys, asked[row : row + 1]))
        return np.concatenate([np.empty(0, np.int64), *found])

    KeySet.find = one_by_one  # type: ignore[method-assign]


def forgetful() -> None:
    def listed(self: RejectLog, extent: Extent, left: Iterable[pa.RecordBatch]) -> Path:
        return self._folder / "none"

    RejectLog.rewrite = listed  # type: ignore[method-assign]


BUGS: dict[str, Callable[[], None]] = {
    bug.__name__: bug
    for bug in (
        keys, hollow, hasty, short, credulous, strict, graceless, leaky, deaf, touchy,
        forgetful, unsettled, parted, trusting, lasting, wavering, salted, lenient, blind, mute,
        plodding, boundless, trimming, seconds,
    )
}  # fmt: skip

if __name__ == "__main__":
    BUGS[os.environ["BROKEN"]]()
    worker.leave(main(sys.argv[1:]))
