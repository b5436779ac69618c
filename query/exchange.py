"""What nodes say to each other: what a node has, and what another wants to read of it.

    GET  /v1/node        an `Offer`: the boundary and partitions of each data directory, as a view
    POST /v1/node/scan   a `Wanted`; the answer is a stream of Arrow's IPC

Both are JSON of the dataclasses below. What always holds:

- A node keeps no state for the reader: a scan names the blocks and chunks of its view, and their
  files stay for the grace period. So each scan is of one view, whichever of a node's workers
  answers it, and one that comes too late is refused, as a local one is.
- Builds whose PROTOCOL differs by one understand each other: unknown fields are ignored, and every
  added field has a default.
- A partition has an identity, the same wherever it is read, which shows whether two nodes have the
  same partition. It does not reveal the seed that it is derived from.
"""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass, field
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar, cast

import orjson
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import TypeAdapter, ValidationError

from forebay.query.partition import Partition
from forebay.storage.base.errors import BadInput, NodeError
from forebay.storage.base.record import Count, SpanMs, TimeMs
from forebay.storage.base.text import plain, shortened
from forebay.storage.formats.boundary import Boundary
from forebay.storage.formats.catalog import Chunk
from forebay.storage.formats.columns import ColumnTypes
from forebay.storage.formats.log import Extent
from forebay.storage.formats.rejects import RejectFilter
from forebay.storage.formats.schema import Column, ColumnType
from forebay.storage.formats.state import BlockState, Counters, PartitionState

PROTOCOL = 1
NODE, SCAN = "/v1/node", "/v1/node/scan"
EVENTS, REJECTS, BATCH = "events", "rejects", "batch"
SAID_CHARACTERS = 300
BOOT = Path("/proc/sys/kernel/random/boot_id")
T = TypeVar("T")


@dataclass(frozen=True)
class OfferedPartition:
    """A partition of a view, with the state that readers need; `hot` are the blocks that no chunk
    covers, `rejects` the extents of its rejects."""

    name: str
    identity: str
    incarnation: Count
    key: tuple[str, ...]
    block_span_ms: SpanMs
    schema: ColumnTypes
    hot: tuple[BlockState, ...]
    chunks: tuple[Chunk, ...]
    stream_time_ms: TimeMs | None = None
    next_offsets: dict[str, Count] = field(default_factory=dict)
    end_offsets: dict[str, Count] = field(default_factory=dict)
    counters: Counters = field(default_factory=Counters)
    paths: dict[str, tuple[tuple[str, ...], ...]] = field(default_factory=dict)
    types: dict[str, ColumnType] = field(default_factory=dict)
    roles: dict[str, str] = field(default_factory=dict)
    rejects: tuple[Extent, ...] = ()
    handed_off_rows: Count = 0
    expired_rows: Count = 0

    @classmethod
    def of(cls, partition: Partition) -> OfferedPartition:
        state = partition.state
        return cls(
            partition.name, identity_of(partition), state.incarnation, state.key,
            state.block_span_ms, state.schema, partition.hot, partition.chunks,
            state.stream_time_ms, state.next_offsets, state.end_offsets, state.counters,
            state.paths, state.types, state.roles, tuple(state.rejects),
            partition.handed_off_rows, partition.expired_rows,
        )  # fmt: skip

    @property
    def state(self) -> PartitionState:
        """The state as far as known here."""
        return PartitionState(
            self.name, self.incarnation, self.key, self.block_span_ms, self.schema,
            stream_time_ms=self.stream_time_ms, next_offsets=self.next_offsets,
            end_offsets=self.end_offsets, counters=self.counters, rejects=list(self.rejects),
            paths=self.paths, types=self.types, roles=self.roles,
        )  # fmt: skip


@dataclass(frozen=True)
class OfferedDirectory:
    """A data directory of a node; `silent` has the reasons for leaving out partitions, by name.
    `boundary` is None if the whole directory can't be read."""

    root: str
    boundary: Boundary | None
    partitions: tuple[OfferedPartition, ...] = ()
    silent: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Offer:
    """What a node has at one moment. `version` is its build's, for people to read."""

    directories: tuple[OfferedDirectory, ...]
    version: str = ""
    protocol: int = PROTOCOL

    def encode(self) -> bytes:
        return orjson.dumps(self)

    @classmethod
    def decode(cls, data: bytes, node: str) -> Offer:
        """Raises NodeError, which names the `node`."""
        try:
            _require_protocol(data)
            return _read(cls, data)
        except ValueError as error:
            raise NodeError(
                node, f"expected an offer of Forebay's, got another: {error}"
            ) from error


@dataclass(frozen=True)
class WantedPart:
    """What is wanted of a partition: these blocks and chunks, or these extents of rejects."""

    root: str
    name: str
    hot: tuple[BlockState, ...] = ()
    chunks: tuple[Chunk, ...] = ()
    rejects: tuple[Extent, ...] = ()


@dataclass(frozen=True)
class Wanted:
    """The rows that are wanted: of the table `events`, those between two upload times; of
    `rejects`, those that match a filter; of `batch`, those before `end_ms` of the table described
    by the metadata file `table`.

    `schema` has the columns to read, of which `columns` are returned, for rows for which `where`
    may hold (Substrait, in base64, over the `compared` schema); `declared` are columns that may be
    decoded from messages. `fold`: equal rows may be sent as one row, with their count in an
    additional column. `granularity_ms`: times that may be rounded down to a multiple of so many ms.
    """

    table: str
    columns: tuple[str, ...]
    schema: ColumnTypes = field(default_factory=dict)
    parts: tuple[WantedPart, ...] = ()
    first_ms: TimeMs | None = None
    end_ms: TimeMs | None = None
    where: str | None = None
    declared: tuple[Column, ...] = ()
    rejects: RejectFilter = field(default_factory=RejectFilter)
    metadata: str | None = None
    fold: bool = False
    granularity_ms: dict[str, SpanMs] = field(default_factory=dict)
    protocol: int = PROTOCOL

    def encode(self) -> bytes:
        return orjson.dumps(self)

    @classmethod
    def decode(cls, data: bytes) -> Wanted:
        """Raises BadInput."""
        try:
            _require_protocol(data)
            return _read(cls, data)
        except ValueError as error:
            raise BadInput(
                f"scan: expected what is wanted as JSON, got another: {error}"
            ) from error

    def filter(self) -> pc.Expression | None:
        """`where` as an Arrow expression, over batches with exactly the columns of the schema, in
        order, as they are `compared`. Raises BadInput."""
        if self.where is None:
            return None
        try:
            return pc.Expression.from_substrait(base64.b64decode(self.where, validate=True))
        except (ValueError, pa.ArrowException) as error:
            said = shortened(plain(str(error)), SAID_CHARACTERS)
            raise BadInput(
                f"scan: where: expected an expression in Substrait, got {said}"
            ) from error


def compared(schema: pa.Schema) -> pa.Schema:
    """The columns in the types in which they are compared: times are in microseconds, which queries
    use, as Substrait can't compare two units."""
    times = pa.timestamp("us", "UTC")
    return pa.schema(
        [field.with_type(times) if pa.types.is_timestamp(field.type) else field for field in schema]
    )


def substrait(where: pc.Expression | None, schema: pa.Schema) -> str | None:
    """The filter in Substrait, in base64; None if it can't be expressed."""
    if where is None:
        return None
    try:
        return base64.b64encode(where.to_substrait(schema)).decode()
    except (ValueError, TypeError, KeyError, pa.ArrowException):
        return None


def identity_of(partition: Partition) -> str:
    """Equal for the same partition on any node; for version 1, which has no seed, on this host."""
    if partition.remote is not None:
        return partition.remote.identity
    name, seed = partition.name, partition.state.seed
    if not seed:
        found = os.stat(partition.layout.root)
        boot = BOOT.read_text() if BOOT.exists() else ""
        seed = f"{boot.strip()} {found.st_dev} {found.st_ino}"
    return blake2b(f"{name}\0{seed}".encode(), digest_size=16, person=b"forebay").hexdigest()


def _require_protocol(data: bytes) -> None:
    found: Any = orjson.loads(data)
    protocol = found.get("protocol") if isinstance(found, dict) else None
    if type(protocol) is not int or abs(protocol - PROTOCOL) > 1:
        version = found.get("version") if isinstance(found, dict) else None
        of = f" of version {plain(shortened(repr(version), 40))}" if version else ""
        raise ValueError(
            f"protocol: expected {max(1, PROTOCOL - 1)} to {PROTOCOL + 1}, got"
            f" {plain(shortened(repr(protocol), 40))}{of}"
        )


@cache
def _adapter(shape: Any) -> TypeAdapter[Any]:
    return TypeAdapter(shape)


def _read(shape: type[T], data: bytes) -> T:
    """Raises ValueError."""
    try:
        found: T = _adapter(cast(Any, shape)).validate_json(data, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{place}: {first['msg']}" if place else first["msg"]) from error
    return found
