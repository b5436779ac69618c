"""Quix Streams: a filter with the ids seen as state (RocksDB and its changelog topic), to Parquet.

Messages are keyed by device, so the state is by device. It handles one message at a time, in
Python; a checkpoint a second. It never forgets an id.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from quixstreams import Application, State
from quixstreams.sinks.community.file.formats import ParquetFormat
from quixstreams.sinks.community.file.local import LocalFileSink

from benchmarks.peers.columns import COLUMNS, json_name
from benchmarks.peers.source import EPOCH_S, Source


def ingest(source: Source, folder: Path) -> None:
    os.chdir(folder)  # the sink takes no path with a hyphen
    app = Application(
        broker_address=source.bootstrap,
        consumer_group=f"{folder.name}-{os.getpid()}",  # of an earlier run has read all
        auto_offset_reset="earliest",
        state_dir="state",
        commit_interval=EPOCH_S,
    )
    left = source.messages

    def is_new(event: dict[str, Any], state: State) -> bool:
        nonlocal left
        left -= 1
        if not left:
            app.stop()
        id = event["$insert_id"]
        if state.exists(id):
            return False
        state.set(id, True)
        return True

    events = app.dataframe(app.topic(source.topic, value_deserializer="json"))
    fresh = events.filter(is_new, stateful=True).apply(_columns)
    fresh.sink(LocalFileSink(directory="events", format=ParquetFormat()))
    app.run()


def _columns(event: dict[str, Any]) -> dict[str, Any]:
    return {name: event.get(json_name(name)) for name in COLUMNS}


def count(folder: Path) -> int:
    import pyarrow.parquet as pq

    paths = (folder / "events").rglob("*.parquet")
    return sum(pq.ParquetFile(path).metadata.num_rows for path in paths)
