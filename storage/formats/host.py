"""The host, of a job over several, that a data directory belongs to.

    DATA/host    a record (see `record`) of kind "host", version 1

A partition's state, logs and chunks stay on one host, and the recovery store is divided among all:
so a data directory keeps the host number and the other hosts that it was begun with. A job on one
host has no such file. The file is durable before anything is read, and `begun` before the first
message is read: until then the directory may be given to another job.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from forebay.storage.base import record
from forebay.storage.base.disk import Disk
from forebay.storage.base.layout import Layout
from forebay.storage.base.record import Count

KIND, VERSION = "host", 1
BYTES_MAX = 4096
"""More than the file has."""

JobId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
"""128 random bits, the same on all hosts."""


@dataclass(frozen=True)
class Host:
    """Host `number` of `hosts`, counted from 0, of the job `job`."""

    number: Count
    hosts: Count
    job: JobId
    begun: bool

    def encode(self) -> bytes:
        return record.encode(KIND, VERSION, self)


def read_host(disk: Disk, layout: Layout) -> Host | None:
    """The host whose data this is; None if that is of a job on one host, or new. Raises Corruption
    or FormatVersion."""
    try:
        data = disk.read(layout.host, end=BYTES_MAX)
    except FileNotFoundError:
        return None
    return record.read(Host, KIND, VERSION, data, str(layout.host))


def keep_host(disk: Disk, layout: Layout, host: Host) -> None:
    """Keep `host`, durably, in place of any other."""
    disk.replace(layout.host, host.encode(), durable=True)
