"""Rows of any query, in formats that other programs read.

All rows are written, batch by batch, with unchanged values. In JSON, times are RFC 3339, intervals
ISO 8601, NaN and the infinities null; bytes are text, in which invalid UTF-8 is replaced; lists and
structs are JSON in CSV too. Parquet and Arrow have types that every reader knows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from decimal import Decimal
from itertools import chain
from typing import Any, BinaryIO

import orjson
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from forebay.query.frames import on_calendar
from forebay.query.sql_types import distinct, known

FORMULA = r"^[=+\-@\t\r]"
"""Text that begins like this is a formula to a spreadsheet."""


def frames(batches: pa.RecordBatchReader) -> Iterator[pl.DataFrame]:
    """The rows, in types that can be written; at least one frame, for its columns."""
    names = distinct(batches.schema.names)
    none = [pa.nulls(0, field.type) for field in batches.schema]
    empty = pa.RecordBatch.from_arrays(none, schema=batches.schema)
    for batch in chain([empty], batches):
        columns = [known(column) for column in batch.columns]
        yield on_calendar(pl.DataFrame(pa.Table.from_arrays(columns, names)))


def parquet(batches: pa.RecordBatchReader, out: BinaryIO) -> int:
    rows, writer = 0, None
    for frame in frames(batches):
        table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
        writer = writer or pq.ParquetWriter(out, table.schema, compression="zstd")
        if frame.height:
            writer.write_table(table.cast(writer.schema))
        rows += frame.height
    if writer is not None:
        writer.close()
    return rows


def arrow(batches: pa.RecordBatchReader, out: BinaryIO) -> int:
    """As a stream of Arrow's IPC."""
    rows, writer, schema = 0, None, None
    for frame in frames(batches):
        table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
        if writer is None:
            schema = table.schema
            writer = pa.ipc.new_stream(out, schema)
        if frame.height:
            writer.write_table(table.cast(schema))
        rows += frame.height
    if writer is not None:
        writer.close()
    return rows


def ndjson(batches: pa.RecordBatchReader, out: BinaryIO) -> int:
    rows = 0
    for frame in frames(batches):
        out.writelines(json_value(row) + b"\n" for row in frame.iter_rows(named=True))
        rows += frame.height
    return rows


def json(batches: pa.RecordBatchReader, out: BinaryIO) -> int:
    rows = 0
    out.write(b"[")
    for frame in frames(batches):
        for row in frame.iter_rows(named=True):
            out.write((b",\n" if rows else b"\n") + json_value(row))
            rows += 1
    out.write(b"\n]\n")
    return rows


def csv(batches: pa.RecordBatchReader, out: BinaryIO) -> int:
    return _csv(batches, out, lambda frame: frame)


def spreadsheet(batches: pa.RecordBatchReader, out: BinaryIO) -> int:
    """CSV in which no text or heading is a formula: such text is prefixed with an apostrophe."""
    return _csv(batches, out, _harmless)


def _harmless(frame: pl.DataFrame) -> pl.DataFrame:
    names = [name for name, dtype in frame.schema.items() if dtype == pl.String]
    guarded = [
        pl.when(pl.col(name).str.contains(FORMULA))
        .then(pl.concat_str(pl.lit("'"), pl.col(name)))
        .otherwise(pl.col(name))
        .alias(name)
        for name in names
    ]
    headings = {one: f"'{one}" for one in frame.columns if re.match(FORMULA, one)}
    return frame.with_columns(guarded).rename(headings)


def _csv(
    batches: pa.RecordBatchReader,
    out: BinaryIO,
    changed: Callable[[pl.DataFrame], pl.DataFrame],
) -> int:
    rows = 0
    for number, frame in enumerate(frames(batches)):
        # Written by Python, so that a pipe without a reader raises Python's own error.
        out.write(changed(flat(frame)).write_csv(include_header=not number).encode())
        rows += frame.height
    return rows


def flat(frame: pl.DataFrame) -> pl.DataFrame:
    """With text in place of types that neither CSV nor a table has."""
    nested = [name for name, dtype in frame.schema.items() if dtype.is_nested()]
    return frame.with_columns(
        pl.Series(
            name,
            [None if v is None else json_value(v).decode() for v in frame[name].to_list()],
            pl.String,
        )
        for name in nested
    ).with_columns(
        pl.col(pl.Binary).map_elements(lambda v: v.decode(errors="replace"), pl.String),
        pl.col(pl.Categorical, pl.Enum, pl.Decimal).cast(pl.String),
        pl.col(pl.Duration).dt.to_string("iso"),
    )


def json_value(value: object) -> bytes:
    return orjson.dumps(
        value, default=_known_to_json, option=orjson.OPT_UTC_Z | orjson.OPT_NON_STR_KEYS
    )


def _known_to_json(value: object) -> Any:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, Decimal):
        whole = value == value.to_integral_value() and abs(value) < 2**63
        return int(value) if whole else float(value)
    if isinstance(value, timedelta):
        return pl.select(pl.lit(value).dt.to_string("iso")).item()
    return str(value)


WRITERS: dict[str, Callable[[pa.RecordBatchReader, BinaryIO], int]] = {
    "json": json, "ndjson": ndjson, "csv": csv, "parquet": parquet, "arrow": arrow,
}  # fmt: skip
