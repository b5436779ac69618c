"""Metrics of a job, from its data directory: read from what is published, at each scrape.

Names and units are Prometheus': base units (seconds, bytes), `_total` for what only rises. After a
crash readers may see less than before for a moment, until the source has been reread; what only
rises stays where it was meanwhile, or it would be taken for a counter that was reset.

The ends of a topic's partitions are asked of the broker at each scrape, not of the workers: a
partition that is no longer read has a growing lag, while one to which nothing arrives has none. How
long a partition has stood still, and how long its next message has been there, is as seen by
scrapes: it is what is known for sure, and at most one scrape too short.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from typing_extensions import override

from forebay.flows.settings import Settings
from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import ForebayError
from forebay.storage.base.layout import Layout
from forebay.storage.formats.boundary import Boundary, read_boundary
from forebay.storage.formats.catalog import Catalog, read_catalog
from forebay.storage.formats.state import Counters, PartitionState, read_manifest
from forebay.storage.partition.expiry import waiting

Ends = Mapping[str, int]
ASK_S = 2.0
"""How long a scrape waits for a broker."""
ENDS_MAX = 1000
"""Ends of a source partition that are remembered, each with when it was seen."""

_COUNTERS = {
    "accepted": ("forebay_events_accepted", "Events kept."),
    "duplicates": ("forebay_events_duplicate", "Events dropped, for a copy is kept."),
    "conflicts": ("forebay_events_conflicting", "Duplicates whose columns differ from the copy's."),
    "late": ("forebay_events_late", "Events accepted that were older than the dedup window."),
    "after_seal": ("forebay_events_after_seal", "Events accepted for a time that was sealed."),
    "nulled": ("forebay_values_nulled", "Values of a wrong type in optional columns."),
    "skipped": ("forebay_offsets_skipped", "Offsets that the broker no longer had."),
    "rejects_expired": ("forebay_rejects_expired", "Rejects that were deleted."),
}
_GAUGES = {
    "forebay_rejects": "Rejects there are now; a replay or a deletion takes them away.",
    "forebay_next_offset": "The next message to read of a source partition.",
    "forebay_lag_messages": "Messages of the source that are not visible to readers yet.",
    "forebay_lag_seconds": "For how long the oldest of them has been there; 0 if there is none.",
    "forebay_stalled_seconds": "For how long no message was taken though some wait; 0 if idle.",
    "forebay_published_age_seconds": "Since something new of the partition became visible.",
    "forebay_stream_time_behind_seconds": "The wall clock minus the greatest upload time.",
    "forebay_hot_blocks": "Blocks in logs that no chunk covers.",
    "forebay_hot_events": "Events in them.",
    "forebay_hot_bytes": "Bytes of them.",
    "forebay_cold_chunks": "Parquet files that count.",
    "forebay_cold_events": "Events in them.",
    "forebay_cold_bytes": "Bytes of them.",
    "forebay_waiting_bytes": "Bytes that the batch layer has yet to take.",
    "forebay_waiting_age_seconds": "Their age, in stream time.",
}


@dataclass
class _Seen:
    """What earlier scrapes saw of a partition."""

    counters: dict[str, float] = field(default_factory=dict)
    behind_since_s: float | None = None
    ends: dict[str, deque[tuple[float, int]]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Partition:
    state: PartitionState
    catalog: Catalog
    published_s: float
    """By the wall clock."""


class Published(Collector):
    """The metrics of one data directory. `ends` asks the source where the partitions of these names
    end, and leaves out those that it does not know; None if there is no one to ask. Thread-safe."""

    def __init__(
        self,
        layout: Layout,
        ends: Callable[[Iterable[str]], Ends] | None,
        *,
        steady: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._layout, self._disk = layout, Disk()
        self._ends, self._steady, self._wall = ends, steady, wall
        self._seen: dict[str, _Seen] = {}
        self._lock = threading.Lock()
        self.starts = 0
        """Of the workers, by this supervisor."""
        self._unreadable = 0
        # Before a worker publishes less than a killed one did.
        for name, partition in self._partitions().items():
            self._raised(name, partition.state.counters)

    @override
    def collect(self) -> Iterable[Metric]:
        with self._lock:
            return self._collected()

    def _collected(self) -> list[Metric]:
        found = self._partitions()
        gauges = {
            name: GaugeMetricFamily(name, help, labels=_labels(name))
            for name, help in _GAUGES.items()
        }
        counters = {
            name: CounterMetricFamily(metric, help, labels=["partition"])
            for name, (metric, help) in _COUNTERS.items()
        }
        ends: Ends = {}
        sources = sorted({source for one in found.values() for source in one.state.next_offsets})
        if self._ends and sources:
            ends = self._ends(sources)
        boundary = self._boundary()
        for name, one in found.items():
            for counter, value in self._raised(name, one.state.counters).items():
                counters[counter].add_metric([name], value)
            rejects: Counter[str] = Counter()
            for reason, count in one.state.counters.rejected.items():
                rejects[reason.partition(":")[0]] += count
            for reason, count in rejects.items():
                gauges["forebay_rejects"].add_metric([name, reason], count)
            for source, offset in one.state.next_offsets.items():
                gauges["forebay_next_offset"].add_metric([name, source], offset)
            values = {**self._progress(name, one, ends), **_kept(one, boundary)}
            for metric, number in values.items():
                gauges[metric].add_metric([name], number)
        return [*counters.values(), *gauges.values(), *self._of_all(sources, ends, boundary)]

    def _partitions(self) -> dict[str, _Partition]:
        """All that can be read."""
        found = {}
        self._unreadable = 0
        for name in self._layout.partitions():
            path = self._layout.manifest(name)
            try:
                state = read_manifest(self._disk, path)
                catalog = read_catalog(self._disk, self._layout.catalog(name), name)
                if state is not None:
                    catalog = catalog.committed(state.runs, state.incarnation)
                    found[name] = _Partition(state, catalog, path.stat().st_mtime)
            except (ForebayError, OSError):
                self._unreadable += 1
        return found

    def _boundary(self) -> Boundary:
        try:
            return read_boundary(self._disk, self._layout)
        except (ForebayError, OSError):
            self._unreadable += 1
            return Boundary()

    def _raised(self, name: str, counters: Counters) -> dict[str, float]:
        """The counters, never less than was seen before."""
        seen = self._seen.setdefault(name, _Seen()).counters
        for counter in _COUNTERS:
            seen[counter] = max(seen.get(counter, 0), getattr(counters, counter))
        return seen

    def _progress(self, name: str, one: _Partition, ends: Ends) -> dict[str, float]:
        """How far a partition has got, and how far it could."""
        state, seen, now_s = one.state, self._seen[name], self._steady()
        age_s = max(0.0, self._wall() - one.published_s)
        found = {"forebay_published_age_seconds": age_s}
        if state.stream_time_ms is not None:
            found["forebay_stream_time_behind_seconds"] = self._wall() - state.stream_time_ms / 1000
        lag, lag_s = None, 0.0
        for source, offset in state.next_offsets.items():
            end = ends.get(source, state.end_offsets.get(source))
            if end is None:
                continue
            lag = (lag or 0) + max(0, end - offset)
            known = seen.ends.setdefault(source, deque(maxlen=ENDS_MAX))
            if not known or end > known[-1][1]:
                known.append((now_s, end))
            while known and (known[0][1] <= offset or end <= offset):
                known.popleft()
            if known:
                lag_s = max(lag_s, now_s - known[0][0])
        if lag is None:
            return found
        if not lag:
            seen.behind_since_s = None
        elif seen.behind_since_s is None:
            seen.behind_since_s = now_s
        stalled_s = min(age_s, now_s - (seen.behind_since_s or now_s)) if lag else 0.0
        return {
            **found,
            "forebay_lag_messages": lag,
            "forebay_lag_seconds": lag_s,
            "forebay_stalled_seconds": stalled_s,
        }

    def _of_all(self, sources: list[str], ends: Ends, boundary: Boundary) -> Iterable[Metric]:
        """What does not belong to one partition."""
        yield _gauge(
            "forebay_unreadable_records", "Manifests, catalogs, or the boundary, that can't be"
            " read; what they would tell is missing here.", self._unreadable,
        )  # fmt: skip
        starts = CounterMetricFamily("forebay_starts", "Starts of the workers.")
        starts.add_metric([], self.starts)
        yield starts
        if self._ends and sources:
            yield _gauge(
                "forebay_source_up", "1 if the broker says where all partitions end.",
                float({*sources} <= {*ends}),
            )  # fmt: skip
        times = [_modified_s(path) for path in self._layout.recovery.glob("part-*")]
        if known := [one for one in times if one is not None]:
            yield _gauge(
                "forebay_epoch_age_seconds", "Since the last write to the recovery store, which"
                " each epoch's end is.", max(0.0, self._wall() - max(known)),
            )  # fmt: skip
        if boundary.history:
            age_s = self._wall() - boundary.history[-1].at_ms / 1000
            yield _gauge("forebay_handoff_age_seconds", "Since the last handoff was completed.",
                         max(0.0, age_s))  # fmt: skip
        yield _gauge("forebay_batch_number", "Completed handoffs.", boundary.number)
        root = next(one for one in (self._layout.root, *self._layout.root.parents) if one.exists())
        usage = shutil.disk_usage(root)
        yield _gauge("forebay_disk_free_bytes", "Of the disk of the data directory.", usage.free)
        yield _gauge("forebay_disk_size_bytes", "Of the disk of the data directory.", usage.total)


def _labels(name: str) -> list[str]:
    extra = {"forebay_rejects": ["reason"], "forebay_next_offset": ["source"]}
    return ["partition", *extra.get(name, [])]


def _gauge(name: str, help: str, value: float) -> Metric:
    return GaugeMetricFamily(name, help, value=value)


def _kept(one: _Partition, boundary: Boundary) -> dict[str, float]:
    """What a partition has on disk, as far as it counts."""
    hot = [block for block in one.state.blocks if block.id not in one.catalog.covered]
    chunks = one.catalog.chunks
    found: dict[str, float] = {
        "forebay_hot_blocks": len(hot),
        "forebay_hot_events": sum(block.rows for block in hot),
        "forebay_hot_bytes": sum(extent.bytes for block in hot for extent in block.extents),
        "forebay_cold_chunks": len(chunks),
        "forebay_cold_events": sum(chunk.rows for chunk in chunks),
        "forebay_cold_bytes": sum(chunk.checksum.bytes for chunk in chunks),
    }
    if left := waiting(one.state, one.catalog, boundary):
        found["forebay_waiting_bytes"] = left.bytes
        found["forebay_waiting_age_seconds"] = left.age_ms / 1000
    else:
        found["forebay_waiting_bytes"] = 0
    return found


def _modified_s(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:  # SQLite deletes its log when it is closed
        return None


def ends_of(settings: Settings) -> Callable[[Iterable[str]], Ends] | None:
    """Asks the broker; None where the source is files, whose ends are known when they are read."""
    if settings.source == "files":
        return None
    from forebay.operators.sources.topic import Broker, partition_key

    broker = Broker(settings.kafka_config)

    def ends(names: Iterable[str]) -> Ends:
        numbers = [int(name.rpartition("-")[2]) for name in names]
        found = broker.ends(numbers, ASK_S)
        return {partition_key(settings.kafka.topic, n).name: end for n, end in found.items()}

    return ends
