"""What a view says about itself: what an answer covers, how far each partition has come, and the
chunk files that count, which another engine may read directly."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl

from forebay.query.partition import Partition
from forebay.query.view import NodeView, SilentPartition, View
from forebay.storage.base.text import count_text
from forebay.storage.base.times import time_of, utc_text
from forebay.storage.formats.boundary import Placed


@dataclass(frozen=True)
class PartitionReceipt:
    """How far a partition had come.

    `node` is its data directory, `partition` its name there. `stream_time` is the greatest upload
    time so far, in UTC, None before the first event. `next_offsets` has, for each source that feeds
    it, the offset of the next message to read.
    """

    node: str
    partition: str
    stream_time: datetime | None
    next_offsets: dict[str, int]


@dataclass(frozen=True)
class NodeReceipt:
    """What one `node` (a data directory, or URL) contributes to the answer.

    `batch_number` and `covered_until` are its own. If the latter is before the receipt's, its
    events in between are hidden: the batch layer has them once the handoff has reached this node
    too. `missing` is why nothing of it is in the answer, None if something could be.
    """

    node: str
    batch_number: int
    covered_until: datetime | None
    missing: str | None = None


@dataclass(frozen=True)
class Receipt:
    """What an answer covers. Row counts are those of the view, before any filter.

    `batch_number` is the number of completed handoffs; before `covered_until` (UTC, None if there
    was none) the batch layer answers. `hot_rows` are in block logs, `cold_rows` in Parquet chunks;
    `partitions` says how far each had come, counting one that several nodes have once. `nodes` has
    each node that was asked. `silent_nodes` and `silent_partitions` are missing from a `partial`
    answer. Below `sealed_until` (UTC, None without a seal on every node) events are about to be
    handed over, or were.
    """

    batch_number: int
    covered_until: datetime | None
    hot_rows: int
    cold_rows: int
    partitions: tuple[PartitionReceipt, ...]
    silent_nodes: tuple[str, ...]
    silent_partitions: tuple[SilentPartition, ...]
    nodes: tuple[NodeReceipt, ...] = ()
    sealed_until: datetime | None = None


def receipt_of(view: View) -> Receipt:
    return Receipt(
        batch_number=view.batch_number,
        covered_until=view.covered_until,
        hot_rows=sum(partition.hot_rows for partition in view.partitions),
        cold_rows=sum(partition.cold_rows for partition in view.partitions),
        partitions=tuple(
            PartitionReceipt(
                node.name,
                partition.name,
                _stream_time(partition),
                dict(partition.state.next_offsets),
            )
            for node in view.nodes
            for partition in node.partitions
        ),
        silent_nodes=tuple(node.name for node in view.nodes if node.boundary is None),
        silent_partitions=tuple(view.silent_partitions),
        nodes=tuple(map(_node, view.nodes)),
        sealed_until=None if view.sealed_until_ms is None else time_of(view.sealed_until_ms),
    )


def _node(node: NodeView) -> NodeReceipt:
    if node.boundary is None:
        return NodeReceipt(node.name, 0, None, node.reason)
    until_ms = node.boundary.covered_until_ms
    until = None if until_ms is None else time_of(until_ms)
    return NodeReceipt(node.name, node.boundary.number, until)


def told_of(view: View) -> list[str]:
    """What a view covers, in a few lines of text."""
    receipt = receipt_of(view)
    rows = receipt.hot_rows + receipt.cold_rows
    hot = f"{receipt.hot_rows:,} hot, {receipt.cold_rows:,} cold"
    lines = [f"{rows:,} events ({hot}) in {count_text(len(view.partitions), 'partition')}"]
    parts: list[Placed] = []
    for partition in view.partitions:
        parts += [*partition.hot, *partition.chunks]
    if parts:
        ends = min(one.first_ms for one in parts), max(one.last_ms for one in parts)
        lines.append("uploaded from {} to {}".format(*map(utc_text, ends)))
    if (until_ms := view.covered_until_ms) is not None:
        lines.append(f"batch {receipt.batch_number}, covered until {utc_text(until_ms)}")
    silent = len(receipt.silent_nodes) + len(receipt.silent_partitions)
    return [*lines, *([f"without {silent} that can't be read"] if silent else [])]


def partitions_of(view: View) -> pl.DataFrame:
    """One row per partition: progress, counters, and what is hot and cold."""
    rows = [_row(n.name, partition) for n in view.nodes for partition in n.partitions]
    return pl.DataFrame(rows, schema=_PARTITION_SCHEMA)


def _stream_time(partition: Partition) -> datetime | None:
    ms = partition.state.stream_time_ms
    return None if ms is None else time_of(ms)


def _row(node: str, partition: Partition) -> dict[str, Any]:
    state = partition.state
    offsets = list(state.next_offsets.values())
    ends = [(end, state.next_offsets.get(name, 0)) for name, end in state.end_offsets.items()]
    return {
        "node": node,
        "partition": partition.name,
        "stream_time": _stream_time(partition),
        "next_offset": offsets[0] if len(offsets) == 1 else None,
        "lag": sum(max(0, end - at) for end, at in ends) if ends else None,
        **{name: getattr(state.counters, name) for name in COUNTERS},
        "hot_events": partition.hot_rows,
        "cold_events": partition.cold_rows,
        "handed_off": partition.handed_off_rows,
        "expired": partition.expired_rows,
        "hot_blocks": len(partition.hot),
        "chunks": len(partition.chunks),
    }


def files_of(
    partitions: Sequence[Partition], from_ms: int | None, before_ms: int | None
) -> pl.DataFrame:
    """One row per chunk of a view. If a chunk has rows on both sides of a bound, only those count
    whose upload time is at or after `from_time`, or before `before_time`; null if all count."""
    first, last = pl.col("first_upload_time"), pl.col("last_upload_time")
    start, end = (pl.lit(None if ms is None else time_of(ms), _TIME) for ms in (from_ms, before_ms))
    return (
        _files(partitions)
        .with_columns(
            from_time=pl.when(first < start).then(start),
            before_time=pl.when(last >= end).then(end),
        )
        .drop("lacking")
    )


def whole_files_of(partitions: Sequence[Partition], paths: Collection[Path]) -> pl.DataFrame:
    """One row for each chunk in these files, with the declared columns that it lacks."""
    wanted = [str(path.absolute()) for path in paths]
    return _files(partitions).filter(pl.col("path").is_in(wanted))


def _files(partitions: Sequence[Partition]) -> pl.DataFrame:
    rows = [
        (
            str(partition.layout.root), partition.name, str(file.path.absolute()),
            file.chunk.rows, file.bytes, time_of(file.chunk.first_ms), time_of(file.chunk.last_ms),
            file.lacking,
        )
        for partition in partitions
        for file in partition.chunk_files
    ]  # fmt: skip
    found = pl.DataFrame(rows, schema=_FILE_SCHEMA, orient="row")
    return found.sort("node", "partition", "first_upload_time", "path")


_TIME = pl.Datetime("ms", "UTC")
COUNTERS = (
    "accepted", "duplicates", "conflicts", "rejects", "rejects_expired", "late", "after_seal",
    "nulled", "skipped",
)  # fmt: skip
MESSAGES = ("accepted", "duplicates", "rejects", "rejects_expired")
"""Each message read is counted as one of these."""
COUNTS = (
    *COUNTERS, "hot_events", "cold_events", "handed_off", "expired", "hot_blocks", "chunks",
)  # fmt: skip
_PARTITION_SCHEMA: dict[str, pl.DataType] = {
    "node": pl.String(),
    "partition": pl.String(),
    "stream_time": _TIME,
    "next_offset": pl.Int64(),
    "lag": pl.Int64(),
    **dict.fromkeys(COUNTS, pl.Int64()),
}
_FILE_SCHEMA: dict[str, pl.DataType] = {
    **dict.fromkeys(("node", "partition", "path"), pl.String()),
    **dict.fromkeys(("rows", "bytes"), pl.Int64()),
    **dict.fromkeys(("first_upload_time", "last_upload_time"), _TIME),
    "lacking": pl.List(pl.String()),
}
