"""Messages that are rejects under one limit and events under another, and a replay of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import orjson
import pyarrow as pa

import forebay
from forebay.operators.decode import DecodeConfig, Decoder
from forebay.operators.sources.messages import Messages
from forebay.storage.formats.frame import Frame
from forebay.storage.formats.rejects import ALL, RejectFilter
from forebay.storage.formats.replay_request import ReplayRequest
from forebay.storage.partition.rules import Rules
from tests.partition import GRACE_MS, NAME, SCHEMA, SPAN_MS, START_MS, WINDOW_MS, Partition

SMALL, LARGE = 100, 10_000
SOURCE = "s0"
KEPT = replace(SCHEMA, raw=True)
CONFIG = Rules(KEPT, SPAN_MS, WINDOW_MS, GRACE_MS)


def decoder(bytes_max: int) -> Decoder:
    return Decoder(DecodeConfig(KEPT, 10**9, bytes_max))


def redecode(bytes_max: int) -> Callable[[pa.RecordBatch], list[Frame]]:
    return decoder(bytes_max).decode_again


def message(key: int, upload_ms: int, *, large: bool = False) -> bytes:
    document = {"id": f"k{key // 2}", "part": key % 2, "time": START_MS + upload_ms}
    return orjson.dumps({**document, **({"pad": "x" * SMALL} if large else {})})


BROKEN = b'{"id":"\xff\xfe'


def decoded(messages: Sequence[bytes], first: int, bytes_max: int) -> Frame:
    """The frame of these messages, at offsets `first` and on; broker time is the offset."""
    offsets = np.arange(first, first + len(messages), dtype=np.int64)
    item = Messages(SOURCE, list(messages), offsets, START_MS + offsets, first + len(messages))
    (frame,) = decoder(bytes_max).decode([item])
    return replace(frame, partition=NAME)


def replay(partition: Partition, bytes_max: int, wanted: RejectFilter = ALL) -> None:
    """Carry one request out to its end."""
    number = partition.blocks.state.replays + 1
    for offer in partition.blocks.replay(ReplayRequest(number, wanted, {}), redecode(bytes_max)):
        partition.offers += [offer] if offer else []


def listed(partition: Partition) -> list[tuple[int, str]]:
    """Offset and reason of all rejects a reader sees."""
    found = forebay.open(partition.root).rejects().sort("_offset").collect()
    return list(found.select("_offset", "reason").iter_rows())
