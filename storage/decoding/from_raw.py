"""Columns from `raw`: rows older than a column's declaration have its value in the message.

What always holds: such a row gets the value that it would have had if the column had been declared
when the message arrived; null where the message was not kept. Only what is asked for is decoded,
and no more than CALL_ROWS messages or CALL_BYTES at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from forebay.storage.formats.columns import ARROW_TYPES
from forebay.storage.formats.schema import RAW, Column, path_faults

if TYPE_CHECKING:
    from forebay.storage.decoding.json_columns import JsonColumns

CALL_ROWS, CALL_BYTES = 2_048, 16 << 20
NO_MESSAGE = b"{}"
"""In place of a message that was not kept: it has no value in any column."""


@dataclass(frozen=True)
class FromRaw:
    """The columns that can be decoded: all declared ones, whenever they were declared. Thread
    safety: any thread."""

    columns: tuple[Column, ...] = ()

    @property
    def names(self) -> list[str]:
        return list(self._known)

    @cached_property
    def _known(self) -> dict[str, Column]:
        return {column.name: column for column in self.columns}

    def lacking(self, present: Collection[str], wanted: Iterable[str]) -> list[str]:
        """The `wanted` columns that can be decoded for rows which have only the columns
        `present`."""
        if RAW not in present:
            return []
        return [name for name in wanted if name in self._known and name not in present]

    def schema(self, names: Iterable[str]) -> pa.Schema:
        """These columns in Arrow's types."""
        return pa.schema([(name, ARROW_TYPES[self._known[name].type]) for name in names])

    def complete(self, batch: pa.RecordBatch, wanted: Iterable[str]) -> pa.RecordBatch:
        """The batch, its own columns followed by those of the `wanted` ones that it lacks."""
        names = self.lacking(batch.schema.names, wanted)
        if not names:
            return batch
        columns = self.decode(batch.column(RAW), names)
        schema = pa.schema([*batch.schema, *self.schema(names)])
        return pa.RecordBatch.from_arrays([*batch.columns, *columns], schema=schema)

    def decode(self, raw: pa.Array, names: Sequence[str]) -> list[pa.Array]:
        """These columns of messages: Arrow's binary, in any of its layouts."""
        found: dict[str, pa.Array] = {}
        for group in _together(tuple(self._known[name] for name in names)):
            json = _reader(group)
            parts = [[pa.nulls(0, ARROW_TYPES[column.type])] for column in group]
            for values in _calls(raw):
                columns, _ = json.read(pa.array(values, pa.binary()), values)
                for held, column in zip(parts, columns, strict=True):
                    held.append(column)
            for column, held in zip(group, parts, strict=True):
                found[column.name] = pa.concat_arrays(held)
        return [found[name] for name in names]


NONE_DECLARED = FromRaw()


@lru_cache(64)
def from_raw_of(columns: tuple[Column, ...]) -> FromRaw:
    """The one for these columns, always the same object, so that comparing it is cheap."""
    return FromRaw(columns)


def _calls(raw: pa.Array) -> Iterator[list[bytes]]:
    """The messages, as many at a time as are decoded at once."""
    ends = np.cumsum(pc.binary_length(raw).fill_null(0).to_numpy(zero_copy_only=False))
    low, done = 0, 0
    while low < len(ends):
        fitting = int(np.searchsorted(ends, done + CALL_BYTES, "right"))
        high = max(low + 1, min(low + CALL_ROWS, fitting))
        messages = raw.slice(low, high - low).to_pylist()
        yield [NO_MESSAGE if message is None else message for message in messages]
        low, done = high, int(ends[high - 1])


@lru_cache(64)
def _reader(columns: tuple[Column, ...]) -> JsonColumns:
    from forebay.storage.decoding.json_columns import JsonColumns  # the reader, which few need

    return JsonColumns(columns)


def _together(columns: tuple[Column, ...]) -> list[tuple[Column, ...]]:
    """The columns in groups that can be read together: columns declared at different times may
    disagree on what a message has at a path."""
    groups: list[tuple[Column, ...]] = []
    for column in columns:
        for n, group in enumerate(groups):
            if not path_faults((*group, column)):
                groups[n] = (*group, column)
                break
        else:
            groups.append((column,))
    return groups
