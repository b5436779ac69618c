"""A view: what all nodes together hold at one moment, each event exactly once.

Steps, for each node: `batch.json`, then every partition's hot manifest, then every partition's
chunk catalog, then `batch.json` again. Blocks only ever move from hot to cold, so in this order
none is missed; a hot block that the catalog covers is left out, so none is read twice. A chunk that
the manifest's run has withdrawn, or is about to, does not count. What the batch layer has may be
deleted as soon as the boundary has moved, so a view whose boundary moved is too old, as is one
whose files are gone or whose catalog is of a later run than its manifest; it is taken again. One
partition that is damaged does not keep the others from being read, if the reader may do without it.

No locks, and nothing is written: the job never knows. A view's files stay for the grace period.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pyarrow as pa

from forebay.query.sound import SoundChunks
from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import BadInput, Corruption, ForebayError, MissingFile
from forebay.storage.base.layout import Layout
from forebay.storage.formats.boundary import Boundary, Placed, read_boundary
from forebay.storage.formats.catalog import Catalog, Chunk, read_catalog
from forebay.storage.formats.columns import SYSTEM_FIELDS, parse_types, unite
from forebay.storage.formats.log import Extent
from forebay.storage.formats.state import BlockState, PartitionState, read_manifest

TRIES = 50
PAUSE_S = 0.01


@dataclass(frozen=True)
class PartitionView:
    """One partition: its published state, the hot blocks no chunk covers, the chunks that count."""

    folder: Path
    chunks_folder: Path
    state: PartitionState
    hot: tuple[BlockState, ...]
    chunks: tuple[Chunk, ...]
    handed_off_rows: int = 0
    expired_rows: int = 0

    def only(self, wanted: Callable[[Chunk | BlockState], bool]) -> PartitionView:
        """With those blocks and chunks alone."""
        return replace(
            self,
            hot=tuple(block for block in self.hot if wanted(block)),
            chunks=tuple(chunk for chunk in self.chunks if wanted(chunk)),
        )

    @property
    def layout(self) -> Layout:
        """Of the node the partition is on."""
        return Layout(self.folder.parents[1])

    @property
    def extents(self) -> list[Extent]:
        return [extent for block in self.hot for extent in block.extents]

    @property
    def chunk_paths(self) -> list[Path]:
        return [self.chunks_folder / chunk.file for chunk in self.chunks]

    @property
    def hot_rows(self) -> int:
        return sum(block.rows for block in self.hot)

    @property
    def cold_rows(self) -> int:
        return sum(chunk.rows for chunk in self.chunks)


@dataclass(frozen=True)
class SilentPartition:
    """A `partition` that can't be read and is left out, of which `node` (its data directory), and
    the `reason`, in words."""

    node: str
    partition: str
    reason: str


@dataclass(frozen=True)
class NodeView:
    """One data directory; `batch` is None if it did not answer. `silent` ones are left out."""

    root: Path
    batch: Boundary | None
    partitions: tuple[PartitionView, ...] = ()
    silent: tuple[SilentPartition, ...] = ()

    def without(self, faults: Mapping[Path, str]) -> NodeView:
        """Leaving out the partitions of these folders, for these reasons."""
        out = [p for p in self.partitions if p.folder in faults]
        silent = (SilentPartition(str(self.root), p.state.partition, faults[p.folder]) for p in out)
        kept = tuple(p for p in self.partitions if p.folder not in faults)
        return NodeView(self.root, self.batch, kept, (*self.silent, *silent))


@dataclass(frozen=True)
class View:
    """All nodes at one moment."""

    nodes: tuple[NodeView, ...]

    @property
    def partitions(self) -> list[PartitionView]:
        return [partition for node in self.nodes for partition in node.partitions]

    @property
    def _with_events(self) -> list[PartitionView]:
        """All, but for those that never had an event where others had: these go on under any key
        and columns, so what they were begun with says nothing."""
        had = [partition for partition in self.partitions if partition.state.counters.accepted]
        return had or self.partitions

    @property
    def silent_partitions(self) -> list[SilentPartition]:
        return [partition for node in self.nodes for partition in node.silent]

    @property
    def chunks(self) -> list[tuple[Path, Chunk]]:
        return [
            (path, chunk)
            for partition in self.partitions
            for path, chunk in zip(partition.chunk_paths, partition.chunks, strict=True)
        ]

    def without(self, faults: Mapping[Path, str]) -> View:
        """Leaving out the partitions of these folders, for these reasons."""
        return View(tuple(node.without(faults) for node in self.nodes))

    @property
    def covered_until_ms(self) -> int | None:
        """One boundary for all nodes: the furthest that any of them knows."""
        known = [n.batch.covered_until_ms for n in self.nodes if n.batch is not None]
        return max((ms for ms in known if ms is not None), default=None)

    @property
    def events(self) -> list[PartitionView]:
        """All that may have events at or after the boundary."""
        until_ms = self.covered_until_ms
        if until_ms is None:
            return self.partitions
        return [p.only(lambda part: part.last_ms >= until_ms) for p in self.partitions]

    @property
    def late(self) -> list[PartitionView]:
        """All that may have events of the late table: they came after their time was sealed, and
        the boundary has passed them, but no batch layer took them."""
        until_ms = self.covered_until_ms
        return [
            partition.only(partial(_came_late, node.batch, until_ms))
            for node in self.nodes
            for partition in node.partitions
            if node.batch is not None and until_ms is not None
        ]

    @property
    def sealed_until_ms(self) -> int | None:
        """Up to where all nodes are sealed."""
        seals = [node.batch.seal if node.batch else None for node in self.nodes]
        return min((s.until_ms for s in seals if s), default=None) if all(seals) else None

    @property
    def sealed(self) -> list[PartitionView]:
        """All that may have events which the newest seal is about to hand over."""
        found = []
        for node in self.nodes:
            for partition in node.partitions:
                found.append(partition.only(partial(_about_to_go, node.batch or Boundary())))
        return found

    @property
    def table(self) -> str | None:
        """The metadata file of the batch layer's table, as of the boundary."""
        batches = [node.batch for node in self.nodes if node.batch is not None]
        newest = max(
            batches,
            key=lambda b: (b.covered_until_ms or 0, b.table is not None),
            default=Boundary(),
        )
        return newest.table

    @property
    def batch_number(self) -> int:
        return max((n.batch.number for n in self.nodes if n.batch is not None), default=0)

    @property
    def key(self) -> tuple[str, ...]:
        """The dedup key's columns. Raises BadInput if partitions differ in it."""
        keys = {partition.state.key for partition in self._with_events}
        if len(keys) > 1:
            raise BadInput(f"dedup_key: expected the same of all nodes, got {sorted(keys)}")
        return next(iter(keys), ())

    @property
    def schema(self) -> pa.Schema:
        """All columns that any partition ever had. Raises BadInput where two types clash."""
        types = [p.state.schema for p in self._with_events]
        types += [chunk.schema for p in self.partitions for chunk in p.chunks]
        try:
            return unite([pa.schema(SYSTEM_FIELDS), *map(parse_types, types)])
        except ValueError as error:
            raise BadInput(str(error)) from error


def _came_late(batch: Boundary, until_ms: int, part: Placed) -> bool:
    return batch.in_late_table(part) and part.first_ms < until_ms


def _about_to_go(batch: Boundary, part: Placed) -> bool:
    if batch.seal is None or part.first_ms >= batch.seal.until_ms:
        return False
    if part.late:
        return batch.late_from <= part.late < batch.seal.number
    return batch.covered_until_ms is None or part.last_ms >= batch.covered_until_ms


class _TooOld(MissingFile):
    """What was read does not fit together any more."""


def take_view(
    disk: Disk,
    roots: Sequence[Path],
    *,
    sound: SoundChunks | None = None,
    partial: bool = False,
) -> View:
    """The present view of all nodes. With `partial`, a node or partition that can't be read is left
    out and named in the receipt; without, it is an error. A chunk is read if `sound` lets it.

    Raises BadInput if a root is no directory, MissingFile if files stay missing, Corruption,
    FormatVersion.
    """
    sound = sound or SoundChunks(disk)
    return View(tuple(_node(disk, root, sound, partial) for root in roots))


def _node(disk: Disk, root: Path, sound: SoundChunks, partial: bool) -> NodeView:
    for tries_left in reversed(range(TRIES)):
        try:
            node, faults = _read_node(disk, root, sound)
        except _TooOld as error:
            node, faults = NodeView(root, None), [error]
        except ForebayError:
            if partial:
                return NodeView(root, None)
            raise
        except OSError as error:
            if partial:
                return NodeView(root, None)
            raise _unreadable(root, error) from error
        lasting = [fault for fault in faults if not isinstance(fault, _TooOld)]
        if lasting and not partial:
            raise lasting[0]
        if len(lasting) == len(faults) or (partial and not tries_left):
            return node
        time.sleep(PAUSE_S)
    raise MissingFile(f"{root}: {faults[0]}, after {TRIES} tries")


def _unreadable(root: Path, error: OSError) -> BadInput:
    return BadInput(f"{root}: expected a readable data directory, got {error}")


def _read_node(disk: Disk, root: Path, sound: SoundChunks) -> tuple[NodeView, list[ForebayError]]:
    """The node, and what is wrong with the partitions that had to be left out."""
    if not root.is_dir():
        raise NotADirectoryError(f"no directory at {root}")
    layout = Layout(root)
    inside = Inside(root)
    inside.require(layout.batch)
    batch = read_boundary(disk, layout)
    states: list[PartitionState] = []
    partitions: list[PartitionView] = []
    faults: dict[str, ForebayError] = {}
    for name in layout.partitions():
        with _noted(faults, root, name):
            states += read_state(disk, layout, name, inside)
    for state in states:
        with _noted(faults, root, state.partition):
            partitions.append(_partition(disk, layout, state, sound, inside))
    silent = tuple(SilentPartition(str(root), name, str(e)) for name, e in faults.items())
    found = list(faults.values())
    if read_boundary(disk, layout).number != batch.number:
        found.append(_TooOld("a day was handed over meanwhile, and its chunks may have gone"))
    return NodeView(root, batch, tuple(partitions), silent), found


@contextmanager
def _noted(faults: dict[str, ForebayError], root: Path, partition: str) -> Iterator[None]:
    """Note a fault of one partition, for the others may be read for all that."""
    try:
        yield
    except ForebayError as error:
        faults[partition] = error
    except OSError as error:
        faults[partition] = _unreadable(root, error)


class Inside:
    """What is below a data directory, links followed. Folders are looked at once, so one of these
    serves one view."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._real = root.resolve()
        self._folders: set[Path] = set()

    def require(self, path: Path) -> None:
        """Raise Corruption if links lead out of the data directory."""
        if path.parent not in self._folders:
            self._look(path.parent)
            self._folders.add(path.parent)
        if path.is_symlink():
            self._look(path)

    def _look(self, path: Path) -> None:
        if not path.resolve().is_relative_to(self._real):
            raise Corruption(f"{path}: expected a file below {self._root}, got a link out of it")


def read_state(disk: Disk, layout: Layout, name: str, inside: Inside) -> list[PartitionState]:
    """What the partition has published, if anything. Raises MissingFile if that is gone though
    chunks of it are there."""
    path = layout.manifest(name)
    inside.require(path)
    inside.require(layout.catalog(name))
    state = read_manifest(disk, path)
    if state is None and read_catalog(disk, layout.catalog(name), name).chunks:
        raise MissingFile(
            f"{path}: expected the manifest of a partition that has chunks, none is there; the job"
            " publishes it again when it is started"
        )
    if state is not None and state.partition != name:
        raise Corruption(f"{path}: expected partition {name!r}, got {state.partition!r}", 0)
    return [] if state is None else [state]


def _partition(
    disk: Disk, layout: Layout, state: PartitionState, sound: SoundChunks, inside: Inside
) -> PartitionView:
    name = state.partition
    catalog: Catalog = read_catalog(disk, layout.catalog(name), name)
    if any(chunk.id.incarnation > state.incarnation for chunk in catalog.chunks):
        raise _TooOld(f"partition {name}: its catalog is of a later run than its manifest")
    catalog = catalog.committed(state.runs, state.incarnation)
    hot = tuple(block for block in state.blocks if block.id not in catalog.covered)
    view = PartitionView(
        layout.hot(name),
        layout.chunks(name),
        state,
        hot,
        catalog.chunks,
        catalog.handed_off_rows,
        catalog.expired_rows,
    )
    for folder, extents in (
        (layout.rejects(name), state.rejects),
        (layout.drops(name), state.drops),
    ):
        for extent in extents:
            inside.require(folder / extent.file)
    for path in [*(view.folder / extent.file for extent in view.extents), *view.chunk_paths]:
        inside.require(path)
        if not path.is_file():
            raise _TooOld(f"partition {name}: {path} is missing")
    for path, chunk in zip(view.chunk_paths, view.chunks, strict=True):
        try:
            sound.require(path, chunk)
        except MissingFile as error:
            raise _TooOld(f"partition {name}: {path} is missing") from error
    return view
