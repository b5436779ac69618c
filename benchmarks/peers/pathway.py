"""Pathway: a group-by on the dedup key that keeps one message of each group, to JSON lines.

It reads up to the end that the topic has at the start. It keeps every event in memory, for ever,
with no snapshot: persistence is off.
"""

from __future__ import annotations

from pathlib import Path

import pathway as pw

from benchmarks.peers.columns import COLUMNS, INTEGERS, KEY
from benchmarks.peers.source import EPOCH_S, Source


def ingest(source: Source, folder: Path) -> None:
    columns = {
        name: pw.column_definition(
            dtype=int | None if name in INTEGERS else str | None,
            default_value=None,
        )
        for name in COLUMNS
    }
    events = pw.io.kafka.read(
        {"bootstrap.servers": source.bootstrap, "group.id": folder.name,
         "auto.offset.reset": "earliest"},
        topic=source.topic,
        format="json",
        schema=pw.schema_builder(columns),
        json_field_paths={"insert_id": "/$insert_id"},
        mode="static",
        autocommit_duration_ms=int(1000 * EPOCH_S),
    )  # fmt: skip
    key = [events[name] for name in KEY]
    rest = {name: pw.reducers.any(events[name]) for name in COLUMNS if name not in KEY}
    unique = events.groupby(*key).reduce(*key, **rest)
    pw.io.jsonlines.write(unique, folder / "events.jsonl")
    pw.run(monitoring_level=pw.MonitoringLevel.NONE)


def count(folder: Path) -> int:
    """Lines that add, less lines that take back."""
    with (folder / "events.jsonl").open("rb") as lines:
        return sum(-1 if b'"diff":-1' in line else 1 for line in lines)
