"""The chunks: what a merge costs, and whether ingest waits for one.

Six evicted blocks are merged into a chunk, compared with Polars' `write_parquet` of the same rows,
read from the same logs, neither sorted nor checksummed. Then batches of messages are decoded and
appended in this process, alone and while such merges run without a pause on another thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.events import ROWS, SCHEMA, START_MS, Events, decoded, messages
from benchmarks.measure import Figure, percentile, scratch
from benchmarks.partitions import SPAN_MS, Partitions
from benchmarks.report import Bound, Report
from forebay.storage.formats.columns import arrow_schema
from forebay.storage.formats.log import read_log
from forebay.storage.formats.merge import ZSTD_LEVEL, groups_of_blocks, write_sorted
from forebay.storage.formats.state import BlockState
from forebay.storage.partition.chunks import MERGE_BYTES

EVENTS = 1_000_000
BLOCKS = 6
PUBLISH_S, COMMIT_S = 0.15, 1.0


def run(events: int, runs: int, command: str) -> Report:
    """A merge against a plain write_parquet, and batch times of ingest while chunks are written."""
    report = Report("chunks", command, events, runs)
    with scratch("chunks") as folder, Partitions(folder / "data", ["p"]) as partitions:
        values = messages(events, span_ms=BLOCKS * SPAN_MS)
        blocks = _evicted(partitions, values)
        merges = [_timed(lambda: _merge(partitions, blocks, folder)) for _ in range(runs)]
        plain = [_timed(lambda: _plain(partitions, blocks, folder)) for _ in range(runs)]
        rows = pq.ParquetFile(folder / "chunk").metadata.num_rows
        alone_ms = _ingest(folder / "alone", values)
        beside_ms = _beside(partitions, blocks, folder, values)
    report.forebay = {
        **_entry(merges, events),
        "rows": rows,
        "exact": rows == events,
        "batch_alone": _times(alone_ms),
        "batch_while_merging": _times(beside_ms),
    }
    report.peers = {"write_parquet": _entry(plain, events)}
    mine, theirs = report.forebay, report.peers["write_parquet"]
    report.ratios = {
        "bytes_vs_plain": mine["bytes_per_event"] / theirs["bytes_per_event"],
        "cpu_vs_plain": mine["cpu_us_per_event"] / theirs["cpu_us_per_event"],
        "p99_vs_median": mine["batch_while_merging"]["p99_ms"]
        / mine["batch_while_merging"]["p50_ms"],
    }
    report.bounds = {"p99_vs_median": Bound("<=", 3)}
    _show(report)
    return report


def _evicted(partitions: Partitions, values: list[bytes]) -> list[BlockState]:
    """The blocks of these messages, whose logs are in the partition's folder."""
    for first in range(0, len(values), ROWS):
        partitions.append(decoded(values[first : first + ROWS], first))
    for frame in Events().frames(["last"], 1, START_MS + 2 * BLOCKS * SPAN_MS, 1):
        partitions.append(replace(frame, partition="p"))
    return [block for _, offer in partitions.offers for block in offer.blocks]


def _merge(partitions: Partitions, blocks: list[BlockState], folder: Path) -> int:
    """Bytes of the chunk."""
    hot = partitions.layout.hot("p")
    path = folder / "chunk"
    groups = groups_of_blocks(partitions.files, hot, blocks)
    write_sorted(partitions.files, path, groups, arrow_schema(SCHEMA), MERGE_BYTES)
    return path.stat().st_size


def _plain(partitions: Partitions, blocks: list[BlockState], folder: Path) -> int:
    hot = partitions.layout.hot("p")
    extents = [extent for block in blocks for extent in block.extents]
    batches = [batch for extent in extents for batch in read_log(partitions.files, hot, extent)]
    path = folder / "plain"
    pl.DataFrame(pa.Table.from_batches(batches)).write_parquet(
        path, compression="zstd", compression_level=ZSTD_LEVEL
    )
    return path.stat().st_size


def _timed(write: Callable[[], int]) -> tuple[float, float, int]:
    """Wall seconds, CPU seconds and bytes."""
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    size = write()
    return time.perf_counter() - wall_s, time.process_time() - cpu_s, size


def _entry(writes: list[tuple[float, float, int]], events: int) -> dict[str, Any]:
    wall = Figure.of(wall_s for wall_s, _, _ in writes)
    return {
        "events_per_s": events / wall.median,
        "spread": wall.spread,
        "cpu_us_per_event": 1e6 * Figure.of(cpu_s for _, cpu_s, _ in writes).median / events,
        "bytes_per_event": writes[0][2] / events,
    }


def _times(times_ms: list[float]) -> dict[str, float]:
    return {
        "p50_ms": percentile(times_ms, 0.5),
        "p99_ms": percentile(times_ms, 0.99),
        "max_ms": max(times_ms),
        "batches": len(times_ms),
    }


def _ingest(folder: Path, values: list[bytes]) -> list[float]:
    """The time of each batch in ms. Everything is published and committed as often as in a job."""
    times_ms = []
    publish_s = commit_s = time.monotonic()
    with Partitions(folder, ["p"]) as partitions:
        for first in range(0, len(values), ROWS):
            started_s = time.perf_counter()
            partitions.append(decoded(values[first : first + ROWS], first))
            times_ms.append(1000 * (time.perf_counter() - started_s))
            now_s = time.monotonic()
            if now_s - publish_s >= PUBLISH_S:
                partitions.publish()
                publish_s = now_s
            if now_s - commit_s >= COMMIT_S:
                partitions.snapshot()
                commit_s = now_s
    return times_ms


def _beside(
    partitions: Partitions, blocks: list[BlockState], folder: Path, values: list[bytes]
) -> list[float]:
    """The same while one merge follows another."""
    wanted = True

    def merge() -> None:
        while wanted:
            _merge(partitions, blocks, folder)

    with ThreadPoolExecutor(1) as merger:
        merging = merger.submit(merge)
        try:
            return _ingest(folder / "beside", values)
        finally:
            wanted = False
            merging.result()


def _show(report: Report) -> None:
    mine = report.forebay
    report.table(
        f"chunks: {report.events:,} events in {BLOCKS} blocks, {report.runs} runs",
        ("events/s", "spread", "CPU µs/event", "bytes/event"),
        {
            name: (
                f"{entry['events_per_s']:,.0f}",
                f"{entry['spread']:.0%}",
                f"{entry['cpu_us_per_event']:.2f}",
                f"{entry['bytes_per_event']:.1f}",
            )
            for name, entry in {"merge": mine, **report.peers}.items()
        },
    )
    report.show(
        f"chunks: batches of {ROWS:,} messages",
        ("p50 ms", "p99 ms", "max ms"),
        {
            name: [f"{mine[name][time]:.1f}" for time in ("p50_ms", "p99_ms", "max_ms")]
            for name in ("batch_alone", "batch_while_merging")
        },
    )
