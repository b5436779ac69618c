"""A seeded load: events in Amplitude's export format, and what an exact reader must count.

A load is made in slices, so memory does not depend on its size. Each slice has arrivals, sorted,
each with a device and an upload time a little or far behind; the messages (joined from columns, two
of which are texts from pools); copies of runs of a partition's recent messages, kept to be
redelivered later; and broken lines. What always holds:

- The same spec gives the same bytes.
- A dedup key (`device_id`, `$insert_id`) is used for one event only. Its copies are the same byte
  for byte and follow it in the same partition. A broken line never becomes an event.
- No message is empty or contains a line break, so messages can be lines of a file.

The totals count by these rules, partition by partition, in order: upload times are whole
milliseconds, truncated; stream time is the largest upload time of the good messages so far,
including the present one and copies; the first copy of a dedup key is accepted, later ones are
duplicates; accepted events that lie the dedup window or more behind stream time are late; rejects
are the broken lines. Bytes do not include line breaks.
"""

import bisect
import heapq
import math
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import itemgetter
from typing import Annotated, Any, get_type_hints

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc

Ints = npt.NDArray[np.int64]
Insert = tuple[int, str, list[bytes]]
"""The good message before which they go, what they count as, and the messages."""

DEVICES_MAX = 100_000
BATCH_MIN, BATCH_MAX = 20, 500
LAG_MAX_MS, SESSION_MS = 2 * 3_600_000, 30 * 60_000
COUNTS = ("messages", "accepted", "duplicates", "rejects", "late")


@dataclass(frozen=True)
class LoadSpec:
    """The specification of a load, with bounds for each value (session ids have 13 digits, and good
    upload times lie between the years 2000 and 2200). Raises ValueError that names every fault.

    Shares: `duplicates` and `broken` of all messages, `late` of `events` (the unique, good ones).
    `bytes`: mean size of a message; padded up to it, but fields are never cut. `redeliver_ms`: the
    longest wait until a batch is redelivered (at most a quarter of the span). `slice_events`: more
    is faster, fewer lets a rate-limited sender send more often.
    """

    events: Annotated[int, 0, 10**15]
    partitions: Annotated[int, 1, 10**5] = 4
    seed: Annotated[int, 0, 2**63] = 0
    start_ms: Annotated[int, 11 * 10**11, 4 * 10**12] = 1_714_521_600_000
    span_ms: Annotated[int, 1, 3 * 10**12] = 3_600_000
    duplicates: Annotated[float, 0, 0.6] = 0.02
    late: Annotated[float, 0, 0.2] = 0.01
    broken: Annotated[float, 0, 0.4] = 0.002
    disorder_ms: Annotated[int, 0, 10**10] = 2_000
    window_ms: Annotated[int, 1, 10**10] = 600_000
    bytes: Annotated[int, 1, 10**6] = 440
    redeliver_ms: Annotated[int, 0, 10**12] = 180_000
    slice_events: Annotated[int, 1, 10**6] = 50_000

    def __post_init__(self) -> None:
        faults = []
        for name, hint in get_type_hints(LoadSpec, include_extras=True).items():
            (least, most), value = hint.__metadata__, getattr(self, name)
            if not least <= value <= most:
                faults.append(f"{name}: expected {least} to {most}, got {value}")
        if faults:
            raise ValueError("; ".join(faults))

    def due(self, share: float, done: int) -> int:
        """How many messages make up `share` once `done` unique events are out."""
        return round(share * done / (1 - self.duplicates - self.broken))


_PHRASES = ("red shoes", "café près de moi", "usb-c", "東京 ホテル", "träd", "gift \\ card", "🎿")
# In order of frequency: the odds of the k-th type are 1 / k.
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


def _uuids(rng: np.random.Generator, count: int) -> pa.Array:
    """Random (version 4) UUIDs as text."""
    raw = np.frombuffer(rng.bytes(16 * count), np.uint8).reshape(count, 16).copy()
    raw[:, 6] = raw[:, 6] & 0x0F | 0x40
    raw[:, 8] = raw[:, 8] & 0x3F | 0x80
    digits = np.frombuffer(raw.tobytes().hex().encode(), np.uint8).reshape(count, 32)
    return pa.array(np.insert(digits, (8, 12, 16, 20), ord("-"), axis=1).view("S36").ravel())


def _clock(times_us: Ints) -> pa.Array:
    """Times as "YYYY-MM-DD hh:mm:ss.ffffff"."""
    return pa.array(times_us, pa.timestamp("us")).cast(pa.string()).cast(pa.binary())


class _Devices:
    """The devices that send events, the more active first; each belongs to one partition."""

    def __init__(self, spec: LoadSpec, rng: np.random.Generator, r: random.Random) -> None:
        self.count = min(DEVICES_MAX, 64 + spec.events // 10)
        self.ids = _uuids(rng, self.count)
        self.partition = rng.integers(0, spec.partitions, self.count)
        self.session_phase_ms = rng.integers(0, SESSION_MS, self.count)
        profiles = [self._profile(r) for _ in range(1024)]
        texts = [
            b'"user_id":%b,"amplitude_id":%d,%b'
            % (b'"u%d"' % (n // 2) if n % 4 else b"null", number, profiles[n % 1024])
            for n, number in enumerate(rng.integers(10**7, 10**8, self.count).tolist())
        ]
        self.texts = pa.array(texts)

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
        """Roughly Zipf: odds fall as 1 / (rank + 20), so that no device dominates a partition."""
        ranks = 20 * np.exp(rng.random(count) * math.log((self.count + 20) / 20)) - 20
        return np.minimum(ranks.astype(np.int64), self.count - 1)


def _change(message: bytes, name: bytes, value: bytes | None) -> bytes:
    """The message with another value for one of its first texts, or without that field."""
    field = b'"%b":"' % name
    instead = b"" if value is None else b'%b%b",' % (field, value)
    return re.sub(re.escape(field) + b'[^"]*",', lambda _: instead, message, count=1)


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
    "without key": lambda m, _: _change(m, b"$insert_id", None),
    "without upload time": lambda m, r: _change(m, b"server_upload_time", None),
    "absurd upload time": lambda m, r: _change(m, b"server_upload_time", r.choice(_NO_TIMES)),
    "invalid utf-8": lambda m, r: _change(m, b"device_id", r.choice(_NOT_UTF8)),
    "garbage": lambda m, r: r.choice(_GARBAGE) % r.getrandbits(64),
}


class Load:
    """The messages of `spec`, each produced once, and the totals so far. Not thread-safe."""

    def __init__(self, spec: LoadSpec) -> None:
        self.spec = spec
        self._rng = rng = np.random.default_rng(spec.seed)
        self._random = random.Random(spec.seed)
        self._devices = _Devices(spec, rng, self._random)
        self._variants = min(2048, 64 + spec.events // 100)
        deeds = [
            b',"event_id":%d,"event_type":"%b","event_properties":%b'
            % (self._random.randrange(1, 5000), name.encode(), orjson.dumps(draw(self._random)))
            for name, draw in EVENT_TYPES.items()
            for _ in range(self._variants)
        ]
        self._deeds = pa.array(deeds)
        # For each partition, its counts and its last good messages.
        fresh: dict[str, Any] = {**dict.fromkeys(COUNTS, 0), "stream_time_ms": None}
        self._counts = [fresh.copy() for _ in range(spec.partitions)]
        self._recent: list[list[bytes]] = [[] for _ in range(spec.partitions)]
        self._done = self._put_by = self._broken = self._bytes = 0
        # Due time, number, partition, messages; the number orders equal times.
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
        """The counts of the slices produced so far, as the module defines them; JSON-ready."""
        return {
            **{name: sum(counts[name] for counts in self._counts) for name in COUNTS},
            "bytes": self._bytes,
            "seed": self.spec.seed,
            "partitions": {f"part-{n:05d}": {**counts} for n, counts in enumerate(self._counts)},
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
        inserts: list[list[Insert]] = [[] for _ in spans]
        last = self._done == spec.events
        while self._waiting and (last or self._waiting[0][0] < until_us):
            due_us, _, n, run = heapq.heappop(self._waiting)
            at = int(np.searchsorted(arrivals[spans[n]], due_us, side="right"))
            inserts[n].append((at, "duplicates", run))
        kinds = list(BROKEN_KINDS.values())
        for number in range(self._broken, spec.due(spec.broken, self._done)):
            at = self._random.randrange(len(good))
            n = bisect.bisect_right(stops, at)
            line = kinds[number % len(kinds)](good[at], self._random)
            inserts[n].append((at - spans[n].start, "rejects", [line]))
            self._broken = number + 1
        return [
            self._merged(n, good[span], uploads[span] // 1000, inserts[n])
            for n, span in enumerate(spans)
        ]

    def _merged(
        self, n: int, good: list[bytes], uploads_ms: Ints, inserts: list[Insert]
    ) -> list[bytes]:
        """A partition's part of a slice, with each insert before the good message at its position;
        counted. (Neither copies nor broken lines move stream time.)"""
        counts = self._counts[n]
        if good:
            stream_ms = np.maximum(np.maximum.accumulate(uploads_ms), counts["stream_time_ms"] or 0)
            counts["stream_time_ms"] = int(stream_ms[-1])
            counts["accepted"] += len(good)
            counts["late"] += int(np.count_nonzero(stream_ms - uploads_ms >= self.spec.window_ms))
        merged, start = [], 0
        for at, kind, messages in sorted(inserts, key=itemgetter(0)):
            merged += good[start:at] + messages
            start = at
            counts[kind] += len(messages)
        merged += good[start:]
        counts["messages"] += len(merged)
        self._recent[n] = (self._recent[n] + good[-BATCH_MAX:])[-BATCH_MAX:]
        self._bytes += sum(map(len, merged))
        return merged

    def _upload_times(self, arrivals: Ints) -> Ints:
        """Arrivals minus disorder; some lie further behind, so that a share of `late` is late."""
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
        sessions_ms = (events_us // 1000 - phases_ms) // SESSION_MS * SESSION_MS + phases_ms
        ids = _uuids(rng, count)
        ends, memos = [b"}"] * count, self._memos
        if memos:
            starts = rng.integers(0, len(memos) // 2, count).tolist()
            sizes = rng.integers(0, 2 * self._memo_mean + 1, count).tolist()
            ends = [_MEMO % memos[at : at + n] for at, n in zip(starts, sizes, strict=True)]
        types = np.searchsorted(_ODDS, _ODDS[-1] * rng.random(count))
        deeds = types * self._variants + rng.integers(0, self._variants, count)
        columns = (
            b'{"$insert_id":"', ids,
            b'","device_id":"', self._devices.ids.take(pa.array(devices)),
            b'","event_time":"', _clock(events_us),
            b'","server_upload_time":"', _clock(uploads),
            b'","session_id":', pa.array(sessions_ms).cast(pa.string()).cast(pa.binary()), b",",
            self._devices.texts.take(pa.array(devices)), self._deeds.take(pa.array(deeds)),
            pa.array(ends, pa.binary()), b"",
        )  # fmt: skip
        messages: list[bytes] = pc.binary_join_element_wise(*columns).to_pylist()
        return messages

    def _batch_size(self) -> int:
        """The size of the next batch; the last one takes what is left."""
        left = self.spec.due(self.spec.duplicates, self.spec.events) - self._put_by
        few = left < 2 * BATCH_MIN
        return left if few else self._random.randint(BATCH_MIN, min(BATCH_MAX, left - BATCH_MIN))

    def _put_copies_by(self, good: list[bytes], arrivals: Ints, stops: list[int]) -> None:
        """Choose runs of one partition's messages to be redelivered some time after their end."""
        due = self.spec.due(self.spec.duplicates, self._done)
        wait_us = min(1000 * self.spec.redeliver_ms, 250 * self.spec.span_ms)
        while self._batch and self._put_by + self._batch <= due:
            end = self._random.randrange(len(good)) + 1
            n = bisect.bisect_left(stops, end)
            start = stops[n - 1] if n else 0
            run = good[max(start, end - self._batch) : end]
            if len(run) < self._batch:
                run = self._recent[n][len(run) - self._batch :] + run
            due_us = int(arrivals[end - 1]) + int(wait_us * (0.05 + 0.95 * self._random.random()))
            heapq.heappush(self._waiting, (due_us, self._put_by, n, run))
            self._put_by += len(run)
            self._batch = self._batch_size()
