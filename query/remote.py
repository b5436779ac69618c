"""Rows of other nodes: asked of all at once, and read as record batches, one node after the other.

What always holds: a row is answered once, for each partition is asked of one node; of columns only
those that are needed leave a node, and of rows only those between the times asked for, for which
the filter may hold. Chunks of which it holds for no upload time are not asked for. A node whose
answer does not come whole is an error: its rows may have been read by then, so who takes a part for
an answer must not.
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
from forebay.query.folded import unfolded, with_times
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
    """Those of other nodes."""
    return [partition for partition in partitions if partition.remote is not None]


def remote_events(
    partitions: Sequence[Partition],
    between: Between,
    types: pa.Schema,
    schema: pa.Schema,
    columns: Sequence[str],
    where: pc.Expression | None = None,
) -> Iterator[pa.RecordBatch]:
    """The rows of those that other nodes have, with these `columns`, at least all for which `where`
    may hold. `types` has all columns as they are stored, and `schema` as they are read. Raises
    NodeError; MissingFile if the view is too old, or Corruption."""
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
    """The rejects that agree with `wanted` of those that other nodes have."""
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
    """The rows before `until_ms` of the batch layer's table that a node has."""
    wanted = Wanted(
        BATCH, tuple(columns), column_types(types), end_ms=until_ms, declared=declared.columns,
        metadata=metadata,
    )  # fmt: skip
    yield from _batches([(node, wanted)], pa.schema([schema.field(name) for name in columns]))


def _by_node(partitions: Sequence[Partition]) -> dict[tuple[Node, FromRaw], list[Partition]]:
    """Those of other nodes, by node, and by what is declared."""
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
    """Those of which the filter may hold for a row, as far as their upload times tell."""
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
    except (pa.ArrowException, ValueError):  # it compares what is not of the columns' types
        return tuple(chunks)
    return tuple(one for number, one in enumerate(chunks) if number in kept)


def _batches(wanted: Sequence[tuple[Node, Wanted]], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """What is wanted of each node; all are asked before the first is read."""
    with ExitStack() as stack:
        asked = [
            (node, stack.enter_context(closing(ask(node, SCAN, one.encode()))))
            for node, one in wanted
        ]
        for node, answer in asked:
            with closing(answer):
                yield from _read(node, answer, schema)


def _read(node: Node, answer: Asked, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The batches of an answer, which is whole when the last one is given."""
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
            answer.read(1)  # raises what went wrong with the answer, if that is it
            raise NodeError(
                node.url, f"expected Arrow's stream of rows, got {plain(str(error))}"
            ) from error
        yield from batches
    if rest := answer.read(1):
        raise NodeError(node.url, f"expected the end of its rows, got {len(rest)} bytes more")
