"""What a message that is not an event looks like, and what to do about it, for a reject's detail.

Details have one form: `COLUMN: expected WHAT, got WHAT`, without the column where the whole message
is at fault, and with advice behind a colon or a semicolon. It is a guess from the message alone,
made for rejects only, and changes no verdict.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import orjson

from forebay.storage.base.text import count_text, plain, shortened

OBJECT = "expected a JSON object"
CAME_CHARACTERS = 60
TABS_MIN = 3
"""In text that is not JSON; one of Snowplow's events has 130."""
_BEGINNINGS = [
    (b"\x1f\x8b", "gzip: send it uncompressed; Kafka's own compression is read"),
    (b"\x28\xb5\x2f\xfd", "zstd: send it uncompressed; Kafka's own compression is read"),
    (b"\0", "a schema registry's framing, or another binary format: send JSON without it"),
    (b"data=", "a form as browsers send it: send the JSON in it, one event a message"),
    (b"Obj\x01", "Avro: send JSON"),
]
_BATCHES = ("batch", "events", "data")
"""Where the requests of vendors' SDKs have their events: Segment's, RudderStack's and PostHog's;
Amplitude's; Snowplow's, beside a schema."""


def not_json(message: bytes, said: str) -> str:
    """What a message that is not a JSON document looks like, or else what the reader has `said`."""
    for beginning, told in _BEGINNINGS:
        if message.startswith(beginning):
            return f"{OBJECT}, got what looks like {told}"
    if message.count(b"\t") >= TABS_MIN and message.lstrip()[:1] not in (b"{", b"["):
        return (
            f"{OBJECT}, got what looks like tab-separated values: send JSON; of Snowplow's TSV, the"
            ' analytics SDK makes what schema = "snowplow" takes'
        )
    return f"{OBJECT}, got other: {said}"


def not_an_object(document: object) -> str:
    """What the message is instead of an object."""
    if isinstance(document, list) and document:
        what = "events" if all(isinstance(one, dict) for one in document) else "values"
        what = f"{len(document)} {what if len(document) > 1 else what[:-1]}"
        return f"{OBJECT}, got an array of {what}: send one event a message"
    return f"{OBJECT}, got {_shown(document)}"


class _Verbatim(str):
    """A number as it is written."""


def came(message: bytes, paths: Iterable[Sequence[str]]) -> str | None:
    """The value that an object has at the first of these paths that holds one, in a few words; None
    if there is none."""
    try:
        document = json.loads(
            message.decode("utf-8-sig", errors="replace"),
            strict=False, parse_int=_Verbatim, parse_float=_Verbatim,
        )  # fmt: skip
    except (ValueError, RecursionError):
        return "other"
    held = None
    for path in paths:
        value, place = document, ""
        for n, name in enumerate(path):
            if not isinstance(value, dict):
                place = f" at {plain('.'.join(path[:n]))}" if value is not None else ""
                break
            value = value.get(name)
        if value is not None and value != "":
            return _shown(value) + place
        held = held or ("empty text" if value == "" else None)
    return held


def _shown(value: object) -> str:
    if isinstance(value, _Verbatim):
        return shortened(value, CAME_CHARACTERS)
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "an array"
    return shortened(plain(json.dumps(value, ensure_ascii=False)), CAME_CHARACTERS)


def batch_of(message: bytes) -> str | None:
    """What an object looks like that has many events in it."""
    try:
        document = orjson.loads(message)
    except orjson.JSONDecodeError:
        return None
    for name in _BATCHES if isinstance(document, dict) else ():
        found = document.get(name)
        if name == "data" and "schema" not in document:
            continue
        if isinstance(found, list) and found and all(isinstance(one, dict) for one in found):
            count = count_text(len(found), "event")
            return f"looks like an SDK's request with {count} in {name!r}: send one event a message"
    return None
