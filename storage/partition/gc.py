"""Garbage collection: what a partition may forget, and which files may go.

What always holds: an evicted block is listed, and its logs are kept, until a chunk has covered it
for the grace period and its eviction is surely committed; a file is deleted a grace period after
the last state or catalog that named it, because a reader may be about to open it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from forebay.storage.base.disk import Disk
from forebay.storage.base.layout import hash_file_name
from forebay.storage.formats.boundary import Boundary
from forebay.storage.formats.catalog import Catalog
from forebay.storage.formats.state import PartitionState
from forebay.storage.partition.commits import Commit
from forebay.storage.partition.edits import Cover, Evict, Forget
from forebay.storage.partition.expiry import expires_ms


def forgettable(
    state: PartitionState, catalog: Catalog, sure: Commit, now_ms: int, grace_ms: int
) -> Iterator[Cover | Forget]:
    """Which evicted blocks a chunk covers by now, and since when; and those not needed any more."""
    for block in list(state.evicted.values()):
        since = None
        if block.id in catalog.covered:
            since = now_ms if block.covered_at_ms is None else block.covered_at_ms
        if since != block.covered_at_ms:
            yield Cover(block.id, since)
        committed = block.number is not None and block.number <= sure.evictions
        if since is not None and now_ms - since >= grace_ms and committed:
            yield Forget(block.id)


def leaving(
    state: PartitionState, boundary: Boundary, window_ms: int, from_ms: int | None = None
) -> list[Evict]:
    """The live blocks that are the batch layer's, and were last touched a dedup window before the
    boundary: any event that a query still shows would evict them. Likewise those of which all is
    older than `from_ms`, from where on data is kept."""
    sure_ms = (boundary.covered_until_ms or 0) - window_ms
    return [
        Evict(id)
        for id, block in sorted(state.hot.items())
        if (boundary.handed_off(block) and block.touched_ms <= sure_ms)
        or (from_ms is not None and expires_ms(block, window_ms) <= from_ms)
    ]


class Garbage:
    """The files of one partition that nothing needs, or will need once a commit is sure."""

    def __init__(self, disk: Disk, grace_ms: int) -> None:
        self._disk = disk
        self._grace_ms = grace_ms
        self._replaced: list[tuple[int, Path]] = []
        self._doomed: list[tuple[int, Path]] = []

    def doom(self, paths: Iterable[Path], now_ms: int) -> None:
        """Nothing names these files any more."""
        self._doomed += [(now_ms + self._grace_ms, path) for path in paths]

    def replace(self, path: Path, snapshots: int) -> None:
        """From the commit after `snapshots` of them on, nothing names this file."""
        self._replaced.append((snapshots, path))

    def collect(self, sure: Commit, now_ms: int) -> None:
        """Delete what is due."""
        self.doom((path for since, path in self._replaced if since < sure.snapshots), now_ms)
        self._replaced = [one for one in self._replaced if one[0] >= sure.snapshots]
        for _, path in [doomed for doomed in self._doomed if doomed[0] <= now_ms]:
            self._disk.remove(path)
        self._doomed = [doomed for doomed in self._doomed if doomed[0] > now_ms]


def files_of(state: PartitionState, forgotten: Forget, folder: Path) -> list[Path]:
    """The logs of a block that is about to be forgotten, and their hash files."""
    logs = [extent.file for extent in state.evicted[forgotten.block].extents]
    return [folder / name for log in logs for name in (log, hash_file_name(log))]


def unlisted(folder: Path, state: PartitionState) -> list[Path]:
    """Files in `folder` that were made for logs which `state` does not count on."""
    listed = {extent.file for block in state.blocks for extent in block.extents}
    listed |= {extent.file for extent in (*state.rejects, *state.drops)}
    listed |= {hash_file_name(file) for file in listed}
    made = (path for path in folder.iterdir() if path.suffix in (".arrows", ".hashes"))
    return sorted(path for path in made if path.name not in listed)
