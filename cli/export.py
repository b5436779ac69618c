"""`forebay export`: every row of a table once, hot and cold, in a file of Parquet, NDJSON or CSV.

What always holds: rows are of one view, and memory holds one batch of them; the file gets its name
when it is complete. If a file of the view goes meanwhile, everything is rewritten from a new view.

In NDJSON, a UTF-8 message is `raw` (for rejects `message`), any other `raw_base64`; in CSV, invalid
UTF-8 is replaced by U+FFFD. Times are in UTC; NaN and the infinities are null in NDJSON, as JSON
does not have them.
"""

import base64
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import orjson
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from forebay import query
from forebay.cli.example import example
from forebay.cli.options import data_dirs_option, force_option, settings
from forebay.cli.target import new_file
from forebay.query.store import STREAMED
from forebay.storage.base.errors import BadInput, MissingFile
from forebay.storage.base.text import count_text

TRIES = 3
ROW_GROUP_BYTES = 64 << 20
BINARY = (pa.binary(), pa.large_binary())

LINES = 4096
"""Rows held as text, or as Python objects, at a time."""


@click.command(epilog=example("forebay export events.parquet --force"))
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--table", type=click.Choice(STREAMED), default="events", show_default=True)
@force_option
@data_dirs_option()
def export(file: Path, table: str, force: bool, roots: list[Path]) -> None:
    """Write all rows of a table to FILE.parquet, FILE.ndjson or FILE.csv, or to DIR/TABLE.parquet
    if FILE is a folder."""
    store = query.open(*roots, iceberg=settings().batch.catalog)
    target = file / f"{table}.parquet" if file.is_dir() else file
    if target.suffix not in WRITERS:
        raise BadInput(f"export: expected a folder or {', '.join(WRITERS)}; got {file.name!r}")
    with new_file(target, force=force) as temporary:
        for tries in range(1, TRIES + 1):
            try:
                reader = store.stream(table)
                rows = write_rows(temporary, target.suffix, reader.schema, reader)
                break
            except MissingFile as error:
                if tries == TRIES:
                    raise MissingFile(
                        f"export: expected files to stay while they are written, after {TRIES}"
                        f" tries: {error}; a longer grace keeps them longer"
                    ) from error
    click.echo(f"{count_text(rows, 'row')} of {table} in {target}")


def write_rows(
    path: Path, suffix: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]
) -> int:
    """Write the rows in the format of a suffix, one of WRITERS; return the number of rows."""
    rows = 0

    def counted() -> Iterator[pa.RecordBatch]:
        nonlocal rows
        for batch in batches:
            rows += batch.num_rows
            yield batch

    WRITERS[suffix](path, schema, counted())
    return rows


def _parquet(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Row groups of a bounded size, each of several batches."""
    held: list[pa.RecordBatch] = []
    with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as out:
        for batch in batches:
            held.append(batch)
            if sum(one.nbytes for one in held) >= ROW_GROUP_BYTES:
                out.write_table(pa.Table.from_batches(held, schema))
                held = []
        if held:
            out.write_table(pa.Table.from_batches(held, schema))


def _ndjson(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    binary = [field.name for field in schema if field.type in BINARY]
    with path.open("wb") as out:
        for part in _parts(batches):
            out.writelines(json_line(row, binary) for row in part.to_pylist())


def _csv(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    with path.open("wb") as out:
        out.write(pl.DataFrame(schema=dict.fromkeys(schema.names, pl.String)).write_csv().encode())
        for part in _parts(batches):
            readable(pl.DataFrame(part)).write_csv(out, include_header=False)


def _parts(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        yield from (batch.slice(first, LINES) for first in range(0, batch.num_rows, LINES))


def json_line(row: dict[str, Any], binary: Sequence[str]) -> bytes:
    """A row as a line of JSON from which the `binary` columns can be recovered byte for byte."""
    for name in binary:
        value = row[name]
        try:
            row[name] = None if value is None else value.decode()
        except UnicodeDecodeError:
            row[name], row[f"{name}_base64"] = None, base64.b64encode(value).decode()
    return orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z)


def readable(rows: pl.DataFrame) -> pl.DataFrame:
    """With messages as text, in which invalid UTF-8 is replaced."""
    return rows.with_columns(
        pl.col(pl.Binary).map_elements(lambda value: value.decode(errors="replace"), pl.String)
    )


WRITERS = {".parquet": _parquet, ".ndjson": _ndjson, ".jsonl": _ndjson, ".csv": _csv}
