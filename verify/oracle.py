"""What must come out of one partition's messages, one message at a time, from the written rules.

0. An empty line is no message, but the next offset counts it.
1. A message is a reject unless it is a JSON object, to the letter and within the limit of bytes,
   with text `device` and `id`, neither empty, and a whole number `at`, the upload time, that lies
   between the years 2000 and 2200 and not in the future. Of two equal names the last counts.
2. Stream time is the largest upload time so far.
3. Blocks last touched the dedup window or longer ago, in stream time, are closed.
4. The event is a duplicate if its key is in an open block, or in a closed one of its interval.
5. Else it is accepted into the open block of its interval, and is late if it lies the window or
   more behind stream time.
6. A replay, after the last message, judges the rejects once more, in order, under another limit.

To the letter: UTF-8, no NaN, no control characters, no half of a surrogate pair. What nests deeper
than the standard reader follows is a reject here.

Shares no code with what it judges.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

FIRST_MS, FUTURE_SKEW_MS = 946_684_800_000, 60_000
BYTES_MAX = 1 << 20
EMPTY = (b"", b"\r")
Key = tuple[str, str]


@dataclass
class Expected:
    """One partition: the accepted events by offset with their ids, the rejects by offset as they
    came, and all counts. `messages` is the next offset."""

    events: dict[int, str] = field(default_factory=dict)
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
) -> Expected:
    """The verdict on a partition's lines, at offsets 0, 1, ...; `limits` are the most bytes of a
    message, at first and in each replay."""
    expected = Expected()
    touched: dict[int, int] = {}
    opened: dict[int, set[Key]] = {}
    closed: dict[int, set[Key]] = {}
    lines = dict(enumerate(messages))
    expected.messages = len(lines)
    expected.rejects = {offset: line for offset, line in lines.items() if line not in EMPTY}
    for bytes_max in limits:
        for offset, message in list(expected.rejects.items()):
            event = _event(message, bytes_max, now_ms)
            if event is None:
                continue
            del expected.rejects[offset]
            key, at_ms = event
            stream_ms = max(expected.stream_time_ms or at_ms, at_ms)
            expected.stream_time_ms = stream_ms
            for interval in [i for i, last in touched.items() if stream_ms - last >= window_ms]:
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
    expected.counts["rejects"] = len(expected.rejects)
    return expected


def _event(message: bytes, bytes_max: int, now_ms: int) -> tuple[Key, int] | None:
    """Key and upload time, or None for a reject."""
    if len(message) > bytes_max:
        return None
    try:
        event = json.loads(message.decode(), parse_constant=_refuse)
        json.dumps(event, ensure_ascii=False).encode()  # which half of a surrogate pair fails
        device, id, at_ms = event["device"], event["id"], event["at"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if not (isinstance(device, str) and isinstance(id, str) and isinstance(at_ms, int)):
        return None
    if not (device and id and FIRST_MS <= at_ms <= now_ms + FUTURE_SKEW_MS):
        return None
    return (device, id), at_ms


def _refuse(constant: str) -> None:
    raise ValueError(f"expected JSON, got {constant}")
