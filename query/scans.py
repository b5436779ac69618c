"""The tables of a view: as lazy frames, and as what the SQL engine reads.

Rows of the real-time layer are those of chunks and hot blocks between two times; `events_all` adds
the batch layer's rows below them, and late events that the batch layer lacks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from forebay.query.analytics.granularity import Alike
from forebay.query.analytics.groups import ALIKE
from forebay.query.batches import Between, event_batches
from forebay.query.cold import scan_cold
from forebay.query.folded import EXACT, Granularity, can_fold
from forebay.query.folds import Folds
from forebay.query.frames import (
    PolarsSchema,
    arrow_of,
    polars_schema,
    scan_frames,
    viewed,
    viewed_of,
)
from forebay.query.hot import HotCache
from forebay.query.iceberg import scan_table
from forebay.query.node import Node
from forebay.query.partition import ChunkFile, Partition, VerifiedChunks
from forebay.query.pruning import pruned
from forebay.query.pushed import pushed
from forebay.query.remote import remote, remote_events, remote_rejects, remote_table
from forebay.query.tables import (
    ALL_EVENTS,
    BATCH_ROWS,
    LATE,
    REJECTS,
    TABLE,
    ChunkTables,
    Part,
    Relation,
    relation_of,
    relation_of_frame,
)
from forebay.query.view import View
from forebay.storage.base.errors import BadInput
from forebay.storage.base.times import EPOCH, HOUR_MS, time_of
from forebay.storage.formats.boundary import Placed
from forebay.storage.formats.frame import REJECT_SCHEMA
from forebay.storage.formats.rejects import ALL, RejectFilter
from forebay.storage.formats.schema import OFFSET, UPLOAD_TIME


@dataclass(frozen=True)
class Scans:
    """Makes tables of views, using the verified chunks, the decoded hot logs, what both were folded
    to, and what it takes to read the batch layer's table (`iceberg` properties, and folders that it
    may be in)."""

    chunks: VerifiedChunks
    hot: HotCache
    folds: Folds
    iceberg: Mapping[str, str]
    roots: Sequence[Path]

    def table(self, view: View, name: str, granularity_ms: Granularity = EXACT) -> pl.LazyFrame:
        """One of TABLES; times of other nodes' events may be rounded down to `granularity_ms`."""
        if name == REJECTS:
            return scan_rejects(view, ALL)
        if name == ALL_EVENTS:
            return self.all(view, granularity_ms)
        found = [self._scanned(view, *part, granularity_ms) for part in parts(view, name)]
        return pl.concat(found)

    def counted(self, view: View, alike: Alike, properties: Collection[str] = ()) -> pl.LazyFrame:
        """The table of events for a question about these `properties` that takes events for alike:
        a row may stand for as many of them as ALIKE says. Who asks once has all of them read."""
        schema = {**polars_schema(view.schema), ALIKE: pl.Int64()}
        single = pl.lit(1, pl.Int64).alias(ALIKE)
        granularity_ms = {alike.time: alike.granularity_ms}
        if not self.folds.asked_again((alike.rounding, frozenset(properties))):
            return self.table(view, TABLE, granularity_ms).with_columns(single)
        [(partitions, between)] = parts(view, TABLE)
        here = [
            one.only(partial(_about, alike, between)) for one in partitions if one.remote is None
        ]
        rest = [
            one if one.remote is not None else one.only(lambda part: not between.all_of(part))
            for one in partitions
        ]

        def frames(used: PolarsSchema, _: pl.Expr | None) -> Iterator[pl.LazyFrame]:
            columns = {name: dtype for name, dtype in used.items() if name != ALIKE}
            return self.folds.frames(here, columns or {OFFSET: pl.Int64()}, alike)

        others = self._scanned(view, rest, between, granularity_ms)
        return pl.concat([scan_frames(frames, schema, "folds"), others.with_columns(single)])

    def all(self, view: View, granularity_ms: Granularity = EXACT) -> pl.LazyFrame:
        """Both layers, each event once; `granularity_ms` as in `table`."""
        events, batch = self.table(view, TABLE, granularity_ms), self.batch(view)
        if batch is None:
            return events
        return pl.concat([batch, self.late_only(view, batch), events], how="diagonal")

    def late_only(self, view: View, batch: pl.LazyFrame) -> pl.LazyFrame:
        """The rows of the late table that the batch layer's table does not have."""
        late = self.table(view, LATE)
        placed: list[Placed] = []
        for partition in view.late:
            placed += [*partition.hot, *partition.chunks]
        if placed:
            first, last = min(p.first_ms for p in placed), max(p.last_ms for p in placed)
            near = batch.filter(pl.col(UPLOAD_TIME).is_between(time_of(first), time_of(last)))
            key = list(view.key)
            late = late.join(near.select(key), on=key, how="anti")
        return late

    def batch(self, view: View) -> pl.LazyFrame | None:
        """The batch layer's table up to the boundary, if `batch.json` names one."""
        if view.table is None:
            return None
        until, schema = view.covered_until or EPOCH, polars_schema(view.schema)
        if view.table_node is not None:
            return self._remote_table(view, view.table_node, view.table)
        return scan_table(
            view.table, schema, self.iceberg, self.roots, until=until, from_raw=view.from_raw
        )

    def _remote_table(self, view: View, node: Node, table: str) -> pl.LazyFrame:
        """The same if another node has it."""
        types, schema = view.schema, polars_schema(view.schema)
        until_ms, declared, read = view.covered_until_ms or 0, view.from_raw, arrow_of(schema)

        def frames(used: PolarsSchema, _: pl.Expr | None) -> Iterator[pl.DataFrame]:
            columns = list(used) or [OFFSET]
            for batch in remote_table(node, table, until_ms, declared, types, read, columns):
                yield framed(batch)

        return scan_frames(frames, schema, "the batch layer's table")

    def _scanned(
        self,
        view: View,
        partitions: list[Partition],
        between: Between,
        granularity_ms: Granularity,
    ) -> pl.LazyFrame:
        """The rows of blocks and chunks."""
        schema = polars_schema(view.schema)
        files = [file for partition in partitions for file in partition.chunk_files]

        def hot(used: PolarsSchema, predicate: pl.Expr | None) -> Iterator[pl.DataFrame]:
            some = pruned(partitions, pushed(predicate, schema), arrow_of(schema))
            yield from self.hot.frames(some, used, predicate)

        rows = [
            *scan_cold(files, schema, self.chunks),
            scan_frames(hot, schema, "hot blocks"),
        ]
        if others := remote(partitions):
            rows.append(scan_nodes(others, between, view.schema, granularity_ms))
        return between.scanned(pl.concat(rows, how="vertical"))

    def relation(
        self,
        view: View,
        name: str,
        located: Callable[[ChunkFile], str],
        asks: Callable[[str], bool],
    ) -> Relation:
        """One of TABLES. The engine finds its chunk files where they are `located`; the query
        `asks` for some of its columns."""
        if name == REJECTS:
            return relation_of_frame(name, scan_rejects(view, ALL))
        batch = self.batch(view) if name == ALL_EVENTS else None
        if batch is not None:
            other = pl.concat([batch, self.late_only(view, batch)], how="diagonal")
            events = self.relation(view, TABLE, located, asks)
            return relation_of_frame(f"{name} batch", other).beside(events)
        dtypes = polars_schema(view.schema)
        read = arrow_of(dtypes)

        def hot(
            partitions: list[Partition], columns: Sequence[str], _: object
        ) -> Iterator[pa.RecordBatch]:
            used = {column: dtypes[column] for column in columns}
            for frame in self.hot.frames(partitions, used):
                yield from viewed(frame.select(columns)).to_batches(BATCH_ROWS)

        def others(
            partitions: list[Partition],
            between: Between,
            columns: Sequence[str],
            where: pc.Expression | None,
        ) -> Iterator[pa.RecordBatch]:
            wanted = list(columns) or [OFFSET]
            yield from remote_events(partitions, between, view.schema, read, wanted, where)

        files = ChunkTables(view.schema, self.chunks, located, asks)
        # If the engine needs no column, it asks for the first one.
        first = {UPLOAD_TIME: dtypes[UPLOAD_TIME], **dtypes}
        return relation_of(name, parts(view, name), files, hot, viewed_of(first), others, read)


def can_count(view: View, alike: Alike, properties: Collection[str]) -> bool:
    """Whether a question about these properties can be answered by `Scans.counted`: none of them is
    in `raw`, or has values that may differ and be equal."""
    names = {*properties, *filter(None, [alike.masked])}
    held = [field for field in view.schema if field.name in names]
    return len(held) == len(names) and can_fold(pa.schema(held))


def parts(view: View, table: str) -> list[Part]:
    """The partitions, with what may belong to a table of events (of the real-time layer only), and
    the bounds of its rows' times. Raises BadInput for the sealed table unless every node has a
    seal."""
    until_ms, sealed_ms = view.covered_until_ms, view.sealed_until_ms
    if table == LATE:
        return [(view.late, Between(None, until_ms or 0))]
    if table in (TABLE, ALL_EVENTS):
        return [(view.events, Between(until_ms))]
    if sealed_ms is None:
        raise BadInput("sealed: expected a seal on every node, got none")
    on_time = [p.only(lambda part: not part.late) for p in view.sealed]
    came_late = [p.only(lambda part: part.late > 0) for p in view.sealed]
    return [(on_time, Between(until_ms, sealed_ms)), (came_late, Between(None, sealed_ms))]


def by_hour(view: View, start_ms: int, end_ms: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The events of the real-time layer uploaded from `start_ms` on and before `end_ms`, hour by
    hour; each batch with the beginning of its hour in UTC. For each hour, only files that may have
    some of its events are read. Raises MissingFile if the view is too old, or Corruption."""
    [(partitions, between)] = parts(view, TABLE)
    schema = arrow_of(polars_schema(view.schema))
    first_ms = max(start_ms, between.first_ms or start_ms)
    found = [part for one in partitions for part in chain[Placed](one.hot, one.chunks)]
    hours = {
        hour
        for part in found
        for hour in range(
            max(part.first_ms, first_ms) // HOUR_MS, min(part.last_ms, end_ms - 1) // HOUR_MS + 1
        )
    }
    for hour in sorted(hours):
        low, high = max(hour * HOUR_MS, first_ms), min((hour + 1) * HOUR_MS, end_ms)
        some = [one.only(partial(_overlaps, low, high)) for one in partitions]
        time = pc.field(UPLOAD_TIME)
        where = (time >= time_of(low)) & (time < time_of(high))
        for batch in event_batches(some, Between(low, high), schema, where):
            yield hour * HOUR_MS, batch


def _about(alike: Alike, between: Between, part: Placed) -> bool:
    """Whether the bounds have all events of a part, and the question may be about some."""
    times = alike.first_ms, alike.end_ms
    return between.all_of(part) and (alike.time != UPLOAD_TIME or _overlaps(*times, part))


def _overlaps(low_ms: int, high_ms: int, part: Placed) -> bool:
    return part.first_ms < high_ms and part.last_ms >= low_ms


def picked_rejects(view: View, wanted: RejectFilter) -> Iterator[pa.RecordBatch]:
    """The rejects that match, batch by batch."""
    here = chain.from_iterable(partition.rejects(wanted) for partition in view.partitions)
    return chain(here, remote_rejects(view.partitions, wanted))


def scan_nodes(
    partitions: list[Partition], between: Between, types: pa.Schema, granularity_ms: Granularity
) -> pl.LazyFrame:
    """The rows of other nodes' partitions between the bounds, lazily; `types` has their columns.
    `granularity_ms` as in `Scans.table`."""
    schema = polars_schema(types)
    read = arrow_of(schema)

    def frames(used: PolarsSchema, predicate: pl.Expr | None) -> Iterator[pl.DataFrame]:
        columns, where = list(used) or [OFFSET], pushed(predicate, schema)
        batches = remote_events(partitions, between, types, read, columns, where, granularity_ms)
        return map(framed, batches)

    return scan_frames(frames, schema, "other nodes")


def framed(batch: pa.RecordBatch) -> pl.DataFrame:
    return pl.DataFrame(pa.Table.from_batches([batch]))


def scan_rejects(view: View, wanted: RejectFilter) -> pl.LazyFrame:
    """The same, lazily."""
    schema = polars_schema(REJECT_SCHEMA)
    return scan_frames(
        lambda *_: map(pl.DataFrame, picked_rejects(view, wanted)), schema, "rejects"
    )
