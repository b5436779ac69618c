"""What a message that is no event looks like, and what to do about it: for the detail of a reject.

A guess from the message alone. It changes no verdict, and it is asked for rejects only.
"""

from __future__ import annotations

import orjson

SNOWPLOW_TABS = 100
"""An enriched event has 131 fields, and a tab between each two; older ones have a few less."""
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


def not_json(message: bytes) -> str | None:
    """What a message that is no JSON document looks like."""
    for beginning, told in _BEGINNINGS:
        if message.startswith(beginning):
            return f"looks like {told}"
    if message.count(b"\t") >= SNOWPLOW_TABS and message[:1] not in (b"{", b"["):
        return "looks like Snowplow's TSV: transform it to JSON with the analytics SDK"
    return None


def not_an_object(document: object) -> str:
    """What stands in place of an object."""
    if isinstance(document, list) and document:
        what = "events" if all(isinstance(one, dict) for one in document) else "values"
        what = f"{len(document)} {what if len(document) > 1 else what[:-1]}"
        return f"expected an object, got an array of {what}: send one event a message"
    return "expected an object"


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
            count = f"{len(found)} event{'s' if len(found) > 1 else ''}"
            return f"looks like an SDK's request with {count} in {name!r}: send one event a message"
    return None
