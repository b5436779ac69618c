"""Plain tables: aligned text of which no cell is ever cut, that can't steer a terminal.

At a terminal too narrow for a row, each row becomes a block of lines, a value a line. Elsewhere (a
pipe, a file) there is no width to keep to, and never any colour.
"""

from __future__ import annotations

import shutil
import sys
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from textwrap import wrap

import click

from forebay.storage.base.text import plain

GAP = "  "


def table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Collection[str] = (),
    width: int | None = None,
) -> list[str]:
    """The lines of a table; columns whose heading is among `right` are aligned to that side. Within
    `width` cells of a terminal, if it is given: as blocks where rows don't fit."""
    cells = [[plain(cell) for cell in row] for row in (headings, *rows)]
    widths = [max(map(cells_of, column)) for column in zip(*cells, strict=True)]
    if width is not None and sum(widths) + len(GAP) * (len(widths) - 1) > width:
        return _blocks(cells[0], cells[1:])
    aligned = [heading in right for heading in headings]
    return [GAP.join(map(_padded, row, widths, aligned)).rstrip() for row in cells]


def echo_table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], *, right: Collection[str] = ()
) -> None:
    """Print it as wide as standard output lets it be."""
    for line in table(headings, rows, right=right, width=terminal_width()):
        click.echo(line)


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


def time_text(time: datetime | None) -> str:
    return "-" if time is None else f"{time:%Y-%m-%d %H:%M:%S}"


def number_text(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


def cells_of(text: str) -> int:
    """How many cells of a terminal the text takes."""
    if text.isascii():
        return len(text)
    return sum(_cells(character) for character in text)


def _cells(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


def _padded(cell: str, width: int, right: bool) -> str:
    space = " " * (width - cells_of(cell))
    return space + cell if right else cell + space


def _blocks(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    width = max(map(cells_of, headings))
    lines: list[str] = []
    for number, row in enumerate(rows):
        lines += [""] if number else []
        lines += [
            f"{_padded(heading, width, False)}{GAP}{cell}".rstrip()
            for heading, cell in zip(headings, row, strict=True)
        ]
    return lines
