"""`forebay sql`: one query over hot and cold, printed in the format asked for."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import click
import polars as pl

import query
from flows.settings import load

TABLE_ROWS = 1000
FORMATS = ("table", "json", "csv", "parquet")


@click.command()
@click.argument("text")
@click.option("--format", "kind", type=click.Choice(FORMATS), default="table", show_default=True)
@click.option(
    "--data-dir", "data_dirs", multiple=True, type=click.Path(path_type=Path),
    help="Repeat for several nodes.  [default: that of the settings]",
)  # fmt: skip
def sql(text: str, kind: str, data_dirs: tuple[Path, ...]) -> None:
    """Answer a SQL query over the table `events`."""
    answer = query.open(*(data_dirs or [load().data_dir])).sql(text)
    if kind == "parquet":
        answer.write_parquet(sys.stdout.buffer)
    elif kind == "csv":
        click.echo(_readable(answer).write_csv(), nl=False)
    elif kind == "json":
        click.echo(_readable(answer).write_json())
    else:
        with pl.Config(
            tbl_rows=TABLE_ROWS, tbl_cols=-1, fmt_str_lengths=80, tbl_hide_dataframe_shape=True,
            tbl_hide_column_data_types=True, tbl_width_chars=shutil.get_terminal_size().columns,
        ):  # fmt: skip
            click.echo(_readable(answer))
        if answer.height > TABLE_ROWS:
            click.echo(f"{answer.height} rows; the middle is left out", err=True)


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
