"""Sample GitHub events, repeated: a load that is wide and nested, and real."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import datetime, timedelta
from operator import itemgetter
from pathlib import Path

import orjson

_ISO = "%Y-%m-%dT%H:%M:%SZ"


def github(path: Path, copies: int, seed: int, copy_span_s: int = 60) -> Iterator[bytes]:
    """Sample GitHub events, repeated: about 3 kB each, deeply nested, in order of `created_at`.

    `path` holds them, one JSON object per line. Each copy gets its own ids (`seed` sets the first)
    and times that go on where the previous copy ended, compressed to `copy_span_s` seconds.
    """
    events = [orjson.loads(line) for line in path.read_bytes().splitlines()]
    events.sort(key=itemgetter("created_at"))
    times = [datetime.strptime(event["created_at"], _ISO) for event in events]
    pull = copy_span_s / (1 + (times[-1] - times[0]).total_seconds())
    own = ("id", "created_at")
    rests = [orjson.dumps({k: e[k] for k in e if k not in own})[1:] for e in events]
    number = random.Random(seed).randrange(10**12, 10**13)
    for copy in range(copies):
        for time, rest in zip(times, rests, strict=True):
            seconds = copy * copy_span_s + int(pull * (time - times[0]).total_seconds())
            created = (times[0] + timedelta(seconds=seconds)).strftime(_ISO).encode()
            yield b'{"id":"%d","created_at":"%b",%b' % (number, created, rest)
            number += 1
