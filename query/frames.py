"""Frames over the files of a view, and the range of their times.

A lazy frame reads nothing before it is collected; projection, predicate and row limit reach the
files. Only times in the years 1 to 9999 are kept: a query can turn any number into a time, and
version 1 stored any, but engines panic over other years, and Python has no type for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import cast

import polars as pl
import pyarrow as pa
from polars.io.plugins import register_io_source

from forebay.storage.base.times import END_S, FIRST_S, PER_SECOND
from forebay.storage.decoding.from_raw import FromRaw
from forebay.storage.formats.schema import RAW

PolarsSchema = dict[str, pl.DataType]
Read = Callable[[PolarsSchema, pl.Expr | None], Iterator[pl.DataFrame] | Iterator[pl.LazyFrame]]
PER_DAY_S = 86_400
SCHEMAS = 64
"""How many translated schemas are cached."""
DECODED = "decoded from raw"
"""A name that no column has."""


def polars_schema(schema: pa.Schema) -> PolarsSchema:
    return dict(_polars_schema(schema))


@lru_cache(SCHEMAS)
def _polars_schema(schema: pa.Schema) -> pl.Schema:
    return pl.DataFrame(schema.empty_table()).schema


def arrow_of(schema: PolarsSchema) -> pa.Schema:
    """The schema of a frame's rows when they are exported."""
    return _arrow_of(tuple(schema.items()), exported)


def viewed_of(schema: PolarsSchema) -> pa.Schema:
    """The schema of rows that are `viewed`."""
    return _arrow_of(tuple(schema.items()), viewed)


@lru_cache(SCHEMAS)
def _arrow_of(
    columns: tuple[tuple[str, pl.DataType], ...], made: Callable[[pl.DataFrame], pa.Table]
) -> pa.Schema:
    return made(pl.DataFrame(schema=dict(columns))).schema


def exported(frame: pl.DataFrame) -> pa.Table:
    """As Arrow, in types that every reader knows."""
    return frame.to_arrow(compat_level=pl.CompatLevel.oldest())


def viewed(frame: pl.DataFrame) -> pa.Table:
    """As Arrow, without a copy."""
    return frame.to_arrow(compat_level=pl.CompatLevel.newest())


def scan_chunks(
    paths: Sequence[Path], schema: PolarsSchema, include_file_paths: str | None = None
) -> pl.LazyFrame:
    """The columns of `schema` for the rows of chunks; null where a chunk lacks a column."""
    return pl.scan_parquet(
        list(paths),
        schema=schema,
        missing_columns="insert",
        extra_columns="ignore",
        hive_partitioning=False,
        glob=False,
        include_file_paths=include_file_paths,
    )


def with_decoded(
    rows: pl.LazyFrame, from_raw: FromRaw, columns: PolarsSchema, *, where_null: bool = False
) -> pl.LazyFrame:
    """The rows with these columns decoded from their raw; with `where_null`, only where the rows'
    own values are null."""
    if not columns:
        return rows

    def decoded(raw: pl.Series) -> pl.Series:
        found = from_raw.decode(raw.to_arrow(compat_level=pl.CompatLevel.oldest()), list(columns))
        series = (cast(pl.Series, pl.from_arrow(one)) for one in found)
        named = zip(columns.items(), series, strict=True)
        return pl.DataFrame(
            [one.cast(dtype).alias(name) for (name, dtype), one in named]
        ).to_struct()

    struct = pl.col(RAW).map_batches(decoded, pl.Struct(columns), is_elementwise=True)
    fields = {name: pl.col(DECODED).struct.field(name) for name in columns}
    if where_null:
        fields = {name: pl.coalesce(pl.col(name), field) for name, field in fields.items()}
    return rows.with_columns(struct.alias(DECODED)).with_columns(**fields).drop(DECODED)


def scan_frames(read: Read, schema: PolarsSchema, name: str) -> pl.LazyFrame:
    """The rows of the frames that `read` returns. It is called with the used columns and a filter;
    its frames may have more columns, and more rows than those that match. Of a lazy frame, only
    what is used is ever in memory."""

    def rows(
        with_columns: list[str] | None,
        predicate: pl.Expr | None,
        n_rows: int | None,
        batch_size: int | None,
    ) -> Iterator[pl.DataFrame]:
        names = list(schema) if with_columns is None else with_columns
        used = {*names, *(predicate.meta.root_names() if predicate is not None else ())}
        wanted = {name: dtype for name, dtype in schema.items() if name in used}
        for whole in read(wanted, predicate):
            frame = whole
            if n_rows is not None:
                frame = _in_memory(whole.head(n_rows))
                n_rows -= frame.height
            kept = frame if predicate is None else frame.filter(predicate)
            yield _in_memory(kept.select(names))
            if n_rows == 0:
                return

    return register_io_source(rows, schema=schema, is_pure=True, explain_name=name)


def _in_memory(rows: pl.DataFrame | pl.LazyFrame) -> pl.DataFrame:
    return rows.collect(engine="streaming") if isinstance(rows, pl.LazyFrame) else rows


def on_calendar(answer: pl.DataFrame) -> pl.DataFrame:
    """With null for each time outside the years 1 to 9999."""
    columns = answer.schema.items()
    return answer.with_columns(
        within_years(*one) for one in columns if isinstance(one[1], pl.Datetime | pl.Date)
    )


def within_years(name: str, dtype: pl.DataType) -> pl.Expr:
    """The times or dates of a column, null where they are outside the years 1 to 9999."""
    if isinstance(dtype, pl.Datetime):
        first, end = (bound * PER_SECOND[dtype.time_unit] for bound in (FIRST_S, END_S))
    else:
        first, end = FIRST_S // PER_DAY_S, END_S // PER_DAY_S
    # Nanoseconds in 64 bits don't reach that far.
    inside = pl.col(name).to_physical().is_between(max(first, -(2**63)), min(end, 2**63) - 1)
    return pl.when(inside).then(pl.col(name))
