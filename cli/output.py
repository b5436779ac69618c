"""What commands print: tables for people, and JSON.

A table is aligned text of which no cell is ever cut, and that can't steer a terminal. At a terminal
too narrow for a row, each row becomes a block of lines, a value a line. Elsewhere (a pipe, a file)
there is no width to keep to, and never any colour.
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
    """Of which a reader that has gone is an error like that of any other output."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def text_table(
    headings: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    right: Collection[str] = (),
    width: int | None = None,
) -> list[str]:
    """The lines of a table, of which a cell is text, a whole number, a time or None; columns whose
    heading is among `right` are aligned to that side. Within `width` cells of a terminal, if it is
    given: as blocks where rows don't fit."""
    cells = [[_cell(value) for value in row] for row in (headings, *rows)]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    if width is not None and sum(widths) + len(GAP) * (len(widths) - 1) > width:
        return _blocks(cells[0], cells[1:])
    aligned = [heading in right for heading in headings]
    return [GAP.join(map(_padded, row, widths, aligned)).rstrip() for row in cells]


def echo_table(
    headings: Sequence[str], rows: Sequence[Sequence[object]], *, right: Collection[str] = ()
) -> None:
    """Print it as wide as standard output lets it be."""
    for line in text_table(headings, rows, right=right, width=terminal_width()):
        click.echo(line)


def echo_json(value: object, option: int = 0) -> None:
    """Print it as an indented document, with a further option of orjson's."""
    click.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2 | option))


def totals(counts: Mapping[str, int], width: int | None) -> list[str]:
    """Counts that are not 0 in a line, or in as few as `width` cells allow; a pair stays whole."""
    joined = GAP.join(f"{name}\u00a0{count:,}" for name, count in counts.items() if count)
    lines = [joined] if width is None else wrap(joined, width, break_long_words=False)
    return [line.replace("\u00a0", " ") for line in lines]


def terminal_width() -> int | None:
    """Cells in a line of the terminal that standard output is; None if it is no terminal."""
    if not sys.stdout.isatty():
        return None
    return shutil.get_terminal_size().columns


def time_text(time: datetime | None, *, ms: bool = False) -> str:
    """To the second, or to the millisecond."""
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
