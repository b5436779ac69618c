"""Names: typed ids, and every path under a data directory, made and parsed here only.

    DATA/batch.json
    DATA/batch.lock                                    held by the one who hands over
    DATA/lock                                          held by the one job
    DATA/ended                                         an empty file: the last run ended well
    DATA/sources/PARTITION                             a source partition: where it begins
    DATA/topics/TOPIC                                  the Kafka topic that was read: its id
    DATA/recovery/                                     the engine's own
    DATA/hot/lock                                      each partition's writer holds a byte of it
    DATA/hot/PARTITION/manifest.json
    DATA/hot/PARTITION/20240501T1205-000017.3.arrows   block log: interval, sequence, incarnation
    DATA/hot/PARTITION/20240501T1205-000017.3.hashes   the hashes of that log's keys
    DATA/rejects/PARTITION/rejects-000002.3.arrows     reject log: number, incarnation
    DATA/drops/PARTITION/drops-000002.3.arrows         drop log: number, incarnation
    DATA/replay/lock                                   held while a request is written
    DATA/replay/000004.json                            replay request: number
    DATA/chunks/PARTITION/catalog.json
    DATA/chunks/PARTITION/date=2024-05-01/hour=12/0000000005-0000000010.3.parquet
    DATA/chunks/PARTITION/date=2024-05-01/hour=00/0000000005-0000000310.c2.3.parquet    compacted

Invariants: a block log, reject log, drop log or chunk name is never used twice, because the
incarnation rises with every start of its partition. Partition names sort in partition order.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from forebay.storage.base.errors import BadInput
from forebay.storage.base.record import OPTIONAL, Count, TimeMs
from forebay.storage.base.times import time_of

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._=-]{0,199}\Z")
_RELATIVE = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9._=-]*/)*[A-Za-z0-9][A-Za-z0-9._=-]*\Z")


@dataclass(frozen=True, order=True)
class PartitionKey:
    """The unit of state and ownership; `number` decides which worker holds it."""

    name: str
    number: int

    def __post_init__(self) -> None:
        if not _NAME.match(self.name):
            raise BadInput(f"partition name: expected letters, digits, . _ = -, got {self.name!r}")

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, order=True)
class BlockId:
    """A block within its partition: the interval's start and a sequence number, never reused. A
    *backfill* block has events of many intervals of a UTC day (see `admission`)."""

    interval_ms: TimeMs
    sequence: Count
    backfill: bool = field(default=False, metadata=OPTIONAL)

    def __str__(self) -> str:
        return f"{time_of(self.interval_ms):%Y%m%dT%H%M}-{self.sequence:06d}"


@dataclass(frozen=True, order=True)
class ChunkId:
    """A chunk within its partition: first and last eviction number it covers, and the run."""

    first: Count
    last: Count
    incarnation: Count

    def __str__(self) -> str:
        return f"{self.first:010d}-{self.last:010d}.{self.incarnation}"

    @classmethod
    def parse(cls, text: str) -> ChunkId:
        match = re.fullmatch(r"(\d{10,})-(\d{10,})\.(\d+)", text)
        if not match:
            raise BadInput(f"chunk id: expected FIRST-LAST.INCARNATION, got {text!r}")
        return cls(*map(int, match.groups()))


@dataclass(frozen=True)
class Layout:
    """Paths below one data directory."""

    root: Path

    @property
    def batch(self) -> Path:
        return self.root / "batch.json"

    @property
    def batch_lock(self) -> Path:
        return self.root / "batch.lock"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def ended(self) -> Path:
        return self.root / "ended"

    @property
    def form(self) -> Path:
        return self.root / "form"

    @property
    def host(self) -> Path:
        return self.root / "host"

    @property
    def sources(self) -> Path:
        return self.root / "sources"

    @property
    def topics(self) -> Path:
        return self.root / "topics"

    def topic(self, name: str) -> Path:
        return self.topics / name

    @property
    def recovery(self) -> Path:
        return self.root / "recovery"

    @property
    def writers(self) -> Path:
        return self.root / "hot" / "lock"

    def hot(self, partition: str) -> Path:
        return self.root / "hot" / partition

    def manifest(self, partition: str) -> Path:
        return self.hot(partition) / "manifest.json"

    def rejects(self, partition: str) -> Path:
        return self.root / "rejects" / partition

    def drops(self, partition: str) -> Path:
        return self.root / "drops" / partition

    @property
    def replay(self) -> Path:
        return self.root / "replay"

    def replay_request(self, number: int) -> Path:
        return self.replay / f"{number:06d}.json"

    def chunks(self, partition: str) -> Path:
        return self.root / "chunks" / partition

    def catalog(self, partition: str) -> Path:
        return self.chunks(partition) / "catalog.json"

    def partitions(self) -> list[str]:
        """Partitions that have published a manifest or a catalog, in name order."""
        found = {path.parent.name for path in self.root.glob("hot/*/manifest.json")}
        found |= {path.parent.name for path in self.root.glob("chunks/*/catalog.json")}
        return sorted(name for name in found if _NAME.match(name))


def names_partition(name: str) -> bool:
    """Whether a partition can have this name."""
    return _NAME.match(name) is not None


def block_log_name(block: BlockId, incarnation: int) -> str:
    return f"{block}.{incarnation}.arrows"


def hash_file_name(log: str) -> str:
    """The name of the hash file beside a block log."""
    return log.removesuffix(".arrows") + ".hashes"


def reject_log_name(number: int, incarnation: int) -> str:
    return f"rejects-{number:06d}.{incarnation}.arrows"


def drop_log_name(number: int, incarnation: int) -> str:
    return f"drops-{number:06d}.{incarnation}.arrows"


def chunk_name(chunk: ChunkId, first_upload_ms: int) -> str:
    """Path of a chunk relative to its partition's folder; the folders tell its earliest hour."""
    return f"{_hour(first_upload_ms)}/{chunk}.parquet"


def compacted_name(chunk: ChunkId, first_upload_ms: int, number: int, incarnation: int) -> str:
    """As `chunk_name`, of a chunk that was made of others, the run's `number`th such."""
    span = f"{chunk.first:010d}-{chunk.last:010d}"
    return f"{_hour(first_upload_ms)}/{span}.c{number}.{incarnation}.parquet"


def _hour(ms: int) -> str:
    return f"{time_of(ms):date=%Y-%m-%d/hour=%H}"


def incarnation_of(name: str) -> int | None:
    """The incarnation in a file's name, or None if Forebay did not make the name."""
    match = re.search(r"\.(\d+)\.(?:arrows|hashes|parquet)\Z", name)
    return int(match.group(1)) if match else None


def checked(relative: str) -> str:
    """`relative` as a manifest or catalog has it. Raises BadInput if it could leave its folder."""
    if not _RELATIVE.match(relative):
        raise BadInput(f"file name: expected a plain relative path, got {relative!r}")
    return relative


def is_hash_partition(name: str) -> bool:
    return re.fullmatch(r"hash-\d{5}-of-\d{5}", name) is not None
