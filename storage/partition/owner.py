"""The one writer of a partition, which keeps a lock for as long as it lives.

    DATA/hot/lock              an empty file: each writer holds one byte of it (`Disk.lock_name`)
    DATA/hot/PARTITION/lock    what earlier versions held, a file each

A job holds `DATA/lock` too, but its workers are other processes, which may outlive it for a moment,
and may be started by hand without it. A worker has one descriptor for all of its partitions.
"""

from __future__ import annotations

from forebay.storage.base.disk import Disk, NameLock
from forebay.storage.base.errors import BadInput
from forebay.storage.base.layout import Layout


def own(disk: Disk, layout: Layout, partition: str) -> NameLock:
    """Keep others from writing to the partition. Raises BadInput if another does."""
    lock = disk.lock_name(layout.writers, partition)
    if disk.locked(layout.hot(partition) / "lock"):
        lock.close()
        raise BadInput(
            f"{layout.hot(partition)}: expected no other writer, got one: a job of an earlier"
            " version runs on this data directory"
        )
    return lock
