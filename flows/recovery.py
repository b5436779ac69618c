"""The engine's recovery store: made whole or not at all, and opened by one job at a time.

Opening it is enough to spoil it for a job that runs, so the data directory's lock comes first. A
job holds that, and its workers those of the partitions: they show whether one runs.
"""

import errno
import shutil
import time
from pathlib import Path
from typing import BinaryIO

from forebay.storage.base.directory import require_data_directory
from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import BadInput, MissingFile
from forebay.storage.base.layout import Layout

_NO_FOLDER = frozenset(
    (errno.EEXIST, errno.ENOTDIR, errno.ENOENT, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)
)
"""What keeps a folder from being made however often it is tried."""
PARTITIONS = 4
LOCK_S = 1.0


def take_data_directory(layout: Layout) -> BinaryIO:
    """Keep other jobs off until the file returned is closed, or the process ends.

    Raises BadInput if there is another job, if the folder can't be made or has other things in it,
    MissingFile if the data has lost its store.
    """
    disk = Disk()
    try:
        disk.make_directory(layout.root)
    except OSError as error:
        if error.errno not in _NO_FOLDER:
            raise
        raise BadInput(f"data_dir: expected a folder that can be made, got {error}") from error
    require_data_directory(layout.root)
    # A seal without a job holds the lock for a moment, so it is tried for a little while.
    deadline = time.monotonic() + LOCK_S
    while True:
        try:
            lock = disk.lock(layout.lock)
            break
        except BadInput:
            if time.monotonic() > deadline:
                raise
        time.sleep(LOCK_S / 20)
    if layout.partitions() and not any(layout.recovery.glob("part-*.sqlite3")):
        lock.close()
        raise MissingFile(
            f"{layout.recovery}: expected the recovery store of the data in {layout.root}, got"
            " none; restore it, or move the whole data directory away to start anew"
        )
    for folder in (layout.root, layout.topics, layout.sources):
        disk.drop_claims(folder)
    return lock


def job_runs(disk: Disk, layout: Layout) -> bool:
    """Whether a job runs on the data directory, however it was started."""
    return disk.locked(layout.lock) or disk.locked(layout.writers)


def begin(layout: Layout) -> None:
    """From now on the last run has not ended well, until this one does."""
    disk = Disk()
    disk.remove(layout.ended)
    disk.sync_directory(layout.root)


def init_recovery(path: Path) -> None:
    """Make the store at `path` if there is none."""
    from bytewax.recovery import init_db_dir  # where data is only read, there is no engine

    if any(path.glob("part-*.sqlite3")):
        return
    disk = Disk()
    unfinished = path.with_name(f"{path.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    disk.make_directory(unfinished)
    init_db_dir(unfinished, PARTITIONS)
    shutil.rmtree(path, ignore_errors=True)
    unfinished.replace(path)
    disk.sync_directory(path.parent)
