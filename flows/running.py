"""Whether a job runs on a data directory, however it was started: by the locks that it holds."""

from __future__ import annotations

from forebay.storage.base.disk import Disk
from forebay.storage.base.layout import Layout


def job_runs(disk: Disk, layout: Layout) -> bool:
    """A job holds the directory's lock, and its workers those of the partitions."""
    locks = [layout.lock, *(layout.hot(name) / "lock" for name in layout.partitions())]
    return any(disk.locked(path) for path in locks)
