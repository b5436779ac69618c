"""Receipts: what an answer covers, and how far each partition has come."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import polars as pl

from forebay.query.view import PartitionView, SilentPartition, View
from forebay.storage.base.times import time_of


@dataclass(frozen=True)
class PartitionReceipt:
    """How far one partition had come.

    `node` is its data directory; `partition` its name there. `stream_time` is the greatest upload
    time so far, in UTC, None before the first event. `next_offsets` has, of each source that feeds
    it, the offset of the next message to read.
    """

    node: str
    partition: str
    stream_time: datetime | None
    next_offsets: dict[str, int]


@dataclass(frozen=True)
class Receipt:
    """What an answer covers. Rows are those of the view, before any filter.

    `batch_number` is how many handoffs were completed; before `covered_until` (UTC, None if there
    was none) the batch layer answers. `hot_rows` are in block logs, `cold_rows` in Parquet chunks;
    `partitions` says how far each had come. `silent_nodes` and `silent_partitions` are what an
    answer lacks that is `partial`.
    """

    batch_number: int
    covered_until: datetime | None
    hot_rows: int
    cold_rows: int
    partitions: tuple[PartitionReceipt, ...]
    silent_nodes: tuple[str, ...]
    silent_partitions: tuple[SilentPartition, ...]


def receipt_of(view: View) -> Receipt:
    until_ms = view.covered_until_ms
    return Receipt(
        batch_number=view.batch_number,
        covered_until=None if until_ms is None else time_of(until_ms),
        hot_rows=sum(partition.hot_rows for partition in view.partitions),
        cold_rows=sum(partition.cold_rows for partition in view.partitions),
        partitions=tuple(
            PartitionReceipt(
                str(node.root),
                partition.state.partition,
                _stream_time(partition),
                dict(partition.state.next_offsets),
            )
            for node in view.nodes
            for partition in node.partitions
        ),
        silent_nodes=tuple(str(node.root) for node in view.nodes if node.batch is None),
        silent_partitions=tuple(view.silent_partitions),
    )


def partitions_of(view: View) -> pl.DataFrame:
    """One row a partition: progress, counters, and what is hot and cold."""
    rows = [_row(str(n.root), partition) for n in view.nodes for partition in n.partitions]
    return pl.DataFrame(rows, schema=_PARTITION_SCHEMA)


def _stream_time(partition: PartitionView) -> datetime | None:
    ms = partition.state.stream_time_ms
    return None if ms is None else time_of(ms)


def _row(node: str, partition: PartitionView) -> dict[str, Any]:
    state = partition.state
    offsets = list(state.next_offsets.values())
    ends = [(end, state.next_offsets.get(name, 0)) for name, end in state.end_offsets.items()]
    counters = state.counters
    return {
        "node": node,
        "partition": state.partition,
        "stream_time": _stream_time(partition),
        "next_offset": offsets[0] if len(offsets) == 1 else None,
        "lag": sum(max(0, end - at) for end, at in ends) if ends else None,
        "accepted": counters.accepted,
        "duplicates": counters.duplicates,
        "conflicts": counters.conflicts,
        "rejects": counters.rejects,
        "late": counters.late,
        "after_seal": counters.after_seal,
        "nulled": counters.nulled,
        "skipped": counters.skipped,
        "hot_events": partition.hot_rows,
        "cold_events": partition.cold_rows,
        "handed_off": partition.handed_off_rows,
        "expired": partition.expired_rows,
        "hot_blocks": len(partition.hot),
        "chunks": len(partition.chunks),
    }


COUNTS = (
    "accepted", "duplicates", "conflicts", "rejects", "late", "after_seal", "nulled", "skipped",
    "hot_events", "cold_events", "handed_off", "expired", "hot_blocks", "chunks",
)  # fmt: skip
_PARTITION_SCHEMA: dict[str, pl.DataType] = {
    "node": pl.String(),
    "partition": pl.String(),
    "stream_time": pl.Datetime("ms", "UTC"),
    "next_offset": pl.Int64(),
    "lag": pl.Int64(),
    **dict.fromkeys(COUNTS, pl.Int64()),
}
