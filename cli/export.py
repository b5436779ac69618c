"""`forebay export`: every row of a table once, hot and cold, in a file of Parquet, NDJSON or CSV.

What always holds: rows are of one view, and memory holds one batch of them; the file gets its name
when it is whole. If a file of the view goes meanwhile, all is written again of a new view.

In NDJSON a message that is UTF-8 is `raw` (of rejects `message`), another `raw_base64`; in CSV one
that is not UTF-8 has U+FFFD for what can't be read. Times are in UTC; NaN and the infinities are
null in NDJSON, as JSON has none.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import click
import orjson
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from forebay import query
from forebay.cli.roots import data_dirs_option, roots_of
from forebay.cli.target import force_option, new_file
from forebay.flows.settings import load
from forebay.query.store import STREAMED
from forebay.storage.base.errors import BadInput, MissingFile

TRIES = 3
ROW_GROUP_BYTES = 64 << 20

LINES = 4096
"""Rows that are held as text, or as Python's objects."""

Write = Callable[[pa.RecordBatch], None]
Writer = Callable[[Path, pa.Schema], AbstractContextManager[Write]]


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--table", type=click.Choice(STREAMED), default="events", show_default=True)
@force_option
@data_dirs_option
def export(file: Path, table: str, force: bool, data_dirs: tuple[Path, ...]) -> None:
    """Write all rows of a table to FILE.parquet, FILE.ndjson or FILE.csv, or to DIR/TABLE.parquet
    if FILE is a folder."""
    settings = load()
    store = query.open(*roots_of(data_dirs, settings.data_dir), iceberg=settings.batch.catalog)
    target = file / f"{table}.parquet" if file.is_dir() else file
    if target.suffix not in WRITERS:
        raise BadInput(f"export: expected a folder or {', '.join(WRITERS)}; got {file.name!r}")
    with new_file(target, force=force) as temporary:
        rows = _written(store, table, temporary, WRITERS[target.suffix])
    click.echo(f"{rows:,} rows of {table} in {target}")


def _written(store: query.Store, table: str, path: Path, writer: Writer) -> int:
    """How many rows were written."""
    for _ in range(TRIES):
        try:
            rows = 0
            reader = store.stream(table)
            with writer(path, reader.schema) as write:
                for batch in reader:
                    write(batch)
                    rows += batch.num_rows
            return rows
        except MissingFile as error:
            failure = error
    raise MissingFile(
        f"export: expected files to stay while they are written, after {TRIES} tries: {failure};"
        " a longer grace keeps them longer"
    ) from failure


@contextmanager
def _parquet(path: Path, schema: pa.Schema) -> Iterator[Write]:
    """Row groups of a bounded size, each of several batches."""
    held: list[pa.RecordBatch] = []
    with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as out:

        def flush() -> None:
            if held:
                out.write_table(pa.Table.from_batches(held, schema))
                held.clear()

        def write(batch: pa.RecordBatch) -> None:
            held.append(batch)
            if sum(one.nbytes for one in held) >= ROW_GROUP_BYTES:
                flush()

        yield write
        flush()


@contextmanager
def _ndjson(path: Path, schema: pa.Schema) -> Iterator[Write]:
    binary = [field.name for field in schema if _is_binary(field.type)]
    with path.open("wb") as out:

        def write(batch: pa.RecordBatch) -> None:
            for first in range(0, batch.num_rows, LINES):
                rows = batch.slice(first, LINES).to_pylist()
                out.writelines(_line(row, binary) for row in rows)

        yield write


def _line(row: dict[str, Any], binary: list[str]) -> bytes:
    for name in binary:
        value = row[name]
        try:
            row[name] = None if value is None else value.decode()
        except UnicodeDecodeError:
            row[name], row[f"{name}_base64"] = None, base64.b64encode(value).decode()
    return orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z)


@contextmanager
def _csv(path: Path, schema: pa.Schema) -> Iterator[Write]:
    with path.open("wb") as out:

        def write(batch: pa.RecordBatch) -> None:
            for first in range(0, batch.num_rows, LINES):
                rows = pl.DataFrame(pa.Table.from_batches([batch.slice(first, LINES)]))
                texts = rows.with_columns(pl.col(pl.Binary).map_elements(_replaced, pl.String))
                texts.write_csv(out, include_header=False)

        out.write(pl.DataFrame(schema=dict.fromkeys(schema.names, pl.String)).write_csv().encode())
        yield write


def _replaced(value: bytes) -> str:
    return value.decode(errors="replace")


def _is_binary(type: pa.DataType) -> bool:
    return bool(pa.types.is_binary(type) or pa.types.is_large_binary(type))


WRITERS: dict[str, Writer] = {
    ".parquet": _parquet, ".ndjson": _ndjson, ".jsonl": _ndjson, ".csv": _csv,
}  # fmt: skip
