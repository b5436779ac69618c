"""Brief answers, for a reader that pays for each word: a language model.

    {"table":"steps","columns":["event","users"],"rows":[
    ["search",4],
    ["purchase",3]],
    "other_tables":{"times":2},
    "cut":"rows: the first 2 of 12: …"}

What always holds: an answer takes about BYTES at most, and contains whole rows; a text is complete
or ends by saying what it lacks; the answer says what was left out, and how to ask for it or for
less. Nothing is read beyond what is shown, except for one batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import orjson
import polars as pl
import pyarrow as pa

from forebay.query.rows import flat, frames, json_value

BYTES = 20_000
"""Size limit of an answer, as JSON."""
TEXT_MAX = 500
"""Characters of one text; fewer if there are many columns, so that some rows find room."""
TEXT_MIN = 20
COLUMNS_MAX = 200
ROWS_MAX = 1000


class Batches(Protocol):
    """Record batches of one schema."""

    @property
    def schema(self) -> pa.Schema: ...
    def __iter__(self) -> Iterator[pa.RecordBatch]: ...


def brief_rows(batches: Batches, rows: int) -> bytes:
    """The first `rows` of these, whose total number is unknown."""
    return b"{" + _rows(batches, rows, None) + b"}"


def brief_tables(tables: Mapping[str, pl.DataFrame], table: str, about: str, rows: int) -> bytes:
    """The first `rows` of one `table`, and how many the others have; `about` describes them."""
    frame = tables[table]
    batches = pa.table(frame.to_arrow(compat_level=pl.CompatLevel.oldest()))
    others = {name: one.height for name, one in tables.items() if name != table}
    head = {"about": about, "table": table} if about else {"table": table}
    parts = [orjson.dumps(head)[1:-1], _rows(_Whole(batches), rows, frame.height)]
    if others:
        parts.append(b'"other_tables":' + orjson.dumps(others))
    return b"{" + b",\n".join(parts) + b"}"


def brief_object(found: Mapping[str, object], rows: int) -> bytes:
    """An object whose lists are cut to `rows` values and whose texts are cut to length; an object
    equal to one beside it is replaced by that one's name."""
    cuts: dict[str, str] = {}

    def cut(value: object, name: str) -> object:
        if isinstance(value, Mapping):
            inner, shown = f"{name}." if name else "", dict[str, object]()
            for key, one in value.items():
                same = next((k for k, v in value.items() if one and v == one and k != key), None)
                again = same in shown and isinstance(one, Mapping)
                shown[key] = f"as {same}" if again else cut(one, f"{inner}{key}")
            return shown
        if isinstance(value, list):
            if len(value) > rows:
                cuts[name] = f"{rows} of {len(value):,} are shown: ask for more with rows"
            return [cut(one, name) for one in value[:rows]]
        if isinstance(value, str) and len(value) > TEXT_MAX:
            cuts.setdefault(name, f"texts are shown up to {TEXT_MAX} characters")
        return _shortened(value, TEXT_MAX)

    shown: Any = cut(orjson.loads(json_value(found)), "")
    if cuts:
        shown["cut"] = "; ".join(f"{name}: {told}" for name, told in cuts.items())
    return orjson.dumps(shown)


class _Whole:
    """A table as batches, with no more rows than may be shown."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    @property
    def schema(self) -> pa.Schema:
        return self._table.schema

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        return iter(self._table.to_batches(ROWS_MAX))


def _rows(batches: Batches, wanted: int, height: int | None) -> bytes:
    """The members `columns` and `rows`, and `cut` if that is not all; `height` is the number of
    rows, None if unknown."""
    shown: list[bytes] = []
    size, shortened, more, full = 0, False, False, False
    columns: list[str] = []
    all_columns = 0
    for frame in frames(batches):
        if not columns:
            all_columns = frame.width
            columns = frame.columns[:COLUMNS_MAX]
            size = len(orjson.dumps(columns))
        text = max(TEXT_MIN, min(TEXT_MAX, BYTES // (4 * max(1, len(columns)))))
        for row in flat(frame.select(columns).head(wanted + 1)).iter_rows():
            if len(shown) == wanted:
                more = True
                break
            cells = [_shortened(value, text) for value in row]
            line = json_value(cells)
            if shown and size + len(line) > BYTES:
                more = full = True
                break
            shortened |= any(isinstance(v, str) and len(v) > text for v in row)
            size += len(line)
            shown.append(line)
        if more:
            break
    cuts = []
    if len(columns) < all_columns:
        cuts.append(f"columns: {len(columns)} of {all_columns:,} are shown: select fewer")
    if more:
        of = ", and there are more" if height is None else f" of {height:,}"
        why = (
            f"for they take {BYTES:,} bytes: select fewer columns, or aggregate"
            if full
            else f"aggregate or filter, or ask for up to {ROWS_MAX:,} with rows"
        )
        cuts.append(f"rows: the first {len(shown):,}{of}: {why}")
    if shortened:
        cuts.append(f"texts are shown up to {text} characters: select a part of them")
    parts = [
        b'"columns":' + orjson.dumps(columns),
        b'"rows":[\n' + b",\n".join(shown) + b"]",
    ]
    if cuts:
        parts.append(b'"cut":' + orjson.dumps("; ".join(cuts)))
    return b",\n".join(parts)


def _shortened(value: object, length: int) -> object:
    if isinstance(value, str) and len(value) > length:
        return f"{value[:length]}… ({len(value):,} characters)"
    return value
