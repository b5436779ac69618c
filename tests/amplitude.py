"""Events as Amplitude exports them, taken in by a real partition."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from forebay.flows.schemas import PRESETS
from forebay.operators.decode import DecodeConfig, Decoder
from forebay.operators.sources.messages import Messages
from forebay.storage.formats.frame import Frame
from forebay.storage.formats.schema import Schema
from forebay.storage.partition.rules import Rules
from tests.partition import NAME, Partition

Event = dict[str, Any]
PRESET = PRESETS["amplitude"]
SCHEMA = Schema(PRESET.columns, PRESET.key, PRESET.upload_time, roles=PRESET.roles)
MINUTE_MS, DAY_MS = 60_000, 86_400_000
FORM = "%Y-%m-%d %H:%M:%S.%f"


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
