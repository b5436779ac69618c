"""JSON messages to typed columns: the value of each message in each declared column.

1. one call of the fast reader (`json_reader`) reads a whole batch;
2. if it refuses the batch, messages are mended (`mend`) and tried once more; if it refuses that
   too, orjson finds the messages that are not JSON documents, and these are tried alone; of the
   others, small regions are tried;
3. what is still refused is taken from orjson's documents, column by column: what is not an object
   is refused, and a value of a wrong type is null and noted. A column that takes values as they are
   written is read from the messages themselves (`written`);
4. numbers that these readers cut or round are taken from the text (`exact`); a fraction where a
   column has integers, and a time outside the years 1 to 9999, is a value of a wrong type; the size
   of a number tells its unit where the column says so (`time_units`);
5. of a column's paths, the first that holds a value counts.
In steps 1 to 4 each path is a column of its own, a *source*.
What comes out for a message never depends on the messages around it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from forebay.storage.decoding.documents import (
    Refusal,
    dig,
    dig_digits,
    dig_text,
    kind_of,
    object_of,
)
from forebay.storage.decoding.exact import Exact, ExactNumber, is_finer
from forebay.storage.decoding.json_reader import READ_TYPES, Reader, misread
from forebay.storage.decoding.mend import HALF, Mender, with_text_at
from forebay.storage.decoding.time_units import EXPECTED, moments
from forebay.storage.formats.columns import Mask, as_mask, nulled, outside_years
from forebay.storage.formats.schema import (
    AS_WRITTEN,
    TEXT,
    UPLOAD_TIME,
    Column,
    ColumnType,
)

_VALUES: dict[ColumnType, str] = {
    "string": "text",
    "id": "text or a whole number",
    "text": "a value in an object",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "time": "a time",
    "time_s": "a time",
    "time_us": "a time",
    "time_auto": "a time",
}
"""What a column's values are."""
_EXACT: dict[ColumnType, str] = {
    "int": "a whole number of 64 bits",
    "time": "a time in whole ms",
    "time_s": "a time in whole s",
    "time_us": "a time in whole µs",
}
"""What they are where nothing may be cut."""


class Faults:
    """What is wrong with messages, by row. Those `refused` are not JSON objects, and have no value
    in any column. `wrong` says, by row and column name, what is wrong with a value: it was read as
    null."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self.refused: dict[int, Refusal] = {}
        self.wrong: dict[tuple[int, str], str] = {}
        self.halves: Mapping[int, bytes] = {}
        """The messages of which half of a surrogate pair was mended, as they came."""

    def wrong_in(self, column: str) -> Mask:
        """The rows in which the column's value is wrong."""
        rows: Mask = np.zeros(self._rows, dtype=bool)
        rows[[row for row, name in self.wrong if name == column]] = True
        return rows


class JsonColumns:
    """Takes some columns from messages. Thread safety: none needed, it holds no state."""

    def __init__(self, columns: Sequence[Column], key: Sequence[str] = ()) -> None:
        """`key` names those in which two values must never become one: none of their times is cut,
        and none of their text is mended."""
        self._columns = columns
        self._key = key
        sources = [source for column in columns for source in column.sources]
        self._sources = [source for source in sources if source.type != AS_WRITTEN]
        self._written = [source for source in sources if source.type == AS_WRITTEN]
        self._reader = Reader(self._sources)
        self._single = [Reader([replace(source, path=("v",))]) for source in self._sources]
        self._mender = Mender(self._sources)
        self._exact = Exact(self._sources, key)
        self._of_any_unit = [s for s in self._sources if s.type == "time_auto"]

    def read(self, messages: pa.Array, values: list[bytes]) -> tuple[list[pa.Array], Faults]:
        """The columns of the messages: `values` has them as they are to be read, `messages` as they
        arrived. The two may differ where a message is to be refused."""
        faults = Faults(len(values))
        values, columns = self._read(values, faults)
        columns = self._checked(values, messages, columns, faults)
        texts = [self._as_written(messages, source, faults) for source in self._written]
        return self._united(columns, texts, faults), faults

    def _read(self, values: list[bytes], faults: Faults) -> tuple[list[bytes], list[pa.Array]]:
        """Steps 1 to 3: the messages as they were read, and their sources."""
        whole = self._reader.read(values)
        if whole is None and (mended := self._mender.mend(values)) is not None:
            values, faults.halves = mended.values, mended.halves
            whole = self._reader.read(values)
        if whole is not None:
            return values, self._reader.take(whole)
        suspect = misread(b"\n".join(values))
        rows_of: dict[str, list[int]] = {"object": [], "other": [], "unclear": []}
        for row, value in enumerate(values):
            rows_of[kind_of(value, suspect)].append(row)
        documents, refused, unclear = rows_of.values()
        read = self._reader.read_documents([values[row] for row in documents])
        regions = [(documents[low:high], part) for low, high, part in read]
        regions += [([row], self._reader.read([values[row]])) for row in unclear]
        refused += [row for rows, part in regions if part is None for row in rows]
        order = [row for rows, part in regions if part is not None for row in rows]
        columns = [self._read_alone(values, refused, faults)]
        if parts := [part for _, part in regions if part is not None]:
            columns.insert(0, self._reader.take(pa.concat_arrays(parts)))
        positions = pa.array(np.argsort(np.array(order + refused, dtype=np.int64)))
        pairs = zip(*columns, strict=True)
        return values, [pa.concat_arrays(pair).take(positions) for pair in pairs]

    def _read_alone(self, values: list[bytes], rows: list[int], faults: Faults) -> list[pa.Array]:
        """Step 3: the sources of the messages at `rows`, among which the reader refuses some."""
        documents = []
        for row in rows:
            document = object_of(values[row])
            if not isinstance(document, dict):
                faults.refused[row], document = document, {}
            documents.append(document)
        columns = []
        for reader, column in zip(self._single, self._sources, strict=True):
            found = [dig(document, column.path) for document in documents]
            if column.type in TEXT:
                if column.type == "id":
                    found = [
                        dig_digits(values[row], column.path) if type(one) in (int, float) else one
                        for row, one in zip(rows, found, strict=True)
                    ]
                good = [value is None or isinstance(value, str) for value in found]
                texts = [value if isinstance(value, str) else None for value in found]
                columns.append(pa.array(texts, pa.string()))
            else:
                taken, good = _read_values(reader, found)
                columns.append(taken)
            for row, ok in zip(rows, good, strict=True):
                if not ok:
                    faults.wrong[row, column.name] = f"expected {_VALUES[column.type]}"
        return columns

    def _checked(
        self, values: list[bytes], messages: pa.Array, columns: list[pa.Array], faults: Faults
    ) -> list[pa.Array]:
        """Step 4: the sources with exact numbers, and null for what is not a number or a time."""
        suspects = self._exact.suspects(messages, columns).tolist()
        with_text = with_text_at(messages, self._of_any_unit)
        found = [one for row in suspects for one in self._exact.found(row, values[row])]
        for n, column in enumerate(self._sources):
            if mine := [one for one in found if one.column == n]:
                columns[n] = _replaced(columns[n], column, mine, faults)
            if column.type == "time_auto":
                columns[n] = self._timed(columns[n], column, values, with_text, faults)
            if column.type in TEXT and column.name in self._key:
                columns[n] = _without_halves(columns[n], column, faults)
            if column.name == UPLOAD_TIME:
                continue  # one that is far off has a reason of its own
            expected, odd = _odd(columns[n])
            if odd is not None:
                columns[n] = nulled(columns[n], odd)
                for row in np.flatnonzero(odd).tolist():
                    faults.wrong[row, column.name] = f"expected {expected}"
        return columns

    def _timed(
        self,
        numbers: pa.Array,
        column: Column,
        values: list[bytes],
        with_text: Sequence[int],
        faults: Faults,
    ) -> pa.Array:
        """The times of a source in which a number's size tells the unit. Text in its place is read
        as a time like any other text, or is null: its digits are never a number."""
        times, odd = moments(numbers)
        for row in np.flatnonzero(odd).tolist():
            faults.wrong[row, column.name] = EXPECTED
        found = [dig_text(values[row], column.path) for row in with_text]
        rows = [row for row, text in zip(with_text, found, strict=True) if text is not None]
        if not rows:
            return times
        texts = [text for text in found if text is not None]
        exact = column.name in self._key
        unit = replace(column, path=("v",), type="time_us")
        read, good = _read_values(Reader([unit]), list(texts))
        for n, (row, text) in enumerate(zip(rows, texts, strict=True)):
            faults.wrong.pop((row, column.name), None)
            good[n] = good[n] and not (exact and is_finer(text, unit))
            if not good[n]:
                faults.wrong[row, column.name] = EXPECTED
        read = nulled(read, ~np.array(good, dtype=bool))
        where: Mask = np.zeros(len(times), dtype=bool)
        where[rows] = True
        return pc.replace_with_mask(times, pa.array(where), read)

    def _as_written(self, messages: pa.Array, column: Column, faults: Faults) -> pa.Array:
        from forebay.storage.decoding.written import written  # numba, which few need

        texts, barred = written(messages, column.path, list(faults.refused))
        for row in np.flatnonzero(barred).tolist():
            faults.wrong[row, column.name] = f"expected {_VALUES[column.type]}"
        return texts

    def _united(
        self, columns: list[pa.Array], texts: list[pa.Array], faults: Faults
    ) -> list[pa.Array]:
        """Step 5: the columns, of which some have several sources."""
        read, as_written = iter(columns), iter(texts)
        united = []
        for column in self._columns:
            sources = as_written if column.type == AS_WRITTEN else read
            mine = list(islice(sources, len(column.paths)))
            if len(mine) > 1:
                mine = [_first_of(mine)]
                wrong = faults.wrong_in(column.name)
                for row in np.flatnonzero(wrong & ~absent(mine[0])).tolist():
                    del faults.wrong[row, column.name]
                if faults.wrong:
                    mine = [nulled(mine[0], faults.wrong_in(column.name))]
            united += mine
        return united


def _odd(column: pa.Array) -> tuple[str, Mask | None]:
    """What is expected of a column's values, and which are of its type but no such value; None if
    none is."""
    if pa.types.is_timestamp(column.type):
        return "a time in the years 1 to 9999", outside_years(column)
    if pa.types.is_floating(column.type) and len(column):
        odd = as_mask(pc.invert(pc.is_finite(column)))
        return "a finite number", odd if odd.any() else None
    return "", None


def _replaced(
    column: pa.Array, declared: Column, found: Sequence[ExactNumber], faults: Faults
) -> pa.Array:
    """The column with the exact values found, null for those that are none."""
    where: Mask = np.zeros(len(column), dtype=bool)
    where[[one.row for one in found]] = True
    for one in found:
        if one.value is not None:
            faults.wrong.pop((one.row, declared.name), None)
        elif column[one.row].is_valid:
            faults.wrong[one.row, declared.name] = f"expected {_EXACT[declared.type]}"
    values = pa.array([one.value for one in found], pa.int64()).cast(column.type)
    return pc.replace_with_mask(column, pa.array(where), values)


def _first_of(sources: Sequence[pa.Array]) -> pa.Array:
    """The first source that holds a value, row by row; empty text counts if no other does."""
    if not absent(sources[0]).any():
        return sources[0]
    if pa.types.is_string(sources[0].type):
        none = pa.scalar(None, pa.string())
        full = [pc.if_else(pc.equal(pc.binary_length(one), 0), none, one) for one in sources]
        return pc.coalesce(*full, *sources)
    return pc.coalesce(*sources)


def _without_halves(column: pa.Array, declared: Column, faults: Faults) -> pa.Array:
    """A source of the key, null where its text has half of a surrogate pair: keys that differ in
    these only would be one."""
    if not faults.halves:
        return column
    where: Mask = np.zeros(len(column), dtype=bool)
    for row, message in faults.halves.items():
        if HALF.search(dig_text(message, declared.path) or ""):
            where[row] = True
            faults.wrong[row, declared.name] = "expected text without half of a surrogate pair"
    return nulled(column, where) if where.any() else column


def _read_values(reader: Reader, values: list[object]) -> tuple[pa.Array, list[bool]]:
    """One column of `values`, null where a value has another type, and which values are right.

    SUBTLE: no list or object is ever right, and none may be passed to orjson again: it reads deeper
    nesting than it writes.
    """
    infinite = (math.inf, -math.inf)
    right = [not isinstance(value, dict | list) and value not in infinite for value in values]
    texts = [orjson.dumps({"v": v if ok else None}) for v, ok in zip(values, right, strict=True)]
    null = pa.nulls(1, READ_TYPES[reader.columns[0].type])
    parts = [null.slice(1)]
    for low, _, part in reader.read_each(texts):
        right[low] &= part is not None
        parts.append(null if part is None else reader.take(part)[0])
    return pa.concat_arrays(parts), right


def absent(column: pa.Array) -> Mask:
    """Null or empty text."""
    found = as_mask(column.is_null())
    if pa.types.is_string(column.type):
        found = found | as_mask(pc.equal(pc.binary_length(column), 0))
    return found
