"""`forebay sql`: one query over hot and cold data, in a chosen format, or a prompt for many."""

import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import click
import orjson

from forebay import query
from forebay.cli.example import example
from forebay.cli.nodes import Places, places_option
from forebay.cli.options import force_option, settings
from forebay.cli.output import terminal_width
from forebay.cli.target import new_file
from forebay.query.tables import Limits, Parameters
from forebay.storage.base.errors import BadInput

TEXTS = ("table", "markdown")
FORMATS = ("table", "json", "ndjson", "csv", "parquet", "arrow", "markdown")
SUFFIXES = {
    ".json": "json", ".ndjson": "ndjson", ".jsonl": "ndjson", ".csv": "csv",
    ".parquet": "parquet", ".arrow": "arrow", ".md": "markdown", ".txt": "table",
}  # fmt: skip
WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,37})")
"""Integers that the engine represents exactly."""


@click.command(
    epilog=example(
        'forebay sql "select count(*) from events'
        " where upload_time > now() - interval '5 minutes'\""
    )
)
@click.argument("text", required=False)
@click.option("--file", "file", type=click.Path(path_type=Path), help="Read the query from a file.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(FORMATS),
    help="[default: as the name of --output says, else table]",
)
@click.option("--output", type=click.Path(path_type=Path), help="Write to a file.")
@force_option
@click.option(
    "--param",
    "given",
    multiple=True,
    metavar="[NAME=]VALUE",
    help="The value for $NAME, or for the next ?. Numbers, true, false, null and text in double"
    " quotes are as in JSON, all else is text. Repeatable.",
)
@click.option(
    "--rows",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    help="How many rows a table shows.",
)
@click.option("--spreadsheet", is_flag=True, help="CSV in which no text is taken for a formula.")
@click.option(
    "--time-zone", metavar="ZONE", default="UTC", show_default=True, help="The time zone of days."
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=Limits().seconds,
    show_default=True,
    help="Time limit in seconds; keep it below the grace period of the job.",
)
@places_option()
@click.option("--verify", is_flag=True, help="Verify the checksums of whole chunks first.")
def sql(
    text: str | None,
    file: Path | None,
    kind: str | None,
    output: Path | None,
    force: bool,
    given: Sequence[str],
    rows: int,
    spreadsheet: bool,
    time_zone: str,
    seconds: float,
    places: Places,
    verify: bool,
) -> None:
    """Answer a SQL query (DuckDB's dialect) over the tables `events`, `events_all` (including the
    batch layer's), `events_late`, `events_sealed` and `rejects`.

    TEXT is the query; `-` reads it from standard input, as does a pipe without TEXT. Without TEXT
    at a terminal, a prompt asks for queries until Ctrl-D.
    """
    kind = _format(kind, output, spreadsheet)
    asked = None if text is None and file is None and _at_terminal() else _text(text, file)
    parameters = _parameters(given, asked or "")
    if asked is None and (output is not None or given or not sys.stdout.isatty()):
        raise click.UsageError("expected a query: as TEXT, with --file, or - for standard input")
    store = places.open(
        verify=verify, iceberg=settings().batch.catalog, limits=Limits(seconds=seconds),
        time_zone=time_zone,
    )  # fmt: skip
    if asked is None:
        from forebay.cli.prompt import ask

        def answer(one: str) -> None:
            _answer(store, one, None, kind, rows, spreadsheet, None, False)
            places.tell_missing(store)

        ask(answer, store)
    else:
        _answer(store, asked, parameters, kind, rows, spreadsheet, output, force)
        places.tell_missing(store)


def _answer(
    store: query.Store,
    text: str,
    parameters: Parameters,
    kind: str,
    rows: int,
    spreadsheet: bool,
    output: Path | None,
    force: bool,
) -> None:
    from forebay.cli.rows import shown
    from forebay.query.rows import WRITERS
    from forebay.query.rows import spreadsheet as write_spreadsheet

    began = time.monotonic()
    with _out(output, force) as out:
        batches = store.sql_stream(text, parameters)
        if kind in TEXTS:
            width = terminal_width() if output is None else None
            lines, count, more = shown(batches, rows, width, markdown=kind == "markdown")
            out.write("".join(f"{line}\n" for line in lines).encode())
        else:
            write = write_spreadsheet if spreadsheet else WRITERS[kind]
            count, more = write(batches, out), False
    if more:
        click.echo(f"the first {count:,} rows; --rows shows more, --format csv all", err=True)
    elif sys.stderr.isatty() or output is not None:
        noun = "row" if count == 1 else "rows"
        where = "" if output is None else f" in {output}"
        click.echo(f"{count:,} {noun}{where}, {time.monotonic() - began:.2f} s", err=True)


@contextmanager
def _out(output: Path | None, force: bool) -> Iterator[BinaryIO]:
    """Output as bytes: from text, click would remove what it takes for colours."""
    if output is None:
        yield cast(BinaryIO, sys.stdout.buffer)
        sys.stdout.buffer.flush()
        return
    with new_file(output, force=force) as temporary, temporary.open("wb") as out:
        yield out


def _format(kind: str | None, output: Path | None, spreadsheet: bool) -> str:
    found = kind
    if found is None and output is not None:
        found = SUFFIXES.get(output.suffix)
        if found is None:
            raise BadInput(
                f"--output: expected a name that ends in {', '.join(SUFFIXES)}, or --format; got"
                f" {output.name!r}"
            )
    if spreadsheet and found not in (None, "csv"):
        raise BadInput(f"--spreadsheet: expected --format csv, got {found}")
    return found or ("csv" if spreadsheet else "table")


def _text(text: str | None, file: Path | None) -> str:
    if text is not None and file is not None:
        raise BadInput("sql: expected a query or --file, got both")
    try:
        if file is not None:
            return file.read_text(encoding="utf-8-sig")
        if text is not None and text != "-":
            return text
        return "" if sys.stdin is None else sys.stdin.buffer.read().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        name = "standard input" if file is None else "--file"
        raise BadInput(f"{name}: expected a query in UTF-8, got {error}") from error


def _at_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def _parameters(given: Sequence[str], text: str) -> Parameters:
    """If the query has named parameters, what precedes = is a name."""
    if not given:
        return None
    pairs = [_named(one) if re.search(r"\$[A-Za-z_]", text) else ("", one) for one in given]
    names = [name for name, _ in pairs]
    if not any(names):
        return [_value(value) for _, value in pairs]
    if not all(names):
        raise BadInput(
            "--param: expected all with a name or none, got both; text with = goes in double quotes"
        )
    for name in names:
        if names.count(name) > 1:
            raise BadInput(f"--param: expected each name once, got {name} again")
    return {name: _value(value) for name, value in pairs}


def _named(given: str) -> tuple[str, str]:
    name, found, value = given.partition("=")
    return (name, value) if found and name.isidentifier() else ("", given)


def _value(text: str) -> object:
    if WHOLE.fullmatch(text):
        return int(text)
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
    return text if isinstance(value, dict | list) else value
