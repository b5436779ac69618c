"""What is known of one partition: the commit record, and the hot manifest.

The same value serves twice. Returned from a snapshot it commits the logs up to the recorded
lengths; published at DATA/hot/PARTITION/manifest.json it tells readers what is hot. The published
one may be ahead of the committed one by what came since the last snapshot.

Format: a record (see `record`) of kind "manifest", version 2; the fields are those of
`PartitionState`. Its size depends on the number of blocks, never on that of events or rejects.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import GetPydanticSchema
from pydantic_core import core_schema

from forebay.storage.base import record
from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import Corruption
from forebay.storage.base.layout import BlockId
from forebay.storage.base.record import OPTIONAL, Count, Seed, SpanMs, TimeMs
from forebay.storage.formats.boundary import Seal
from forebay.storage.formats.columns import ARROW_TYPES, ColumnTypes
from forebay.storage.formats.log import Extent
from forebay.storage.formats.rejects import RejectFile
from forebay.storage.formats.schema import Column, ColumnType

KIND = "manifest"
VERSION = 2


@dataclass
class Counters:
    """Since the partition began; exact over restarts.

    `rejects` are those that exist now: a reject that passes a replay moves to `accepted` or
    `duplicates`, a deleted one to `rejects_expired`. So the sum of these four is the number of
    messages. `conflicts` are duplicates whose payload is not that of the event kept. `late` events
    were older than the dedup window; those `after_seal` were of a time that was already sealed.
    """

    accepted: Count = 0
    duplicates: Count = 0
    conflicts: Count = 0
    rejects: Count = 0
    late: Count = 0
    after_seal: Count = 0
    nulled: Count = 0
    skipped: Count = 0
    rejected: dict[str, Count] = field(default_factory=dict)
    """The `rejects` by reason, and where a column is at fault by "REASON: COLUMN"."""
    rejects_expired: Count = 0


@dataclass(frozen=True)
class BlockState:
    """One block. `touched_ms` is the stream time of its last update; times are upload times.

    `late` is the number of the seal that its events arrived too late for, 0 if they did not.
    """

    id: BlockId
    touched_ms: TimeMs
    first_ms: TimeMs
    last_ms: TimeMs
    extents: tuple[Extent, ...]
    late: Count = 0
    number: Count | None = None
    """Eviction number, None while the block is hot."""
    covered_at_ms: TimeMs | None = None
    """Wall time at which a chunk was first seen to cover it."""
    row_bytes: Count = field(default=0, metadata=OPTIONAL)
    """The mean size of its rows in memory (see `log.RowBytes`); 0 if that is not known."""

    @property
    def rows(self) -> int:
        return sum(extent.rows for extent in self.extents)


def by_id(blocks: Iterable[BlockState]) -> dict[BlockId, BlockState]:
    """The blocks by their ids, in the same order. Raises ValueError if two have the same."""
    listed = list(blocks)
    found = {block.id: block for block in listed}
    if len(found) < len(listed):
        raise ValueError("expected each block once")
    return found


BlocksById = Annotated[
    dict[BlockId, BlockState],
    GetPydanticSchema(
        lambda _, handler: core_schema.no_info_after_validator_function(
            by_id, handler.generate_schema(list[BlockState])
        )
    ),
]
"""Blocks by their ids; in a record, a list of them."""


@dataclass
class PartitionState:
    """Everything `blocks` must know to go on. Unlisted log bytes do not count."""

    partition: str
    incarnation: Count
    key: tuple[str, ...]
    block_span_ms: SpanMs
    schema: ColumnTypes
    snapshots: Count = 0
    sequence: Count = 0
    evictions: Count = 0
    runs: dict[str, Count] = field(default_factory=dict)
    """For each earlier run (its incarnation, as text) that this state descends from, the last
    eviction it committed: a chunk of any other eviction does not count (`Catalog.committed`)."""
    stream_time_ms: TimeMs | None = None
    next_offsets: dict[str, Count] = field(default_factory=dict)
    end_offsets: dict[str, Count] = field(default_factory=dict)
    counters: Counters = field(default_factory=Counters)
    hot: BlocksById = field(default_factory=dict)
    evicted: BlocksById = field(default_factory=dict)
    """In order of eviction."""
    rejects: list[Extent] = field(default_factory=list)
    """Oldest first; bounded, however many rejects come (see `reject_log`)."""
    drops: list[Extent] = field(default_factory=list)
    """Drop logs. Bounded, and not made durable by a commit: what they tell may be incomplete."""
    replays: Count = 0
    """Number of the last replay request that was carried out."""
    seal: Seal | None = None
    """The last seal (see `boundary`): what comes for times below it is late."""
    committed_seal: Count = 0
    """Number of the last seal that no crash can undo."""
    committed_ms: TimeMs | None = None
    """Stream time at the last snapshot that no crash can undo."""
    seed: Seed = field(default="", metadata=OPTIONAL)
    """Of the hash by which keys are indexed (see `hashes.KeyHash`). Fixed when the partition began;
    empty in partitions of version 1, which have the hash without a seed."""
    paths: dict[str, tuple[tuple[str, ...], ...]] = field(default_factory=dict, metadata=OPTIONAL)
    """Where each declared column is taken from in a message: its JSON paths, of which the first
    that holds a value counts."""
    backfill_after_ms: Count = field(default=0, metadata=OPTIONAL)
    """How old an interval is whose events are backfill (see `admission`): the dedup window under
    which this partition was first opened. Never changes; 0 before that."""
    types: dict[str, ColumnType] = field(default_factory=dict, metadata=OPTIONAL)
    """What the values of each declared column are; its Arrow type alone does not tell an id from
    other text, nor of which unit a time is as a number."""
    roles: dict[str, str] = field(default_factory=dict, metadata=OPTIONAL)
    """Which column has the user, the event, the time and the session, as far as the schema says."""
    reject_files: dict[str, RejectFile] = field(default_factory=dict, metadata=OPTIONAL)
    """Of each file in `rejects`, by its name."""

    @property
    def blocks(self) -> list[BlockState]:
        """The hot ones in order of id, then the evicted ones."""
        return [*(self.hot[id] for id in sorted(self.hot)), *self.evicted.values()]

    @property
    def declared(self) -> tuple[Column, ...]:
        """The columns that ever were declared, as far as is known where a message has them."""
        return tuple(
            Column(name, paths[0], type, tuple(paths[1:]))
            for name, type in self.types.items()
            if (paths := self.paths.get(name)) and str(ARROW_TYPES[type]) == self.schema.get(name)
        )

    def encode(self) -> bytes:
        blocks = self.blocks
        hot, evicted = blocks[: len(self.hot)], blocks[len(self.hot) :]
        return record.encode(KIND, VERSION, {**vars(self), "hot": hot, "evicted": evicted})

    @classmethod
    def decode(cls, data: bytes, name: str) -> PartitionState:
        """Raises Corruption or FormatVersion; `name` describes the data in errors."""
        state = record.read(cls, KIND, VERSION, data, name)
        if not set(state.key) <= set(state.schema):
            raise Corruption(f"{name}: expected a key of columns of the schema, got {state.key}", 0)
        return state


def read_manifest(disk: Disk, path: Path) -> PartitionState | None:
    """The published state, or None if there is none."""
    try:
        data = disk.read(path)
    except FileNotFoundError:
        return None
    return PartitionState.decode(data, str(path))
