"""The check: every byte that counts in a data directory held against its checksum.

For each partition, whether or not the job runs: manifest and catalog; every log that the manifest
names, to its last row; every chunk of the catalog, and if one is damaged, which columns where. Then
`batch.json` and the replay requests. A file that is gone is either named no more by a newer
manifest or catalog, or it is missing. Drop logs may lack their end, for no commit waits for them;
another log does after a power loss, until the job has started again. The recovery store is the
engine's own and is not looked at, nor is what nothing names.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from forebay.query.view import PAUSE_S, TRIES, Inside, read_state
from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import BadInput, Corruption, ForebayError, MissingFile
from forebay.storage.base.layout import Layout
from forebay.storage.formats.boundary import read_boundary
from forebay.storage.formats.catalog import Chunk, read_catalog
from forebay.storage.formats.checksum import damaged_columns
from forebay.storage.formats.chunk import chunk_metadata
from forebay.storage.formats.log import Extent, LogReader
from forebay.storage.formats.replay_request import ReplayRequest

T = TypeVar("T")
Look = Callable[[], Iterator[Corruption]]
"""Yields or raises what is wrong."""


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong. `offset` is the first byte that is known to be, if any is."""

    file: str
    offset: int | None
    what: str


@dataclass
class Report:
    """How many files and bytes were looked at, and what is wrong with them."""

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


@dataclass(frozen=True)
class _Part:
    """A file that a manifest or catalog names, and how many bytes of it count."""

    path: Path
    bytes: int
    look: Look


def check(disk: Disk, root: Path) -> Report:
    """Read all of one data directory. Raises BadInput if there is none."""
    if not root.is_dir():
        raise BadInput(f"{root}: expected a data directory, got none")
    layout, report = Layout(root), Report()
    _small(report, layout.batch, lambda: read_boundary(disk, layout))
    for path in sorted(layout.replay.glob("*.json")):
        _small(report, path, partial(_read_request, disk, path))
    for name in layout.partitions():
        _partition(disk, layout, name, report)
    return report


def _read_request(disk: Disk, path: Path) -> ReplayRequest:
    return ReplayRequest.decode(disk.read(path), str(path))


def _small(report: Report, path: Path, read: Callable[[], T]) -> T | None:
    """What is in a small file, or None if that can't be told or it is not there."""
    try:
        found = read()
        if path.is_file():
            report.looked_at(path.stat().st_size)
        return found
    except (ForebayError, OSError) as error:
        report.looked_at(0)
        report.note(path, error)
        return None


def _partition(disk: Disk, layout: Layout, name: str, report: Report) -> None:
    """Look at what the partition names; if a file is gone, at what it names then."""
    looked: set[Path] = set()
    for _ in range(TRIES):
        small = Report()
        gone: dict[Path, Exception] = {}
        inside = Inside(layout.root)
        for part in _parts(disk, layout, name, small, inside):
            if part.path in looked:
                continue
            try:
                _look(inside, part, report)
                looked.add(part.path)
            except (MissingFile, FileNotFoundError) as error:
                gone[part.path] = error
        if not gone:
            break
        time.sleep(PAUSE_S)
    report.add(small)
    for path, missing in gone.items():
        report.note(path, missing)


def _look(inside: Inside, part: _Part, report: Report) -> None:
    """Raises MissingFile or FileNotFoundError, and nothing else that is wrong with a file."""
    found: list[Exception] = []
    try:
        inside.require(part.path)
        found += part.look()
    except (MissingFile, FileNotFoundError):
        raise
    except (ForebayError, OSError) as error:
        found.append(error)
    report.looked_at(part.bytes)
    for fault in found:
        report.note(part.path, fault)


def _parts(disk: Disk, layout: Layout, name: str, small: Report, inside: Inside) -> Iterator[_Part]:
    """What the partition names now. The manifest comes first, as in a view."""
    states = _small(small, layout.manifest(name), lambda: read_state(disk, layout, name, inside))
    path = layout.catalog(name)
    catalog = _small(small, path, lambda: read_catalog(disk, path, name))
    for state in states or ():
        # The logs of a block that a chunk covers may be gone already.
        counts = catalog.committed(state.runs, state.incarnation).covered if catalog else ()
        for block in state.blocks:
            if block.id not in counts:
                yield from _logs(disk, layout.hot(name), block.extents)
        yield from _logs(disk, layout.rejects(name), state.rejects)
        yield from _logs(disk, layout.drops(name), state.drops, torn_ok=True)
    for chunk in catalog.chunks if catalog else ():
        yield _of_chunk(disk, layout.chunks(name) / chunk.file, chunk)


def _logs(
    disk: Disk, folder: Path, extents: Iterable[Extent], torn_ok: bool = False
) -> Iterator[_Part]:
    for extent in extents:
        yield _of_log(disk, folder, extent, torn_ok)


def _of_log(disk: Disk, folder: Path, extent: Extent, torn_ok: bool) -> _Part:
    path = folder / extent.file

    def look() -> Iterator[Corruption]:
        if torn_ok and not path.exists():
            return
        reader = LogReader(disk, folder, extent.file)
        found = reader.follow(extent, torn_ok=torn_ok)
        names = reader.schema.names if reader.schema else []
        rows = sum(reader.decode([one], names)[0].num_rows for one in found)
        if rows != extent.rows and not (torn_ok and disk.size(path) < extent.bytes):
            yield Corruption(f"log {path}: expected {extent.rows} rows, got {rows}", 0)

    return _Part(path, extent.bytes, look)


def _of_chunk(disk: Disk, path: Path, chunk: Chunk) -> _Part:
    def look() -> Iterator[Corruption]:
        metadata = chunk_metadata(disk, path, chunk)
        try:
            chunk.checksum.require_whole(disk, path)
        except Corruption as error:
            yield from list(damaged_columns(path, metadata)) or [error]

    return _Part(path, chunk.checksum.bytes, look)
