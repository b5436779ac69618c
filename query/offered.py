"""What this node answers another node: what its data directories have, and their rows.

It answers from files, as a view does, and keeps no state for the reader. What always holds: it
reads only what a view of these data directories could have named: logs and chunks of their
partitions, and tables that their handoffs made. If something is gone, MissingFile is raised before
the first row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from forebay.query.batches import BATCH_ROWS, Between, chunk_batches
from forebay.query.exchange import (
    BATCH,
    EVENTS,
    REJECTS,
    Offer,
    OfferedDirectory,
    OfferedPartition,
    Wanted,
    WantedPart,
    compared,
)
from forebay.query.folded import Granularity, can_fold, folded, with_times
from forebay.query.frames import arrow_of, exported, polars_schema
from forebay.query.iceberg import scan_table
from forebay.query.partition import Directory, Partition, VerifiedChunks
from forebay.query.scans import Scans
from forebay.query.view import View
from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import BadInput
from forebay.storage.base.layout import Layout, names_partition
from forebay.storage.base.text import plain, shortened
from forebay.storage.base.times import DAY_MS, EPOCH, time_of
from forebay.storage.decoding.from_raw import FromRaw, from_raw_of
from forebay.storage.formats.boundary import read_boundary
from forebay.storage.formats.columns import parse_types
from forebay.storage.formats.frame import REJECT_SCHEMA
from forebay.storage.formats.schema import UPLOAD_TIME
from forebay.storage.formats.state import PartitionState

SHOWN_CHARACTERS = 100
GRANULARITY_MAX_MS = 366 * DAY_MS


def offer_of(view: View, version: str) -> Offer:
    """What a view of this host's data directories has."""
    directories = tuple(
        OfferedDirectory(
            str(node.root),
            node.boundary,
            tuple(map(OfferedPartition.of, node.partitions)),
            {one.partition: one.reason for one in node.silent},
        )
        for node in view.nodes
    )
    return Offer(directories, version)


def rows_of(
    scans: Scans, disk: Disk, roots: Sequence[Path], chunks: VerifiedChunks, wanted: Wanted
) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """The rows that are wanted, and their columns; `chunks` are those verified for other nodes.
    Raises BadInput, MissingFile, or Corruption, which also the iterator may raise."""
    if wanted.table not in (EVENTS, REJECTS, BATCH):
        shown = plain(shortened(repr(wanted.table), SHOWN_CHARACTERS))
        raise BadInput(f"scan: table: expected {EVENTS}, {REJECTS} or {BATCH}; got {shown}")
    declared = from_raw_of(wanted.declared)
    partitions = [_partition(disk, roots, part, declared) for part in wanted.parts]
    if wanted.table == REJECTS:
        batches = (b for one in partitions for b in one.rejects(wanted.rejects))
        return REJECT_SCHEMA, batches
    stored = parse_types(wanted.schema)
    schema = arrow_of(polars_schema(stored))
    if unknown := sorted({*wanted.columns} - {*schema.names}):
        raise BadInput(f"scan: columns: expected some of the schema, got {plain(repr(unknown))}")
    answered = pa.schema([schema.field(name) for name in wanted.columns])
    _require_granularity(wanted.granularity_ms, answered)
    if wanted.table == BATCH:
        return answered, _of_table(scans, disk, roots, wanted, declared)
    files = [file for one in partitions for file in one.chunk_files]
    # Kept apart from chunks verified for this store: here the other node says what they should be.
    chunks.keep(file.path for file in files)
    for file in files:
        chunks.require(file)
    found = _filtered(_events(scans, partitions, wanted, stored), wanted.filter(), answered)
    if wanted.fold and can_fold(answered):
        return with_times(answered), folded(found, answered, wanted.granularity_ms)
    return answered, found


def _require_granularity(granularity_ms: Granularity, schema: pa.Schema) -> None:
    """Raise BadInput unless times of these columns can be rounded down to it."""
    times = {field.name for field in schema if pa.types.is_timestamp(field.type)}
    for name, ms in granularity_ms.items():
        if name not in times or ms > GRANULARITY_MAX_MS:
            raise BadInput(
                f"scan: granularity_ms: expected at most {GRANULARITY_MAX_MS} of a time among the"
                f" columns, got {ms} of {plain(repr(name))}"
            )


def _partition(disk: Disk, roots: Sequence[Path], part: WantedPart, declared: FromRaw) -> Partition:
    """The wanted part of the partition, all of whose files exist."""
    root = next((one for one in roots if str(one) == part.root), None)
    if root is None or not names_partition(part.name):
        shown = plain(shortened(repr((part.root, part.name)), SHOWN_CHARACTERS))
        raise BadInput(f"scan: expected a partition of this node's, got {shown}")
    state = PartitionState(part.name, 0, (), 1, {}, rejects=list(part.rejects))
    found = Partition(disk, Layout(root), state, part.hot, part.chunks, from_raw=declared)
    found.require_files(Directory(disk, root))
    return found


def _events(
    scans: Scans, partitions: Sequence[Partition], wanted: Wanted, schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    """Rows of chunks and hot blocks within the bounds, with all columns of `schema`."""
    between = Between(wanted.first_ms, wanted.end_ms)
    for file in (file for one in partitions for file in one.chunk_files):
        yield from chunk_batches(file, between, schema)
    used = polars_schema(schema) | {UPLOAD_TIME: _TIME}
    for frame in scans.hot.frames(partitions, used):
        for batch in exported(frame).to_batches(BATCH_ROWS):
            if (found := between.rows(batch)).num_rows:
                yield found.select(schema.names).cast(schema)


_TIME = polars_schema(pa.schema([(UPLOAD_TIME, pa.timestamp("ms", "UTC"))]))[UPLOAD_TIME]


def _filtered(
    batches: Iterator[pa.RecordBatch], where: pc.Expression | None, schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        if where is None:
            yield batch.select(schema.names).cast(schema)
            continue
        try:
            found = pa.Table.from_batches([batch.cast(compared(batch.schema))]).filter(where)
        except (pa.ArrowException, ValueError, KeyError, IndexError) as error:
            raise BadInput(
                f"scan: where: expected a filter of its columns, got {plain(str(error))}"
            ) from error
        yield from found.select(schema.names).cast(schema).combine_chunks().to_batches()


def _of_table(
    scans: Scans, disk: Disk, roots: Sequence[Path], wanted: Wanted, declared: FromRaw
) -> Iterator[pa.RecordBatch]:
    """Rows of the batch layer's table, made by a handoff of one of the data directories."""
    known = {
        done.table
        for root in roots
        for done in read_boundary(disk, Layout(root)).history
        if done.table is not None
    }
    if wanted.metadata not in known:
        shown = plain(shortened(repr(wanted.metadata), SHOWN_CHARACTERS))
        raise BadInput(f"scan: metadata: expected a table of a handoff of this node's, got {shown}")
    until = EPOCH if wanted.end_ms is None else time_of(wanted.end_ms)
    schema = polars_schema(parse_types(wanted.schema))
    rows = scan_table(
        wanted.metadata, schema, scans.iceberg, scans.roots, until=until, from_raw=declared
    )
    columns = list(wanted.columns)
    for frame in rows.select(columns).collect_batches(chunk_size=BATCH_ROWS, lazy=True):
        yield from exported(frame).to_batches()
