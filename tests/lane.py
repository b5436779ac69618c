"""A lane: one partition of a node with every column type, written by `blocks` and `chunks`, and
what a query of it must give.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
from polars.testing import assert_frame_equal

import forebay
from forebay.storage.base.disk import Disk
from forebay.storage.base.layout import Layout
from forebay.storage.dedup.keys import KeyCache
from forebay.storage.formats.boundary import Boundary
from forebay.storage.formats.catalog import Catalog, read_catalog
from forebay.storage.formats.columns import arrow_schema
from forebay.storage.formats.frame import REJECT_SCHEMA, Frame
from forebay.storage.formats.schema import OFFSET, PARTITION, RAW, UPLOAD_TIME, Column, Schema
from forebay.storage.formats.state import PartitionState
from forebay.storage.partition.blocks import Blocks
from forebay.storage.partition.chunks import Chunks
from forebay.storage.partition.offer import Offer
from forebay.storage.partition.rules import Rules
from tests.oracle import Oracle
from tests.partition import (
    GRACE_MS,
    SPAN_MS,
    START_MS,
    WINDOW_MS,
    Message,
    OpenDisk,
    event,
    judge,
)

COLUMNS = (
    Column("id", ("id",)),
    Column("part", ("part",), "int"),
    Column("text", ("text",)),
    Column("number", ("number",), "float"),
    Column("flag", ("flag",), "bool"),
    Column("at", ("at",), "time"),
    Column("at_s", ("at",), "time_s"),
    Column("at_us", ("at",), "time_us"),
)
SCHEMA = Schema(COLUMNS, ("id", "part"), Column(UPLOAD_TIME, ("time",), "time"))
NARROW = replace(SCHEMA, columns=COLUMNS[:3], raw=False)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
IN_ORDER = (PARTITION, OFFSET)


def time(ms: int) -> datetime:
    return EPOCH + timedelta(milliseconds=ms)


def row(message: Message, schema: Schema = SCHEMA) -> dict[str, Any]:
    """An event's values, about a third of them null; null where `schema` has no such column."""
    assert message.key is not None
    n, seconds = message.offset, time(START_MS) + timedelta(seconds=message.offset)
    values = {
        PARTITION: message.source,
        OFFSET: n,
        UPLOAD_TIME: time(message.upload_ms),
        "id": message.key[0],
        "part": message.key[1],
        "text": None if n % 3 == 0 else f"t{n % 5} é",
        "number": None if n % 3 == 1 else n / 4 - 2,
        "flag": None if n % 3 == 2 else n % 2 == 0,
        "at": None if n % 3 == 0 else seconds + timedelta(milliseconds=n),
        "at_s": None if n % 3 == 1 else seconds,
        "at_us": None if n % 3 == 2 else seconds + timedelta(microseconds=n),
        RAW: b'{"n":%d,"a":{"b":"x%d"}}' % (n, n % 4) if n % 2 else b"\xff{%d}" % n,
    }
    declared = arrow_schema(schema).names
    return {name: value if name in declared else None for name, value in values.items()}


EMPTY = pl.DataFrame(arrow_schema(SCHEMA).empty_table())


def in_memory(rows: Sequence[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=EMPTY.schema).sort(IN_ORDER)


@dataclass
class Lane:
    """One partition of one node, its messages, and the oracle's opinion of what was published."""

    root: Path
    name: str = "p00"
    schema: Schema = SCHEMA
    blocks_per_chunk: int = 2
    now_ms: int = 0
    files: OpenDisk = field(default_factory=OpenDisk)
    offers: list[Offer] = field(default_factory=list)
    oracle: Oracle = field(default_factory=lambda: Oracle(SPAN_MS, WINDOW_MS))
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    published: list[dict[str, Any]] = field(default_factory=list)

    @property
    def layout(self) -> Layout:
        return Layout(self.root)

    def start(self, snapshot: bytes | None = None) -> Lane:
        committed = PartitionState.decode(snapshot, "snapshot") if snapshot else None
        config = Rules(self.schema, SPAN_MS, WINDOW_MS, GRACE_MS)
        cache = KeyCache(1 << 30)
        self.blocks = Blocks(config, self.name, self.layout, self.files, cache, committed)
        self.chunks = Chunks(self.name, self.layout, self.files, self.blocks_per_chunk, GRACE_MS)
        self.offers = [self.blocks.start(self.now_ms)]
        return self

    def take(self, *messages: Message, end_offset: int | None = None) -> Lane:
        for message in messages:
            if message.key is not None:
                self.rows[message.offset] = row(message, self.schema)
        offer = self.blocks.append(
            lane_frame(self.name, messages, self.schema, end_offset), self.now_ms
        )
        self.offers += [offer] if offer else []
        judge(messages, self.oracle)
        return self

    def publish(self) -> Lane:
        self.blocks.publish()
        self.published = [self.rows[offset] for _, offset in self.oracle.places()]
        return self

    def merge(self) -> Lane:
        offers, self.offers = self.offers, []
        for offer in offers:
            self.chunks.take(offer, self.now_ms)
        return self

    def tidy(self, after_ms: int) -> Lane:
        self.now_ms += after_ms
        self.blocks.tidy(self.now_ms)
        self.offers.append(Offer(self.manifest().incarnation, ()))
        return self.merge()

    def crash(self) -> Lane:
        del self.blocks, self.chunks
        self.files.close()
        return self

    def manifest(self) -> PartitionState:
        path = self.layout.manifest(self.name)
        return PartitionState.decode(path.read_bytes(), str(path))

    def catalog(self) -> Catalog:
        return read_catalog(self.files, self.layout.catalog(self.name), self.name)

    def hot_log(self) -> Path:
        """The log of the one live block."""
        (block,) = self.manifest().hot.values()
        (extent,) = block.extents
        return self.layout.hot(self.name) / extent.file


def lane_frame(
    name: str, messages: Sequence[Message], schema: Schema, end_offset: int | None = None
) -> Frame:
    """The messages, all of source `name`, as `decode` would give them."""
    rows = [row(message) for message in messages if message.key is not None]
    rejects = [
        {PARTITION: name, OFFSET: message.offset, "reason": "bad json"}
        for message in messages
        if message.key is None
    ]
    return Frame(
        partition=name,
        source=name,
        first_offset=messages[0].offset,
        next_offset=messages[-1].offset + 1,
        events=_batch(rows, arrow_schema(schema)),
        rejects=_batch(rejects, REJECT_SCHEMA),
        end_offset=end_offset,
    )


def _batch(rows: Sequence[dict[str, Any]], schema: pa.Schema) -> pa.RecordBatch:
    columns = [pa.array([one.get(f.name) for one in rows], f.type) for f in schema]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


Lanes = Callable[..., Lane]


def events(first: int, count: int, upload_ms: int, step_ms: int = 10) -> list[Message]:
    """New keys, in offset order, `step_ms` apart."""
    return [
        event(n, n, upload_ms + step_ms * (n - first), "p00") for n in range(first, first + count)
    ]


def filled(lane: Lane, name: str = "p00") -> Lane:
    """Five chunks' worth and more: hot, evicted, merged, late, duplicate and broken."""
    for n in range(12):
        batch = [event(20 * n + i, 12 * n + i % 14, 130 * n + 7 * i, name) for i in range(17)]
        late = event(20 * n + 17, 1_000 + n, 20 * n, name)
        lane.take(*batch, late, Message((name, 20 * n + 18), None))
        if n == 6:
            lane.publish().merge()
    return lane.publish().merge()


def hand_off(root: Path, number: int, covered_until_ms: int | None) -> None:
    batch = Boundary(number, covered_until_ms)
    Disk().replace(Layout(root).batch, batch.encode(), durable=False)


def collected(store: forebay.Store) -> pl.DataFrame:
    """All events, which SQL must give as `scan` does."""
    found = store.scan().collect().sort(IN_ORDER)
    assert_frame_equal(by_sql(store), found.drop(RAW, strict=False))
    return found


def by_sql(store: forebay.Store) -> pl.DataFrame:
    """The same by SQL, in the types of `scan`; without `raw`, which is JSON there."""
    schema = store.scan().collect_schema()
    names = [name for name in schema if name != RAW]
    quoted = ", ".join(f'"{name}"' for name in names)
    found = store.sql(f"select {quoted} from events")
    typed = found.with_columns(pl.col(name).cast(schema[name]) for name in names)
    return typed.sort(IN_ORDER)
