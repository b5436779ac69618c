"""Columns: a schema in Arrow's types, as logs, chunks and their catalogs have it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Annotated, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AfterValidator

from forebay.storage.base.times import END_S, FIRST_S, PER_SECOND
from forebay.storage.formats.schema import OFFSET, PARTITION, RAW, UPLOAD_TIME, ColumnType, Schema

Mask = npt.NDArray[np.bool_]

ARROW_TYPES: dict[ColumnType, pa.DataType] = {
    "string": pa.string(),
    "id": pa.string(),
    "text": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
    # Text is RFC 3339 or "YYYY-MM-DD hh:mm:ss[.f]" (UTC); a number counts the named unit.
    "time": pa.timestamp("ms", tz="UTC"),
    "time_s": pa.timestamp("s", tz="UTC"),
    "time_us": pa.timestamp("us", tz="UTC"),
    # A number counts s, ms or µs, as its size says.
    "time_auto": pa.timestamp("us", tz="UTC"),
}

SYSTEM_FIELDS = (
    pa.field(PARTITION, pa.string()),
    pa.field(OFFSET, pa.int64()),
    pa.field(UPLOAD_TIME, ARROW_TYPES["time"]),
)


def arrow_schema(schema: Schema) -> pa.Schema:
    """The columns of block logs and chunks."""
    declared = [pa.field(column.name, ARROW_TYPES[column.type]) for column in schema.columns]
    kept = [pa.field(RAW, pa.binary())] if schema.raw else []
    return pa.schema([*SYSTEM_FIELDS, *declared, *kept])


def outside_years(times: pa.Array) -> Mask | None:
    """Which of these timestamps are not in the years 1 to 9999; None if all are."""
    per_second = PER_SECOND[times.type.unit]
    numbers = times.cast(pa.int64())
    low, high = (bound.as_py() for bound in pc.min_max(numbers).values())
    first, end = FIRST_S * per_second, END_S * per_second
    if low is None or (low >= first and high < end):
        return None
    return as_mask(pc.or_(pc.less(numbers, first), pc.greater_equal(numbers, end)))


def within_years(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with null for each time outside the years 1 to 9999. Version 1 stored any."""
    for at, field in enumerate(batch.schema):
        if pa.types.is_timestamp(field.type):
            outside = outside_years(batch.column(at))
            if outside is not None:
                batch = batch.set_column(at, field, nulled(batch.column(at), outside))
    return batch


def nulled(column: pa.Array, where: Mask) -> pa.Array:
    """The column with null at these rows."""
    return pc.if_else(pa.array(where), pa.scalar(None, column.type), column)


def column_types(schema: pa.Schema) -> dict[str, str]:
    """Name to type, in order, as manifests and catalogs record it."""
    return {field.name: str(field.type) for field in schema}


def parse_types(types: dict[str, str]) -> pa.Schema:
    """Undo `column_types`. Raises ValueError on a type Forebay does not write."""
    return _parsed(tuple(types.items()))


@lru_cache
def _parsed(types: tuple[tuple[str, str], ...]) -> pa.Schema:
    fields = []
    for name, text in types:
        if text not in _TYPES_BY_NAME:
            raise ValueError(
                f"column {name!r}: expected one of {sorted(_TYPES_BY_NAME)}, got {text!r}"
            )
        fields.append(pa.field(name, _TYPES_BY_NAME[text]))
    return pa.schema(fields)


def _known(types: dict[str, str]) -> dict[str, str]:
    parse_types(types)
    return types


ColumnTypes = Annotated[dict[str, str], AfterValidator(_known)]
"""Name to type, as in a record: a type that Forebay does not write is Corruption."""


def require_plain(schema: pa.Schema) -> None:
    """Raise ValueError unless it is made of the types that Forebay writes and carries nothing else:
    an engine may run, or stumble over, what metadata and extension types say."""
    if schema.metadata or any(field.metadata for field in schema):
        raise ValueError("expected columns without metadata")
    for field in schema:
        if field.type not in _TYPES:
            raise ValueError(
                f"column {field.name!r}: expected a type that Forebay writes, got {field.type}"
            )


def unite(schemas: Iterable[pa.Schema]) -> pa.Schema:
    """All columns of all schemas: system columns, declared ones in order of appearance, raw last.

    Raises ValueError if one name has two types.
    """
    fields: dict[str, pa.Field] = {field.name: field for field in SYSTEM_FIELDS}
    for schema in schemas:
        for field in schema:
            known = fields.setdefault(field.name, field)
            if known.type != field.type:
                raise ValueError(
                    f"column {field.name!r}: expected {known.type} as before, got {field.type};"
                    " a new type needs a new name"
                )
    raw = fields.pop(RAW, None)
    return pa.schema([*fields.values(), *([cast(pa.Field, raw)] if raw is not None else [])])


_TYPES_BY_NAME = {str(t): t for t in (*ARROW_TYPES.values(), pa.binary())}
_TYPES = {*_TYPES_BY_NAME.values(), pa.uint64()}


def equal_rows(left: pa.RecordBatch, right: pa.RecordBatch) -> Mask:
    """Row by row equality of two batches of the same columns; null equals nothing."""
    result: Mask = np.ones(left.num_rows, dtype=bool)
    for mine, theirs in zip(left.columns, right.columns, strict=True):
        result &= as_mask(pc.equal(mine, theirs))
    return result


def as_mask(found: pa.Array) -> Mask:
    """A boolean column as a mask; null is False."""
    mask: Mask = found.fill_null(False).to_numpy(zero_copy_only=False)
    return mask
