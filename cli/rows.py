"""Rows of any query as a table or Markdown, for people: a limited number of rows, and text that
can't control a terminal. `forebay.query.rows` writes what other programs read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

import polars as pl
import pyarrow as pa

from forebay.cli.output import text_table
from forebay.query.rows import flat, frames
from forebay.storage.base.text import plain


def shown(
    batches: pa.RecordBatchReader, rows_max: int, width: int | None, *, markdown: bool = False
) -> tuple[list[str], int, bool]:
    """The lines of a table, how many rows it shows, and whether there are more."""
    held: list[pl.DataFrame] = []
    rows = 0
    for frame in frames(batches):
        held.append(frame.head(rows_max + 1 - rows))
        rows += held[-1].height
        if rows > rows_max:
            break
    found = pl.concat(held)
    cells = [[_cell(value) for value in row] for row in flat(found.head(rows_max)).rows()]
    numbers = [name for name, dtype in found.schema.items() if dtype.is_numeric()]
    if markdown:
        lines = _markdown(found.columns, cells, numbers)
    else:
        lines = text_table(found.columns, cells, right=numbers, width=width)
    return lines, len(cells), rows > rows_max


def _markdown(
    headings: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[str]
) -> list[str]:
    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(plain(one).replace("|", r"\|") for one in cells) + " |"

    rule = ("---:" if name in numbers else "---" for name in headings)
    return [line(headings), line(rule), *map(line, rows)]


def _cell(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, datetime):
        text = str(value).removesuffix("+00:00")
        return text[:-3] if value.microsecond and value.microsecond % 1000 == 0 else text
    return plain(str(value))
