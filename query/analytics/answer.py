"""An answer to any question: the question itself, tidy frames, and how both are displayed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from html import escape
from typing import TYPE_CHECKING

import polars as pl

from forebay.query.analytics.charts import CHARTS
from forebay.query.analytics.events import labels_of
from forebay.storage.base.errors import BadInput
from forebay.storage.base.text import plain, shortened

if TYPE_CHECKING:
    import altair as alt

WIDTH = 80
ROWS = 20
"""Rows of a table shown in a page."""


@dataclass(frozen=True, repr=False)
class Answer:
    """An answer: the parameters of its `question` by name, and frames."""

    question: Mapping[str, object]

    @property
    def tables(self) -> dict[str, pl.DataFrame]:
        """Its frames by name; a chart shows the first of them by default."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: frame for name, frame in found.items() if isinstance(frame, pl.DataFrame)}

    def chart(self, table: str | None = None) -> alt.Chart | alt.LayerChart:
        """An Altair chart of `table`, by default of the first table that has a chart. It can be
        changed like any other, and saved without a network: `chart.save("a.png")`,
        `chart.save("a.html", inline=True)`. Raises BadInput for a table without a chart, or if the
        extra `charts` is not installed."""
        known = CHARTS[type(self).__name__]
        named = next(iter(known)) if table is None else table
        if named not in known:
            raise BadInput(f"chart: expected a table among {', '.join(known)}; got {table!r}")
        return known[named](self.question, getattr(self, named))

    @property
    def _headlines(self) -> list[str]:
        """What was asked, and about which period, one line each."""
        of = ", ".join(labels_of(self.question)) or "all events"
        period, by = self.question.get("period"), self.question.get("by")
        told = [f"{type(self).__name__} of {of}"]
        told += [f"  {period}" + (f", by {by}" if by else "")] if period is not None else []
        return [shortened(plain(line), WIDTH) for line in told]

    def __repr__(self) -> str:
        lines = self._headlines
        for name, frame in self.tables.items():
            columns = ", ".join(map(plain, frame.columns))
            lines.append(shortened(f"  .{name:<12}{frame.height:>8,} rows: {columns}", WIDTH))
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """What was asked, and the first table."""
        name, frame = next(iter(self.tables.items()))
        more = f", of which {ROWS} are shown" if frame.height > ROWS else ""
        told = "<br>".join(map(escape, self._headlines))
        rows = f"<code>.{name}</code>: {frame.height:,} rows{more}"
        return f"<p>{told}<br>{rows}</p>{table_html(frame.head(ROWS))}"


def table_html(frame: pl.DataFrame) -> str:
    """A table as HTML, with every name and value escaped."""
    columns = [[_cell(value) for value in column] for column in frame.drop("others", strict=False)]
    names = frame.drop("others", strict=False).columns
    rows = zip(*columns, strict=True)
    head = "".join(f"<th>{escape(plain(name))}</th>" for name in names)
    body = "".join(f"<tr>{''.join(f'<td>{one}</td>' for one in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    return escape(shortened(plain(str(value)), WIDTH))
