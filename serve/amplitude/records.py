"""Events in the form of Amplitude's Export API: the message itself, if it has that form already.

What the form needs and a message lacks is added from its columns: an event of an SDK, which has
`time`, gets an `event_time`; one of another vendor also an `event_type` and a `user_id`. If
messages are not kept, a record has all columns.
Times are texts in UTC, such as 2024-05-01 09:00:01.000000.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import orjson

from forebay.serve.amplitude.properties import Properties
from forebay.storage.formats.schema import RAW, UPLOAD_TIME

FORM = "%Y-%m-%d %H:%M:%S.%f"
UPLOADED = "server_upload_time"
TIMES = ("event_time", UPLOADED)
OF_VENDOR = ("event_time", "$insert_id")
_TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)?\Z")
_LINES = re.compile(rb"[\r\n]")


def record(row: Mapping[str, Any], properties: Properties) -> dict[str, Any]:
    """The event of a row of all columns."""
    found = _message(row)
    if found is None:
        return {name: _written(value) for name, value in row.items() if name != RAW}
    return {**found, **_lacking(found, row, properties)}


def line(row: Mapping[str, Any], properties: Properties) -> bytes:
    """The same as a line of JSON; byte for byte what was sent, if that is complete."""
    found, raw = _message(row), row.get(RAW)
    whole = found is not None and not _lacking(found, row, properties)
    if whole and isinstance(raw, bytes) and not _LINES.search(raw):
        return raw + b"\n"
    return orjson.dumps(record(row, properties), option=orjson.OPT_APPEND_NEWLINE)


def _message(row: Mapping[str, Any]) -> dict[str, Any] | None:
    try:
        found = orjson.loads(row[RAW]) if row.get(RAW) is not None else None
    except orjson.JSONDecodeError:  # only its columns are known
        return None
    return found if isinstance(found, dict) else None


def _lacking(
    found: Mapping[str, Any], row: Mapping[str, Any], properties: Properties
) -> dict[str, Any]:
    """What must be added to a message, or written differently."""
    roles = properties.roles
    columns = {"event_type": roles.event, "event_time": roles.time, "user_id": roles.user}
    if properties.vendor:
        columns = {name: properties.column(name) or "" for name in OF_VENDOR}
    values = {name: row.get(column) for name, column in {**columns, UPLOADED: UPLOAD_TIME}.items()}
    return {
        name: _written(value)
        for name, value in values.items()
        if value is not None and not _complete(name, found.get(name))
    }


def _complete(name: str, value: object) -> bool:
    return value is not None and (name not in TIMES or _TIME.match(str(value)) is not None)


def _written(value: object) -> object:
    return value.astimezone(UTC).strftime(FORM) if isinstance(value, datetime) else value
