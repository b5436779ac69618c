"""The tables that queries name, and what the engine of SQL has for each: a query of chunk files,
which it reads by itself, and of datasets, which it asks for the columns that it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import polars as pl
import pyarrow as pa

from forebay.query.batches import Between, chunk_batches
from forebay.query.dataset import Made
from forebay.query.partition import ChunkFile, Partition, VerifiedChunks
from forebay.storage.base.errors import BadInput
from forebay.storage.base.times import time_of
from forebay.storage.formats.schema import RAW, UPLOAD_TIME

TABLE, ALL_EVENTS, LATE = "events", "events_all", "events_late"
SEALED, REJECTS = "events_sealed", "rejects"
TABLES = (TABLE, ALL_EVENTS, LATE, SEALED, REJECTS)
BATCH_ROWS = 122_880
Parameters = Sequence[object] | Mapping[str, object] | None
Part = tuple[list[Partition], Between]
"""Partitions with what may be of a table, and between which times its rows are."""


@dataclass(frozen=True)
class Limits:
    """What one query may take: `seconds`, which should be below the job's `grace` (10 minutes
    unless it is set otherwise), for then files that were replaced are deleted; `rows` of an answer
    that is a whole frame; `memory_bytes` of the engine (None: half of the machine's), and
    `disk_bytes` of temporary files for what exceeds them."""

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
    """A table as the engine has it: a query of chunk files, and of datasets by their names."""

    text: str
    datasets: Mapping[str, Made] = field(default_factory=dict)

    def beside(self, other: Relation) -> Relation:
        """The rows of both, each with null for a column that only the other has."""
        text = f"from ({self.text}) union all by name from ({other.text})"
        return Relation(text, {**self.datasets, **other.datasets})


def relation_of(
    name: str,
    parts: Sequence[Part],
    schema: pa.Schema,
    chunks: VerifiedChunks,
    located: Callable[[Path], str],
    hot: Callable[[list[Partition], Sequence[str]], Iterator[pa.RecordBatch]],
    hot_schema: pa.Schema,
) -> Relation:
    """Events: those of chunk files, which the engine reads where they are `located`, and hot ones,
    of which `hot` gives the columns that are asked for. Chunks with times that it can't read are
    read for it."""
    queries: list[str] = []
    datasets: dict[str, Made] = {}
    for number, (partitions, between) in enumerate(parts):
        groups: dict[tuple[frozenset[str], bool], list[Path]] = {}
        odd: list[ChunkFile] = []
        for file in (file for partition in partitions for file in partition.chunk_files):
            if chunks.outside_years(file.path):
                odd.append(file)
            else:
                of = frozenset(file.chunk.schema), between.all_of(file.chunk)
                groups.setdefault(of, []).append(file.path)
        for (present, whole), paths in groups.items():
            files = ", ".join(literal(located(path)) for path in paths)
            source = f"read_parquet([{files}], hive_partitioning = false)"
            queries.append(_select(schema, present, source, None if whole else between))
        made = {f"{name} hot {number}": Made(hot_schema, partial(hot, partitions))}
        if odd:
            made[f"{name} odd {number}"] = Made(schema, partial(_odd, odd, between, schema))
        datasets |= made
        present = frozenset(schema.names)
        queries += [_select(schema, present, quoted(own), between) for own in made]
    return Relation(" union all ".join(queries), datasets)


def _odd(
    files: Sequence[ChunkFile], between: Between, schema: pa.Schema, columns: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    wanted = pa.schema([schema.field(name) for name in columns])
    for file in files:
        yield from chunk_batches(file, between, wanted)


def relation_of_frame(name: str, rows: pl.LazyFrame) -> Relation:
    """Any rows, of which the columns that are asked for are made."""
    schema = rows.collect_schema()

    def made(columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        for frame in rows.select(columns).collect_batches(chunk_size=BATCH_ROWS, lazy=True):
            yield from viewed(frame).to_batches()

    own = f"{name} rows"
    dataset = Made(viewed(pl.DataFrame(schema=schema)).schema, made)
    return Relation(_select(dataset.schema, frozenset(schema), quoted(own)), {own: dataset})


def viewed(frame: pl.DataFrame) -> pa.Table:
    """As Arrow, without a copy."""
    return frame.to_arrow(compat_level=pl.CompatLevel.newest())


def _select(
    schema: pa.Schema,
    present: frozenset[str],
    source: str,
    between: Between | None = None,
) -> str:
    columns = (_column(one, one.name in present) for one in schema)
    bounds = [] if between is None else [(between.first_ms, ">="), (between.end_ms, "<")]
    where = [
        f"{quoted(UPLOAD_TIME)} {compare} timestamptz '{time_of(bound):%Y-%m-%d %H:%M:%S.%f}+00'"
        for bound, compare in bounds
        if bound is not None
    ]
    filtered = f" where {' and '.join(where)}" if where else ""
    return f"select {', '.join(columns)} from {source}{filtered}"


def _column(column: pa.Field, present: bool) -> str:
    name = quoted(column.name)
    if column.name == RAW:
        # Of bytes that are no JSON, null: one of them must not end a query.
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
