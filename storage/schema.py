"""What an event looks like: its columns, its dedup key, its upload time.

A `Schema` is declared by configuration and never read from the data. Every event, hot or cold, has
the system columns below, then the declared columns in order, then `raw` if the message is kept:

    _partition   string                  source partition the event came from
    _offset      int64                   its offset there
    upload_time  timestamp[ms, UTC]      decides the block; the only clock that evicts
    ...          declared columns        null where the message has none
    raw          binary                  the whole message, byte for byte (optional)

A declared column keeps its name and type for the life of a data directory; new ones may be added.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, cast

import pyarrow as pa

PARTITION = "_partition"
OFFSET = "_offset"
UPLOAD_TIME = "upload_time"
RAW = "raw"
RESERVED = frozenset({PARTITION, OFFSET, UPLOAD_TIME, RAW})

ColumnType = Literal["string", "int", "float", "bool", "time", "time_s", "time_us"]

ARROW_TYPES: dict[ColumnType, pa.DataType] = {
    "string": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
    # Text is RFC 3339 or "YYYY-MM-DD hh:mm:ss[.f]" (UTC); a number counts the named unit.
    "time": pa.timestamp("ms", tz="UTC"),
    "time_s": pa.timestamp("s", tz="UTC"),
    "time_us": pa.timestamp("us", tz="UTC"),
}

SYSTEM_FIELDS = (
    pa.field(PARTITION, pa.string()),
    pa.field(OFFSET, pa.int64()),
    pa.field(UPLOAD_TIME, ARROW_TYPES["time"]),
)


@dataclass(frozen=True)
class Column:
    """One typed value taken from a message: `path` holds the JSON object keys that lead to it."""

    name: str
    path: tuple[str, ...]
    type: ColumnType = "string"

    @property
    def arrow_type(self) -> pa.DataType:
        return ARROW_TYPES[self.type]


@dataclass(frozen=True)
class Schema:
    """The declared shape of all events of one data directory.

    `key` names the columns (of `columns`) that make up the dedup key. `upload_time` is the column
    the upload time is taken from, named "upload_time"; None means the broker's own timestamp.
    `volatile` names the columns that may differ between copies of one event.
    """

    columns: tuple[Column, ...]
    key: tuple[str, ...]
    upload_time: Column | None = None
    raw: bool = True
    volatile: tuple[str, ...] = ()

    @property
    def payload(self) -> tuple[str, ...]:
        """The columns that all copies of one event have in common, the dedup key left out."""
        apart = {*self.key, *self.volatile}
        return tuple(column.name for column in self.columns if column.name not in apart)

    @property
    def arrow(self) -> pa.Schema:
        """The schema of block logs and chunks."""
        declared = [pa.field(column.name, column.arrow_type) for column in self.columns]
        kept = [pa.field(RAW, pa.binary())] if self.raw else []
        return pa.schema([*SYSTEM_FIELDS, *declared, *kept])

    @property
    def decoded(self) -> tuple[Column, ...]:
        """The columns a decoder must take from each message."""
        return (*((self.upload_time,) if self.upload_time else ()), *self.columns)


def path_faults(columns: Iterable[Column]) -> list[str]:
    """What keeps these columns from being read together: a message has one value at a path, and
    Arrow knows no name with a NUL."""
    faults = []
    types: dict[tuple[str, ...], Column] = {}
    for column in columns:
        if any("\0" in key for key in column.path):
            faults.append(f"expected no NUL in the path of column {column.name}")
        known = types.setdefault(column.path, column)
        if known.arrow_type != column.arrow_type:
            faults.append(
                f"expected one type for path {'.'.join(column.path)}, got {known.name} as"
                f" {known.type} and {column.name} as {column.type}"
            )
    for path, column in types.items():
        for length in range(1, len(path)):
            if outer := types.get(path[:length]):
                faults.append(
                    f"expected a value at {'.'.join(outer.path)} for column {outer.name}, got an"
                    f" object for column {column.name}"
                )
    return faults


def column_types(schema: pa.Schema) -> dict[str, str]:
    """Name to type, in order, as manifests and catalogs record it."""
    return {field.name: str(field.type) for field in schema}


def parse_types(types: dict[str, str]) -> pa.Schema:
    """Undo `column_types`. Raises ValueError on a type Forebay does not write."""
    fields = []
    for name, text in types.items():
        if text not in _TYPES_BY_NAME:
            raise ValueError(
                f"column {name!r}: expected one of {sorted(_TYPES_BY_NAME)}, got {text!r}"
            )
        fields.append(pa.field(name, _TYPES_BY_NAME[text]))
    return pa.schema(fields)


def require_plain(schema: pa.Schema) -> None:
    """Raise ValueError unless it is made of the types that Forebay writes and carries nothing else:
    an engine may run, or stumble over, what metadata and extension types say."""
    if schema.metadata or any(field.metadata for field in schema):
        raise ValueError("expected columns without metadata")
    for field in schema:
        if field.type not in _TYPES:
            raise ValueError(f"column {field.name!r}: expected a type of ours, got {field.type}")


def unite(schemas: Iterable[pa.Schema]) -> pa.Schema:
    """All columns of all schemas: system columns, declared ones in order of first sight, raw last.

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
