"""Answers of the SQL engine in types that Polars and files have.

What always holds: no two columns share a name; times outside the years 1 to 9999 are null, however
deep in lists and structs, as readers panic over them. Intervals, unions and the engine's own types
are text, but in a frame intervals without months are durations. What Arrow would get wrong is
refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from forebay.query.frames import PER_DAY_S, on_calendar
from forebay.storage.base.errors import BadInput
from forebay.storage.base.times import END_S, FIRST_S, PER_SECOND

WITHOUT_ARROW = re.compile(r"\b(UHUGEINT|BIGNUM|BIT|TIME WITH TIME ZONE|VARIANT|GEOMETRY)\b")
"""Types whose values the engine exports as other values, or as meaningless bytes."""


def require_types(description: Sequence[Sequence[Any]]) -> None:
    """Raise BadInput if a column of an answer has a type that Arrow lacks."""
    for name, kind, *_ in description:
        found = WITHOUT_ARROW.search(str(kind))
        if found:
            raise BadInput(
                f"query: {name}: expected a type that Arrow has, got {found[1]}: cast it, such as"
                " to VARCHAR"
            )


def framed(table: pa.Table, kinds: Sequence[str]) -> pl.DataFrame:
    """The answer as a frame; 128-bit integers become 64-bit ones where they fit."""
    columns = [_column(*one) for one in zip(table.columns, kinds, strict=True)]
    names = distinct(table.column_names)
    found = pl.DataFrame(pa.table(columns, names=names)) if columns else pl.DataFrame()
    return on_calendar(found)


def _column(column: pa.ChunkedArray, kind: str) -> pa.ChunkedArray:
    if kind == "HUGEINT":
        try:
            return column.cast(pa.int64())
        except pa.ArrowInvalid:
            return column
    if pa.types.is_interval(column.type):
        values = column.to_pylist()
        if not any(one is not None and one.months for one in values):
            micros = [
                one and (one.days * 86_400 * 10**6 + one.nanoseconds // 1000) for one in values
            ]
            return pa.chunked_array([micros], pa.duration("us"))
    if not _odd(column.type):
        return column
    arrays = [known(one) for one in column.chunks]
    return pa.chunked_array(arrays or [known(pa.nulls(0, column.type))])


def distinct(names: Sequence[str]) -> list[str]:
    """The names; repeated ones get a number."""
    found: list[str] = []
    for name in names:
        count, own = 0, name
        while own in found:
            count += 1
            own = f"{name}_{count}"
        found.append(own)
    return found


def known(array: pa.Array) -> pa.Array:
    """The values in types that every reader knows."""
    kind = array.type
    if not _odd(kind):
        return array
    if isinstance(kind, pa.BaseExtensionType):
        return known(array.storage)
    if pa.types.is_interval(kind):
        return pa.array([one and interval_text(one) for one in array.to_pylist()], pa.string())
    if pa.types.is_union(kind):
        return pa.array([None if v is None else str(v) for v in array.to_pylist()], pa.string())
    if pa.types.is_temporal(kind):
        return _on_calendar(array)
    return _nested(array if not array.offset else array.take(pa.array(range(len(array)))))


def _odd(kind: pa.DataType) -> bool:
    """Whether a value of the type may have to be replaced."""
    if pa.types.is_map(kind):
        return pa.types.is_nested(kind.key_type) or _odd(kind.key_type) or _odd(kind.item_type)
    if pa.types.is_nested(kind) and not pa.types.is_union(kind):
        fields = [kind.field(number) for number in range(kind.num_fields)]
        repeated = len({field.name for field in fields}) < len(fields)
        return repeated or any(_odd(field.type) for field in fields)
    return (
        pa.types.is_interval(kind)
        or pa.types.is_union(kind)
        or isinstance(kind, pa.BaseExtensionType)
        or (pa.types.is_date(kind) or pa.types.is_timestamp(kind))
    )


def _nested(array: pa.Array) -> pa.Array:
    kind, mask = array.type, array.is_null()
    if pa.types.is_struct(kind):
        columns = [known(array.field(number)) for number in range(kind.num_fields)]
        names = distinct([kind.field(number).name for number in range(kind.num_fields)])
        return pa.StructArray.from_arrays(columns, names, mask=mask)
    if pa.types.is_map(kind):
        return _map(array, mask)
    values = known(array.values)
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(values, kind.list_size, mask=mask)
    return type(array).from_arrays(array.offsets, values, mask=mask)


def _map(array: pa.MapArray, mask: pa.Array) -> pa.Array:
    """Keys that are times become text; a map with lists or structs as keys, a list of pairs."""
    keys, items = known(array.keys), known(array.items)
    if pa.types.is_nested(keys.type):
        pairs = pa.StructArray.from_arrays([keys, items], ["key", "value"])
        return pa.ListArray.from_arrays(array.offsets, pairs, mask=mask)
    if pa.types.is_date(keys.type) or pa.types.is_timestamp(keys.type):
        keys = keys.cast(pa.string()).fill_null("no time")
    return pa.MapArray.from_arrays(array.offsets, keys, items, mask=mask)


def _on_calendar(array: pa.Array) -> pa.Array:
    """With null for each time or date outside the years 1 to 9999."""
    kind = array.type
    if pa.types.is_timestamp(kind):
        first, end = (bound * PER_SECOND[kind.unit] for bound in (FIRST_S, END_S))
        numbers = array.cast(pa.int64())
    else:
        first, end = FIRST_S // PER_DAY_S, END_S // PER_DAY_S
        numbers = array.cast(pa.int32())
    first, last = max(first, -(2**63)), min(end, 2**63) - 1
    inside = pc.and_(pc.greater_equal(numbers, first), pc.less_equal(numbers, last))
    return pc.if_else(inside, array, pa.scalar(None, kind))


def interval_text(one: Any) -> str:
    """An interval as ISO 8601 writes it, such as P1M2DT3.5S."""
    days = (f"{one.months}M" if one.months else "") + (f"{one.days}D" if one.days else "")
    seconds = f"T{one.nanoseconds / 1e9:f}".rstrip("0").rstrip(".") + "S" if one.nanoseconds else ""
    return f"P{days}{seconds}" if days or seconds else "PT0S"
