"""The checkpoint: what a commit writes, and how long it takes depending on how much is hot.

Bytes are those of a whole job, as the kernel counts them, without chunks: block logs and their hash
files, snapshots in the engine's store, manifests. Times are of one worker's partitions in this
process, which commit STEP_EVENTS new events at a time beside what is hot already.
"""

from __future__ import annotations

import gc
import time
from pathlib import Path

from benchmarks.events import START_MS, Events
from benchmarks.job import Job
from benchmarks.lines import lines
from benchmarks.measure import Figure, percentile, scratch
from benchmarks.partitions import Partitions
from benchmarks.report import Bound, Report

EVENTS = 1_000_000
HOT = (0.1, 1.0, 10.0)
"""How many events are hot, as shares of `events`."""
NAMES = ("p0", "p1", "p2", "p3")
SNAPSHOTS, STEP_EVENTS, STEP_ROWS = 100, 1_000, 250
HOT_SPAN_MS, STEP_MS = 590_000, 50


def run(events: int, runs: int, command: str) -> Report:
    """Bytes written for each byte of JSON, and the time of a snapshot by how much is hot."""
    report = Report("checkpoint", command, events, runs)
    with scratch("checkpoint") as folder:
        source = lines(folder / "events", events)
        jobs = []
        for number in range(runs):
            job = Job(source, folder / f"job-{number}")
            written = job.finish().written_bytes
            jobs.append(_written(job.data, written) | {"unique": job.unique()})
        hot: dict[int, list[float]] = {round(share * events): [] for share in HOT}
        records: dict[int, int] = {}
        for count, times_ms in hot.items():
            times, records[count] = _snapshots(folder / f"hot-{count}", count)
            times_ms += times
    shares = Figure.of(one["bytes"] / source.bytes for one in jobs)
    report.forebay = {
        "json_bytes": source.bytes,
        "jobs": jobs,
        "bytes_per_json_byte_spread": shares.spread,
        "unique_expected": source.unique,
        "exact": all(one["unique"] == source.unique for one in jobs),
        "snapshot": {
            str(count): {
                "p50_ms": percentile(times_ms, 0.5),
                "p99_ms": percentile(times_ms, 0.99),
                "record_bytes": records[count],
            }
            for count, times_ms in hot.items()
        },
    }
    most, least = max(hot), min(hot)
    report.ratios = {
        "bytes_per_json_byte": shares.median,
        "p99_most_vs_least_hot": percentile(hot[most], 0.99) / percentile(hot[least], 0.99),
        "p50_most_vs_least_hot": percentile(hot[most], 0.5) / percentile(hot[least], 0.5),
    }
    report.bounds = {
        "bytes_per_json_byte": Bound("<=", 0.6),
        "p99_most_vs_least_hot": Bound("<=", 2),
    }
    _show(report)
    return report


def _written(data: Path, written: int) -> dict[str, int]:
    """What all bytes were written to; `bytes` is everything except the chunks."""
    sizes = {
        name: sum(path.stat().st_size for path in data.glob(pattern))
        for name, pattern in (
            ("logs_bytes", "hot/*/*.arrows"),
            ("hashes_bytes", "hot/*/*.hashes"),
            ("rejects_bytes", "rejects/*/*.arrows"),
            ("drops_bytes", "drops/*/*.arrows"),
            ("chunks_bytes", "chunks/**/*.parquet"),
        )
    }
    rest = written - sum(sizes.values())
    return {**sizes, "snapshots_bytes": rest, "bytes": written - sizes["chunks_bytes"]}


def _snapshots(folder: Path, hot: int) -> tuple[list[float], int]:
    """Times of SNAPSHOTS commits in ms beside so many hot events; the bytes of the last record."""
    events, times_ms = Events(), []
    with Partitions(folder, NAMES) as partitions:
        for frame in events.frames(NAMES, hot, START_MS, HOT_SPAN_MS):
            partitions.append(frame)
        partitions.snapshot()
        gc.collect()
        for number in range(SNAPSHOTS):
            at_ms = START_MS + HOT_SPAN_MS + number * STEP_MS
            for frame in events.frames(NAMES, STEP_EVENTS, at_ms, STEP_MS, STEP_ROWS):
                partitions.append(frame)
            started_s = time.perf_counter()
            record_bytes = partitions.snapshot()
            times_ms.append(1000 * (time.perf_counter() - started_s))
    return times_ms, record_bytes


def _show(report: Report) -> None:
    jobs, size = report.forebay["jobs"], report.forebay["json_bytes"]
    parts = (
        "logs_bytes", "hashes_bytes", "snapshots_bytes", "rejects_bytes", "drops_bytes",
        "chunks_bytes",
    )  # fmt: skip
    report.table(
        f"checkpoint: bytes written for each byte of JSON, {report.events:,} events",
        [part.removesuffix("_bytes") for part in parts],
        {
            f"job {number + 1}": [f"{one[part] / size:.3f}" for part in parts]
            for number, one in enumerate(jobs)
        },
    )
    report.show(
        f"checkpoint: {SNAPSHOTS} snapshots, {STEP_EVENTS:,} new events each",
        ("p50 ms", "p99 ms", "record kB"),
        {
            f"{int(count):,} hot": (
                f"{entry['p50_ms']:.1f}",
                f"{entry['p99_ms']:.1f}",
                f"{entry['record_bytes'] / 1e3:.1f}",
            )
            for count, entry in report.forebay["snapshot"].items()
        },
    )
