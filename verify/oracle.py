"""What must come out of one partition's messages, one message at a time, from the written rules.

0. An empty line is not a message, but the next offset counts it.
1. A message is a reject unless it is a JSON object, to the letter and within the limit of bytes,
   perhaps after a byte order mark, with a value in each column of the key, none of these an empty
   text, and a whole number `at`, the upload time, that lies between the years 2000 and 2200 and not
   in the future. Of two equal names the last counts.
2. Stream time is the largest upload time so far.
3. Blocks last touched the dedup window or longer ago, in stream time, are closed.
4. The event is a duplicate if its key is in an open block, or in a closed one of its interval, or,
   if all of its interval is the window or more behind stream time (backfill), in a closed backfill
   block of its day; and a conflict if its values are not those of the event that has the key.
5. Else it is accepted into the open block of its interval, backfill into that of its day, and is
   late if it lies the window or more behind stream time.
6. A replay, after the last message, judges the rejects once more, in order, under another limit.

A column has no value where the message has none of its type. If it has several paths, the first
that leads to a value counts; empty text counts if none leads to more.

- `string`: text, with U+FFFD for half of a surrogate pair. Text with one is not a value for a key.
- `id`: the same, or a whole number without point or exponent, as its digits.
- `text`: text as in `string`, or any other value's JSON as it stands in the message; never part of
  a key.
- `int`: a whole number of 64 bits, however it is written, or text of its digits.
- `float`: a finite number, the nearest there is to the one written, or text of one.
- `bool`: true or false.
- `time`, `time_s`, `time_us`: a number of ms, s or µs, or text as in RFC 3339, in the years 1 to
  9999; it is cut to the unit. What would be cut is not a value for a key.
- `time_auto`: the same text, of µs, or a number of s, ms or µs, whichever makes it a time from
  100,000,000 s after 1970 to the end of 2199; it is rounded to µs, for a key too.

To the letter: UTF-8, no NaN, no control characters. What nests deeper than the standard reader
follows is a reject here.

Shares no code with what it judges.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TypeGuard

FIRST_MS, FUTURE_SKEW_MS = 946_684_800_000, 60_000
BYTES_MAX = 1 << 20
EMPTY = (b"", b"\r")
COLUMNS = {"device": "string", "id": "string"}
UNITS_US = {"time": 1000, "time_s": 1_000_000, "time_us": 1, "time_auto": 1}
PLACES = {"time": 3, "time_s": 0, "time_us": 6}
"""Decimal places of a second that a column keeps."""
AUTO_S = range(100_000_000, 7_258_118_400)
"""Where the size of a number tells its unit."""
BOM = b"\xef\xbb\xbf"
HALF = re.compile("[\ud800-\udfff]")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FIRST_S, END_S = -62_135_596_800, 253_402_300_800
"""The years 1 to 9999."""
SPACE = re.compile(r"[ \t\r\n,:]*")
INTEGER = re.compile(r"[+-]?[0-9]+")
TIME = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d:\d\d)(?:\.(\d+))?(Z|[+-]\d\d:\d\d)?)?", re.ASCII
)
Value = str | int | None
"""Times in µs; floats as text in hexadecimal digits, so that 0.0 does not equal -0.0."""
Row = tuple[Value, ...]
"""One value for each column."""
Key = Row
Place = tuple[str, int]
"""Source and offset: what tells one event from another."""
KINDS = ("accepted", "duplicates", "conflicts", "rejects", "rejects_expired", "late")
"""What is counted. Nothing is so old here that rejects expire."""


class NoValue(ValueError):
    """A value is not of its column's type."""


@dataclass
class Block:
    """The events of an interval, or the `backfill` ones of a day, in order, and their values by
    key."""

    interval_ms: int
    backfill: bool
    touched_ms: int
    keys: dict[Key, Row] = field(default_factory=dict)
    events: list[Place] = field(default_factory=list)

    @property
    def place(self) -> tuple[int, bool]:
        return self.interval_ms, self.backfill


@dataclass
class Oracle:
    """Rules 2 to 5 for one partition. `closed` has blocks in order of eviction, and never forgets
    any."""

    block_span_ms: int
    dedup_window_ms: int
    stream_time_ms: int | None = None
    live: dict[tuple[int, bool], Block] = field(default_factory=dict)
    closed: list[Block] = field(default_factory=list)
    accepted: int = 0
    duplicates: int = 0
    conflicts: int = 0
    rejects: int = 0
    rejects_expired: int = 0
    late: int = 0
    backfill_ms: int = 86_400_000

    def admit(self, place: Place, key: Key, upload_ms: int, row: Row = ()) -> bool:
        """Take an event. Returns whether it is accepted."""
        now_ms = self.stream_time_ms = max(self.stream_time_ms or upload_ms, upload_ms)
        for block in sorted(self.live.values(), key=lambda block: block.interval_ms):
            if now_ms - block.touched_ms >= self.dedup_window_ms:
                self.closed.append(self.live.pop(block.place))
        places = self.places_of(upload_ms)
        retained = [b for place in places for b in self.closed if b.place == place]
        known = [b.keys[key] for b in (*self.live.values(), *retained) if key in b.keys]
        if known:
            self.duplicates += 1
            self.conflicts += known[0] != row
            return False
        block = self.live.setdefault(places[-1], Block(*places[-1], now_ms))
        block.touched_ms = now_ms
        block.keys[key] = row
        block.events.append(place)
        self.accepted += 1
        self.late += now_ms - upload_ms >= self.dedup_window_ms
        return True

    def places_of(self, upload_ms: int) -> list[tuple[int, bool]]:
        """Where an event that arrives may be known; the last place is where it belongs."""
        interval_ms = upload_ms // self.block_span_ms * self.block_span_ms
        found = [(interval_ms, False)]
        if interval_ms + self.block_span_ms + self.dedup_window_ms <= (self.stream_time_ms or 0):
            found.append((upload_ms // self.backfill_ms * self.backfill_ms, True))
        return found


@dataclass
class Expected:
    """One partition: the accepted events by offset with their values, the rejects by offset as they
    arrived, and all counts. `messages` is the next offset."""

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
    """The verdict on a partition's lines, at offsets 0, 1, ...; `limits` are the maximum bytes of a
    message, at first and in each replay; `columns` have types by name."""
    oracle = Oracle(span_ms, window_ms)
    lines = list(messages)
    events: dict[int, Row] = {}
    rejects = {offset: line for offset, line in enumerate(lines) if line not in EMPTY}
    for bytes_max in limits:
        for offset, message in list(rejects.items()):
            event = _event(message, bytes_max, now_ms, columns, key_columns)
            if event is None:
                continue
            del rejects[offset]
            row, key, at_ms = event
            if oracle.admit(("", offset), key, at_ms, row):
                events[offset] = row
    oracle.rejects = len(rejects)
    counts = Counter({kind: getattr(oracle, kind) for kind in KINDS})
    return Expected(events, rejects, counts, len(lines), oracle.stream_time_ms)


def _event(
    message: bytes,
    bytes_max: int,
    now_ms: int,
    columns: Mapping[str, str],
    key_columns: Sequence[str],
) -> tuple[Row, Key, int] | None:
    """Its values, its key and upload time, or None for a reject."""
    if len(message) > bytes_max:
        return None
    try:
        text = message.removeprefix(BOM).decode()
        event = json.loads(text, parse_constant=_refuse, parse_float=Decimal)
        at_ms = event["at"]
        spelt = _spelt(text) if "text" in columns.values() else {}
        row = tuple(
            _in_row((spelt if kind == "text" else event).get(name), kind, name in key_columns)
            for name, kind in columns.items()
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    key = tuple(v for name, v in zip(columns, row, strict=True) if name in key_columns)
    if any(value in (None, "") for value in key):
        return None
    if not (isinstance(at_ms, int) and FIRST_MS <= at_ms <= now_ms + FUTURE_SKEW_MS):
        return None
    return row, key, at_ms


def _spelt(text: str) -> dict[str, str | None]:
    """What a column of type `text` has for each name of an object, the last of equal ones."""
    read, found = json.JSONDecoder().raw_decode, {}
    at = _behind_space(text, text.index("{") + 1)
    while text[at] != "}":
        name, at = read(text, at)
        begin = _behind_space(text, at)
        value, end = read(text, begin)
        spelling = HALF.sub("\ufffd", value) if isinstance(value, str) else text[begin:end]
        found[name] = None if value is None else spelling
        at = _behind_space(text, end)
    return found


def _behind_space(text: str, at: int) -> int:
    found = SPACE.match(text, at)
    return found.end() if found else at


def _in_row(value: object, kind: str, in_key: bool) -> Value:
    try:
        found = value_of(value, kind, in_key)
    except NoValue:
        return None
    if isinstance(found, float):
        return found.hex()
    return found * UNITS_US[kind] if kind in UNITS_US and isinstance(found, int) else found


def value_of(value: object, kind: str, in_key: bool) -> str | int | float | bool | None:
    """What a column makes of a JSON value, in which fractions are Decimals: None for null, a time
    as a number of the column's unit. Raises NoValue."""
    if value is None:
        return None
    if (
        kind in ("string", "id", "text")
        and isinstance(value, str)
        and not (in_key and HALF.search(value))
    ):
        return HALF.sub("\ufffd", value)
    if kind == "id" and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if kind == "bool" and isinstance(value, bool):
        return value
    if kind == "int":
        number = int(value) if isinstance(value, str) and INTEGER.fullmatch(value) else value
        if is_number(number) and -(2**63) <= number < 2**63 and number == int(number):
            return int(number)
    if kind == "float" and (is_number(value) or isinstance(value, str)):
        with suppress(ValueError, OverflowError):
            if math.isfinite(number := float(value)):
                return number
    if kind in PLACES and (is_number(value) or isinstance(value, str)):
        return _time(value, PLACES[kind], in_key)
    if kind == "time_auto" and isinstance(value, str):
        return _time(value, 6, in_key)
    if kind == "time_auto" and is_number(value):
        for per_second in (1, 1_000, 1_000_000):
            if AUTO_S.start * per_second <= float(value) < AUTO_S.stop * per_second:
                return round(float(value) * (1_000_000 // per_second))
    raise NoValue


def first_value(
    document: object, paths: Iterable[Sequence[str]], kind: str, in_key: bool
) -> str | int | float | bool | None:
    """What a column makes of a document that may have its value at many paths. Raises NoValue."""
    empty, wrong = None, False
    for path in paths:
        try:
            found = value_of(value_at(document, path), kind, in_key)
        except (NoValue, OverflowError):
            wrong = True
            continue
        if found not in (None, ""):
            return found
        empty = found if empty is None else empty
    if wrong:
        raise NoValue
    return empty


def value_at(value: object, path: Sequence[str]) -> object:
    """What is at a path: null where it ends early, and a non-value where it can't go on."""
    for name in path:
        if value is not None and not isinstance(value, dict):
            return []
        value = None if value is None else value.get(name)
    return value


def is_number(value: object) -> TypeGuard[int | Decimal]:
    return isinstance(value, int | Decimal) and not isinstance(value, bool)


def _time(value: int | Decimal | str, places: int, in_key: bool) -> int:
    """A time in the years 1 to 9999; outside the key, cut to its unit, and a double where it is
    written with a point or an exponent."""
    first, end = FIRST_S * 10**places, END_S * 10**places
    if isinstance(value, str):
        number = moment(value, places, in_key)
    elif first - 1 < value < end and not (in_key and value != int(value)):
        number = int(value) if in_key or isinstance(value, int) else int(float(value))
    else:
        raise NoValue
    if not first <= number < end:
        raise NoValue
    return number


def moment(text: str, places: int, in_key: bool) -> int:
    """RFC 3339, or with a space, or without a zone (UTC), or a date alone, in units of so many
    decimal places of a second. Raises NoValue."""
    found = TIME.fullmatch(text)
    if not found:
        raise NoValue
    day, clock, fraction, zone = found.groups()
    fraction = (fraction or "").ljust(places, "0")
    if in_key and fraction[places:].strip("0"):
        raise NoValue
    # Python has no year 0, which is a leap year, as four years later is.
    year = day.replace("0000", "0004", 1)
    try:
        moment = datetime.fromisoformat(f"{year}T{clock or '00:00:00'}+00:00")
    except ValueError as error:
        raise NoValue from error
    seconds = (moment - EPOCH) // timedelta(seconds=1) - (year != day) * 1461 * 86_400
    if zone and zone != "Z":
        minutes = 60 * int(zone[1:3]) + int(zone[4:])
        seconds -= (-60 if zone[0] == "-" else 60) * minutes
    return int(seconds * 10**places + int(fraction[:places] or "0"))


def _refuse(constant: str) -> None:
    raise ValueError(f"expected JSON, got {constant}")
