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
from functools import cached_property
from itertools import chain
from typing import Literal

PARTITION = "_partition"
OFFSET = "_offset"
UPLOAD_TIME = "upload_time"
RAW = "raw"
RESERVED = frozenset({PARTITION, OFFSET, UPLOAD_TIME, RAW})
RESERVED_ELSEWHERE: dict[str, str] = {
    **dict.fromkeys(
        ("_file", "_pos", "_deleted", "_spec_id", "_row_id", "_last_updated_sequence_number"),
        "a metadata column of Iceberg: Spark can't read a table that has it",
    ),
    **dict.fromkeys(
        ("_change_type", "_change_ordinal", "_commit_snapshot_id"),
        "a metadata column of Iceberg: Spark can't show what changed in a table that has it",
    ),
    "source_partition": "the batch layer's name for _partition",
    "upload_time_day": "the partition field of the batch layer's table",
}
"""Lower-case names that a declared column can't have, and who has them."""

ColumnType = Literal[
    "string", "id", "text", "int", "float", "bool", "time", "time_s", "time_us", "time_auto"
]
TEXT: frozenset[ColumnType] = frozenset({"string", "id"})
"""The types of which a column has text, and equal values one spelling. An `id` is text, or a whole
number as its digits."""
AS_WRITTEN: ColumnType = "text"
"""Text, and of any other value its JSON as it is written in the message."""


@dataclass(frozen=True)
class Column:
    """One typed value taken from a message: `path` holds the JSON object keys that lead to it.

    `others` are more paths: the first of all that holds a value counts. Null and a value of a wrong
    type don't count as values; nor does empty text, unless no path holds more.
    """

    name: str
    path: tuple[str, ...]
    type: ColumnType = "string"
    others: tuple[tuple[str, ...], ...] = ()

    @property
    def paths(self) -> tuple[tuple[str, ...], ...]:
        return (self.path, *self.others)

    @property
    def sources(self) -> tuple[Column, ...]:
        """A column for each of its paths."""
        return tuple(Column(self.name, path, self.type) for path in self.paths)


@dataclass(frozen=True)
class Schema:
    """The declared shape of all events of one data directory.

    `key` names the columns (of `columns`) that make up the dedup key. `upload_time` is the column
    the upload time is taken from, named "upload_time"; None means the broker's own timestamp.
    `volatile` names the columns that may differ between copies of one event. `roles` says which
    column has the "user", the "event", the "time" and the "session", where that is known.
    `optional` names the columns of the key, all of text, in which an event may have no value: its
    text is empty then.
    """

    columns: tuple[Column, ...]
    key: tuple[str, ...]
    upload_time: Column | None = None
    raw: bool = True
    volatile: tuple[str, ...] = ()
    roles: tuple[tuple[str, str], ...] = ()
    optional: tuple[str, ...] = ()

    @cached_property
    def payload(self) -> tuple[str, ...]:
        """The columns that all copies of one event have in common, the dedup key left out."""
        apart = {*self.key, *self.volatile}
        return tuple(column.name for column in self.columns if column.name not in apart)

    @property
    def decoded(self) -> tuple[Column, ...]:
        """The columns a decoder must take from each message."""
        return (*((self.upload_time,) if self.upload_time else ()), *self.columns)


def path_faults(columns: Iterable[Column]) -> list[str]:
    """What keeps these columns from being read together: a message has one value at a path, and
    Arrow knows no name with a NUL. What is taken as it is written is read apart."""
    faults = []
    types: dict[tuple[str, ...], Column] = {}
    for column in chain.from_iterable(column.sources for column in columns):
        if any("\0" in key for key in column.path):
            faults.append(f"expected no NUL in the path of column {column.name}")
        if column.type == AS_WRITTEN:
            continue
        known = types.setdefault(column.path, column)
        if known.type != column.type:
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
