"""The feed: files that grow between runs, one per partition, and every message in them.

Messages are small: `{"device": ..., "id": ..., "at": upload time in ms}`. A new event has an id of
its own; what is redelivered is a copy, byte for byte, or a retry, which has the key and a new
upload time. The same seed gives the same messages.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

START_MS = 1_714_521_600_000
"""2024-05-01, so that no clock of the host makes an event one of the future."""
BROKEN = (b"{", b"[]", b"null", b"\xff\xfe", b'{"id":"x"}', b'{"device":"d","id":"x","at":"noon"}')


@dataclass(frozen=True)
class Traffic:
    """What `Feed.send` makes. Shares are of all messages.

    `step_ms`: upload time from one event to the next; `disorder_ms`: how far an event may lie
    behind. `copies` come from the `reach` last messages; `retries` are keys sent again with
    a new upload time; `late` lie up to `late_ms` behind.
    """

    step_ms: int = 20
    disorder_ms: int = 200
    copies: float = 0.05
    reach: int = 500
    retries: float = 0.01
    late: float = 0.01
    late_ms: int = 20_000
    broken: float = 0.01


class Feed:
    """The messages so far, by partition. `id_bytes`: the minimum length of an id; `fields`: what
    else an event has, by its id."""

    def __init__(self, folder: Path, rng: random.Random, partitions: int) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.messages: dict[str, list[bytes]] = {
            f"part-{number}.ndjson": [] for number in range(partitions)
        }
        self.now_ms = START_MS
        self.id_bytes = 1
        self.fields: Callable[[str], bytes] = lambda id: b""
        self._rng = rng
        self._ids = 0
        for name in self.messages:
            (folder / name).touch()

    @property
    def count(self) -> int:
        return sum(map(len, self.messages.values()))

    @property
    def names(self) -> list[str]:
        return list(self.messages)

    def append(self, name: str, messages: Iterable[bytes]) -> None:
        """Add messages to a partition. No job may be reading it."""
        added = list(messages)
        self.messages[name] += added
        with (self.folder / name).open("ab") as file:
            file.writelines(message + b"\n" for message in added)

    def send(self, count: int, traffic: Traffic, names: list[str] | None = None) -> None:
        """Add `count` messages, spread over all partitions or those of `names`."""
        added: dict[str, list[bytes]] = {name: [] for name in names or self.messages}
        for _ in range(count):
            name = self._rng.choice(list(added))
            recent = added[name][-traffic.reach :] or self.messages[name][-traffic.reach :]
            added[name].append(self._message(traffic, recent))
        for name, messages in added.items():
            self.append(name, messages)

    def event(self, at_ms: int, id: str | None = None) -> bytes:
        """A new event, or the key `id` again."""
        self._ids += id is None
        key = id or f"{self._ids:0{self.id_bytes}}"
        own = self.fields(key)
        return b'{"device":"d%d","id":"%b","at":%d%b}' % (len(key), key.encode(), at_ms, own)

    def _message(self, traffic: Traffic, recent: list[bytes]) -> bytes:
        rng, share = self._rng, self._rng.random()
        if share < traffic.broken:
            return rng.choice(BROKEN)
        share -= traffic.broken
        if share < traffic.copies and recent:
            return rng.choice(recent)
        share -= traffic.copies
        self.now_ms += traffic.step_ms
        at_ms = self.now_ms - rng.randrange(traffic.disorder_ms + 1)
        if share < traffic.late:
            return self.event(at_ms - rng.randrange(traffic.late_ms))
        share -= traffic.late
        again = share < traffic.retries and self._ids > 0
        return self.event(at_ms, f"{rng.randint(1, self._ids):0{self.id_bytes}}" if again else None)
