"""Rows of other nodes: all nodes are asked at once, and read one after the other, in batches.

What always holds: each row is read once, as each partition is read from one node; a node sends only
the columns needed, and only rows between the requested times that may match the filter. Chunks
whose upload times rule out a match are not requested. An answer that is cut short is an error: its
rows may have been read by then, so the caller must not treat them as an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from pyarrow.fs import LocalFileSystem

from forebay.query.batches import Between
from forebay.query.exchange import (
    BATCH,
    EVENTS,
    REJECTS,
    SCAN,
    Wanted,
    WantedPart,
    compared,
    substrait,
)
from forebay.query.folded import EXACT, Granularity, unfolded, with_times
from forebay.query.node import Asked, Node, ask
from forebay.query.partition import Partition
from forebay.storage.base.errors import NodeError
from forebay.storage.base.text import plain
from forebay.storage.base.times import time_of
from forebay.storage.decoding.from_raw import FromRaw
from forebay.storage.formats.catalog import Chunk
from forebay.storage.formats.columns import column_types
from forebay.storage.formats.frame import REJECT_SCHEMA
from forebay.storage.formats.rejects import RejectFilter
from forebay.storage.formats.schema import UPLOAD_TIME


def remote(partitions: Sequence[Partition]) -> list[Partition]:
    """The partitions of other nodes."""
    return [partition for partition in partitions if partition.remote is not None]


def remote_events(
    partitions: Sequence[Partition],
    between: Between,
    types: pa.Schema,
    schema: pa.Schema,
    columns: Sequence[str],
    where: pc.Expression | None = None,
    granularity_ms: Granularity = EXACT,
) -> Iterator[pa.RecordBatch]:
    """The rows of other nodes' partitions, with these `columns`: at least all for which `where` may
    hold. `types` has all columns as stored, `schema` as read. Raises NodeError; MissingFile if the
    view is too old, or Corruption."""
    named = [] if where is None else [one for one in schema.names if one in str(where)]
    read = [one for one in schema.names if one in {*columns, *named}]
    stored = pa.schema([types.field(name) for name in read])
    table = Wanted(
        EVENTS,
        tuple(columns),
        column_types(stored),
        first_ms=between.first_ms,
        end_ms=between.end_ms,
        where=substrait(where, compared(stored)),
        fold=True,
        granularity_ms={k: v for k, v in granularity_ms.items() if k in columns},
    )
    asked = []
    for (node, declared), some in _by_node(partitions).items():
        parts = [_part(one, where, schema) for one in some]
        parts = [one for one in parts if one.hot or one.chunks]
        if parts:
            wanted = replace(table, parts=tuple(parts), declared=declared.columns)
            asked.append((node, wanted))
    yield from _batches(asked, pa.schema([schema.field(name) for name in columns]))


def remote_rejects(
    partitions: Sequence[Partition], wanted: RejectFilter
) -> Iterator[pa.RecordBatch]:
    """The rejects of other nodes' partitions that match `wanted`."""
    table = Wanted(REJECTS, tuple(REJECT_SCHEMA.names), rejects=wanted)
    asked = []
    for (node, _), some in _by_node(partitions).items():
        parts = [
            WantedPart(one.remote.root, one.name, rejects=tuple(one.state.rejects))
            for one in some
            if one.remote is not None and one.state.rejects
        ]
        if parts:
            asked.append((node, replace(table, parts=tuple(parts))))
    yield from _batches(asked, REJECT_SCHEMA)


def remote_table(
    node: Node, metadata: str, until_ms: int, declared: FromRaw, types: pa.Schema,
    schema: pa.Schema, columns: Sequence[str],
) -> Iterator[pa.RecordBatch]:  # fmt: skip
    """The rows before `until_ms` of a node's batch layer table."""
    wanted = Wanted(
        BATCH, tuple(columns), column_types(types), end_ms=until_ms, declared=declared.columns,
        metadata=metadata,
    )  # fmt: skip
    yield from _batches([(node, wanted)], pa.schema([schema.field(name) for name in columns]))


def _by_node(partitions: Sequence[Partition]) -> dict[tuple[Node, FromRaw], list[Partition]]:
    """The partitions of other nodes, by node and by declared columns."""
    found: dict[tuple[Node, FromRaw], list[Partition]] = {}
    for partition in partitions:
        if partition.remote is not None:
            of = partition.remote.node, partition.from_raw
            found.setdefault(of, []).append(partition)
    return found


def _part(partition: Partition, where: pc.Expression | None, schema: pa.Schema) -> WantedPart:
    assert partition.remote is not None
    chunks = _possible(partition.chunks, where, schema)
    return WantedPart(partition.remote.root, partition.name, partition.hot, chunks)


def _possible(
    chunks: Sequence[Chunk], where: pc.Expression | None, schema: pa.Schema
) -> tuple[Chunk, ...]:
    """The chunks that may have a matching row, judging by their upload times."""
    if where is None or not chunks:
        return tuple(chunks)
    time, form = pc.field(UPLOAD_TIME), ds.ParquetFileFormat()
    type = schema.field(UPLOAD_TIME).type
    # Fragments whose partition expression contradicts a filter are left out; none is opened.
    fragments = [
        form.make_fragment(
            str(number),
            LocalFileSystem(),
            (time >= pa.scalar(time_of(one.first_ms), type))
            & (time <= pa.scalar(time_of(one.last_ms), type)),
        )
        for number, one in enumerate(chunks)
    ]
    try:
        known = ds.FileSystemDataset(fragments, schema, form)
        kept = {int(one.path) for one in known.get_fragments(filter=where)}
    except (pa.ArrowException, ValueError):  # it compares values of other types
        return tuple(chunks)
    return tuple(one for number, one in enumerate(chunks) if number in kept)


def _batches(wanted: Sequence[tuple[Node, Wanted]], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The rows wanted of each node; all are asked before the first is read."""
    with ExitStack() as stack:
        asked = [
            (node, stack.enter_context(closing(ask(node, SCAN, one.encode()))))
            for node, one in wanted
        ]
        for node, answer in asked:
            with closing(answer):
                yield from _read(node, answer, schema)


def _read(node: Node, answer: Asked, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The batches of an answer; raises at the end unless it is whole."""
    reading: Callable[[], pa.RecordBatch] | None = None
    fold = False
    while True:
        try:
            if reading is None:
                found = pa.ipc.open_stream(answer)
                fold = found.schema == with_times(schema)
                if found.schema != schema and not fold:
                    raise NodeError(node.url, f"expected columns {schema}, got {found.schema}")
                reading = found.read_next_batch
            batch = reading()
            batches = [*unfolded(batch)] if fold else [batch]
        except StopIteration:
            break
        except (pa.ArrowException, OSError, ValueError) as error:
            answer.read(1)  # raises if the answer itself failed
            raise NodeError(
                node.url, f"expected Arrow's stream of rows, got {plain(str(error))}"
            ) from error
        yield from batches
    if rest := answer.read(1):
        raise NodeError(node.url, f"expected the end of its rows, got {len(rest)} bytes more")
