"""Columns of every type, in the dedup key and beside it, are the same in memory, in a block log and
in a chunk: a copy is a duplicate wherever its event is by then, and no conflict."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from forebay.storage.formats.columns import ARROW_TYPES, arrow_schema
from forebay.storage.formats.frame import REJECT_SCHEMA, Frame
from forebay.storage.formats.schema import Column, ColumnType, Schema
from tests.partition import CONFIG, GRACE_MS, NAME, START_MS, Partition

HOUR_MS = 3_600_000
VALUES: dict[ColumnType, list[object]] = {
    "string": ["", "\ud7ff" * 16, "\U0010ffff", None],
    "int": [-(2**63), 2**63 - 1, 0, None],
    "float": [0.0, -0.0, 1.5e308, None],
    "bool": [True, False, None],
    "time": [-62_135_596_800_000, 253_402_300_799_999, 0, None],
    "time_s": [-62_135_596_800, 253_402_300_799, 0, None],
    "time_us": [-62_135_596_800_000_000, 253_402_300_799_999_999, 0, None],
}


def taken(partition: Partition, type: ColumnType, first: int, upload_ms: int) -> None:
    """One event for each value, with this value in the key if it may be there, and in `value`."""
    schema = partition.config.schema
    values = pa.array(VALUES[type], ARROW_TYPES[type])
    rows = len(values)
    columns = {
        "_partition": pa.array(["s0"] * rows),
        "_offset": pa.array(range(first, first + rows)),
        "upload_time": pa.array([START_MS + upload_ms] * rows, ARROW_TYPES["time"]),
        "id": pa.array([f"{upload_ms}-{row}" for row in range(rows)]),
        "value": values,
        "key": values.fill_null(values[0]),
    }
    events = pa.RecordBatch.from_arrays(
        [columns[field.name] for field in arrow_schema(schema)], schema=arrow_schema(schema)
    )
    partition.take(
        Frame(
            partition=NAME,
            source="s0",
            first_offset=first,
            next_offset=first + rows,
            events=events,
            rejects=pa.RecordBatch.from_pylist([], schema=REJECT_SCHEMA),
        )
    )


@pytest.mark.parametrize("where", ["memory", "log", "chunk"])
@pytest.mark.parametrize("type", VALUES)
def test_a_copy_is_a_duplicate_and_no_conflict_wherever_its_event_is(
    tmp_path: Path, type: ColumnType, where: str
) -> None:
    keys = ("id",) if type in ("float", "bool") else ("id", "key")
    schema = Schema(
        (Column("id", ("id",)), Column("value", ("v",), type), Column("key", ("k",), type)),
        keys,
        Column("upload_time", ("time",), "time"),
        raw=False,
    )
    config = replace(CONFIG, schema=schema)
    cache_bytes = 1 << 20 if where == "memory" else 1
    partition = Partition(tmp_path / "data", config, cache_bytes, blocks_per_chunk=1).start()
    with closing(partition.files):
        rows = len(VALUES[type])
        taken(partition, type, 0, 0)
        taken(partition, type, rows, HOUR_MS)
        partition.blocks.snapshot()
        if where == "chunk":
            partition.merge()
            for after_ms in (0, 0, 0, GRACE_MS, GRACE_MS):
                partition.blocks.snapshot()
                partition.tidy(after_ms)
            logs = {path.name for path in partition.layout.hot(NAME).glob("*.arrows")}
            assert not any(log.startswith("20231114T2213") for log in logs)
        taken(partition, type, 2 * rows, 0)
        partition.blocks.publish()
        counters = partition.manifest().counters
        assert (counters.accepted, counters.duplicates, counters.conflicts) == (2 * rows, rows, 0)
