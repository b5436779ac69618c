"""The engine's recovery store: made whole or not at all, and opened by one job at a time.

Opening it is enough to spoil it for a running job, so the data directory's lock comes first. A job
holds that lock, and its workers those of the partitions: they show whether one runs.
"""

import errno
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from forebay.flows.hosts import Hosts
from forebay.storage.base.directory import require_data_directory
from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import BadInput, MissingFile
from forebay.storage.base.layout import Layout
from forebay.storage.formats.host import Host, keep_host, read_host

_NO_FOLDER = frozenset(
    (errno.EEXIST, errno.ENOTDIR, errno.ENOENT, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)
)
"""What keeps a folder from being made however often it is tried."""
PARTITIONS = 4
"""Of the store of a job on one host. Of several, each has one."""
LOCK_S = 1.0
_PARTS = "part-*.sqlite3"


def take_data_directory(layout: Layout, hosts: Hosts | None = None) -> BinaryIO:
    """Keep other jobs off until the file returned is closed, or the process ends.

    Raises BadInput if there is another job, if the folder can't be created or has other things in
    it, or if it belongs to another host than this one of `hosts`; MissingFile if the data has lost
    its store.
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
    try:
        host = _require_host(layout, hosts)
        if (layout.partitions() or (host and host.begun)) and not any(layout.recovery.glob(_PARTS)):
            raise MissingFile(
                f"{layout.recovery}: expected the recovery store of the data in {layout.root}, got"
                " none; restore it, or move the whole data directory away to start over"
            )
    except BaseException:
        lock.close()
        raise
    for folder in (layout.root, layout.topics, layout.sources):
        disk.drop_claims(folder)
    return lock


def _require_host(layout: Layout, hosts: Hosts | None) -> Host | None:
    """The host whose data this is. Raises BadInput if that is not this one, or if the store is not
    its part."""
    kept = read_host(Disk(), layout)
    parts = sorted(path.name for path in layout.recovery.glob(_PARTS))
    of_one = "that of a job on one host"
    came = f"that of host {kept.number} of {kept.hosts}" if kept else of_one
    if hosts is None:
        if kept:
            raise BadInput(
                f"data_dir: expected {of_one}, got {came} in {layout.root}; run it with --hosts and"
                " --host"
            )
        return None
    number, count = hosts.number, len(hosts.addresses)
    if kept is None and not parts and not layout.partitions():
        return None
    if kept is None or (kept.number, kept.hosts) != (number, count):
        raise BadInput(
            f"data_dir: expected that of host {number} of {count}, got {came} in {layout.root};"
            " what was begun on some hosts stays on these: the state of a partition and the parts"
            " of the recovery store can't be redistributed"
        )
    if parts and parts != [_part(number)]:
        raise BadInput(
            f"{layout.recovery}: expected {_part(number)} alone, for the recovery store has a part"
            f" for each of {count} hosts, got {', '.join(parts)}"
        )
    return kept


def _part(number: int) -> str:
    return f"part-{number}.sqlite3"


def join_hosts(layout: Layout, hosts: Hosts, job: str) -> None:
    """From now on the data directory is that of this host of `job`. Raises BadInput if it belongs
    to another job that has begun."""
    kept = read_host(Disk(), layout)
    if kept and kept.job == job:
        return
    if kept and kept.begun:
        raise BadInput(f"data_dir: expected the data of job {job}, got that of job {kept.job}")
    shutil.rmtree(layout.recovery, ignore_errors=True)
    keep_host(Disk(), layout, Host(hosts.number, len(hosts.addresses), job, False))


def begin(layout: Layout) -> None:
    """Note that the last run has not ended well, until this one does."""
    disk = Disk()
    host = read_host(disk, layout)
    if host and not host.begun:
        keep_host(disk, layout, replace(host, begun=True))
    disk.remove(layout.ended)
    disk.sync_directory(layout.root)


def init_recovery(path: Path, hosts: Hosts | None = None) -> None:
    """Make the store at `path` if there is none; of several hosts, this one's part of it."""
    from bytewax.recovery import init_db_dir  # where data is only read, there is no engine

    if any(path.glob(_PARTS)):
        return
    disk = Disk()
    unfinished = path.with_name(f"{path.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    disk.make_directory(unfinished)
    init_db_dir(unfinished, len(hosts.addresses) if hosts else PARTITIONS)
    for part in unfinished.glob(_PARTS):
        if hosts and part.name != _part(hosts.number):
            part.unlink()
    shutil.rmtree(path, ignore_errors=True)
    unfinished.replace(path)
    disk.sync_directory(path.parent)
