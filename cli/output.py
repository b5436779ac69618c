"""What commands print: tables for people, and JSON.

A table is aligned text that can't control a terminal, and no cell is ever cut. At a terminal too
narrow for a row, each row becomes a block of lines, one per value. Elsewhere (a pipe, a file) width
is unlimited, and there is never any colour.
"""

import shutil
import sys
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from textwrap import wrap

import click
import orjson
from rich.cells import cell_len
from rich.console import Console

from forebay.storage.base.text import plain

GAP = "  "


class PipedConsole(Console):
    """Raises an error if its reader has gone, like any other output."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def text_table(
    headings: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    right: Collection[str] = (),
    width: int | None = None,
) -> list[str]:
    """The lines of a table; a cell is text, an integer, a time or None. Columns whose heading is
    among `right` are right-aligned. If `width`, in terminal cells, is given and rows don't fit,
    they become blocks."""
    cells = [[_cell(value) for value in row] for row in (headings, *rows)]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    if width is not None and sum(widths) + len(GAP) * (len(widths) - 1) > width:
        return _blocks(cells[0], cells[1:])
    aligned = [heading in right for heading in headings]
    return [GAP.join(map(_padded, row, widths, aligned)).rstrip() for row in cells]


def echo_table(
    headings: Sequence[str], rows: Sequence[Sequence[object]], *, right: Collection[str] = ()
) -> None:
    """Print it in the width that standard output allows."""
    for line in text_table(headings, rows, right=right, width=terminal_width()):
        click.echo(line)


def echo_json(value: object, option: int = 0) -> None:
    """Print it as an indented document, with an additional option of orjson's."""
    click.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2 | option))


def totals(counts: Mapping[str, int], width: int | None) -> list[str]:
    """Counts that are not 0, in one line or as few as `width` cells allow; pairs stay whole."""
    joined = GAP.join(f"{name}\u00a0{count:,}" for name, count in counts.items() if count)
    lines = [joined] if width is None else wrap(joined, width, break_long_words=False)
    return [line.replace("\u00a0", " ") for line in lines]


def terminal_width() -> int | None:
    """Cells in a line of the terminal at standard output; None if it is not a terminal."""
    if not sys.stdout.isatty():
        return None
    return shutil.get_terminal_size().columns


def time_text(time: datetime | None, *, ms: bool = False) -> str:
    """The time to the second, or to the millisecond."""
    if time is None:
        return "-"
    return f"{time:%Y-%m-%d %H:%M:%S.%f}"[:-3] if ms else f"{time:%Y-%m-%d %H:%M:%S}"


def _cell(value: object) -> str:
    if value is None or isinstance(value, datetime):
        return time_text(value)
    return f"{value:,}" if isinstance(value, int) else plain(str(value))


def _padded(cell: str, width: int, right: bool) -> str:
    space = " " * (width - cell_len(cell))
    return space + cell if right else cell + space


def _blocks(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    width = max(map(cell_len, headings))
    lines: list[str] = []
    for row in rows:
        named = zip(headings, row, strict=True)
        lines += [f"{_padded(name, width, False)}{GAP}{cell}".rstrip() for name, cell in named]
        lines.append("")
    return lines[:-1]
