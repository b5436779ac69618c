"""The small files that are pinned in tests/golden: their values, and how they are encoded now."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from forebay.storage.base.layout import (
    BlockId,
    ChunkId,
    block_log_name,
    chunk_name,
    drop_log_name,
    reject_log_name,
)
from forebay.storage.formats.boundary import Boundary, Completed, Seal
from forebay.storage.formats.catalog import Catalog, Chunk
from forebay.storage.formats.checksum import Checksum
from forebay.storage.formats.columns import arrow_schema, column_types
from forebay.storage.formats.log import Extent
from forebay.storage.formats.rejects import RejectFile, RejectFilter
from forebay.storage.formats.replay_request import ReplayRequest
from forebay.storage.formats.schema import Column, Schema
from forebay.storage.formats.state import BlockState, Counters, PartitionState, by_id

GOLDEN = Path(__file__).parent / "golden" / "2"
GOLDEN_1 = GOLDEN.parent / "1"
NOON_MS = 1_714_564_800_000
"""2024-05-01 12:00 UTC"""
SCHEMA = arrow_schema(
    Schema(
        columns=(
            Column("id", ("id",)),
            Column("n", ("n",), "int"),
            Column("f", ("f",), "float"),
            Column("b", ("b",), "bool"),
            Column("t", ("t",), "time_us"),
        ),
        key=("id",),
        upload_time=Column("upload_time", ("time",), "time"),
    )
)
BLOCK = BlockId(NOON_MS, 17)
LOG, REJECT_LOG, DROP_LOG = block_log_name(BLOCK, 3), reject_log_name(2, 3), drop_log_name(1, 3)
MANIFEST = PartitionState(
    partition="events-00000",
    incarnation=3,
    key=("id",),
    block_span_ms=300_000,
    schema=column_types(SCHEMA),
    snapshots=8,
    sequence=17,
    evictions=5,
    runs={"1": 4},
    stream_time_ms=NOON_MS + 5,
    next_offsets={"s0": 4, "s1": 1},
    end_offsets={"s0": 9},
    counters=Counters(
        accepted=3,
        duplicates=4,
        conflicts=1,
        rejects=2,
        late=1,
        after_seal=1,
        nulled=6,
        skipped=7,
        rejected={"bad json": 1, "no key: id": 1},
        rejects_expired=3,
    ),
    hot=by_id(
        [BlockState(BLOCK, NOON_MS + 5, NOON_MS + 3, NOON_MS + 5, (Extent(LOG, 2354, 3, 77),))]
    ),
    evicted=by_id(
        [
            BlockState(
                BlockId(NOON_MS - 300_000, 16),
                NOON_MS - 9,
                NOON_MS - 300_000,
                NOON_MS - 1,
                (Extent("20240501T1155-000016.2.arrows", 10, 1, 4_294_967_295),),
                number=5,
                covered_at_ms=NOON_MS + 1,
            )
        ]
    ),
    rejects=[Extent(REJECT_LOG, 99, 2, 5)],
    drops=[Extent(DROP_LOG, 98, 3, 6)],
    replays=4,
    seal=Seal(3, NOON_MS, "5ea1"),
    committed_seal=2,
    committed_ms=NOON_MS + 4,
    seed="00112233445566778899aabbccddeeff",
    paths={"id": (("id",), ("event", "id")), "n": (("n",),)},
    types={"id": "id", "n": "int"},
    roles={"user": "id"},
    reject_files={REJECT_LOG: RejectFile(NOON_MS + 6, {"bad json": 1, "no key: id": 1})},
)
MANIFEST_1 = replace(
    MANIFEST,
    counters=replace(MANIFEST.counters, rejected={}, rejects_expired=0),
    seed="",
    paths={},
    types={},
    roles={},
    reject_files={},
)
CHUNK_ID = ChunkId(4, 5, 3)
CATALOG = Catalog(
    "events-00000",
    (
        Chunk(
            id=CHUNK_ID,
            file=chunk_name(CHUNK_ID, NOON_MS + 3),
            blocks=(BlockId(NOON_MS - 300_000, 16), BLOCK),
            batch=2,
            rows=3,
            checksum=Checksum(
                4_000, 4_294_967_295, footer_bytes=900, footer_crc=9, pieces="/////w=="
            ),
            first_ms=NOON_MS - 300_000,
            last_ms=NOON_MS + 5,
            schema=column_types(SCHEMA),
            late=1,
        ),
    ),
    dropped=(BlockId(NOON_MS - 300_000, 15),),
    handed_off_rows=8,
    expired_rows=9,
)
CATALOG_1 = replace(
    CATALOG, chunks=(replace(CATALOG.chunks[0], checksum=Checksum(4_000, 4_294_967_295, 900, 9)),)
)
BATCH = Boundary(
    2,
    NOON_MS,
    late_from=3,
    seal=Seal(3, NOON_MS, "5ea1"),
    history=(
        Completed(1, NOON_MS - 300_000, seal=1, late=False, at_ms=NOON_MS + 6),
        Completed(2, NOON_MS, seal=3, late=True, at_ms=NOON_MS + 7, table="2.metadata.json"),
    ),
)
REPLAY = ReplayRequest(
    4, RejectFilter(("bad json",), ("s0",), (2, 3), NOON_MS, NOON_MS + 1), {"events-00000": 3}
)
DELETION = replace(REPLAY, delete={"events-00000": {"s0": 4}})


class Record(NamedTuple):
    """A small file: its name, its bytes as encoded now, and its decoder."""

    name: str
    kind: str
    data: bytes
    decode: Callable[[bytes, str], object]
    value: object


RECORDS = [
    Record("manifest.json", "manifest", MANIFEST.encode(), PartitionState.decode, MANIFEST),
    Record("catalog.json", "catalog", CATALOG.encode(), Catalog.decode, CATALOG),
    Record("replay.json", "replay", REPLAY.encode(), ReplayRequest.decode, REPLAY),
    Record("delete.json", "replay", DELETION.encode(), ReplayRequest.decode, DELETION),
    Record("batch.json", "batch", BATCH.encode(), Boundary.decode, BATCH),
    Record("batch-uncovered.json", "batch", Boundary().encode(), Boundary.decode, Boundary()),
]
RECORDS_1 = [
    RECORDS[0]._replace(value=MANIFEST_1),
    RECORDS[1]._replace(value=CATALOG_1),
    RECORDS[2],
    *RECORDS[4:],
]
