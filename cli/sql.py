"""`forebay sql`: one query over hot and cold, printed in the format asked for.

A table is for people: its text can't steer their terminal. The other formats have the values as
they are: JSON has null where a float is no number, CSV reads back.
"""

import io
import sys
from datetime import datetime
from pathlib import Path

import click

from forebay import query
from forebay.cli.export import readable
from forebay.cli.options import data_dirs_option, settings
from forebay.cli.output import echo_table
from forebay.query.frames import on_calendar
from forebay.storage.base.text import plain

ROWS_MAX = 1000
FORMATS = ("table", "json", "csv", "parquet")


@click.command()
@click.argument("text")
@click.option("--format", "kind", type=click.Choice(FORMATS), default="table", show_default=True)
@data_dirs_option()
@click.option(
    "--verify", is_flag=True, help="First check every byte of chunks against its checksum."
)
def sql(text: str, kind: str, roots: list[Path], verify: bool) -> None:
    """Answer a SQL query over the tables `events`, `events_all` (with the batch layer's),
    `events_late` and `rejects`."""
    store = query.open(*roots, verify=verify, iceberg=settings().batch.catalog)
    answer = on_calendar(store.sql(text))
    # As bytes: of text, click takes out what it believes to be colours.
    if kind == "parquet":
        out = io.BytesIO()
        answer.write_parquet(out)
        sys.stdout.buffer.write(out.getbuffer())
        sys.stdout.buffer.flush()
    elif kind == "csv":
        click.echo(readable(answer).write_csv().encode(), nl=False)
    elif kind == "json":
        click.echo(readable(answer).write_json().encode())
    else:
        rows = [[_cell(value) for value in row] for row in readable(answer.head(ROWS_MAX)).rows()]
        numbers = [name for name, dtype in answer.schema.items() if dtype.is_numeric()]
        echo_table(answer.columns, rows, right=numbers)
        if answer.height > ROWS_MAX:
            click.echo(f"{answer.height} rows, of which {ROWS_MAX} are shown", err=True)


def _cell(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, datetime):
        text = str(value).removesuffix("+00:00")
        return text[:-3] if value.microsecond and value.microsecond % 1000 == 0 else text
    return plain(str(value))
