"""`forebay files`: the chunk files that count now, for engines that read Parquet themselves."""

from pathlib import Path
from typing import Any

import click
import orjson

from forebay import query
from forebay.cli.example import example
from forebay.cli.options import data_dirs_option, json_option
from forebay.cli.output import echo_json, echo_table, time_text
from forebay.storage.base.text import count_text

HEADINGS = ("partition", "rows", "bytes", "first", "last", "only", "path")


@click.command(epilog=example("forebay files --table events --json"))
@click.option(
    "--table", type=click.Choice(("events", "events_late")), default="events", show_default=True
)
@json_option("A JSON list of objects.")
@data_dirs_option()
def files(table: str, as_json: bool, roots: list[Path]) -> None:
    """List the Parquet files of a table, each with its rows and upload times.

    Files that the job replaced or handed over, or that a killed run left behind, are not listed. If
    "only" is not empty, rows with other upload times must be left out. Hot rows are in no file;
    `forebay export` includes them.
    """
    store = query.open(*roots)
    found = store.files(table)
    if as_json:
        echo_json(found.to_dicts(), orjson.OPT_UTC_Z)
        return
    rows = [
        (
            row["partition"], row["rows"], row["bytes"],
            row["first_upload_time"],
            row["last_upload_time"], _only(row), row["path"],
        )
        for row in found.iter_rows(named=True)
    ]  # fmt: skip
    if rows:
        echo_table(HEADINGS, rows, right=("rows", "bytes"))
    total = f"{count_text(found.height, 'file')} of {count_text(int(found['rows'].sum()), 'row')}"
    hot = store.receipt().hot_rows
    click.echo(f"{total}; {count_text(hot, 'row')} still hot, in no file yet" if hot else total)


def _only(row: dict[str, Any]) -> str:
    """The condition on upload times that rows must meet, in SQL."""
    bounds = (("from_time", ">="), ("before_time", "<"))
    return " and ".join(
        f"upload_time {compare} '{time_text(row[name], ms=True)}'"
        for name, compare in bounds
        if row[name] is not None
    )
