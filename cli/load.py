"""A seeded load: events as an Amplitude export has them, and what an exact reader must count.

A load is made in slices, so its size never decides its memory. For each slice: arrivals, sorted,
each with a device and with an upload time a little or far behind; the messages (a head of fixed
width, filled as a byte matrix, and two texts from pools); copies of runs of a partition's recent
messages, kept to be redelivered later; broken lines. What always holds:

- The same spec gives the same bytes.
- A dedup key (`device_id`, `$insert_id`) is given out once. Its copies are the same byte for byte
  and come after it in the same partition. A broken line never becomes an event.
- No message is empty or holds a line break, so messages can be lines of a file.

The totals are what these rules count, partition by partition, in order: upload times are whole
milliseconds, truncated; stream time is the largest upload time of the good messages so far, the
present one and copies included; accepted are the first copies of a dedup key, duplicates the later
ones; late are accepted events that lie the dedup window or more behind stream time; rejects are
the broken lines. Bytes leave out line breaks.
"""

from __future__ import annotations

import bisect
import heapq
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

Ints = npt.NDArray[np.int64]
Text = npt.NDArray[np.uint8]

DEVICES_MAX = 100_000
BATCH_MIN, BATCH_MAX = 20, 500
LAG_MAX_MS, SESSION_MS = 2 * 3_600_000, 30 * 60_000
_ISO = "%Y-%m-%dT%H:%M:%SZ"
COUNTS = ("messages", "accepted", "duplicates", "rejects", "late")


@dataclass(frozen=True)
class LoadSpec:
    """What a load is to be. Raises ValueError that names every fault.

    Shares: `duplicates` and `broken` of all messages, `late` of `events` (the unique, good ones).
    `bytes`: mean size of a message; padded up to it, never cut below what the fields need.
    `redeliver_ms`: the longest wait until a batch is redelivered (at most a quarter of the span).
    `slice_events`: more is faster, fewer lets a paced sender send more often.
    """

    events: int
    partitions: int = 4
    seed: int = 0
    start_ms: int = 1_714_521_600_000
    span_ms: int = 3_600_000
    duplicates: float = 0.02
    late: float = 0.01
    broken: float = 0.002
    disorder_ms: int = 2_000
    window_ms: int = 600_000
    bytes: int = 440
    redeliver_ms: int = 180_000
    slice_events: int = 50_000

    def __post_init__(self) -> None:
        faults = [
            f"{name}: expected {least} to {most}, got {getattr(self, name)}"
            for name, (least, most) in _BOUNDS.items()
            if not least <= getattr(self, name) <= most
        ]
        if faults:
            raise ValueError("; ".join(faults))

    def due(self, share: float, done: int) -> int:
        """How many of all messages `share` is once `done` unique events are out."""
        return round(share * done / (1 - self.duplicates - self.broken))


# Session ids have 13 digits, and good upload times lie between the years 2000 and 2200.
_BOUNDS = {
    "events": (0, 10**15), "partitions": (1, 10**5), "seed": (0, 2**63), "bytes": (1, 10**6),
    "start_ms": (11 * 10**11, 4 * 10**12), "span_ms": (1, 3 * 10**12), "window_ms": (1, 10**10),
    "duplicates": (0, 0.6), "broken": (0, 0.4), "late": (0, 0.2), "disorder_ms": (0, 10**10),
    "redeliver_ms": (0, 10**12), "slice_events": (1, 10**6),
}  # fmt: skip

_PHRASES = ("red shoes", "café près de moi", "usb-c", "東京 ホテル", "träd", "gift \\ card", "🎿")
# In order of how often they occur: the k-th type's odds are 1 / k.
EVENT_TYPES: dict[str, Callable[[random.Random], dict[str, object]]] = {
    "page_view": lambda r: {"path": f"/p/{r.randrange(900)}", "ms": r.randrange(40, 4000)},
    "click": lambda r: {"x": r.randrange(1920), "y": r.randrange(1080)},
    "screen_view": lambda r: {"screen": r.choice(("home", "feed", "cart", "inbox"))},
    "search": lambda r: {"query": r.choice(_PHRASES), "hits": r.randrange(300)},
    "item_view": lambda r: {"sku": f"A{r.randrange(10**5)}", "price": r.randrange(99, 9999) / 100},
    "add_to_cart": lambda r: {"sku": f"A{r.randrange(10**5)}", "n": r.randrange(1, 5)},
    "session_start": lambda r: {},
    "share": lambda r: {"via": r.choice(("mail", "chat", "link"))},
    "sign_in": lambda r: {"tries": r.randrange(1, 4), "referrer": r.choice((None, "ads"))},
    "error": lambda r: {"code": r.choice((401, 404, 503)), "text": 'no "feed"\n\tretry'},
    "checkout": lambda r: {"items": [{"sku": f"A{n}", "n": n % 3} for n in range(r.randrange(4))]},
    "purchase": lambda r: {"order": r.randrange(10**8), "$revenue": r.randrange(500, 9999) / 100},
    "feedback": lambda r: {"stars": r.randrange(1, 6), "text": r.choice(_PHRASES)},
}
_PLACES = (
    ("US", "Austin", "en"), ("US", None, "en"), ("DE", "Köln", "de"), ("BR", "São Paulo", "pt"),
    ("JP", "東京", "ja"), ("IN", "Pune", "en"), ("FR", "Lyon", "fr"), ("SE", None, "sv"),
)  # fmt: skip
_ODDS = np.cumsum(1 / np.arange(1, len(EVENT_TYPES) + 1))
_PLATFORMS = (("Web", "chrome"), ("Web", "safari"), ("iOS", "ios"), ("Android", "android"))
_MEMO = b',"data":{"memo":"%b"}}'
_WIDTHS = {"$insert_id": 36, "device_id": 36, "event_time": 26, "server_upload_time": 26}
# A message's first fields with blank values, and where each value lies.
HEAD = "".join(f'"{name}":"{"":{width}}",' for name, width in _WIDTHS.items()).encode()
HEAD = b'{%b"session_id":%13b,' % (HEAD, b"")
VALUES = {
    name: slice(at := HEAD.index(f'"{name}"'.encode()) + len(f'"{name}":"'), at + width)
    for name, width in _WIDTHS.items()
}
SESSION = slice(len(HEAD) - 14, len(HEAD) - 1)


def _uuids(rng: np.random.Generator, count: int) -> Text:
    """Random (version 4) UUIDs as text, one a row of 36 bytes."""
    raw = np.frombuffer(rng.bytes(16 * count), np.uint8).reshape(count, 16).copy()
    raw[:, 6] = raw[:, 6] & 0x0F | 0x40
    raw[:, 8] = raw[:, 8] & 0x3F | 0x80
    digits = np.frombuffer(raw.tobytes().hex().encode(), np.uint8).reshape(count, 32)
    return np.insert(digits, (8, 12, 16, 20), ord("-"), axis=1)


def _texts(values: pa.Array, width: int) -> Text:
    """Values as text, one a row of `width` bytes, which each of them takes."""
    return np.frombuffer(values.cast(pa.string()).buffers()[2], np.uint8).reshape(-1, width)


def _clock(times_us: Ints) -> Text:
    """Times as "YYYY-MM-DD hh:mm:ss.ffffff", one a row of 26 bytes."""
    return _texts(pa.array(times_us, pa.timestamp("us")), 26)


class _Devices:
    """Whom events come from, the more active first; each device belongs to one partition."""

    def __init__(self, spec: LoadSpec, rng: np.random.Generator, r: random.Random) -> None:
        self.count = min(DEVICES_MAX, 64 + spec.events // 10)
        self.ids = _uuids(rng, self.count)
        self.partition = rng.integers(0, spec.partitions, self.count)
        self.session_phase_ms = rng.integers(0, SESSION_MS, self.count)
        profiles = [self._profile(r) for _ in range(1024)]
        self.texts = [
            b'"user_id":%b,"amplitude_id":%d,%b'
            % (b'"u%d"' % (n // 2) if n % 4 else b"null", number, profiles[n % 1024])
            for n, number in enumerate(rng.integers(10**7, 10**8, self.count).tolist())
        ]

    @staticmethod
    def _profile(r: random.Random) -> bytes:
        country, city, language = r.choice(_PLACES)
        platform, os_name = r.choice(_PLATFORMS)
        version = {"version_name": f"{r.randrange(1, 5)}.{r.randrange(20)}"}
        user = {"plan": r.choice(("plus", "pro"))} if r.random() < 0.3 else {}
        fields = {"platform": platform, "os_name": os_name, "country": country, "city": city}
        fields |= {"language": language} | (version if platform != "Web" else {})
        return orjson.dumps({**fields, "user_properties": user})[1:-1]

    def draw(self, rng: np.random.Generator, count: int) -> Ints:
        """Zipf-ish: odds fall as 1 / (rank + 20), so that no device takes much of a partition."""
        ranks = 20 * np.exp(rng.random(count) * math.log((self.count + 20) / 20)) - 20
        return np.minimum(ranks.astype(np.int64), self.count - 1)


def _change(message: bytes, name: str, value: bytes | None) -> bytes:
    """The message with another value for a text field of its head, or without the field."""
    at = VALUES[name]
    if value is None:
        return message[: at.start - len(f'"{name}":"')] + message[at.stop + len('",') :]
    return message[: at.start] + value + message[at.stop :]


_NO_TIMES = (
    b"0000-00-00 00:00:00.000000", b"1970-01-01 00:00:00.000000", b"yesterday",
    b"2024-02-31 25:61:61.000000", b"9999-12-31 23:59:59.999999",
)  # fmt: skip
_NOT_UTF8 = (b"\xff", b"\xc3(", b"\xed\xa0\x80")
_NO_OBJECTS = (b"[]", b"null", b"42", b'"event"', b"true", b"[%b]")
_GARBAGE = (b"GET /%x HTTP/1.1", b"<html>502 Bad Gateway %x</html>", b"\x00\x01\x02%x")
BROKEN_KINDS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "truncated": lambda m, r: m[: r.randrange(1, len(m))],
    "not an object": lambda m, r: r.choice(_NO_OBJECTS).replace(b"%b", m),
    "without key": lambda m, _: _change(m, "$insert_id", None),
    "without upload time": lambda m, r: _change(m, "server_upload_time", None),
    "absurd upload time": lambda m, r: _change(m, "server_upload_time", r.choice(_NO_TIMES)),
    "invalid utf-8": lambda m, r: _change(m, "device_id", r.choice(_NOT_UTF8)),
    "garbage": lambda m, r: r.choice(_GARBAGE) % r.getrandbits(64),
}


@dataclass
class _Lane:
    """One partition on its way: its last good messages, what goes in between, its counts."""

    recent: list[bytes] = field(default_factory=list)
    inserts: list[tuple[int, str, list[bytes]]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))
    stream_time_ms: int | None = None

    def count(self, uploads_ms: Ints, window_ms: int) -> None:
        """Add unique events, in order. (Neither copies nor broken lines move stream time.)"""
        if len(uploads_ms):
            stream_ms = np.maximum(np.maximum.accumulate(uploads_ms), self.stream_time_ms or 0)
            self.stream_time_ms = int(stream_ms[-1])
            self.counts["accepted"] += len(uploads_ms)
            self.counts["late"] += int(np.count_nonzero(stream_ms - uploads_ms >= window_ms))

    def merge(self, good: list[bytes]) -> list[bytes]:
        """The slice's messages with the inserts, each before the good message at its position."""
        merged, start = [], 0
        for at, kind, messages in sorted(self.inserts, key=itemgetter(0)):
            merged += good[start:at] + messages
            start = at
            self.counts[kind] += len(messages)
        merged += good[start:]
        self.inserts.clear()
        self.recent = (self.recent + good[-BATCH_MAX:])[-BATCH_MAX:]
        self.counts["messages"] += len(merged)
        return merged


class Load:
    """The messages of `spec`, each given once, and the totals so far. Not safe for threads."""

    def __init__(self, spec: LoadSpec) -> None:
        self.spec = spec
        self._rng = rng = np.random.default_rng(spec.seed)
        self._random = random.Random(spec.seed)
        self._devices = _Devices(spec, rng, self._random)
        self._variants = min(2048, 64 + spec.events // 100)
        self._deeds = [
            b',"event_id":%d,"event_type":"%b","event_properties":%b'
            % (self._random.randrange(1, 5000), name.encode(), orjson.dumps(draw(self._random)))
            for name, draw in EVENT_TYPES.items()
            for _ in range(self._variants)
        ]
        self._lanes = [_Lane() for _ in range(spec.partitions)]
        self._done = self._put_by = self._broken = self._bytes = 0
        # Due time, number, partition, messages; the number keeps equal times in order.
        self._waiting: list[tuple[int, int, int, list[bytes]]] = []
        self._batch = self._batch_size()
        self._memos, self._memo_mean = b"", 0
        sample = self._messages(self._devices.draw(rng, 4096), np.full(4096, 1000 * spec.start_ms))
        natural = sum(map(len, sample)) / len(sample)
        self._memo_mean = max(0, int(spec.bytes - natural - len(_MEMO)))
        self._memos = bytes(self._random.choices(b"etaoin shrdlu ", k=4 * self._memo_mean))

    def slices(self) -> Iterator[list[list[bytes]]]:
        """For each slice, each partition's messages in order."""
        while (first := self._done) < self.spec.events:
            self._done = min(first + self.spec.slice_events, self.spec.events)
            yield self._slice(first)

    @property
    def totals(self) -> dict[str, Any]:
        """The counts of the slices taken so far, as the module defines them; JSON-ready."""
        return {
            **{name: sum(lane.counts[name] for lane in self._lanes) for name in COUNTS},
            "bytes": self._bytes,
            "seed": self.spec.seed,
            "partitions": {
                f"part-{n:05d}": {**lane.counts, "stream_time_ms": lane.stream_time_ms}
                for n, lane in enumerate(self._lanes)
            },
        }

    def _slice(self, first: int) -> list[list[bytes]]:
        spec, count = self.spec, self._done - first
        since_us, until_us = (
            1000 * spec.start_ms + 1000 * spec.span_ms * n // spec.events
            for n in (first, self._done)
        )
        arrivals = np.sort(self._rng.integers(since_us, max(until_us, since_us + 1), count))
        devices = self._devices.draw(self._rng, count)
        partitions = self._devices.partition[devices]
        order = np.argsort(partitions, kind="stable")
        stops = np.cumsum(np.bincount(partitions, minlength=spec.partitions)).tolist()
        spans = [slice(start, stop) for start, stop in zip([0, *stops[:-1]], stops, strict=True)]
        arrivals, devices = arrivals[order], devices[order]
        uploads = self._upload_times(arrivals)
        good = self._messages(devices, uploads)
        self._put_copies_by(good, arrivals, stops)
        last = self._done == spec.events
        while self._waiting and (last or self._waiting[0][0] < until_us):
            due_us, _, n, run = heapq.heappop(self._waiting)
            at = int(np.searchsorted(arrivals[spans[n]], due_us, side="right"))
            self._lanes[n].inserts.append((at, "duplicates", run))
        kinds = list(BROKEN_KINDS.values())
        for number in range(self._broken, spec.due(spec.broken, self._done)):
            at = self._random.randrange(len(good))
            n = bisect.bisect_right(stops, at)
            line = kinds[number % len(kinds)](good[at], self._random)
            self._lanes[n].inserts.append((at - spans[n].start, "rejects", [line]))
            self._broken = number + 1
        for lane, span in zip(self._lanes, spans, strict=True):
            lane.count(uploads[span] // 1000, spec.window_ms)
        parts = [lane.merge(good[span]) for lane, span in zip(self._lanes, spans, strict=True)]
        self._bytes += sum(sum(map(len, part)) for part in parts)
        return parts

    def _upload_times(self, arrivals: Ints) -> Ints:
        """Arrivals less disorder; so many lie further behind that `late` are beyond the window."""
        spec, rng = self.spec, self._rng
        behind_us = rng.integers(0, 1000 * spec.disorder_ms + 1, len(arrivals))
        least_ms, most_ms = spec.window_ms / 10, max(LAG_MAX_MS, 2 * spec.window_ms)
        share = spec.late * math.log(most_ms / least_ms) / math.log(most_ms / spec.window_ms)
        held = np.flatnonzero(rng.random(len(arrivals)) < share)
        lags_us = 1000 * least_ms * (most_ms / least_ms) ** rng.random(len(held))
        behind_us[held] += lags_us.astype(np.int64)
        return arrivals - behind_us

    def _messages(self, devices: Ints, uploads: Ints) -> list[bytes]:
        rng, count = self._rng, len(devices)
        events_us = uploads - rng.exponential(5_000_000, count).astype(np.int64)
        phases_ms = self._devices.session_phase_ms[devices]
        heads = np.empty((count, len(HEAD)), np.uint8)
        heads[:] = np.frombuffer(HEAD, np.uint8)
        heads[:, VALUES["$insert_id"]] = _uuids(rng, count)
        heads[:, VALUES["device_id"]] = self._devices.ids[devices]
        heads[:, VALUES["event_time"]] = _clock(events_us)
        heads[:, VALUES["server_upload_time"]] = _clock(uploads)
        sessions_ms = (events_us // 1000 - phases_ms) // SESSION_MS * SESSION_MS + phases_ms
        heads[:, SESSION] = _texts(pa.array(sessions_ms), 13)
        ends, memos = [b"}"] * count, self._memos
        if memos:
            starts = rng.integers(0, len(memos) // 2, count).tolist()
            sizes = rng.integers(0, 2 * self._memo_mean + 1, count).tolist()
            ends = [_MEMO % memos[at : at + n] for at, n in zip(starts, sizes, strict=True)]
        device_texts = map(self._devices.texts.__getitem__, devices.tolist())
        types = np.searchsorted(_ODDS, _ODDS[-1] * rng.random(count))
        deeds = types * self._variants + rng.integers(0, self._variants, count)
        deed_texts = map(self._deeds.__getitem__, deeds.tolist())
        rows = heads.view(f"S{len(HEAD)}").ravel().tolist()
        return list(map(b"".join, zip(rows, device_texts, deed_texts, ends, strict=True)))

    def _batch_size(self) -> int:
        """How many messages the next batch has; the last one takes what is left."""
        left = self.spec.due(self.spec.duplicates, self.spec.events) - self._put_by
        few = left < 2 * BATCH_MIN
        return left if few else self._random.randint(BATCH_MIN, min(BATCH_MAX, left - BATCH_MIN))

    def _put_copies_by(self, good: list[bytes], arrivals: Ints, stops: list[int]) -> None:
        """Choose runs of one partition's messages, each to come again some time after its end."""
        due = self.spec.due(self.spec.duplicates, self._done)
        wait_us = min(1000 * self.spec.redeliver_ms, 250 * self.spec.span_ms)
        while self._batch and self._put_by + self._batch <= due:
            end = self._random.randrange(len(good)) + 1
            n = bisect.bisect_left(stops, end)
            start = stops[n - 1] if n else 0
            run = good[max(start, end - self._batch) : end]
            if len(run) < self._batch:
                run = self._lanes[n].recent[len(run) - self._batch :] + run
            due_us = int(arrivals[end - 1]) + int(wait_us * (0.05 + 0.95 * self._random.random()))
            heapq.heappush(self._waiting, (due_us, self._put_by, n, run))
            self._put_by += len(run)
            self._batch = self._batch_size()
