"""What is known of the sources of a data directory before anything of them is read.

    DATA/topics/TOPIC         a record (see `record`) of kind "topic", version 2
    DATA/sources/PARTITION    a record of kind "source", version 2

Both are claimed (`Disk.claim`): of workers that start at once one writes each, and all read what it
wrote. They are durable before the first message is read.

Where a partition begins is decided once, by the worker that reads it: a restart before the first
commit begins there too. A partition that the topic did not have at its first start begins at 0.

Version 1 had the bare id in place of a topic's record (none, if the broker has no ids) and an empty
file for a partition. An empty file is always of version 1, so its partition was there at the first
start.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from isal.isal_zlib import crc32
from pydantic import Field

from forebay.storage.base import record
from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import Corruption
from forebay.storage.base.layout import Layout, names_partition
from forebay.storage.base.record import OPTIONAL, Count, Crc

TOPIC_KIND, SOURCE_KIND = "topic", "source"
VERSION = 2
BYTES_MAX = 4096
"""More than any of these files has."""
_ID = r"[A-Za-z0-9+/_-]{22}"

TopicId = Annotated[str, Field(pattern=f"^{_ID}$")]
"""The 128 bits of an id in base64: Kafka's own tools write - and _, librdkafka + and /."""


@dataclass(frozen=True)
class Topic:
    """A topic at its first start: its id, None if the broker has no ids, and how many partitions it
    had; None if that was version 1, where the empty files of partitions tell."""

    id: TopicId | None
    partitions: Count | None

    def source(self, number: int) -> Source:
        """The record for a partition that has none yet."""
        there = self.partitions is not None and number < self.partitions
        return Source(None if there else 0)

    def encode(self) -> bytes:
        return record.encode(TOPIC_KIND, VERSION, self)

    @classmethod
    def decode(cls, data: bytes, name: str) -> Topic:
        """Raises Corruption or FormatVersion; `name` describes the data in errors. In version 1 it
        is the bare id."""
        if re.fullmatch(_ID.encode(), data):
            return cls(data.decode(), None)
        return record.read(cls, TOPIC_KIND, VERSION, data, name)


@dataclass(frozen=True)
class Head:
    """The fingerprint of a file: the CRC-32 of the first `size` bytes that it holds."""

    size: Count
    crc: Crc

    @classmethod
    def of(cls, content: bytes) -> Head:
        return cls(len(content), crc32(content))

    def begins(self, content: bytes) -> bool:
        """Whether `content` begins like this; false for an empty file."""
        return 0 < self.size <= len(content) and crc32(content[: self.size]) == self.crc


@dataclass(frozen=True)
class Source:
    """A source partition. `first_offset` is where it begins; None until its source has decided, as
    a file never does. `head` is how a file began when it was first seen."""

    first_offset: Count | None = None
    head: Head | None = field(default=None, metadata=OPTIONAL)

    def encode(self) -> bytes:
        return record.encode(SOURCE_KIND, VERSION, self)

    @classmethod
    def decode(cls, data: bytes, name: str) -> Source:
        """Errors as above."""
        return record.read(cls, SOURCE_KIND, VERSION, data, name) if data else cls()


def read_topic(disk: Disk, path: Path) -> Topic | None:
    """What is kept of a topic, or None if it was never read. Raises as `Topic.decode`."""
    try:
        return Topic.decode(_read(disk, path), str(path))
    except FileNotFoundError:
        return None


def read_sources(disk: Disk, layout: Layout) -> dict[str, Source]:
    """Every partition that any source of this data directory has had. Raises as `Source.decode`."""
    if not layout.sources.is_dir():
        return {}
    paths = sorted(path for path in layout.sources.iterdir() if names_partition(path.name))
    return {path.name: Source.decode(_read(disk, path), str(path)) for path in paths}


def claim_topic(disk: Disk, path: Path, topic: Topic) -> Topic:
    """Keep `topic` unless one is kept. Returns the one that is."""
    kept = read_topic(disk, path)
    if kept is None:
        disk.make_directory(path.parent)
        disk.claim(path, topic.encode())
        kept = read_topic(disk, path)
    if kept is None:
        raise AssertionError(f"bug: {path} is gone")
    return kept


def keep_source(disk: Disk, layout: Layout, name: str, source: Source) -> None:
    """Keep what the one reader of a partition has decided; the partition has a record already."""
    disk.replace(layout.sources / name, source.encode(), durable=True)


def claim_sources(disk: Disk, layout: Layout, wanted: Mapping[str, Source]) -> dict[str, Source]:
    """Keep each of `wanted` that has no record yet. Returns all that are kept then, durably."""
    disk.make_directory(layout.sources)
    known = read_sources(disk, layout)
    for name in sorted(set(wanted) - set(known)):
        disk.claim(layout.sources / name, wanted[name].encode())
    disk.sync_directory(layout.sources)
    return read_sources(disk, layout)


def _read(disk: Disk, path: Path) -> bytes:
    try:
        return disk.read(path, end=BYTES_MAX)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EISDIR):
            raise Corruption(f"{path}: expected a plain file, got something else", 0) from error
        raise
