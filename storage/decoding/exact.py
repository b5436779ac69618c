"""Exact numbers: finds the messages in which a number has a fraction or an exponent that a column
could lose, and takes the number from their text.

The fast reader cuts 1.5 to 1 and reads what is slightly less than -2**63 as that number; orjson
rounds 9007199254740993.0 to a double; neither reports it. In an integer column, and in a time that
is part of the dedup key, that would turn two keys into one. So the text of each message is searched
for `"NAME":`, with the last name of such a column's path, before a number with a point or an
exponent; for times of the key also before text with a fraction of too many digits, or with an
escape. A name with an escape in it counts as found. A match too many costs time, never a value.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import takewhile

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from forebay.storage.formats.columns import Mask, as_mask
from forebay.storage.formats.schema import Column

INT_MIN, INT_END = -(2**63), 2**63
END_MIN = 2
"""Letters that names must end in alike, for the names to be searched for by these."""
_PLACES = {"time_s": 0, "time": 3, "time_us": 6}
_FRACTION = re.compile(r"[.,](\d+)")
_COLON = r"[\x00- ]*:[\x00- ]*"
_ESCAPED = r'\\(?s:.)[^"]*"'
"""A name of a JSON object, from its last escape on."""
_NUMBER = r"-?[0-9]*(?:\.|[eE][-+0-9])"
_TIME = r'"[-+:0-9Tt ]*(?:\.[0-9]{%d,}[1-9]|\.?[0-9]*\\)'
"""How a number begins that has a fraction or an exponent; and a time as text, that has a fraction
of more than so many digits, zeros at its end left out, or an escape."""


@dataclass(frozen=True)
class ExactNumber:
    """What the text of one message says about a column: the exact integer (in the column's unit),
    or None for what is not an integer."""

    row: int
    column: int
    value: int | None


class Exact:
    """For the columns of one schema, of which `key` names those of the dedup key."""

    def __init__(self, columns: Sequence[Column], key: Sequence[str]) -> None:
        times = [c for c in columns if c.name in key and c.type in _PLACES]
        ints = [c for c in columns if c.type == "int"]
        numbers = [*times, *ints]
        self._columns = [(n, column) for n, column in enumerate(columns) if column in numbers]
        time = _TIME % min((_PLACES[column.type] for column in times), default=0)
        either = f"(?:{_NUMBER}|{time})" if times else _NUMBER
        patterns = [_named(times, either), _named(ints, _NUMBER), f"{_ESCAPED}{_COLON}{either}"]
        # SUBTLE: one each: each then begins with a letter, so that other text is skipped fast.
        self._patterns = [pattern for pattern in patterns if pattern and numbers]

    def suspects(self, messages: pa.Array, columns: Sequence[pa.Array]) -> npt.NDArray[np.int64]:
        """The rows of a binary column in whose text the value of one of the columns, as read, may
        have a fraction, or be below what 64 bits hold."""
        found: Mask = np.zeros(len(messages), dtype=bool)
        for column in columns:
            if pa.types.is_integer(column.type) and pc.min_max(column)["min"].as_py() == INT_MIN:
                found |= as_mask(pc.equal(column, INT_MIN))
        for pattern in self._patterns:
            found |= as_mask(pc.match_substring_regex(messages, pattern))
        return np.flatnonzero(found)

    def found(self, row: int, message: bytes) -> list[ExactNumber]:
        """What the message at `row` says about those columns whose number or text can't simply be
        read."""
        try:
            text = message.decode()
            document = json.loads(text, strict=False, parse_float=_decimal, parse_int=_decimal)
        except (ValueError, RecursionError):
            # Only the most lenient reader takes it, so nothing in it is known to be exact.
            return [ExactNumber(row, n, None) for n, _ in self._columns]
        found = []
        for n, column in self._columns:
            value = _value_at(document, column.path)
            if isinstance(value, Decimal):
                found.append(ExactNumber(row, n, _integer(value)))
            elif isinstance(value, str) and column.type != "int" and is_finer(value, column):
                found.append(ExactNumber(row, n, None))
        return found


def _named(columns: Iterable[Column], value: str) -> str:
    """A regular expression for such values, by the last names of the columns' paths.

    SUBTLE: it looks for the ending that the names share, if any: RE2 skips to a single text three
    times as fast as to a quote or one of several texts. Few other numbers have such a name.
    """
    names = [column.path[-1].encode("utf-8", "surrogatepass") for column in columns]
    if not names:
        return ""
    alike = takewhile(
        lambda letters: len({*letters}) == 1, zip(*map(reversed, names), strict=False)
    )
    end = bytes(letters[0] for letters in alike)[::-1]
    if len(end) >= END_MIN:
        return f'{_letters(end)}"{_COLON}{value}'
    return f'"(?:{"|".join(map(_letters, names))})"{_COLON}{value}'


def _letters(name: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in name)


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
    """Whether a time, as text, is finer than the column's unit can hold."""
    fraction = _FRACTION.search(text)
    return fraction is not None and fraction[1][_PLACES[column.type] :].strip("0") != ""
