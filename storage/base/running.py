"""Whether a job runs on a data directory: its locks show that, however it was started."""

from __future__ import annotations

from forebay.storage.base.disk import Disk
from forebay.storage.base.layout import Layout


def job_runs(disk: Disk, layout: Layout) -> bool:
    """Whether a job, or a worker of one, holds its locks now."""
    return disk.locked(layout.lock) or disk.locked(layout.writers)
