"""The check: every byte that counts in a data directory, verified against its checksum.

For each partition, whether or not the job runs: its manifest and catalog, and that its files hold
as many rejects as are counted; every log named by the manifest, to its last row; every chunk of the
catalog and, if one is damaged, which columns where. Then `batch.json` and the replay requests. If a
file is gone, either a newer manifest or catalog no longer names it, or it is missing. Drop logs may
lack their end, since no commit waits for them; other logs may after a power loss, until the job has
started again. The recovery store is the engine's own and is not checked, nor are files that nothing
names.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from forebay.query.partition import ChunkFile, Directory, Log, Partition
from forebay.query.view import PAUSE_S, TRIES
from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import BadInput, Corruption, ForebayError, MissingFile
from forebay.storage.base.layout import Layout
from forebay.storage.formats.boundary import read_boundary
from forebay.storage.formats.catalog import Catalog
from forebay.storage.formats.replay_request import ReplayRequest
from forebay.storage.formats.state import PartitionState

T = TypeVar("T")


@dataclass(frozen=True)
class Fault:
    """One fault. `offset` is the first byte known to be wrong, if any is."""

    file: str
    offset: int | None
    what: str


@dataclass
class Report:
    """How many files and bytes were checked, and their faults."""

    files: int = 0
    bytes: int = 0
    faults: list[Fault] = field(default_factory=list)

    def looked_at(self, bytes: int) -> None:
        self.files += 1
        self.bytes += bytes

    def note(self, path: Path, error: Exception) -> None:
        offset = error.offset if isinstance(error, Corruption) else None
        self.faults.append(Fault(str(path), offset, str(error)))

    def add(self, other: Report) -> None:
        self.files += other.files
        self.bytes += other.bytes
        self.faults += other.faults


def check(disk: Disk, root: Path) -> Report:
    """Read all of one data directory. Raises BadInput if there is none."""
    if not root.is_dir():
        raise BadInput(f"{root}: expected a data directory, got none")
    layout, report = Layout(root), Report()
    _small(report, layout.batch, lambda _: read_boundary(disk, layout))
    for path in sorted(layout.replay.glob("*.json")):
        _small(report, path, lambda path: ReplayRequest.decode(disk.read(path), str(path)))
    for name in layout.partitions():
        _partition(disk, root, name, report)
    return report


def _small(report: Report, path: Path, read: Callable[[Path], T]) -> T | None:
    """The content of a small file, or None if it can't be read or does not exist."""
    try:
        found = read(path)
        if path.is_file():
            report.looked_at(path.stat().st_size)
        return found
    except (ForebayError, OSError) as error:
        report.looked_at(0)
        report.note(path, error)
        return None


def _partition(disk: Disk, root: Path, name: str, report: Report) -> None:
    """Check what the partition names; if a file is gone, what it names then."""
    looked: set[Path] = set()
    for _ in range(TRIES):
        small = Report()
        gone: dict[Path, Exception] = {}
        directory = Directory(disk, root)
        for part in _parts(directory, name, small):
            if part.path in looked:
                continue
            try:
                _look(directory, part, report)
                looked.add(part.path)
            except (MissingFile, FileNotFoundError) as error:
                gone[part.path] = error
        if not gone:
            break
        time.sleep(PAUSE_S)
    report.add(small)
    for path, missing in gone.items():
        report.note(path, missing)


def _look(directory: Directory, part: Log | ChunkFile, report: Report) -> None:
    """Raises MissingFile or FileNotFoundError; reports any other fault of a file."""
    found: list[Exception] = []
    try:
        directory.require(part.path)
        found += part.faults()
    except (MissingFile, FileNotFoundError):
        raise
    except (ForebayError, OSError) as error:
        found.append(error)
    report.looked_at(part.bytes)
    for fault in found:
        report.note(part.path, fault)


def _counted(report: Report, path: Path, state: PartitionState) -> None:
    """Check that each counted reject is in a file, and each in a file is counted."""
    listed, counted = sum(extent.rows for extent in state.rejects), state.counters.rejects
    if listed != counted:
        what = f"{path}: expected {counted} rejects in files, as counted, got {listed}"
        report.faults.append(Fault(str(path), None, what))


def _parts(directory: Directory, name: str, small: Report) -> Iterator[Log | ChunkFile]:
    """What the partition names now. The manifest is read first, as in a view."""
    layout = directory.layout
    state = _small(small, layout.manifest(name), lambda _: directory.state(name))
    catalog = _small(small, layout.catalog(name), lambda _: directory.catalog(name))
    if state is not None:
        _counted(small, layout.manifest(name), state)
        # The logs of a block that a chunk covers may have been deleted already.
        partition = Partition.of(directory, state, catalog or Catalog(name))
        yield from (*partition.block_logs, *partition.reject_logs, *partition.drop_logs)
    for chunk in catalog.chunks if catalog else ():
        yield ChunkFile(directory.disk, layout.chunks(name) / chunk.file, chunk)
