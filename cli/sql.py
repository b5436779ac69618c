"""`forebay sql`: one query over hot and cold, printed in the format asked for."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import click
import polars as pl

import query
from flows.settings import load

TABLE_ROWS, RECORDS = 1000, 100
COLUMN_CHARS = 12
"""What a column takes at least to be readable."""
FORMATS = ("table", "json", "csv", "parquet")


@click.command()
@click.argument("text")
@click.option("--format", "kind", type=click.Choice(FORMATS), default="table", show_default=True)
@click.option(
    "--data-dir", "data_dirs", multiple=True, type=click.Path(path_type=Path),
    help="Repeat for several nodes.  [default: that of the settings]",
)  # fmt: skip
@click.option(
    "--verify", is_flag=True, help="First hold every byte of chunks against its checksum."
)
def sql(text: str, kind: str, data_dirs: tuple[Path, ...], verify: bool) -> None:
    """Answer a SQL query over the tables `events`, `events_all` (with the batch layer's),
    `events_late` and `rejects`."""
    settings = load()
    roots = data_dirs or [settings.data_dir]
    answer = query.open(*roots, verify=verify, iceberg=settings.batch.catalog).sql(text)
    if kind == "parquet":
        answer.write_parquet(sys.stdout.buffer)
    elif kind in ("csv", "json"):  # byte for byte: `click.echo` takes escape sequences out
        readable = _readable(answer)
        output = readable.write_csv() if kind == "csv" else readable.write_json() + "\n"
        sys.stdout.buffer.write(output.encode())
    else:
        width = shutil.get_terminal_size().columns
        wide = answer.width * COLUMN_CHARS > width
        click.echo(_records(_readable(answer)) if wide else _table(_readable(answer), width))
        shown = RECORDS if wide else TABLE_ROWS
        if answer.height > shown:
            click.echo(f"{answer.height} rows, of which {shown} are shown", err=True)


def _table(answer: pl.DataFrame, width: int) -> str:
    with pl.Config(
        tbl_rows=TABLE_ROWS, tbl_cols=-1, fmt_str_lengths=80, tbl_hide_dataframe_shape=True,
        tbl_hide_column_data_types=True, tbl_width_chars=width,
    ):  # fmt: skip
        return str(answer)


def _records(answer: pl.DataFrame) -> str:
    """One value a line, for rows too wide for a table."""
    name_chars = max(map(len, answer.columns))
    lines = []
    for number, row in enumerate(answer.head(RECORDS).iter_rows(named=True), start=1):
        lines.append(f"row {number}")
        lines += [f"  {name:<{name_chars}}  {value}" for name, value in row.items()]
    return "\n".join(lines)


def _readable(answer: pl.DataFrame) -> pl.DataFrame:
    """Messages as text; bytes that are no UTF-8 are replaced."""
    binary = [name for name, dtype in answer.schema.items() if dtype == pl.Binary]
    return answer.with_columns(
        pl.Series(
            name,
            [None if v is None else v.decode(errors="replace") for v in answer[name].to_list()],
            pl.String,
        )
        for name in binary
    )
