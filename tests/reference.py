"""What a message must become, by the written rules, one message at a time with the `json` module.

What always holds: a value is what its text says exactly, or null; a message is an event, or a
reject with a reason. Messages on which strict JSON and the fast reader are known to differ (control
characters in text, commas too many) are not for it. Shares no code with what it judges.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import TypeGuard

from forebay.storage.formats.schema import UPLOAD_TIME, Column, ColumnType, Schema

Value = str | int | float | bool | bytes | None
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
PLACES: dict[ColumnType, int] = {"time_s": 0, "time": 3, "time_us": 6}
"""Decimal places of a second that a column keeps."""
UPLOAD_MIN_MS, UPLOAD_MAX_MS = 946_684_800_000, 7_258_118_400_000
FIRST_S, END_S = -62_135_596_800, 253_402_300_800
"""The years 1 to 9999."""


class WrongTypeError(Exception):
    """A value is not of its column's type."""


@dataclass(frozen=True)
class Read:
    """What became of one message: a reject's reason, or an event's columns in the order of
    `Schema.decoded` (times as numbers of the column's unit), then the message."""

    reason: str | None = None
    columns: tuple[Value, ...] = ()
    nulled: int = 0


def read(
    message: bytes, schema: Schema, latest_ms: int, bytes_max: int, broker_ms: int | None = None
) -> Read:
    """`latest_ms` is the last upload time that is none of the future."""
    if len(message) > bytes_max:
        return Read("too large")
    if not message:
        return Read("empty")
    try:
        text = message.decode()
        document = json.loads(text, parse_constant=_no_constant, parse_float=Decimal)
        json.dumps(json.loads(text), ensure_ascii=False).encode()  # no half of a surrogate pair
    except ValueError:
        return Read("bad json")
    if not isinstance(document, dict):
        return Read("bad json")
    found: dict[str, Value] = {UPLOAD_TIME: broker_ms}
    nulled = 0
    for column in schema.decoded:
        try:
            found[column.name] = _value(document, column, column.name in schema.key)
        except WrongTypeError:
            found[column.name] = None
            nulled += 1
    upload = found[UPLOAD_TIME]
    if any(found[name] in (None, "") for name in schema.key):
        return Read("no key")
    if not isinstance(upload, int):
        return Read("no upload time")
    type = schema.upload_time.type if schema.upload_time else "time"
    upload_ms = upload * 1000 // 10 ** PLACES[type]
    if not UPLOAD_MIN_MS <= upload_ms < UPLOAD_MAX_MS:
        return Read("absurd upload time")
    if upload_ms > latest_ms:
        return Read("future upload time")
    found[UPLOAD_TIME] = upload_ms
    return Read(None, (*found.values(), message), nulled)


def _no_constant(text: str) -> None:
    raise ValueError(f"expected JSON, got {text}")


def _value(document: object, column: Column, in_key: bool) -> Value:
    for name in column.path:
        if document is None:
            return None
        if not isinstance(document, dict):
            raise WrongTypeError
        document = document.get(name)
    if column.name == UPLOAD_TIME:  # one that is far off has a reason of its own
        if _is_number(document):
            return int(max(min(document, 2**63 - 1), -(2**63)))
        if isinstance(document, str):
            return _moment(document, PLACES[column.type], in_key)
    return _typed(document, column.type, in_key)


def _typed(value: object, type: ColumnType, in_key: bool) -> Value:
    if value is None:
        return None
    if type == "string" and isinstance(value, str):
        return value
    if type == "bool" and isinstance(value, bool):
        return value
    if type == "int":
        return _integer(value)
    if type == "float" and (_is_number(value) or isinstance(value, str)):
        try:
            number = float(value)
        except (ValueError, OverflowError) as error:
            raise WrongTypeError from error
        if math.isfinite(number):
            return number
    if type in PLACES:
        return _time(value, PLACES[type], in_key)
    raise WrongTypeError


def _integer(value: object) -> int:
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]+", value):
        value = int(value)
    if _is_number(value) and -(2**63) <= value < 2**63 and value == int(value):
        return int(value)
    raise WrongTypeError


def _time(value: object, places: int, in_key: bool) -> int:
    """A time in the years 1 to 9999; outside the key, cut to its unit, and a double where it is
    written with a point or an exponent."""
    if _is_number(value):
        if not FIRST_S * 10**places - 1 < value < END_S * 10**places:
            raise WrongTypeError
        if in_key and value != int(value):
            raise WrongTypeError
        number: int = int(value) if in_key or isinstance(value, int) else int(float(value))
    elif isinstance(value, str):
        number = _moment(value, places, in_key)
    else:
        raise WrongTypeError
    if not FIRST_S * 10**places <= number < END_S * 10**places:
        raise WrongTypeError
    return number


def _moment(text: str, places: int, in_key: bool) -> int:
    """RFC 3339, or with a space, or without a zone (UTC), or a date alone."""
    form = r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d:\d\d)(?:\.(\d+))?(Z|[+-]\d\d:\d\d)?)?"
    found = re.fullmatch(form, text, re.ASCII)
    if not found:
        raise WrongTypeError
    date, clock, fraction, zone = found.groups()
    fraction = (fraction or "").ljust(places, "0")
    if in_key and fraction[places:].strip("0"):
        raise WrongTypeError
    try:
        year = date.replace(
            "0000", "0004", 1
        )  # four years, a leap year too, after what Python lacks
        moment = datetime.fromisoformat(f"{year}T{clock or '00:00:00'}+00:00")
    except ValueError as error:
        raise WrongTypeError from error
    seconds = (moment - EPOCH) // timedelta(seconds=1) - (year != date) * 1461 * 86_400
    if zone and zone != "Z":
        minutes = 60 * int(zone[1:3]) + int(zone[4:])
        seconds -= (-60 if zone[0] == "-" else 60) * minutes
    number: int = seconds * 10**places + int(fraction[:places] or "0")
    return number


def _is_number(value: object) -> TypeGuard[int | Decimal]:
    return isinstance(value, int | Decimal) and not isinstance(value, bool)
