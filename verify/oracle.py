"""What must come out of one partition's messages, one message at a time, from the written rules.

1. A message is a reject unless it is a JSON object with text `device` and `id` and a whole number
   `at`, the upload time, that lies between the years 2000 and 2200 and not in the future.
2. Stream time is the largest upload time so far.
3. Blocks last touched the dedup window or longer ago, in stream time, are closed.
4. The event is a duplicate if its key is in an open block, or in a closed one of its interval.
5. Else it is accepted into the open block of its interval, and is late if it lies the window or
   more behind stream time.

Shares no code with what it judges.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

FIRST_MS, FUTURE_SKEW_MS = 946_684_800_000, 60_000
Key = tuple[str, str]


@dataclass
class Expected:
    """One partition: the accepted events by offset with their ids, and the counts of the rest."""

    events: dict[int, str] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    messages: int = 0
    stream_time_ms: int | None = None


def judge(messages: Iterable[bytes], span_ms: int, window_ms: int, now_ms: int) -> Expected:
    """The verdict on a partition's messages, at offsets 0, 1, ..."""
    expected = Expected()
    touched: dict[int, int] = {}
    opened: dict[int, set[Key]] = {}
    closed: dict[int, set[Key]] = {}
    for offset, message in enumerate(messages):
        expected.messages += 1
        event = _event(message, now_ms)
        if event is None:
            expected.counts["rejects"] += 1
            continue
        key, at_ms = event
        stream_ms = max(expected.stream_time_ms or at_ms, at_ms)
        expected.stream_time_ms = stream_ms
        for interval in [i for i, last_ms in touched.items() if stream_ms - last_ms >= window_ms]:
            closed.setdefault(interval, set()).update(opened.pop(interval))
            del touched[interval]
        interval = at_ms // span_ms
        if key in closed.get(interval, ()) or any(key in keys for keys in opened.values()):
            expected.counts["duplicates"] += 1
            continue
        opened.setdefault(interval, set()).add(key)
        touched[interval] = stream_ms
        expected.events[offset] = key[1]
        expected.counts["accepted"] += 1
        expected.counts["late"] += stream_ms - at_ms >= window_ms
    return expected


def _event(message: bytes, now_ms: int) -> tuple[Key, int] | None:
    """Key and upload time, or None for a reject."""
    try:
        event = json.loads(message.decode())
        device, id, at_ms = event["device"], event["id"], event["at"]
    except (ValueError, KeyError, TypeError):
        return None
    if not (isinstance(device, str) and isinstance(id, str) and isinstance(at_ms, int)):
        return None
    if not FIRST_MS <= at_ms <= now_ms + FUTURE_SKEW_MS:
        return None
    return (device, id), at_ms
