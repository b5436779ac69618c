"""What a partition must establish before it goes on: its incarnation, and that nothing is missing.

A start is never silently empty: a committed state whose logs are not here, and data on disk whose
committed state is gone, are both errors that say what is missing.
"""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pyarrow as pa

from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import BadInput, Corruption, MissingFile
from forebay.storage.base.layout import Layout, incarnation_of
from forebay.storage.formats.catalog import Catalog, read_catalog
from forebay.storage.formats.columns import arrow_schema, column_types, parse_types, unite
from forebay.storage.formats.hashes import KeyHash
from forebay.storage.formats.log import read_log
from forebay.storage.formats.rejects import ALL, OF_LABELS, RejectFile, labels, read_rejects
from forebay.storage.formats.schema import Schema
from forebay.storage.formats.state import PartitionState, read_manifest
from forebay.storage.partition.commits import UNCOMMITTED_SNAPSHOTS_MAX


def resumed(
    disk: Disk,
    layout: Layout,
    partition: str,
    committed: PartitionState | None,
    schema: Schema,
    block_span_ms: int,
    window_ms: int,
) -> PartitionState:
    """The state to go on with: the committed one under this schema, as a new run, or a new one. If
    the state has no age beyond which events are backfill, that is the dedup window `window_ms`, and
    it is kept.

    Raises MissingFile or Corruption if a log that it names is not here, BadInput if it has events
    made under another key or block span."""
    incarnation = _next_incarnation(disk, layout, partition, committed)
    catalog = read_catalog(disk, layout.catalog(partition), partition)
    runs = _runs_with_chunks(committed, catalog) if committed else {}
    state = _under(schema, block_span_ms, partition, committed)
    state.incarnation, state.runs = incarnation, runs
    _require_logs(disk, layout, state, catalog.committed(runs, incarnation))
    _recount_rejects(disk, layout, state)
    state.reject_files = _described(disk, layout, state)
    state.backfill_after_ms = state.backfill_after_ms or window_ms
    return state


def _next_incarnation(
    disk: Disk, layout: Layout, partition: str, committed: PartitionState | None
) -> int:
    """One more than any start of this partition that left a trace.

    Raises MissingFile if there is no committed state but there must have been one.
    """
    traces = {committed.incarnation} if committed else {0}
    for folder in (layout.hot(partition), layout.rejects(partition), layout.drops(partition)):
        traces |= {incarnation_of(path.name) or 0 for path in folder.iterdir()}
    traces |= {
        incarnation_of(path.name) or 0 for path in layout.chunks(partition).rglob("*.parquet")
    }
    try:
        manifest = read_manifest(disk, layout.manifest(partition))
    except Corruption:
        manifest = None  # torn by a power loss: about to be republished from the committed state
    if manifest:
        traces.add(manifest.incarnation)
        if committed is None and manifest.snapshots > UNCOMMITTED_SNAPSHOTS_MAX:
            raise MissingFile(
                f"partition {partition}: {layout.hot(partition)} has the data of"
                f" {manifest.snapshots} snapshots, but {layout.recovery} has none of them; restore"
                " the recovery folder, or move the whole data directory away to start over"
            )
    return max(traces) + 1


def _require_logs(disk: Disk, layout: Layout, state: PartitionState, catalog: Catalog) -> None:
    """Raise unless every block and reject log that still counts is here at its full committed
    length. Drop logs may have lost some."""
    hot, rejects = layout.hot(state.partition), layout.rejects(state.partition)
    counts = [block for block in state.blocks if block.id not in catalog.covered]
    extents = [(hot / extent.file, extent) for block in counts for extent in block.extents]
    extents += [(rejects / extent.file, extent) for extent in state.rejects]
    for path, extent in extents:
        try:
            size = disk.size(path)
        except FileNotFoundError as error:
            raise MissingFile(
                f"partition {state.partition}: the committed state names {path}, which is not"
                " on this host; partitions can move between hosts on shared storage only"
            ) from error
        if size < extent.bytes:
            raise Corruption(f"log {path}: expected {extent.bytes} bytes, got {size}", size)


def _under(
    schema: Schema, block_span_ms: int, partition: str, committed: PartitionState | None
) -> PartitionState:
    """The committed state, or a new one, under this schema.

    A partition that has never had an event goes on under any key and block span. Raises BadInput if
    dedup could not be exact, or where the type of a column has changed.
    """
    columns = arrow_schema(schema)
    if committed is None:
        state = PartitionState(
            partition, 0, schema.key, block_span_ms, {}, seed=KeyHash.random().seed
        )
    else:
        state = committed
    if state.counters.accepted:
        _require_same(state, schema.key, block_span_ms)
        columns = _united(state, columns)
    state.key, state.block_span_ms = schema.key, block_span_ms
    state.schema = column_types(columns)
    state.paths = {**state.paths, **{column.name: column.paths for column in schema.columns}}
    state.paths = {name: state.paths[name] for name in state.schema if name in state.paths}
    state.types = {**state.types, **{column.name: column.type for column in schema.columns}}
    state.types = {name: state.types[name] for name in state.schema if name in state.types}
    state.roles = dict(schema.roles)
    return state


def _united(state: PartitionState, schema: pa.Schema) -> pa.Schema:
    """All columns that this partition ever had."""
    try:
        return unite([parse_types(state.schema), schema])
    except ValueError as error:
        raise BadInput(f"partition {state.partition}: {error}") from error


def _require_same(state: PartitionState, key: tuple[str, ...], block_span_ms: int) -> None:
    if tuple(state.key) != key:
        raise BadInput(
            f"dedup_key: partition {state.partition} was made with {list(state.key)},"
            f" got {list(key)}"
        )
    if state.block_span_ms != block_span_ms:
        raise BadInput(
            f"block_span: partition {state.partition} was made with {state.block_span_ms} ms,"
            f" got {block_span_ms} ms"
        )


def _recount_rejects(disk: Disk, layout: Layout, state: PartitionState) -> None:
    """Count the rejects by label where the state does not have that, being of version 1."""
    counters = state.counters
    if sum(counters.rejected.values()) == counters.rejects:
        return
    found: Counter[str] = Counter()
    for batch in read_rejects(disk, layout.rejects(state.partition), state.rejects, ALL):
        found.update(labels(batch))
    counters.rejected = dict(found)


def _described(disk: Disk, layout: Layout, state: PartitionState) -> dict[str, RejectFile]:
    """What is known of each file of rejects; of those that an earlier build wrote, what is in them.

    A file that can't be read gets what the counters have beyond the others, the labels in any
    order: a damaged reject keeps no job from starting.
    """
    found, rest = dict(state.reject_files), Counter(state.counters.rejected)
    folder, damaged = layout.rejects(state.partition), []
    for extent in state.rejects:
        if extent.file not in found:
            try:
                counts = sum(map(labels, read_log(disk, folder, extent, OF_LABELS)), Counter[str]())
                found[extent.file] = RejectFile(None, dict(counts))
            except (Corruption, MissingFile):
                damaged.append(extent)
                continue
        rest.subtract(found[extent.file].labels)
    labelled = rest.elements()
    for extent in damaged:
        found[extent.file] = RejectFile(None, dict(Counter(islice(labelled, extent.rows))))
    return {extent.file: found[extent.file] for extent in state.rejects}


def _runs_with_chunks(committed: PartitionState, catalog: Catalog) -> dict[str, int]:
    """What each run committed, for the runs whose chunks are in the catalog."""
    runs = {**committed.runs, str(committed.incarnation): committed.evictions}
    made = {str(chunk.id.incarnation) for chunk in catalog.chunks}
    return {run: evictions for run, evictions in runs.items() if run in made}
