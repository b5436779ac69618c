"""What a message must become, by the written rules, one message at a time with the `json` module.

What always holds: a value is what its text says exactly, or null; a message is an event, or a
reject with a reason. Messages on which strict JSON and the fast reader are known to differ (control
characters in text, commas too many) are not for it. Shares no code with what it judges.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from decimal import Decimal

from forebay.storage.formats.schema import UPLOAD_TIME, Column, Schema
from forebay.verify.oracle import BOM, PLACES, NoValue, first_value, is_number, moment, value_at

Value = str | int | float | bool | bytes | None
UPLOAD_MIN_MS, UPLOAD_MAX_MS = 946_684_800_000, 7_258_118_400_000


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
        text = message.removeprefix(BOM).decode()
        document = json.loads(text, parse_constant=_no_constant, parse_float=Decimal)
    except ValueError:
        return Read("bad json")
    if not isinstance(document, dict):
        return Read("bad json")
    found: dict[str, Value] = {UPLOAD_TIME: broker_ms}
    nulled = 0
    for column in schema.decoded:
        try:
            found[column.name] = _value(document, column, column.name in schema.key)
        except NoValue:
            found[column.name] = None
            nulled += 1
            if column.name in schema.optional:
                return Read("no key")
        if column.name in schema.optional:
            found[column.name] = found[column.name] or ""
    upload = found[UPLOAD_TIME]
    if any(found[name] in (None, "") for name in schema.key if name not in schema.optional):
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
    if column.name == UPLOAD_TIME:  # one that is far off has a reason of its own
        for value in (value_at(document, path) for path in column.paths):
            if is_number(value):
                return int(max(min(value, 2**63 - 1), -(2**63)))
            if isinstance(value, str):
                return moment(value, PLACES[column.type], in_key)
    return first_value(document, column.paths, column.type, in_key)
