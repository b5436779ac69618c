"""The fast JSON reader: arro3 (arrow-rs) over many messages in one call.

What always holds: rows and messages are in step, and a message that is read is one object. Each
stands in an envelope {"K": message} on a line of its own, and as many rows as messages must come
back: a message can't end its envelope and begin another without adding a row, nor swallow the next
one. A message's last brace is replaced by ,"S":true}, and each row must have S: a message that ends
its object before its end, as in {"a":1},"x":2, has S elsewhere. K and S are random.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator, Sequence

import arro3.core
import arro3.io
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from forebay.storage.formats.columns import ARROW_TYPES
from forebay.storage.formats.schema import Column, ColumnType

READ_TYPES: dict[ColumnType, pa.DataType] = {**ARROW_TYPES, "time_auto": pa.float64()}
"""What a column's values are read as: a number of which the size tells the unit is no time yet."""
READ_ROWS = 512
"""Rows in one part of the fast reader's answer: what is built then stays in the CPU's cache."""
REGION_ROWS = 64
STRETCH_ROWS = 1024
_BACKSLASH, _U = b"\\u"
_BRACE, _SPACE = ord("}"), b" \t\r\n"
_EVEN_PLANES = re.compile(rb"\\u[dD][89abAB][4-7c-fC-F]")
"""The first half of an escaped character of plane 2, 4, 6, ..."""

Regions = Iterator[tuple[int, int, pa.StructArray | None]]
"""Consecutive rows [low, high) as they are read; None for a region with a row refused."""


class Reader:
    """Reads some columns, of one path each, from many messages in one call."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self.columns = tuple(columns)
        name, self._end = os.urandom(5).hex(), os.urandom(5).hex()
        self._open = b'{"%b":' % name.encode()
        self._close = b',"%b":true}}\n' % self._end.encode()
        fields = [*_fields(columns), pa.field(self._end, pa.bool_())]
        self._schema = arro3.core.Schema.from_arrow(pa.schema([pa.field(name, pa.struct(fields))]))

    def read(self, values: Sequence[bytes]) -> pa.StructArray | None:
        """One row a message; None if any message is refused."""
        parts = []
        for part in self._stream(values, READ_ROWS):
            if part is None:
                return None
            parts.append(part)
        if sum(map(len, parts)) != len(values):
            return None
        return parts[0] if len(parts) == 1 else pa.concat_arrays(parts)

    def read_documents(self, values: Sequence[bytes]) -> Regions:
        """Each message must be one JSON document, so that rows can't go out of step."""
        low = 0
        while low < len(values):
            for part in self._stream(values[low : low + STRETCH_ROWS], REGION_ROWS):
                high = min(low + REGION_ROWS, len(values)) if part is None else low + len(part)
                yield low, high, part
                low = high
                if part is None:
                    break

    def read_each(self, values: Sequence[bytes]) -> Regions:
        """As `read`, but a refused region is halved down to the single rows that are refused."""
        for low, high, part in self.read_documents(values):
            if part is None:
                yield from self._halve(values, low, high)
            else:
                yield low, high, part

    def take(self, rows: pa.StructArray) -> list[pa.Array]:
        """The declared columns of rows that `read` gave."""
        return [pc.struct_field(rows, list(column.path)) for column in self.columns]

    def _halve(self, values: Sequence[bytes], low: int, high: int) -> Regions:
        rows = self.read(values[low:high])
        if rows is not None or high - low == 1:
            yield low, high, rows
            return
        middle = (low + high) // 2
        yield from self._halve(values, low, middle)
        yield from self._halve(values, middle, high)

    def _stream(self, values: Sequence[bytes], rows: int) -> Iterator[pa.StructArray | None]:
        """Parts of `rows` rows; None in place of the first part with a message that is refused."""
        text = self._enclosed(values) or self._enclosed([value.rstrip(_SPACE) for value in values])
        if text is None or misread(text):
            yield None
            return
        try:
            stream = arro3.io.read_json(io.BytesIO(text), self._schema, batch_size=rows)
            for batch in pa.RecordBatchReader.from_stream(stream):
                part = batch.column(0)
                if part.field(self._end).null_count:
                    yield None
                    return
                yield part
        except (pa.ArrowException, OSError):
            yield None

    def _enclosed(self, values: Sequence[bytes]) -> bytearray | None:
        """The messages in their envelopes; None if one does not end in a brace."""
        if not values:
            return None
        between = self._close + self._open
        texts = [self._open + values[0], *values[1:]]
        text = bytearray(between).join([*texts[:-1], texts[-1] + self._close])
        sizes = np.fromiter(map(len, texts), np.int64, len(texts)) + len(between)
        braces = np.cumsum(sizes) - len(between) - 1
        letters = np.frombuffer(text, np.uint8)
        if (letters[braces] != _BRACE).any():
            return None
        letters[braces] = _SPACE[0]
        return text


def misread(text: bytes | bytearray) -> bool:
    """Whether this text must be kept from the fast reader.

    SUBTLE: it quotes what it can't read in its error, and an error with a NUL in it aborts the
    process (arro3 0.9 passes it through a C string). It also reads an escaped character of an even
    plane as one of the plane below (arrow-rs adds the halves' bits where they overlap).
    """
    if b"\0" in text:
        return True
    if b"\\" not in text:
        return False
    letters = np.frombuffer(text, np.uint8)
    escapes = np.flatnonzero(letters[:-1] == _BACKSLASH)
    if not (letters[escapes + 1] == _U).any():
        return False
    return b"\\u0000" in text or _EVEN_PLANES.search(text) is not None


def _fields(columns: Sequence[Column], depth: int = 0) -> list[pa.Field]:
    """Nested Arrow fields for the columns' paths, from `depth` on."""
    groups: dict[str, list[Column]] = {}
    for column in columns:
        groups.setdefault(column.path[depth], []).append(column)
    fields = []
    for name, members in groups.items():
        if len(members[0].path) == depth + 1:
            fields.append(pa.field(name, READ_TYPES[members[0].type]))
        else:
            fields.append(pa.field(name, pa.struct(_fields(members, depth + 1))))
    return fields
