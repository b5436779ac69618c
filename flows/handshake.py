"""What the hosts of a job must have in common, and what of that differs between two, in a line."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from forebay.flows.hosts import Hosts
from forebay.flows.settings import Settings
from forebay.storage.base.disk import Disk
from forebay.storage.base.layout import Layout
from forebay.storage.formats.host import read_host
from forebay.storage.formats.source import read_sources, read_topic

NAMES_CHARS_MAX = 1 << 20
"""Of partitions, in a message; of more only their number is told."""
OF_A_HOST = frozenset(
    ("data_dir", "files", "batch", "cache_bytes", "merge_memory", "retention_bytes",
     "rejects_bytes", "drops_bytes", "batch_late", "metrics", "tick_interval"),
)  # fmt: skip
"""Settings that may differ between hosts. (Of files, what is found there is compared.)"""
KAFKA_OF_A_HOST = frozenset(("bootstrap", "group", "librdkafka"))
"""The same, of Kafka: how it is reached. (The topic's id is compared.)"""


@dataclass(frozen=True)
class Handshake:
    """Who a host is, and all that must be the same on all hosts, as JSON."""

    versions: str
    hosts: str
    number: int
    workers: int
    settings: dict[str, Any]
    job: str | None
    begun: bool

    def misfit(self, other: Handshake) -> str | None:
        """Why `other` does not fit this, host 0; None if it does."""
        who = f"on host {other.number}"
        for name in ("hosts", "versions", "workers"):
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours != theirs:
                return f"{name}: expected {ours}, as host 0 has, got {theirs} {who}"
        for name in sorted({*self.settings, *other.settings}):
            ours, theirs = self.settings.get(name), other.settings.get(name)
            if ours != theirs:
                return f"{name}: expected {ours!r}, as host 0 has, got {theirs!r} {who}"
        if self.job != other.job and (self.begun or other.begun):
            ours, theirs = (
                f"that of job {one.job}" if one.begun else "new ones" for one in (self, other)
            )
            return (
                f"data_dir: expected data directories that were begun together, got {ours} on"
                f" host 0, {theirs} {who}; restore what was lost, or move all of them away to"
                " start over"
            )
        return None


def shared(settings: Settings) -> dict[str, Any]:
    """The settings that must be the same on all hosts, by name, as JSON."""
    found = settings.model_dump(mode="json", by_alias=True, exclude={*OF_A_HOST, "kafka"})
    if settings.source == "kafka":
        kafka = settings.kafka.model_dump(mode="json", exclude=set(KAFKA_OF_A_HOST))
        found |= {f"kafka.{name}": one for name, one in kafka.items()}
    return found


def handshake(hosts: Hosts, settings: Mapping[str, Any], layout: Layout) -> Handshake:
    """What this host says."""
    kept = read_host(Disk(), layout)
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return Handshake(
        versions=f"bytewax {version('bytewax')}, Python {python}",
        hosts=str(hosts),
        number=hosts.number,
        workers=hosts.workers,
        settings=dict(settings),
        job=kept.job if kept else None,
        begun=bool(kept and kept.begun),
    )


@dataclass(frozen=True)
class Known:
    """What a host's workers know of the source, when they have built the dataflow."""

    topics: dict[str, str | None]
    count: int
    digest: str
    names: list[str] | None

    @classmethod
    def of(cls, layout: Layout) -> Known:
        disk = Disk()
        kept = {path.name: read_topic(disk, path) for path in layout.topics.glob("[!.]*")}
        names = sorted(read_sources(disk, layout))
        text = "\n".join(names)
        return cls(
            {name: topic.id for name, topic in kept.items() if topic},
            len(names),
            hashlib.sha256(text.encode()).hexdigest(),
            names if len(text) < NAMES_CHARS_MAX else None,
        )

    def misfit(self, other: Known, number: int) -> str | None:
        """How what host `number` knows differs from what host 0 knows."""
        for topic in sorted({*self.topics} | {*other.topics}):
            ours, theirs = self.topics.get(topic), other.topics.get(topic)
            if ours != theirs:
                return (
                    f"kafka.bootstrap: expected the same topic {topic} on all hosts, got the id"
                    f" {ours} on host 0, {theirs} on host {number}"
                )
        if self.digest == other.digest:
            return None
        came = f"{self.count} on host 0, {other.count} on host {number}"
        if self.names is not None and other.names is not None:
            first = min({*self.names} ^ {*other.names})
            where = 0 if first in self.names else number
            came += f"; {first} is known on host {where} only"
        return f"source: expected the same partitions (files) on all hosts, got {came}"
