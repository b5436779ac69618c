"""What must come out of one partition's messages, one message at a time, from the written rules.

0. An empty line is no message, but the next offset counts it.
1. A message is a reject unless it is a JSON object, to the letter and within the limit of bytes,
   with a value in each column of the key, no text of these empty, and a whole number `at`, the
   upload time, that lies between the years 2000 and 2200 and not in the future. Of two equal names
   the last counts.
2. Stream time is the largest upload time so far.
3. Blocks last touched the dedup window or longer ago, in stream time, are closed.
4. The event is a duplicate if its key is in an open block, or in a closed one of its interval; and
   a conflict if its values are not those of the event that has the key.
5. Else it is accepted into the open block of its interval, and is late if it lies the window or
   more behind stream time.
6. A replay, after the last message, judges the rejects once more, in order, under another limit.

A column has no value where the message has none of its type:

- `int`: a whole number of 64 bits, however it is written, or text of its digits.
- `float`: a finite number, the nearest there is to the one written, or text of one.
- `bool`: true or false.
- `time`, `time_s`, `time_us`: a number of ms, s or µs, or text as in RFC 3339, in the years 1 to
  9999; it is cut to the unit. What would be cut is no value for a key.

To the letter: UTF-8, no NaN, no control characters, no half of a surrogate pair. What nests deeper
than the standard reader follows is a reject here.

Shares no code with what it judges.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal

FIRST_MS, FUTURE_SKEW_MS = 946_684_800_000, 60_000
BYTES_MAX = 1 << 20
EMPTY = (b"", b"\r")
COLUMNS = {"device": "string", "id": "string"}
UNITS_US = {"time": 1000, "time_s": 1_000_000, "time_us": 1}
FIRST_US = (date(1, 1, 1).toordinal() - date(1970, 1, 1).toordinal()) * 86_400_000_000
END_US = FIRST_US + 3_652_059 * 86_400_000_000
"""The year 10000."""
TIME = re.compile(r"(\d{4})-(\d\d)-(\d\d)[T ](\d\d):(\d\d):(\d\d)(\.\d+)?(Z|([+-])(\d\d):(\d\d))?")
Value = str | int | None
"""Times in µs; floats as text in hexadecimal digits, so that 0.0 does not equal -0.0."""
Row = tuple[Value, ...]
"""One value for each column."""


@dataclass
class Expected:
    """One partition: the accepted events by offset with their values, the rejects by offset as they
    came, and all counts. `messages` is the next offset."""

    events: dict[int, Row] = field(default_factory=dict)
    rejects: dict[int, bytes] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    messages: int = 0
    stream_time_ms: int | None = None


def judge(
    messages: Iterable[bytes],
    span_ms: int,
    window_ms: int,
    now_ms: int,
    limits: Sequence[int] = (BYTES_MAX,),
    columns: Mapping[str, str] = COLUMNS,
    key_columns: Sequence[str] = tuple(COLUMNS),
) -> Expected:
    """The verdict on a partition's lines, at offsets 0, 1, ...; `limits` are the most bytes of a
    message, at first and in each replay; `columns` have types by name."""
    expected = Expected()
    touched: dict[int, int] = {}
    opened: dict[int, dict[Row, Row]] = {}
    closed: dict[int, dict[Row, Row]] = {}
    lines = dict(enumerate(messages))
    expected.messages = len(lines)
    expected.rejects = {offset: line for offset, line in lines.items() if line not in EMPTY}
    for bytes_max in limits:
        for offset, message in list(expected.rejects.items()):
            event = _event(message, bytes_max, now_ms, columns, key_columns)
            if event is None:
                continue
            del expected.rejects[offset]
            row, at_ms = event
            key = tuple(v for name, v in zip(columns, row, strict=True) if name in key_columns)
            stream_ms = max(expected.stream_time_ms or at_ms, at_ms)
            expected.stream_time_ms = stream_ms
            for interval in [i for i, last in touched.items() if stream_ms - last >= window_ms]:
                closed.setdefault(interval, {}).update(opened.pop(interval))
                del touched[interval]
            interval = at_ms // span_ms
            known = [rows[key] for rows in opened.values() if key in rows]
            known += [rows[key] for rows in (closed.get(interval, {}),) if key in rows]
            if known:
                expected.counts["duplicates"] += 1
                expected.counts["conflicts"] += known[0] != row
                continue
            opened.setdefault(interval, {})[key] = row
            touched[interval] = stream_ms
            expected.events[offset] = row
            expected.counts["accepted"] += 1
            expected.counts["late"] += stream_ms - at_ms >= window_ms
    expected.counts["rejects"] = len(expected.rejects)
    return expected


def _event(
    message: bytes,
    bytes_max: int,
    now_ms: int,
    columns: Mapping[str, str],
    key_columns: Sequence[str],
) -> tuple[Row, int] | None:
    """Its values and upload time, or None for a reject."""
    if len(message) > bytes_max:
        return None
    try:
        event = json.loads(message.decode(), parse_constant=_refuse, parse_float=Decimal)
        # Half of a surrogate pair fails here.
        json.dumps(event, ensure_ascii=False, default=str).encode()
        at_ms = event["at"]
        row = tuple(
            _value(event.get(name), kind, name in key_columns) for name, kind in columns.items()
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    keys = [value for name, value in zip(columns, row, strict=True) if name in key_columns]
    if any(value in (None, "") for value in keys):
        return None
    if not (isinstance(at_ms, int) and FIRST_MS <= at_ms <= now_ms + FUTURE_SKEW_MS):
        return None
    return row, at_ms


def _value(value: object, kind: str, in_key: bool) -> Value:
    """What a column has of a JSON value."""
    number = None if isinstance(value, bool) or not isinstance(value, int | Decimal) else value
    if kind == "string":
        return value if isinstance(value, str) else None
    if kind == "bool":
        return value if isinstance(value, bool) else None
    if kind == "int":
        if isinstance(value, str) and re.fullmatch(r"[+-]?\d+", value):
            number = int(value)
        return int(number) if number is not None and _whole_of_64_bits(number) else None
    if kind == "float":
        return _float(value if isinstance(value, str) else number)
    unit_us = UNITS_US[kind]
    time_us = text_us(value) if isinstance(value, str) else None
    if number is not None and -(2**63) <= number < 2**63:
        time_us = Decimal(number) * unit_us
    if time_us is None or not FIRST_US <= time_us < END_US:
        return None
    cut_us = int(time_us / unit_us) * unit_us
    return None if in_key and cut_us != time_us else cut_us


def _whole_of_64_bits(number: int | Decimal) -> bool:
    return -(2**63) <= number < 2**63 and number == int(number)


def _float(value: str | int | Decimal | None) -> str | None:
    try:
        number = math.nan if value is None else float(str(value))
    except ValueError:
        return None
    return number.hex() if math.isfinite(number) else None


def text_us(text: str) -> Decimal | None:
    """The time that text says, in µs; in UTC unless it says otherwise. None if it says none."""
    found = TIME.fullmatch(text)
    if not found:
        return None
    try:
        day = date(*map(int, found.group(1, 2, 3))).toordinal() - date(1970, 1, 1).toordinal()
    except ValueError:
        return None
    hour, minute, second = map(int, found.group(4, 5, 6))
    if hour > 23 or minute > 59 or second > 59:
        return None
    _, _, _, _, _, _, fraction, zone, sign, east_h, east_m = found.groups()
    seconds = Decimal(day * 86_400 + hour * 3600 + minute * 60 + second) + Decimal(fraction or 0)
    if zone not in (None, "Z"):
        east = int(east_h) * 3600 + int(east_m) * 60
        seconds -= east if sign == "+" else -east
    return seconds * 1_000_000


def _refuse(constant: str) -> None:
    raise ValueError(f"expected JSON, got {constant}")
