"""bytewax, one event at a time: the dataflow that its documentation suggests.

The built-in Kafka source, `json.loads` on each message, a set of ids for each device as the state,
and the built-in file sink. It keeps the messages as lines, without typed columns, and never forgets
an id. It has no recovery store, so a crash means beginning again: with one it took three times the
CPU time for a million events, as each epoch writes the whole set of each device that it touched.
"""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import bytewax.operators as op
from bytewax.connectors.files import DirSink
from bytewax.connectors.kafka import KafkaError, KafkaSource, KafkaSourceMessage
from bytewax.dataflow import Dataflow
from bytewax.testing import run_main

from benchmarks.peers.source import EPOCH_S, Source

FILES = 4
Message = KafkaSourceMessage[bytes | None, bytes | None] | KafkaError[bytes | None, bytes | None]


def ingest(source: Source, folder: Path) -> None:
    out = folder / "events"
    out.mkdir()
    # Ends at the end of the topic; the default would wait for more.
    kafka = KafkaSource(source.bootstrap.split(","), [source.topic], tail=False, batch_size=1000)
    flow = Dataflow("peer")
    messages = op.input("messages", flow, kafka)
    events = op.map("decode", messages, _decode)
    keyed = op.key_on("key", events, lambda event: str(event[0]["device_id"]))
    fresh = op.stateful_flat_map("dedup", keyed, _once)
    op.output("files", fresh, DirSink(out, FILES))
    run_main(flow, epoch_interval=timedelta(seconds=EPOCH_S))


def _decode(message: Message) -> tuple[dict[str, Any], str]:
    if not isinstance(message, KafkaSourceMessage) or message.value is None:
        raise ValueError(f"expected a message, got {message}")
    text = message.value.decode()
    return json.loads(text), text


def _once(seen: set[str] | None, event: tuple[dict[str, Any], str]) -> tuple[set[str], list[str]]:
    """The message, if its id is new for the device."""
    seen = set() if seen is None else seen
    document, text = event
    id = document["$insert_id"]
    if id in seen:
        return seen, []
    seen.add(id)
    return seen, [text]


def count(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in (folder / "events").iterdir())
