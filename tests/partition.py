"""One partition under test: its messages, real files below a temporary folder, and what a reader
sees of them.

What always holds: a crash forgets every object and closes every file, but leaves the files; wall
time is what the test says it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from forebay.storage.base.disk import Disk
from forebay.storage.base.layout import Layout
from forebay.storage.dedup.keys import KeyCache
from forebay.storage.formats.catalog import Catalog, read_catalog
from forebay.storage.formats.columns import arrow_schema
from forebay.storage.formats.frame import REJECT_SCHEMA, Frame
from forebay.storage.formats.hashes import U64, Hash
from forebay.storage.formats.log import Extent, read_log
from forebay.storage.formats.schema import OFFSET, PARTITION, Column, Schema
from forebay.storage.formats.state import PartitionState, read_manifest
from forebay.storage.partition.blocks import Blocks
from forebay.storage.partition.chunks import Chunks
from forebay.storage.partition.offer import Offer
from forebay.storage.partition.rules import Rules
from tests.oracle import Key, Oracle, Place

NAME = "p00"
SPAN_MS = 100
WINDOW_MS = 250
GRACE_MS = 1_000
START_MS = 1_700_000_000_000
EXTREMES: dict[str, list[object]] = {
    "odd_text": [None, "", "\ud7ff" * 16, "\U0010ffff" * 16, "a\0b", "x" * 300],
    "odd_number": [None, -(2**63), 2**63 - 1, 0],
    "odd_real": [None, -0.0, 1.7976931348623157e308, 5e-324],
    "odd_at_s": [None, -62_135_596_800, 253_402_300_799],
    "odd_at": [None, -62_135_596_800_000, 253_402_300_799_999],
    "odd_at_us": [None, -62_135_596_800_000_000, 253_402_300_799_999_999],
}
"""What `decode` may give in columns of each type; an event has some, by its offset."""
SCHEMA = Schema(
    columns=(
        Column("id", ("id",)),
        Column("part", ("part",), "int"),
        Column("odd_text", ("odd_text",)),
        Column("odd_number", ("odd_number",), "int"),
        Column("odd_real", ("odd_real",), "float"),
        Column("odd_at_s", ("odd_at_s",), "time_s"),
        Column("odd_at", ("odd_at",), "time"),
        Column("odd_at_us", ("odd_at_us",), "time_us"),
    ),
    key=("id", "part"),
    upload_time=Column("upload_time", ("time",), "time"),
    raw=False,
)
CONFIG = Rules(SCHEMA, SPAN_MS, WINDOW_MS, GRACE_MS)
BIG_CACHE = 1 << 30


def one_hash(columns: Sequence[pa.Array]) -> U64:
    """All keys collide."""
    return np.full(len(columns[0]), 7, dtype=np.uint64)


@dataclass(frozen=True)
class Message:
    """An event, or a reject if it has no key. `upload_ms` counts from START_MS."""

    place: Place
    key: Key | None
    upload_ms: int = 0

    @property
    def source(self) -> str:
        return self.place[0]

    @property
    def offset(self) -> int:
        return self.place[1]


def event(offset: int, key: int, upload_ms: int, source: str = "s0") -> Message:
    """Two keys in a row share their first column."""
    return Message((source, offset), (f"k{key // 2}", key % 2), START_MS + upload_ms)


def frame(messages: Sequence[Message], schema: Schema = SCHEMA) -> Frame:
    """The messages, all of one source, as `decode` would give them."""
    events = [
        {
            PARTITION: message.source,
            OFFSET: message.offset,
            "upload_time": message.upload_ms,
            "id": message.key[0],
            "part": message.key[1],
            **{name: odd[message.offset % len(odd)] for name, odd in EXTREMES.items()},
        }
        for message in messages
        if message.key is not None
    ]
    rejects = [
        {PARTITION: message.source, OFFSET: message.offset, "reason": "bad json"}
        for message in messages
        if message.key is None
    ]
    return Frame(
        partition=NAME,
        source=messages[0].source,
        first_offset=messages[0].offset,
        next_offset=messages[-1].offset + 1,
        events=_batch(events, arrow_schema(schema)),
        rejects=_batch(rejects, REJECT_SCHEMA),
    )


def _batch(rows: list[dict[str, object]], schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(
        [pa.array([row.get(f.name) for row in rows], f.type) for f in schema], schema=schema
    )


class OpenDisk(Disk):
    """The real file system, whose locks a crash can let go of."""

    def close(self) -> None:
        for file, _ in self._held.values():
            file.close()
        self._held = {}


@dataclass
class Partition:
    """`blocks` and `chunks` of one partition, with the queue of offers between them."""

    root: Path
    config: Rules = CONFIG
    cache_bytes: int = BIG_CACHE
    hash: Hash | None = None
    blocks_per_chunk: int = 2
    now_ms: int = 0
    files: OpenDisk = field(default_factory=OpenDisk)
    offers: list[Offer] = field(default_factory=list)
    name: str = NAME

    @property
    def layout(self) -> Layout:
        return Layout(self.root)

    def start(self, snapshot: bytes | None = None) -> Partition:
        """Begin, or resume from a snapshot."""
        committed = PartitionState.decode(snapshot, "snapshot") if snapshot else None
        self.cache = KeyCache(self.cache_bytes)
        self.blocks = Blocks(
            self.config, self.name, self.layout, self.files, self.cache, committed, self.hash
        )
        self.chunks = Chunks(
            self.name, self.layout, self.files, self.blocks_per_chunk, self.config.grace_ms
        )
        self.offers = [self.blocks.start(self.now_ms)]
        return self

    def append(self, *messages: Message) -> None:
        """Take messages in; a frame for each run of one source."""
        low = 0
        for high in range(1, len(messages) + 1):
            if high == len(messages) or messages[high].source != messages[low].source:
                self.take(frame(messages[low:high], self.config.schema))
                low = high

    def take(self, taken: Frame) -> None:
        offer = self.blocks.append(taken, self.now_ms)
        if offer:
            self.offers.append(offer)

    def merge(self) -> None:
        """Let `chunks` handle every offer made so far."""
        offers, self.offers = self.offers, []
        for offer in offers:
            self.chunks.take(offer, self.now_ms)

    def tidy(self, after_ms: int) -> None:
        """Let wall time go on, and both steps clean up."""
        self.now_ms += after_ms
        self.blocks.tidy(self.now_ms)
        self.offers.append(Offer(self.manifest().incarnation, ()))
        self.merge()

    def crash(self) -> None:
        del self.blocks, self.chunks
        self.offers = []
        self.files.close()

    def manifest(self) -> PartitionState:
        manifest = read_manifest(self.files, self.layout.manifest(self.name))
        assert manifest is not None
        return manifest

    def catalog(self) -> Catalog:
        return read_catalog(self.files, self.layout.catalog(self.name), self.name)

    def seen(self, manifest: PartitionState | None = None) -> list[Place]:
        """Every event that a reader would find who read `manifest` and now reads the rest."""
        manifest = manifest or self.manifest()
        catalog = self.catalog().committed(manifest.runs, manifest.incarnation)
        tables = [
            pq.ParquetFile(self.layout.chunks(self.name) / chunk.file).read()
            for chunk in catalog.chunks
        ]
        for block in manifest.blocks:
            if block.id not in catalog.covered:
                tables += self._logs(block.extents)
        return _places(tables)

    def by_block(self) -> dict[tuple[int, bool], list[list[Place]]]:
        """As `Oracle.blocks`, while none is merged."""
        found: dict[tuple[int, bool], list[list[Place]]] = {}
        for block in sorted(self.manifest().blocks, key=lambda block: block.id):
            events = _places(self._logs(block.extents))
            found.setdefault((block.id.interval_ms, block.id.backfill), []).append(events)
        return found

    def _logs(self, extents: Sequence[Extent]) -> list[pa.RecordBatch]:
        folder = self.layout.hot(self.name)
        return [batch for extent in extents for batch in read_log(self.files, folder, extent)]


def _places(tables: Sequence[pa.Table | pa.RecordBatch]) -> list[Place]:
    return sorted(
        place
        for table in tables
        for place in zip(table[PARTITION].to_pylist(), table[OFFSET].to_pylist(), strict=True)
    )


def judge(messages: Sequence[Message], oracle: Oracle | None = None) -> Oracle:
    """The oracle after it took these messages."""
    oracle = oracle or Oracle(SPAN_MS, WINDOW_MS)
    for message in messages:
        if message.key is None:
            oracle.reject(message.place)
        else:
            oracle.event(message.place, message.key, message.upload_ms)
    return oracle


def assert_agrees(partition: Partition, oracle: Oracle) -> None:
    """What was published is what the oracle says: events, counters, stream time, offsets."""
    manifest = partition.manifest()
    counters = manifest.counters
    assert partition.seen() == oracle.places()
    assert (counters.accepted, counters.duplicates, counters.rejects, counters.late) == (
        oracle.accepted,
        oracle.duplicates,
        oracle.rejects,
        oracle.late,
    )
    assert manifest.stream_time_ms == oracle.stream_time_ms
    assert manifest.next_offsets == oracle.next_offsets
    assert sum(extent.rows for extent in manifest.rejects) == oracle.rejects
    assert sum(block.rows for block in manifest.hot.values()) == sum(
        len(block.events) for block in oracle.live.values()
    )
    assert manifest.evictions == len(oracle.closed)


def counts(partition: Partition) -> tuple[int, int]:
    """Events accepted and duplicates, once what was taken in is published."""
    partition.blocks.publish()
    counters = partition.manifest().counters
    return counters.accepted, counters.duplicates
