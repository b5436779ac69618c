"""`forebay tail`: the newest events, and new ones as they arrive.

Looking for new events costs a `stat` per manifest, as often as the job publishes at most. The
command ends when the reader of standard output has gone, even while no event arrives.
"""

import select
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import click
import polars as pl
from rich.cells import cell_len

import forebay
from forebay.cli.analytics import properties
from forebay.cli.event import events, where_option
from forebay.cli.example import example
from forebay.cli.options import data_dirs_option
from forebay.cli.output import GAP, time_text
from forebay.query.analytics import Event, Where, read_roles
from forebay.query.analytics.events import any_of, property_of
from forebay.query.rows import WRITERS
from forebay.query.tail import Tail
from forebay.storage.base.errors import BadInput
from forebay.storage.base.text import did_you_mean, plain
from forebay.storage.formats.schema import OFFSET, PARTITION, RAW, UPLOAD_TIME

LOOK_MS = 100
"""Time between two looks: the job publishes no more often."""
EXAMPLE = "forebay tail -f 'item_view where event_properties.price > 50' --columns user_id,country"
FORMATS = ("table", "json", "raw")
Print = Callable[[pl.DataFrame], None]


def names(_context: click.Context, _option: click.Parameter, text: str | None) -> list[str]:
    return [] if text is None else [one.strip() for one in text.split(",")]


@click.command(epilog=example(EXAMPLE))
@click.argument("kinds", metavar="[EVENT]...", nargs=-1, callback=events)
@click.option(
    "-n", "--lines", "count", type=click.IntRange(0), default=10, show_default=True,
    help="How many of the newest events to begin with.",
)  # fmt: skip
@click.option(
    "-f", "--follow", is_flag=True, help="Then print events as they arrive, until Ctrl-C."
)
@where_option("A filter on all events.")
@click.option(
    "--columns", metavar="PROPERTY,...", callback=names,
    help="Of the table, beside the upload time.  [default: event and user]",
)  # fmt: skip
@click.option(
    "--format", "kind", type=click.Choice(FORMATS), default="table", show_default=True,
    help="json: all columns, an object a line. raw: the messages as they came.",
)  # fmt: skip
@data_dirs_option()
def tail(
    kinds: list[Event], count: int, follow: bool, where: list[Where], columns: list[str],
    kind: str, roots: list[Path],
) -> None:  # fmt: skip
    """Print the newest events, the newest last; with -f, like `tail -f`, also new ones.

    It begins with the last events in block logs; older ones, which are only in chunks, are left to
    `forebay sql`. New events are printed once each, some 0.2 s after the job took them, even if it
    is killed and started again meanwhile; events that arrive together are in order of upload time.

    An EVENT is NAME, or 'NAME where PROPERTY > VALUE and PROPERTY is VALUE,VALUE'; `*` is any.
    """
    found = Tail(roots, _wanted(roots, kinds, where))
    out = sys.stdout.buffer
    show = {"table": _table(roots, columns, out), "json": _json(out), "raw": _raw(out)}[kind]
    try:
        newest = found.last(count)
        if not newest.height:
            _warn_of_kinds(roots, kinds)
        show(newest)
        out.flush()
        while follow:
            _wait()
            missed = found.missed
            for frame in found.look():
                show(frame)
            out.flush()
            if found.missed > missed:
                told = f"{found.missed - missed:,} events went by while nothing was printed"
                _warn(f"{told}: see `forebay sql`")
    except KeyboardInterrupt:
        return


def _wait() -> None:
    """Wait until the next look. Raises BrokenPipeError once the reader has gone."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    for _, event in poll.poll(LOOK_MS):
        if event & (select.POLLERR | select.POLLHUP):
            raise BrokenPipeError
        time.sleep(LOOK_MS / 1000)  # if a terminal can't be polled


def _wanted(
    roots: Sequence[Path], kinds: Sequence[Event], where: Sequence[Where]
) -> Callable[[pl.DataFrame], pl.DataFrame]:
    """The part of a frame that is asked for."""
    roles = read_roles(*roots) if any(one.name is not None for one in kinds) else None

    def wanted(frame: pl.DataFrame) -> pl.DataFrame:
        schema = frame.schema
        held = [one.expr(schema) for one in where]
        if kinds:
            held.append(any_of(kinds, schema, roles))
        return frame.filter(held) if held else frame

    return wanted


def _warn_of_kinds(roots: Sequence[Path], kinds: Sequence[Event]) -> None:
    """Warn of events that never occurred, as they may be misspelt."""
    named = [one.name for one in kinds if one.name is not None]
    if not named:
        return
    event = pl.col(read_roles(*roots).event)
    events = forebay.open(*roots).scan().select(event.unique())
    known = events.collect(engine="streaming").to_series().drop_nulls().sort().to_list()
    for name in named:
        if name not in known:
            _warn(f"no event {name!r} so far{did_you_mean(name, known)}")


def _warn(told: str) -> None:
    click.echo(f"Warning: {plain(told)}", err=True)


def _table(roots: Sequence[Path], columns: Sequence[str], out: BinaryIO) -> Print:
    """Lines of columns that grow as wide as needed."""
    widths: list[int] = []

    def show(frame: pl.DataFrame) -> None:
        if not frame.height:
            return
        named = columns or _columns(roots)
        values = [property_of(name, frame.schema).alias(f"{n}") for n, name in enumerate(named)]
        cells = [
            (time_text(time, ms=True), *map(_cell, row))
            for time, row in zip(frame[UPLOAD_TIME], frame.select(values).rows(), strict=True)
        ]
        if not widths:
            for n, name in enumerate(named):
                if name not in frame.columns and all(row[n + 1] == "-" for row in cells):
                    near = did_you_mean(name, properties(frame))
                    _warn(f"no property {name!r} in the newest events{near}")
            widths.extend([0] * (len(named) + 1))
            cells.insert(0, (UPLOAD_TIME, *map(plain, named)))
        for row in cells:
            widths[:] = [max(w, cell_len(one)) for w, one in zip(widths, row, strict=True)]
        for row in cells:
            padded = (one + " " * (w - cell_len(one)) for w, one in zip(widths, row, strict=True))
            out.write(f"{GAP.join(padded).rstrip()}\n".encode())

    return show


def _columns(roots: Sequence[Path]) -> list[str]:
    """The columns of event and user, if the data says which these are."""
    try:
        roles = read_roles(*roots)
    except BadInput:
        return [PARTITION, OFFSET]
    return [roles.event, roles.user]


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return plain(value.decode(errors="replace") if isinstance(value, bytes) else str(value))


def _json(out: BinaryIO) -> Print:
    def show(frame: pl.DataFrame) -> None:
        WRITERS["ndjson"](frame.to_arrow().to_reader(), out)

    return show


def _raw(out: BinaryIO) -> Print:
    """A message per line; line breaks inside one are JSON white space."""

    def show(frame: pl.DataFrame) -> None:
        if not frame.height:
            return
        if RAW not in frame.columns:
            raise BadInput(
                f"--format raw: expected a column {RAW}, got none, for the settings have"
                " raw = false; --format json has the columns"
            )
        out.writelines(message.replace(b"\n", b" ") + b"\n" for message in frame[RAW].drop_nulls())

    return show
