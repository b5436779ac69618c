"""The tables that queries name, and what the SQL engine sees for each: a query of chunk files,
which it reads directly, and of datasets, which it asks for the columns that it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from forebay.query.batches import Between, chunk_batches
from forebay.query.dataset import Made
from forebay.query.frames import viewed, viewed_of
from forebay.query.partition import ChunkFile, Partition, VerifiedChunks
from forebay.query.pruning import grouped
from forebay.storage.base.errors import BadInput
from forebay.storage.base.times import time_of
from forebay.storage.formats.schema import RAW, UPLOAD_TIME

TABLE, ALL_EVENTS, LATE = "events", "events_all", "events_late"
SEALED, REJECTS = "events_sealed", "rejects"
TABLES = (TABLE, ALL_EVENTS, LATE, SEALED, REJECTS)
BATCH_ROWS = 122_880
Parameters = Sequence[object] | Mapping[str, object] | None
Part = tuple[list[Partition], Between]
"""Partitions with what may belong to a table, and the bounds of its rows' upload times."""


@dataclass(frozen=True)
class Limits:
    """Limits of one query: `seconds`, which should be less than the job's `grace` (10 minutes
    unless set otherwise), as replaced files are deleted after that; `rows` of an answer that is a
    whole frame; `memory_bytes` of the engine (None: half of the machine's), and `disk_bytes` of
    temporary files for what exceeds them."""

    seconds: float = 540.0
    rows: int = 10_000_000
    memory_bytes: int | None = None
    disk_bytes: int = 16 << 30

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if (value is None and name != "memory_bytes") or (value is not None and value <= 0):
                raise BadInput(f"limits: {name}: expected a number above 0, got {value!r}")


@dataclass(frozen=True)
class Relation:
    """A table as the engine sees it: a query of chunk files, and of datasets by name."""

    text: str
    datasets: Mapping[str, Made] = field(default_factory=dict)

    def beside(self, other: Relation) -> Relation:
        """The rows of both; a column that only one of them has is null in the other's rows."""
        text = f"from ({self.text}) union all by name from ({other.text})"
        return Relation(text, {**self.datasets, **other.datasets})


@dataclass(frozen=True)
class ChunkTables:
    """Chunk files as tables with the columns of `schema`. The engine reads most of them where they
    are `located`; others are read for it, because they have times that it can't read, or lack a
    column that it `asks` for and that can be decoded from their raw."""

    schema: pa.Schema
    chunks: VerifiedChunks
    located: Callable[[ChunkFile], str]
    asks: Callable[[str], bool]

    def relation(self, name: str, files: Iterable[ChunkFile], between: Between) -> Relation:
        """The rows of these files between the bounds."""
        groups: dict[tuple[frozenset[str], frozenset[str], bool], list[ChunkFile]] = {}
        odd: list[ChunkFile] = []
        older: list[ChunkFile] = []
        for file in files:
            lacking = file.lacking
            if self.chunks.outside_years(file.path):
                odd.append(file)
            elif any(map(self.asks, lacking)):
                older.append(file)
            else:
                present, whole = frozenset(file.chunk.schema), between.all_of(file.chunk)
                of = present, frozenset(lacking), whole
                groups.setdefault(of, []).append(file)
        queries = []
        for (present, lacking_too, whole), alike in groups.items():
            listed = ", ".join(literal(self.located(one)) for one in alike)
            source = f"read_parquet([{listed}], hive_partitioning = false)"
            bounds = None if whole else between
            queries.append(_select(self.schema, present, source, bounds, lacking_too))
        made = {}
        if odd:  # statistics don't show which times become null
            made[f"{name} odd"] = Made(
                self.schema, lambda columns, _: self._batches(odd, between, columns, None)
            )
        if older:
            made[f"{name} older"] = Made(self.schema, partial(self._batches, older, between))
        every = frozenset(self.schema.names)
        queries += [_select(self.schema, every, quoted(own), between) for own in made]
        return Relation(" union all ".join(queries), made)

    def _batches(
        self,
        files: Sequence[ChunkFile],
        between: Between,
        columns: Sequence[str],
        where: pc.Expression | None,
    ) -> Iterator[pa.RecordBatch]:
        wanted = pa.schema([self.schema.field(name) for name in columns])
        for file in files:
            yield from chunk_batches(file, between, wanted, where)


def relation_of(
    name: str,
    parts: Sequence[Part],
    tables: ChunkTables,
    hot: Callable[[list[Partition], Sequence[str], object], Iterator[pa.RecordBatch]],
    hot_schema: pa.Schema,
    others: Callable[
        [list[Partition], Between, Sequence[str], pc.Expression | None], Iterator[pa.RecordBatch]
    ],
    others_schema: pa.Schema,
) -> Relation:
    """Events: the rows of chunk files, and hot rows. `hot` returns the requested columns of hot
    rows, `others` those of other nodes' partitions. If a query asks for times, hot rows come in
    groups with known bounds, and the engine skips the groups that it does not need."""
    queries: list[str] = []
    datasets: dict[str, Made] = {}
    for number, (partitions, between) in enumerate(parts):
        files = (file for partition in partitions for file in partition.chunk_files)
        cold = tables.relation(f"{name} {number}", files, between)
        every = frozenset(tables.schema.names)
        queries += [cold.text] if cold.text else []
        datasets |= cold.datasets
        groups = grouped(partitions) if tables.asks(UPLOAD_TIME) else [(Between(), partitions)]
        for group, (span, some) in enumerate(groups):
            own = f"{name} hot {number} {group}"
            queries.append(_select(tables.schema, every, quoted(own), between.within(span)))
            datasets[own] = Made(hot_schema, partial(hot, some))
        if elsewhere := [one for one in partitions if one.remote is not None]:
            own = f"{name} nodes {number}"
            queries.append(_select(tables.schema, every, quoted(own)))
            datasets[own] = Made(others_schema, partial(others, elsewhere, between))
    return Relation(" union all ".join(queries), datasets)


def relation_of_frame(name: str, rows: pl.LazyFrame) -> Relation:
    """Any rows; only the columns that are asked for are made."""
    schema = rows.collect_schema()

    def made(columns: Sequence[str], _: object) -> Iterator[pa.RecordBatch]:
        for frame in rows.select(columns).collect_batches(chunk_size=BATCH_ROWS, lazy=True):
            yield from viewed(frame).to_batches()

    own = f"{name} rows"
    dataset = Made(viewed_of(dict(schema)), made)
    return Relation(_select(dataset.schema, frozenset(schema), quoted(own)), {own: dataset})


def _select(
    schema: pa.Schema,
    present: frozenset[str],
    source: str,
    between: Between | None = None,
    unasked: Collection[str] = (),
) -> str:
    """The rows of `source`, which has the columns `present`. Those `unasked` may not be read."""
    columns = (_column(one, one.name in present, one.name in unasked) for one in schema)
    bounds = [] if between is None else [(between.first_ms, ">="), (between.end_ms, "<")]
    where = [
        f"{quoted(UPLOAD_TIME)} {compare} timestamptz '{time_of(bound):%Y-%m-%d %H:%M:%S.%f}+00'"
        for bound, compare in bounds
        if bound is not None
    ]
    filtered = f" where {' and '.join(where)}" if where else ""
    return f"select {', '.join(columns)} from {source}{filtered}"


def _column(column: pa.Field, present: bool, unasked: bool) -> str:
    name = quoted(column.name)
    if unasked:  # the engine drops unread columns, so this shows a wrong guess
        told = literal(f"bug: {column.name}: expected no one to ask for it")
        return f"error({told})::{_type(column.type)} as {name}"
    if column.name == RAW:
        # Null if the bytes are not JSON: a single message must not end a query.
        value = f"try_cast(try(decode({name})) as json)" if present else "null::json"
        return f"{value} as {name}"
    if not present:
        return f"null::{_type(column.type)} as {name}"
    return name


def _type(type: pa.DataType) -> str:
    if pa.types.is_timestamp(type):
        return "timestamptz"
    return {
        pa.int64(): "bigint", pa.float64(): "double", pa.bool_(): "boolean", pa.binary(): "blob",
    }.get(type, "varchar")  # fmt: skip


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
