"""Exact numbers: finds the messages in which a number has a fraction or an exponent that a column
could lose, and takes the number from their text.

The fast reader cuts 1.5 to 1 and takes what is little less than -2**63 for that; orjson rounds
9007199254740993.0 to a double; both without a word. For an integer column, and for a time that is
part of the dedup key, that would make one key of two. So the text of each message is searched for
`"NAME":`, with the last name of such a column's path, before a number with a point or an exponent;
for times of the key also before text with a fraction of too many digits, or with an escape. A name
with an escape in it counts as found. What is found too often costs time, never a value.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from forebay.storage.base.compiled import compiled
from forebay.storage.formats.columns import Mask, as_mask
from forebay.storage.formats.schema import Column

INT_MIN, INT_END = -(2**63), 2**63
_PLACES = {"time_s": 0, "time": 3, "time_us": 6}
TIME_LETTERS_MAX = 64
"""More than any time has."""
_FRACTION = re.compile(r"[.,](\d+)")
_QUOTE, _COLON, _BACKSLASH, _POINT, _E = map(np.uint8, b'":\\.e')
_ZERO, _MINUS, _PLUS, _SPACE, _T = map(np.uint8, b"0-+ t")
_LOWER, _TEN = np.uint8(32), np.uint8(10)


@compiled
def _is_digit(letter: Any) -> Any:
    return np.uint8(letter - _ZERO) < _TEN


@compiled
def _before_spaces(data: Any, start: Any, at: Any) -> Any:
    """Where the last letter before `at` is that is no white space; `start` if there is none."""
    at -= 1
    while at > start and data[at] <= _SPACE:
        at -= 1
    return at


@compiled
def _is_named(data: Any, start: Any, at: Any, names: Any, bounds: Any, first: Any) -> Any:
    """Whether the value at `at` has one of `names` from number `first` on, or a name with an
    escape."""
    colon = _before_spaces(data, start, at)
    quote = _before_spaces(data, start, colon)
    if quote <= start or data[quote] != _QUOTE or data[colon] != _COLON:
        return False
    at = quote - 1
    while at > start and data[at] != _QUOTE:
        if data[at] == _BACKSLASH:
            return True
        at -= 1
    if at > start and data[at - 1] == _BACKSLASH:
        return True
    for n in range(first, len(bounds) - 1):
        length = bounds[n + 1] - bounds[n]
        same = length == quote - at - 1
        for i in range(length if same else 0):
            same &= data[at + 1 + i] == names[bounds[n] + i]
        if same:
            return True
    return False


@compiled
def _fraction_digits(data: Any, at: Any) -> Any:
    """How many digits stand behind the point at `at`, without zeros at their end."""
    digits, end = 0, at + 1
    while end < len(data) and _is_digit(data[end]):
        end += 1
        if data[end - 1] != _ZERO:
            digits = end - at - 1
    return digits


@compiled
def _has_fraction(
    data: Any, start: Any, at: Any, names: Any, bounds: Any, texts: Any, places: Any
) -> Any:
    """Whether the point or exponent at `at` is in a value of one of `names`: in a number, or in
    text if the name's number is `texts` or more, and it has more than `places` digits behind it."""
    first = at - 1
    while first > start and (_is_digit(data[first]) or data[first] == _POINT):
        first -= 1
    letter = data[first]
    if texts == len(bounds) - 1 and letter != _COLON and letter != _MINUS and letter > _SPACE:
        return False
    if letter != _MINUS:
        first += 1
    if _is_named(data, start, first, names, bounds, 0):
        return True
    if texts == len(bounds) - 1 or data[at] != _POINT or _fraction_digits(data, at) <= places:
        return False
    while first > start and (
        _is_digit(data[first])
        or data[first] == _COLON
        or data[first] == _MINUS
        or data[first] == _PLUS
        or data[first] == _SPACE
        or (data[first] | _LOWER) == _T
    ):
        first -= 1
    return data[first] == _QUOTE and _is_named(data, start, first, names, bounds, texts)


@compiled
def _has_escape(data: Any, start: Any, at: Any, names: Any, bounds: Any, texts: Any) -> Any:
    """Whether the backslash at `at` is the first in a text, not long before it, of one of the
    `names` from number `texts` on."""
    first = at - 1
    while first > max(start, at - TIME_LETTERS_MAX):
        if data[first] == _QUOTE or data[first] == _BACKSLASH:
            break
        first -= 1
    return data[first] == _QUOTE and _is_named(data, start, first, names, bounds, texts)


@compiled
def _mark(text: Any, escapes: Any, marks: Any) -> None:
    """Mark each point or exponent that may be in a number, as the most lenient reader takes one,
    and each backslash if `escapes` asks for them. Without a branch, so that it is compiled to take
    many letters at once."""
    for i in range(1, len(text) - 1):
        before, letter, after = text[i - 1], text[i], text[i + 1]
        digit = np.uint8(before - _ZERO) < _TEN
        point = (letter == _POINT) & (digit | (before == _MINUS))
        signed = (np.uint8(after - _ZERO) < _TEN) | (after == _MINUS) | (after == _PLUS)
        exponent = ((letter | _LOWER) == _E) & (digit | (before == _POINT)) & signed
        marks[i] = point | exponent | (escapes & (letter == _BACKSLASH))


@compiled
def _search(
    text: Any,
    offsets: Any,
    marks: Any,
    words: Any,
    names: Any,
    bounds: Any,
    texts: Any,
    places: Any,
    found: Any,
) -> None:
    """`words` are the `marks`, eight at a time."""
    row = 0
    for word in range(len(words)):
        if words[word] == 0:
            continue
        for at in range(8 * word, 8 * word + 8):
            if not marks[at]:
                continue
            while offsets[row + 1] <= at:
                row += 1
            if found[row] or at == offsets[row]:
                continue
            if text[at] == _BACKSLASH:
                found[row] = _has_escape(text, offsets[row], at, names, bounds, texts)
            else:
                start = offsets[row]
                found[row] = _has_fraction(text, start, at, names, bounds, texts, places)


@dataclass(frozen=True)
class Found:
    """What the text of one message says of a column: the exact integer (of the column's unit), or
    None for what is not an integer."""

    row: int
    column: int
    value: int | None


class Exact:
    """For the columns of one schema, of which `key` names those of the dedup key."""

    def __init__(self, columns: Sequence[Column], key: Sequence[str]) -> None:
        ints = [n for n, column in enumerate(columns) if column.type == "int"]
        times = [n for n, c in enumerate(columns) if c.name in key and c.type in _PLACES]
        self._columns = [(n, columns[n]) for n in (*ints, *times)]
        names = [columns[n].path[-1].encode("utf-8", "surrogatepass") for n in (*ints, *times)]
        self._names = np.frombuffer(b"".join(names), np.uint8)
        self._bounds = np.cumsum([0, *map(len, names)], dtype=np.int64)
        self._texts = len(ints)
        self._places = min((_PLACES[columns[n].type] for n in times), default=0)

    def suspects(self, messages: pa.Array, columns: Sequence[pa.Array]) -> npt.NDArray[np.int64]:
        """The rows of a binary column in whose text one of the columns, as read, may have a
        fraction or less than 64 bits hold."""
        found: Mask = np.zeros(len(messages), dtype=bool)
        for column in columns:
            if pa.types.is_integer(column.type) and pc.min_max(column)["min"].as_py() == INT_MIN:
                found |= as_mask(pc.equal(column, INT_MIN))
        if self._columns and len(messages):
            _, offsets, data = messages.buffers()
            rows = np.frombuffer(offsets, np.int32)[messages.offset :][: len(messages) + 1]
            text = np.frombuffer(data or b"", np.uint8)[rows[0] : rows[-1]]
            words = np.zeros(len(text) // 8 + 1, np.uint64)
            marks = words.view(np.bool_)
            _mark(text, len(self._bounds) - 1 > self._texts, marks)
            rows = rows - rows[0]
            names, bounds, texts, places = self._names, self._bounds, self._texts, self._places
            _search(text, rows, marks, words, names, bounds, texts, places, found)
        return np.flatnonzero(found)

    def found(self, row: int, message: bytes) -> list[Found]:
        """What the message at `row` says of the columns, where it has a number or text that they
        can't just be read from."""
        try:
            text = message.decode()
            document = json.loads(text, strict=False, parse_float=_decimal, parse_int=_decimal)
        except (ValueError, RecursionError):
            # None but the most lenient reader takes it, so nothing in it is known to be exact.
            return [Found(row, n, None) for n, _ in self._columns]
        found = []
        for n, column in self._columns:
            value = _value_at(document, column.path)
            if isinstance(value, Decimal):
                found.append(Found(row, n, _integer(value)))
            elif isinstance(value, str) and column.type != "int" and is_finer(value, column):
                found.append(Found(row, n, None))
        return found


def _decimal(text: str) -> Decimal:
    """The number; not finite, if its exponent is beyond what a Decimal holds."""
    try:
        return Decimal(text)
    except ArithmeticError:
        return Decimal("inf")


def _value_at(document: object, path: Sequence[str]) -> object:
    for name in path:
        document = document.get(name) if isinstance(document, dict) else None
    return document


def _integer(value: Decimal) -> int | None:
    """The value, if it is a 64-bit integer however it is written."""
    inside = value.is_finite() and INT_MIN <= value < INT_END
    return int(value) if inside and value == value.to_integral_value() else None


def is_finer(text: str, column: Column) -> bool:
    """Whether a time as text has more than the column's unit can hold."""
    fraction = _FRACTION.search(text)
    return fraction is not None and fraction[1][_PLACES[column.type] :].strip("0") != ""
