"""Typed values: columns of every type, and what producers put into them.

The column names are ones that no layer below should mind: SQL keywords, and names that others use
for their own columns. `KEY` has an integer and two times among them: their values follow from the
id, so that a retry has the same key as the first copy, however either is written, and other values.
"""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Iterable

from forebay.verify.feed import START_MS
from forebay.verify.oracle import END_S, FIRST_S, PLACES

COLUMNS = {
    "device": "string",
    "id": "string",
    "place": "string",
    "n": "int",
    "fresh": "float",
    "rowid": "bool",
    "select": "time",
    "order": "time_s",
    "count": "time_us",
    "_x": "int",
    "user": "id",
    "when": "time_auto",
    "told": "text",
}
KEY = ("device", "id", "_x", "select", "order", "user")
DEPTH = 300
"""What every reader of JSON follows."""

TEXT = [
    b'""', b'"\\u0000"', b'"' + "\ud7ff".encode() * 16 + b'"', '"\U0010ffff"'.encode(),
    b'"\\udbff\\udfff"', '"\u2028\x85\ufeff"'.encode(), b'"\'; drop table \\"events\\" --"',
    b'"a,b\\n\\"c\\"\\r"',
]  # fmt: skip
NO_TEXT = [b"1", b"true", b'["text"]']
NUMBERS = [
    b"-9223372036854775808", b"9223372036854775807", b"9007199254740993", b"9007199254740993.0",
    b"1e3", b"1.0", b"-0", b'"12"', b"1e18",
]  # fmt: skip
NO_NUMBERS = [
    b"9223372036854775808", b"-9223372036854775809", b"1.5", b"-0.7", b"1e19", b"1e-9", b'"1.5"',
    b'"one"', b"true", b'"\\u0000"', b"-" + b"9" * 300,
]  # fmt: skip
FLOATS = [
    b"1.5", b"-0.0", b"1e400", b"-1e400", b"1e-400", b"5e-324", b'"NaN"', b'"1.5"', b"2",
    b"9223372036854775808", b"-" + b"9" * 300,
]  # fmt: skip
NO_FLOATS = [b'"one"', b"false", b'"\\ud7ff"']
IDS = [b"0", b"-0", b"12", b"-12", b"9007199254740993", b"18446744073709551617", b"9" * 300, b"-1"]
NO_IDS = [b"1.0", b"1e3", b"true"]
ANY_UNIT = [
    b"100000000", b"1714521600.123456", b"1714521600.1234567", b"1714521600123",
    b"7258118399999999", b"1.7145216e9",
]  # fmt: skip
NO_UNIT = [b"99999999", b"7258118400", b"99999999999", b"-1714521600", b"1e400", b'"1714521600"']
NO_TRUTHS = [b"1", b'"true"', b"0.0"]
MOMENTS = [
    b'"2024-05-01T12:00:00.123456789Z"', b'"2024-05-01 12:00:00.5"', b'"0001-01-01T00:00:00Z"',
    b'"9999-12-31T23:59:59Z"', b'"2024-05-01T00:00:00+14:00"', b"0", b"1.5",
]  # fmt: skip
NO_MOMENTS = [
    b'"9999-12-31T23:59:59.9999999-08:00"', b'"0000-01-01T00:00:00Z"', b'"+10000-01-01T00:00:00Z"',
    b'"0001-01-01T00:00:00+00:01"', b'"2024-02-30T00:00:00Z"', b'"noon"', b'""', b'"1714521600000"',
    b"-9223372036854775808", b"9223372036854775807", b"1714521600000000000", b"true",
]  # fmt: skip
SPELT = [
    b"0", b"-0", b"1.50", b"1E2", b"1e400", b"true", b"[ ]", b'{"told": "}\\"", "told":\t[1 ,{}]}',
    b"9" * 30, b'"null"', b'"\\ud83d\\ude00 \\ud800"',
]  # fmt: skip
NEVER = [
    b"{}", b"[" * DEPTH + b"]" * DEPTH, b'{"x":' * DEPTH + b"1" + b"}" * DEPTH,
]  # fmt: skip
"""In no column a value, but for what keeps any as it is written."""


def _moments(kind: str) -> list[bytes]:
    """The first and the last of a unit, and the numbers next to these."""
    first, end = FIRST_S * 10 ** PLACES[kind], END_S * 10 ** PLACES[kind]
    return [b"%d" % number for number in (first, end - 1, first - 1, end)]


_OF_TYPE = {
    "string": TEXT + NO_TEXT,
    "int": NUMBERS + NO_NUMBERS,
    "float": FLOATS + NO_FLOATS,
    "id": TEXT + IDS + NO_IDS,
    "text": TEXT + SPELT,
    "time_auto": ANY_UNIT + NO_UNIT + MOMENTS + NO_MOMENTS,
    "bool": [b"true", b"false", *NO_TRUTHS],
    **{kind: MOMENTS + NO_MOMENTS + _moments(kind) for kind in PLACES},
}


def _hostile(names: Iterable[str]) -> list[bytes]:
    """A field for each of these columns and each value that the column may get."""
    texts = [(name.encode(), text) for name in names for text in (*_OF_TYPE[COLUMNS[name]], *NEVER)]
    return [b'"%b":%b' % one for one in texts]


HOSTILE = _hostile(name for name in COLUMNS if name not in KEY)
"""An event with one of these is an event."""
HOSTILE_KEYS = _hostile(KEY[2:])
"""An event with one of these is another event, or a reject."""


def settings() -> dict[str, str]:
    """The job's settings for these columns."""
    columns = [{"name": name, "path": name, "type": kind} for name, kind in COLUMNS.items()]
    return {"COLUMNS": json.dumps(columns), "DEDUP_KEY": json.dumps(KEY), "RAW": "true"}


def fields(rng: random.Random, id: str) -> bytes:
    """What an ordinary event with this id has besides device and id: most columns, in any order."""
    number = zlib.crc32(id.encode()) % 1000
    at_ms = START_MS + 1000 * number
    texts = {
        "place": rng.choice([b'"here"', b'"there"', b'"\xe4\xb8\xad"', b"null"]),
        "n": b"%d" % rng.randrange(-5, 5),
        "fresh": b"%.3f" % rng.random(),
        "rowid": rng.choice([b"true", b"false"]),
        "select": rng.choice([b"%d", b"%d.0"]) % at_ms,
        "order": b"%d" % (at_ms // 1000),
        "count": b"%d" % (at_ms * 1000 + rng.randrange(1000)),
        "_x": rng.choice([b"%d", b"%d.0", b'"%d"', b"%d.00"]) % number,
        "user": rng.choice([b"%d", b'"%d"']) % number,
        "when": rng.choice([b"%d", b"%d000", b"%d.5"]) % (at_ms // 1000),
        "told": rng.choice([b'"so"', b'"\\u00e9"']),
    }
    kept = [name for name in texts if name in KEY or rng.random() < 0.9]
    rng.shuffle(kept)
    return b"".join(b',"%b":%b' % (name.encode(), texts[name]) for name in kept)
