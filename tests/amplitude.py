"""Events as Amplitude exports them, taken in by a real partition, and its API over them."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import forebay
from forebay.flows.schemas import PRESETS
from forebay.operators.decode import DecodeConfig, Decoder
from forebay.operators.sources.messages import Messages
from forebay.serve.amplitude.answers import Answers
from forebay.serve.amplitude.refusals import body_of
from forebay.serve.problems import Problem
from forebay.storage.base.errors import BadInput
from forebay.storage.base.times import ms_of
from forebay.storage.formats.frame import Frame
from forebay.storage.formats.schema import Schema
from forebay.storage.partition.rules import Rules
from tests.partition import NAME, Partition

Event = dict[str, Any]
PRESET = PRESETS["amplitude"]
SCHEMA = Schema(PRESET.columns, PRESET.key, PRESET.upload_time, roles=PRESET.roles)
MINUTE_MS, DAY_MS = 60_000, 86_400_000
FORM = "%Y-%m-%d %H:%M:%S.%f"
DAYS = {"start": "20260302", "end": "20260303"}
BUY = {"event_type": "buy"}
NOW = datetime(2026, 3, 4, 12, tzinfo=UTC)
"""When the endpoints are asked."""
Make = Callable[..., "Api"]


def event(user: str, kind: str, at: str | datetime, **fields: Any) -> Event:
    """An event of a user `u12`, whose Amplitude ID is 12, at a time such as "2026-03-02 09:00"."""
    moment = datetime.fromisoformat(at) if isinstance(at, str) else at
    return {
        "event_type": kind,
        "event_time": moment.strftime(FORM),
        "server_upload_time": moment.strftime(FORM),
        "user_id": user,
        "amplitude_id": int(user[1:]),
        "device_id": f"d{user[1:]}",
        **fields,
    }


def messages_of(events: Sequence[Event]) -> list[bytes]:
    return [json.dumps({"$insert_id": f"{n}", **one}).encode() for n, one in enumerate(events)]


def frame_of(messages: Sequence[bytes], schema: Schema = SCHEMA) -> Frame:
    decoder = Decoder(DecodeConfig(schema, MINUTE_MS, 1 << 20))
    count = len(messages)
    times_ms = np.full(count, 1_900_000_000_000, dtype=np.int64)
    item = Messages(NAME, list(messages), np.arange(count), times_ms, count)
    frame = decoder.decode([item])[0]
    assert frame.rejects.num_rows == 0, frame.rejects.to_pylist()
    return frame


def taken(
    root: Path, messages: Sequence[bytes], schema: Schema = SCHEMA, span_ms: int = DAY_MS
) -> Partition:
    """A partition that has taken these messages in, and published them."""
    partition = Partition(root, Rules(schema, span_ms, span_ms, MINUTE_MS)).start()
    if messages:
        partition.take(frame_of(messages, schema))
    partition.blocks.publish()
    return partition


def random_events(seed: int, count: int, start: datetime, days: int) -> list[Event]:
    """So many events of ten users."""
    rng = random.Random(seed)
    found = []
    for _ in range(count):
        user = rng.randrange(10)
        moment = start + timedelta(seconds=rng.randrange(days * 86_400))
        found.append(
            event(
                f"u{user}",
                rng.choice(["search", "view", "buy"]),
                moment,
                country=rng.choice(["NL", "DE", None]),
                platform=rng.choice(["iOS", "Web"]),
                version_name=rng.choice(["1.0", "1.1", "2.0"]),
                session_id=rng.choice([-1, moment.toordinal(), user]),
                event_properties={"price": rng.choice([1, 2.5, "9", None]), "cart": "a"},
                user_properties={"plan": rng.choice(["pro", "free"])},
            )
        )
    return found


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


class Api:
    """The endpoints over some events; `ask` gives what is answered, as JSON."""

    def __init__(self, root: Path, zone: str = "UTC") -> None:
        self.store = forebay.open(root)
        self.answers = Answers(self.store, zone, lambda: ms_of(NOW))

    def written(self, name: str, **given: object) -> bytes:
        out = io.BytesIO()
        texts = {
            key: [text if isinstance(text, str) else json.dumps(text) for text in several(value)]
            for key, value in given.items()
        }
        self.answers.write(f"amplitude {name}", texts, out)
        return out.getvalue()

    def ask(self, name: str, **given: object) -> Any:
        return json.loads(self.written(name, **given))

    def refused(self, name: str, **given: object) -> dict[str, Any]:
        with pytest.raises((Problem, BadInput)) as caught:
            self.written(name, **given)
        told = caught.value
        problem = told if isinstance(told, Problem) else Problem(422, str(told))
        error: dict[str, Any] = json.loads(body_of(problem))["error"]
        return error


def several(value: object) -> list[object]:
    """A tuple is a repeated parameter."""
    return list(value) if isinstance(value, tuple) else [value]


@contextmanager
def apis(folders: pytest.TempPathFactory) -> Iterator[Make]:
    """Makes endpoints over events, which have a folder of their own; closes all at the end."""
    partitions: list[Partition] = []

    def make(events: list[Event], zone: str = "UTC") -> Api:
        root = folders.mktemp("amplitude") / "data"
        partitions.append(taken(root, messages_of(events)))
        return Api(root, zone)

    try:
        yield make
    finally:
        for partition in partitions:
            partition.crash()


def purchases() -> list[Event]:
    """On the first day u1, u2 and u3 of NL buy 2, 2 and 1 times, and u4 of nowhere twice; on the
    second u1 twice, and u5 of NL three times."""
    counts = {(2, 1): 2, (2, 2): 2, (2, 3): 1, (2, 4): 2, (3, 1): 2, (3, 5): 3}
    return [
        event(
            f"u{user}", "buy", f"2026-03-0{day} 09:0{n}",
            country=None if user == 4 else "NL", session_id=day,
            event_properties={"price": user, "kind": "a.b" if user < 3 else "c"},
            user_properties={"plan": "pro" if user == 1 else "free"},
        )
        for (day, user), count in counts.items()
        for n in range(count)
    ]  # fmt: skip
