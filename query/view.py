"""A view: what all nodes together hold at one moment, each event exactly once.

Steps, for each node: `batch.json`, then every partition's hot manifest, then every partition's
chunk catalog, then `batch.json` again. Blocks only ever move from hot to cold, so in this order
none is missed; a hot block that the catalog covers is left out, so none is read twice. A chunk that
the manifest's run has withdrawn, or is about to, does not count. What the batch layer has may be
deleted as soon as the boundary has moved, so a view whose boundary moved is too old, as is one
whose files are gone or whose catalog is of a later run than its manifest; it is taken again.

No locks, and nothing is written: the job never knows. A view's files stay for the grace period.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from storage.batch import Batch, read_batch
from storage.catalog import Catalog, Chunk, read_catalog
from storage.errors import BadInput, Corruption, MissingFile
from storage.files import Files
from storage.layout import Layout
from storage.log import Extent
from storage.schema import SYSTEM_FIELDS, parse_types, unite
from storage.state import BlockState, PartitionState, read_manifest

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
class NodeView:
    """One data directory; `batch` is None if it did not answer."""

    root: Path
    batch: Batch | None
    partitions: tuple[PartitionView, ...] = ()


@dataclass(frozen=True)
class View:
    """All nodes at one moment."""

    nodes: tuple[NodeView, ...]

    @property
    def partitions(self) -> list[PartitionView]:
        return [partition for node in self.nodes for partition in node.partitions]

    @property
    def covered_until_ms(self) -> int | None:
        """One boundary for all nodes: the furthest that any of them knows."""
        known = [n.batch.covered_until_ms for n in self.nodes if n.batch is not None]
        return max((ms for ms in known if ms is not None), default=None)

    @property
    def batch_number(self) -> int:
        return max((n.batch.number for n in self.nodes if n.batch is not None), default=0)

    @property
    def schema(self) -> pa.Schema:
        """All columns that any partition ever had. Raises BadInput where two types clash."""
        types = [p.state.schema for p in self.partitions]
        types += [chunk.schema for p in self.partitions for chunk in p.chunks]
        try:
            return unite([pa.schema(SYSTEM_FIELDS), *map(parse_types, types)])
        except ValueError as error:
            raise BadInput(str(error)) from error


class _TooOld(Exception):
    """What was read does not fit together any more."""


def take_view(files: Files, roots: Sequence[Path], *, partial: bool = False) -> View:
    """The present view of all nodes. With `partial`, a node that can't be read is left out and
    named in the receipt; without, it is an error.

    Raises BadInput if a root is no directory, MissingFile if files stay missing, Corruption.
    """
    return View(tuple(_node(files, root, partial) for root in roots))


def _node(files: Files, root: Path, partial: bool) -> NodeView:
    for _ in range(TRIES):
        try:
            return _read_node(files, root)
        except _TooOld as error:
            problem = str(error)
            time.sleep(PAUSE_S)
        except OSError as error:
            if partial:
                return NodeView(root, None)
            raise BadInput(f"{root}: expected a readable data directory, got {error}") from error
    if partial:
        return NodeView(root, None)
    raise MissingFile(f"{root}: {problem}, after {TRIES} tries")


def _read_node(files: Files, root: Path) -> NodeView:
    if not root.is_dir():
        raise NotADirectoryError(f"no directory at {root}")
    layout = Layout(root)
    _require_inside(root, layout.batch)
    batch = read_batch(files, layout)
    states = [_state(files, layout, name) for name in layout.partitions()]
    partitions = tuple(_partition(files, layout, state) for state in states if state is not None)
    if read_batch(files, layout).number != batch.number:
        raise _TooOld("a day was handed over meanwhile, and its chunks may have gone")
    return NodeView(root, batch, partitions)


def _require_inside(root: Path, path: Path) -> None:
    """Raise Corruption if links lead out of the data directory."""
    if not path.resolve().is_relative_to(root.resolve()):
        raise Corruption(f"{path}: expected a file below {root}, got a link out of it")


def _state(files: Files, layout: Layout, name: str) -> PartitionState | None:
    path = layout.manifest(name)
    _require_inside(layout.root, path)
    _require_inside(layout.root, layout.catalog(name))
    state = read_manifest(files, path)
    if state is not None and state.partition != name:
        raise Corruption(f"{path}: expected partition {name!r}, got {state.partition!r}")
    return state


def _partition(files: Files, layout: Layout, state: PartitionState) -> PartitionView:
    name = state.partition
    catalog: Catalog = read_catalog(files, layout.catalog(name), name)
    if any(chunk.id.incarnation > state.incarnation for chunk in catalog.chunks):
        raise _TooOld(f"partition {name}: its catalog is of a later run than its manifest")
    catalog = catalog.committed(state.runs, state.incarnation)
    hot = tuple(block for block in state.blocks if block.id not in catalog.covered)
    view = PartitionView(layout.hot(name), layout.chunks(name), state, hot, catalog.chunks)
    for path in [*(view.folder / extent.file for extent in view.extents), *view.chunk_paths]:
        _require_inside(layout.root, path)
        if not path.is_file():
            raise _TooOld(f"partition {name}: {path} is missing")
    return view
