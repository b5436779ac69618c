"""`forebay files`: the chunk files that count now, for engines that read Parquet themselves."""

from __future__ import annotations

from pathlib import Path

import click
import orjson

from forebay import query
from forebay.cli.roots import data_dirs_option, roots_of
from forebay.cli.table import echo_table, number_text, time_text

HEADINGS = ("partition", "rows", "bytes", "first", "last", "only", "path")


@click.command()
@click.option(
    "--table", type=click.Choice(("events", "events_late")), default="events", show_default=True
)
@click.option("--json", "as_json", is_flag=True, help="A JSON list of objects.")
@data_dirs_option
def files(table: str, as_json: bool, data_dirs: tuple[Path, ...]) -> None:
    """List the Parquet files of a table, each with its rows and upload times.

    A file that the job replaced or handed over, or that a killed run left, is not among them. Where
    "only" is not empty, rows of other upload times must be left out. Hot rows are in no file;
    `forebay export` has them too.
    """
    store = query.open(*roots_of(data_dirs))
    found = store.files(table)
    if as_json:
        click.echo(orjson.dumps(found.to_dicts(), option=orjson.OPT_INDENT_2 | orjson.OPT_UTC_Z))
        return
    rows = [
        (
            row["partition"], number_text(row["rows"]), number_text(row["bytes"]),
            time_text(row["first_upload_time"]), time_text(row["last_upload_time"]),
            _only(row), row["path"],
        )
        for row in found.iter_rows(named=True)
    ]  # fmt: skip
    if rows:
        echo_table(HEADINGS, rows, right=("rows", "bytes"))
    total = f"{found.height:,} files of {number_text(int(found['rows'].sum()))} rows"
    hot = store.receipt().hot_rows
    click.echo(f"{total}; {hot:,} rows are hot, and in no file yet" if hot else total)


def _only(row: dict[str, object]) -> str:
    """The condition that rows must meet, in SQL."""
    bounds = (("from_time", ">="), ("before_time", "<"))
    return " and ".join(
        f"upload_time {compare} '{row[name]:%Y-%m-%d %H:%M:%S.%f}'"[:-4] + "'"
        for name, compare in bounds
        if row[name] is not None
    )
