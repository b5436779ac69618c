"""How an answer of analytics is printed: a table for people, and a chart of bars.

Column names show what they hold: `_ms` a duration, `share` and `of_…` a fraction. Bars are as wide
as the terminal allows, to an eighth of a cell, or of ASCII if it has no UTF-8.
"""

import shutil
import sys
from collections.abc import Sequence
from datetime import datetime, time

import click
import polars as pl
from rich.cells import cell_len

from forebay.cli.output import GAP, echo_table, text_table
from forebay.storage.base.text import length_text, plain, shortened

ROWS_MAX = 1000
LABEL_CELLS, BAR_CELLS = 40, 10
"""Maximum width of a label in the chart, minimum width of a bar."""
EIGHTHS = " ▏▎▍▌▋▊▉"
SHARES = ("share", "of_first", "of_previous")
LABELS = (
    "group", "bucket", "cohort", "step", "event", "kind", "next_event", "next_kind", "days",
    "from_day", "to_day", "from", "to", "times",
)  # fmt: skip
"""Columns that say what a row is about."""


def echo_answer(
    table: pl.DataFrame, measure: str | None, empty: str, *, chart: bool | None
) -> None:
    """Print its first ROWS_MAX rows, and bars for `measure` if asked for, or at a terminal; `empty`
    if there is no row."""
    shown = table.drop("others", strict=False).head(ROWS_MAX)
    if not table.height:
        click.echo(empty, err=True)
        return
    names = [name.removesuffix("_ms") for name in shown.columns]
    columns = [_cells(column) for column in shown]
    right = [name for name, column in zip(names, shown, strict=True) if column.dtype.is_numeric()]
    rows = list(zip(*columns, strict=True))
    echo_table(names, rows, right=right)
    if table.height > ROWS_MAX:
        click.echo(f"{table.height:,} rows, of which {ROWS_MAX:,} are shown", err=True)
    if measure is None or not (sys.stdout.isatty() if chart is None else chart):
        return
    blocks = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    labels = _labels([columns[at] for at, name in enumerate(names) if name in LABELS], blocks)
    values = [float(value or 0) for value in shown[measure]]
    texts = columns[shown.columns.index(measure)]
    width = shutil.get_terminal_size().columns
    click.echo()
    for line in bars(labels, values, texts, width, blocks=blocks):
        click.echo(line)


def _labels(columns: Sequence[Sequence[str]], blocks: bool) -> list[str]:
    """A label for each row, its parts aligned; the widest is shortened to what the others leave."""
    cells = [[plain(one) for one in column] for column in columns]
    widths = [max(map(cell_len, column)) for column in cells]
    rest = sum(sorted(widths)[:-1]) + len(GAP) * (len(widths) - 1)
    room = max(BAR_CELLS, LABEL_CELLS - rest)
    short = [[shortened(one, room) if blocks else one[:room] for one in one_of] for one_of in cells]
    return text_table([""] * len(short), list(zip(*short, strict=True)))[1:]


def bars(
    labels: Sequence[str], values: Sequence[float], texts: Sequence[str], width: int,
    *, blocks: bool,
) -> list[str]:  # fmt: skip
    """A line for each value: its label, its bar, and the value as text."""
    other = max(map(cell_len, labels)) + max(map(cell_len, texts)) + 2 * len(GAP)
    room, most = max(BAR_CELLS, width - other), max(values, default=0)
    drawn = [_bar(max(0, value) / most * room if most > 0 else 0, blocks) for value in values]
    lines = text_table(["", "", ""], list(zip(labels, drawn, texts, strict=True)))
    return lines[1:]


def _bar(cells: float, blocks: bool) -> str:
    if not blocks:
        return "#" * round(cells)
    whole, eighths = divmod(round(8 * cells), 8)
    return ("█" * whole + EIGHTHS[eighths]).rstrip()


def _cells(column: pl.Series) -> list[str]:
    none = "(none)" if column.name == "group" else "-"
    form = "%Y-%m-%d %H:%M:%S"
    if column.dtype == pl.Datetime:
        times = {value.time() for value in column.drop_nulls()}
        form = "%Y-%m-%d" if times <= {time()} else form
        form = form.removesuffix(":%S") if not any(one.second for one in times) else form
    whole = column.dtype.is_float() and (column.drop_nulls() % 1 == 0).all()
    return [none if v is None else _cell(v, column.name, form, whole) for v in column]


def _cell(value: object, name: str, form: str, whole: bool) -> str:
    if isinstance(value, datetime):
        return value.strftime(form)
    if isinstance(value, int | float) and not isinstance(value, bool):
        if name.endswith("_ms"):
            return length_text(round(value))
        if name in SHARES:
            return f"{value:.1%}"
        return f"{value:,.0f}" if whole or isinstance(value, int) else f"{value:,.2f}"
    return str(value)
