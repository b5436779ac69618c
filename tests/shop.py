"""The events of a small shop, and a partition that has taken them in."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa

from forebay.storage.formats.columns import arrow_schema
from forebay.storage.formats.frame import REJECT_SCHEMA, Frame
from forebay.storage.formats.schema import Column, Schema
from forebay.storage.partition.rules import Rules
from tests.partition import NAME, Partition

HOUR_MS, DAY_MS = 3_600_000, 86_400_000
FIRST = datetime(2024, 5, 1, tzinfo=UTC)
TEXTS = ("id", "kind", "who", "device", "country", "platform")
SCHEMA = Schema(
    (
        *(Column(name, (name,)) for name in TEXTS),
        Column("at", ("at",), "time"),
        Column("visit", ("visit",), "int"),
        Column("price", ("price",), "float"),
    ),
    ("id",),
    Column("upload_time", ("at",), "time"),
    roles=(("user", "who"), ("event", "kind"), ("time", "at"), ("session", "visit")),
)


def rows() -> Iterator[dict[str, Any]]:
    """On each of three days users u0 … u5 search at the hour of their number, the even ones
    purchase ten minutes later, and each signs up on one of the days, at last."""
    for day in range(3):
        for user in range(6):
            common = {
                "who": f"u{user}", "device": f"d{user % 2}", "visit": day,
                "country": ("DE", "NL")[user % 2], "platform": ("iOS", "Web")[user // 3],
                "raw": orjson.dumps({"user_properties": {"plan": ("pro", "free")[user % 2]}}),
            }  # fmt: skip
            at_ms = day * DAY_MS + user * HOUR_MS
            yield {**common, "kind": "search", "at": at_ms}
            if user % 2 == 0:
                yield {**common, "kind": "purchase", "at": at_ms + 600_000, "price": float(user)}
            if user % 3 == day:
                yield {**common, "kind": "signup", "at": at_ms + 1_200_000}


def taken(root: Path) -> Partition:
    """A partition that has taken the rows in, and published them."""
    first_ms = round(FIRST.timestamp() * 1000)
    found = [
        {"_partition": "s0", "_offset": n, "id": f"{n}", **row, "at": first_ms + row["at"],
         "upload_time": first_ms + row["at"]}
        for n, row in enumerate(rows())
    ]  # fmt: skip
    events = pa.RecordBatch.from_pylist(found, arrow_schema(SCHEMA))
    rejects = pa.RecordBatch.from_pylist([], REJECT_SCHEMA)
    partition = Partition(root, Rules(SCHEMA, DAY_MS, DAY_MS, 1000)).start()
    partition.take(Frame(NAME, "s0", 0, len(found), events, rejects))
    partition.blocks.publish()
    return partition
