"""What is known of one partition: the commit record, and the hot manifest.

The same value serves twice. Returned from a snapshot it commits the logs up to the recorded
lengths; published at DATA/hot/PARTITION/manifest.json it tells readers what is hot. The published
one may be ahead of the committed one by what came since the last snapshot.

Format: a record (see `record`) of kind "manifest", version 1; the fields are those of
`PartitionState`. Its size depends on the number of blocks, never on the number of events.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from storage import record
from storage.errors import Corruption
from storage.files import Files
from storage.layout import BlockId, checked
from storage.log import Extent

KIND = "manifest"
VERSION = 1


@dataclass
class Counters:
    """Since the partition began; exact over restarts."""

    accepted: int = 0
    duplicates: int = 0
    rejects: int = 0
    late: int = 0
    nulled: int = 0
    skipped: int = 0


@dataclass(frozen=True)
class BlockState:
    """One block. `touched_ms` is the stream time of its last update; times are upload times."""

    id: BlockId
    touched_ms: int
    first_ms: int
    last_ms: int
    extents: tuple[Extent, ...]
    number: int | None = None
    """Eviction number, None while the block is hot."""
    covered_at_ms: int | None = None
    """Wall time at which a chunk was first seen to cover it."""

    @property
    def rows(self) -> int:
        return sum(extent.rows for extent in self.extents)


@dataclass
class PartitionState:
    """Everything `blocks` must know to go on. Unlisted log bytes do not count."""

    partition: str
    incarnation: int
    key: tuple[str, ...]
    block_span_ms: int
    schema: dict[str, str]
    snapshots: int = 0
    sequence: int = 0
    evictions: int = 0
    runs: dict[str, int] = field(default_factory=dict)
    """For each earlier run (its incarnation, as text) that this state descends from, the last
    eviction it committed: a chunk of any other eviction does not count (`Catalog.committed`)."""
    stream_time_ms: int | None = None
    next_offsets: dict[str, int] = field(default_factory=dict)
    end_offsets: dict[str, int] = field(default_factory=dict)
    counters: Counters = field(default_factory=Counters)
    hot: list[BlockState] = field(default_factory=list)
    evicted: list[BlockState] = field(default_factory=list)
    rejects: list[Extent] = field(default_factory=list)

    @property
    def blocks(self) -> list[BlockState]:
        return [*self.hot, *self.evicted]

    def encode(self) -> bytes:
        return record.encode(KIND, VERSION, asdict(self))

    @classmethod
    def decode(cls, data: bytes, name: str) -> PartitionState:
        """Raises Corruption or FormatVersion; `name` describes the data in errors."""
        body = record.decode(KIND, VERSION, data, name)
        try:
            return cls(
                **{
                    **body,
                    "key": tuple(body["key"]),
                    "counters": Counters(**body["counters"]),
                    "hot": [_block(block) for block in body["hot"]],
                    "evicted": [_block(block) for block in body["evicted"]],
                    "rejects": [_extent(extent) for extent in body["rejects"]],
                }
            )
        except (KeyError, TypeError, ValueError) as error:
            raise Corruption(f"{name}: a field is missing or of the wrong kind: {error}") from error


def read_manifest(files: Files, path: Path) -> PartitionState | None:
    """The published state, or None if there is none."""
    try:
        data = files.read(path)
    except FileNotFoundError:
        return None
    return PartitionState.decode(data, str(path))


def _block(body: dict[str, Any]) -> BlockState:
    extents = tuple(_extent(extent) for extent in body["extents"])
    return BlockState(**{**body, "id": BlockId(**body["id"]), "extents": extents})


def _extent(body: dict[str, Any]) -> Extent:
    extent = Extent(**body)
    checked(extent.file)
    return extent
