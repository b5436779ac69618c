"""A view: what all nodes together hold at one moment, each event exactly once.

For each node, in this order: `batch.json`, every partition's hot manifest, every partition's chunk
catalog, then `batch.json` again. Blocks only ever move from hot to cold, so in this order none is
missed; a hot block that the catalog covers is left out, so none is read twice. A chunk that the
manifest's run has withdrawn, or is about to, does not count. The batch layer's events may be
deleted as soon as the boundary has moved. So a view is too old if its boundary moved, if files of
it are gone, or if a catalog is of a later run than its manifest; it is then taken again. A damaged
partition does not keep the others from being read, if the reader may do without it.

No locks, and nothing is written: the job never knows. A view's files stay for the grace period.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from hashlib import blake2b
from pathlib import Path

import pyarrow as pa

from forebay.query.exchange import NODE, Offer, identity_of
from forebay.query.node import LOOK_S, Asked, Node, Remote, ask
from forebay.query.partition import (
    ChunkFile,
    Directory,
    Partition,
    Published,
    VerifiedChunks,
)
from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import BadInput, Corruption, ForebayError, MissingFile
from forebay.storage.base.layout import Layout
from forebay.storage.base.times import time_of
from forebay.storage.decoding.from_raw import FromRaw, from_raw_of
from forebay.storage.formats.boundary import Boundary, Placed, read_boundary
from forebay.storage.formats.columns import SYSTEM_FIELDS, parse_types, unite
from forebay.storage.formats.state import PartitionState

TRIES = 50
PAUSE_S = 0.01


@dataclass(frozen=True)
class SilentPartition:
    """A `partition` that can't be read and is left out, its `node` (the data directory), and the
    `reason`, in words."""

    node: str
    partition: str
    reason: str


@dataclass(frozen=True)
class NodeView:
    """One data directory; `boundary` is None if it did not answer, for this `reason`. `silent`
    partitions are left out. `node` is the other node that has it, None if it is read from here."""

    root: Path
    boundary: Boundary | None
    partitions: tuple[Partition, ...] = ()
    silent: tuple[SilentPartition, ...] = ()
    reason: str = ""
    node: Node | None = None
    name: str = ""
    """Its name for people: that of the directory, or of the node that has it."""

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", str(self.root))

    def without(self, faults: Mapping[Path, str]) -> NodeView:
        """The node without the partitions in these folders of this host, for these reasons."""
        if self.node is not None:
            return self
        out = [p for p in self.partitions if p.folder in faults]
        silent = (SilentPartition(self.name, p.name, faults[p.folder]) for p in out)
        kept = tuple(p for p in self.partitions if p.folder not in faults)
        return replace(self, partitions=kept, silent=(*self.silent, *silent))


@dataclass(frozen=True)
class View:
    """All nodes at one moment."""

    nodes: tuple[NodeView, ...]

    @property
    def partitions(self) -> list[Partition]:
        return [partition for node in self.nodes for partition in node.partitions]

    @property
    def _with_events(self) -> list[Partition]:
        """All partitions; if any ever had events, only those that did: the others go on under any
        key and columns, so what they were begun with says nothing."""
        had = [partition for partition in self.partitions if partition.state.counters.accepted]
        return had or self.partitions

    @property
    def silent_partitions(self) -> list[SilentPartition]:
        return [partition for node in self.nodes for partition in node.silent]

    @property
    def chunk_files(self) -> list[ChunkFile]:
        return [file for partition in self.partitions for file in partition.chunk_files]

    def without(self, faults: Mapping[Path, str]) -> View:
        """The view without the partitions in these folders, for these reasons."""
        return View(tuple(node.without(faults) for node in self.nodes))

    @property
    def from_raw(self) -> FromRaw:
        """All columns that any partition declares."""
        known = {one.name: one for p in self.partitions for one in p.from_raw.columns}
        return from_raw_of(tuple(known.values()))

    def declaring(self) -> View:
        """The view with each partition knowing what any declares; its own declarations win."""
        known = {one.name: one for p in self._with_events for one in p.state.declared}

        def informed(partition: Partition) -> Partition:
            declared = {**known, **{one.name: one for one in partition.state.declared}}
            return replace(partition, from_raw=from_raw_of(tuple(declared.values())))

        return View(
            tuple(
                replace(node, partitions=tuple(map(informed, node.partitions)))
                for node in self.nodes
            )
        )

    @property
    def covered_until_ms(self) -> int | None:
        """One boundary for all nodes: the furthest of any."""
        known = [batch.covered_until_ms for batch in self._boundaries]
        return max((ms for ms in known if ms is not None), default=None)

    @property
    def covered_until(self) -> datetime | None:
        """The same as a time."""
        return None if self.covered_until_ms is None else time_of(self.covered_until_ms)

    @property
    def events(self) -> list[Partition]:
        """All partitions that may have events at or after the boundary."""
        until_ms = self.covered_until_ms
        if until_ms is None:
            return self.partitions
        return [p.only(lambda part: part.last_ms >= until_ms) for p in self.partitions]

    @property
    def late(self) -> list[Partition]:
        """All partitions that may have events of the late table: they arrived after their time was
        sealed, and the boundary has passed them, but no batch layer took them."""
        until_ms = self.covered_until_ms
        return [] if until_ms is None else self._such(partial(_came_late, until_ms))

    @property
    def sealed_until_ms(self) -> int | None:
        """The time up to which all nodes are sealed."""
        seals = [node.boundary.seal if node.boundary else None for node in self.nodes]
        return min((s.until_ms for s in seals if s), default=None) if all(seals) else None

    @property
    def sealed(self) -> list[Partition]:
        """All partitions that may have events which the newest seal is about to hand over."""
        return self._such(_about_to_go)

    def _such(self, wanted: Callable[[Boundary, Placed], bool]) -> list[Partition]:
        """All partitions, with just the blocks and chunks wanted at their node's boundary."""
        return [
            partition.only(partial(wanted, node.boundary or Boundary()))
            for node in self.nodes
            for partition in node.partitions
        ]

    @property
    def table(self) -> str | None:
        """The metadata file of the batch layer's table at the boundary."""
        found = self._with_table
        return None if found is None or found.boundary is None else found.boundary.table

    @property
    def table_node(self) -> Node | None:
        """The other node that has it, None if it is to be read from here."""
        return None if self._with_table is None else self._with_table.node

    @property
    def _with_table(self) -> NodeView | None:
        """Of the nodes with the furthest boundary, one with a table if possible; of these
        preferably the one with the table in its data directory, then one on this host."""

        def order(node: NodeView) -> tuple[int, bool, bool, bool]:
            assert node.boundary is not None
            until_ms, table = node.boundary.covered_until_ms or 0, node.boundary.table
            root = node.root.absolute() if node.node is None else node.root
            held = table is not None and _is_below(table, root)
            return until_ms, table is not None, held, node.node is None

        return max((n for n in self.nodes if n.boundary is not None), key=order, default=None)

    @property
    def batch_number(self) -> int:
        return max((batch.number for batch in self._boundaries), default=0)

    @property
    def _boundaries(self) -> list[Boundary]:
        """The boundaries of the nodes that answered."""
        return [node.boundary for node in self.nodes if node.boundary is not None]

    @property
    def version(self) -> bytes:
        """Equal for views of the same data: a hash of the boundaries, manifests and chunks that
        count, and of what is left out."""
        found = blake2b(digest_size=16)
        for node in self.nodes:
            boundary = b"" if node.boundary is None else node.boundary.encode()
            parts = [node.name.encode(), boundary, repr(node.silent).encode()]
            for one in node.partitions:
                ids = [chunk.id for chunk in one.chunks]
                rows = one.handed_off_rows, one.expired_rows
                hot = [block.id for block in one.hot]  # of a remote one, its state has none
                parts += [one.state.encode(), repr((ids, rows, hot)).encode()]
            for part in parts:
                found.update(len(part).to_bytes(8, "big") + part)
        return found.digest()

    @property
    def key(self) -> tuple[str, ...]:
        """The dedup key's columns. Raises BadInput if partitions have different ones."""
        keys = {partition.state.key for partition in self._with_events}
        if len(keys) > 1:
            raise BadInput(f"dedup_key: expected the same of all nodes, got {sorted(keys)}")
        return next(iter(keys), ())

    @property
    def schema(self) -> pa.Schema:
        """All columns that any partition ever had. Raises BadInput if types conflict."""
        types = [p.state.schema for p in self._with_events]
        types += [chunk.schema for p in self.partitions for chunk in p.chunks]
        try:
            return unite([pa.schema(SYSTEM_FIELDS), *map(parse_types, types)])
        except ValueError as error:
            raise BadInput(str(error)) from error


def _is_below(table: str, root: Path) -> bool:
    """Whether a metadata file is in a data directory of its host."""
    return Path(table.removeprefix("file://")).is_relative_to(root)


def _came_late(until_ms: int, boundary: Boundary, part: Placed) -> bool:
    return boundary.in_late_table(part) and part.first_ms < until_ms


def _about_to_go(boundary: Boundary, part: Placed) -> bool:
    if boundary.seal is None or part.first_ms >= boundary.seal.until_ms:
        return False
    if part.late:
        return boundary.late_from <= part.late < boundary.seal.number
    return boundary.covered_until_ms is None or part.last_ms >= boundary.covered_until_ms


class _TooOld(MissingFile):
    """The files that were read no longer fit together."""


def take_view(
    disk: Disk,
    places: Sequence[Path | Node],
    *,
    chunks: VerifiedChunks | None = None,
    published: Published | None = None,
    partial: bool = False,
    without: Mapping[str, str] | None = None,
) -> View:
    """A view of all nodes as they are now: of data directories, and of other nodes, which are asked
    all at once. With `partial`, a node or partition that can't be read is left out and named in the
    receipt; otherwise it is an error. `chunks` were verified before, and `published` was decoded
    before; `without` are nodes (their URLs) to leave out, for these reasons.

    Raises BadInput if a root is no directory, MissingFile if files stay missing, Corruption,
    FormatVersion, NodeError.
    """
    chunks, published, out = chunks or VerifiedChunks(), published or Published(), without or {}
    with ExitStack() as stack:
        asked = {
            one: stack.enter_context(closing(ask(one, NODE, seconds=min(LOOK_S, one.seconds))))
            for one in places
            if isinstance(one, Node) and one.url not in out
        }
        found: list[NodeView] = []
        for one in places:
            if not isinstance(one, Node):
                found.append(_node(disk, one, chunks, published, partial))
            elif one.url in out:
                found.append(_missing(one, out[one.url]))
            else:
                found += _offered(disk, one, asked[one], partial)
    return View(tuple(_counted_once(found) if asked else found)).declaring()


def _missing(node: Node, reason: str) -> NodeView:
    return NodeView(Path(), None, reason=reason, node=node, name=node.url)


def _offered(disk: Disk, node: Node, asked: Asked, partial: bool) -> list[NodeView]:
    """The data directories that another node offers."""
    try:
        offer = Offer.decode(asked.read(), node.url)
    except ForebayError as error:
        if partial:
            return [_missing(node, str(error).removeprefix(f"{node.url}: "))]
        raise
    several = len(offer.directories) > 1
    views = []
    for directory in offer.directories:
        name = f"{node.url} {directory.root}" if several else node.url
        for partition, reason in directory.silent.items():
            if not partial:
                raise Corruption(f"{name}: partition {partition}: {reason}")
        layout = Layout(Path(directory.root))
        partitions = tuple(
            Partition(
                disk, layout, one.state, one.hot, one.chunks, one.handed_off_rows,
                one.expired_rows, remote=Remote(node, directory.root, one.identity),
            )
            for one in directory.partitions
        )  # fmt: skip
        silent = tuple(SilentPartition(name, *one) for one in directory.silent.items())
        reason = "" if directory.boundary else "expected a data directory, got none"
        views.append(
            NodeView(
                layout.root, directory.boundary, partitions, silent, reason, node=node, name=name
            )
        )
    return views


def _counted_once(nodes: Sequence[NodeView]) -> list[NodeView]:
    """The nodes, with each partition once: two nodes may have the same directory or a copy of it.
    The partition that has come furthest counts, and of equals the one read from here."""
    best: dict[str, tuple[tuple[int, int, bool], Partition]] = {}
    for partition in (one for node in nodes for one in node.partitions):
        counters = partition.state.counters
        come = counters.accepted + counters.duplicates
        order = partition.state.incarnation, come, partition.remote is None
        known = best.get(identity := identity_of(partition))
        if known is None or order > known[0]:
            best[identity] = order, partition
    kept = {id(partition) for _, partition in best.values()}
    return [
        replace(node, partitions=tuple(one for one in node.partitions if id(one) in kept))
        for node in nodes
    ]


def _node(
    disk: Disk, root: Path, chunks: VerifiedChunks, published: Published, partial: bool
) -> NodeView:
    for tries_left in reversed(range(TRIES)):
        try:
            with _readable(root):
                node, faults = _read_node(disk, root, chunks, published)
        except _TooOld as error:
            node, faults = NodeView(root, None, reason=str(error)), [error]
        except ForebayError as error:
            if partial:
                return NodeView(root, None, reason=str(error))
            raise
        lasting = [fault for fault in faults if not isinstance(fault, _TooOld)]
        if lasting and not partial:
            raise lasting[0]
        if len(lasting) == len(faults) or (partial and not tries_left):
            return node
        time.sleep(PAUSE_S)
    raise MissingFile(f"{root}: {faults[0]}, after {TRIES} tries")


@contextmanager
def _readable(root: Path) -> Iterator[None]:
    """Turn an OSError from within into one of ours."""
    try:
        yield
    except OSError as error:
        raise BadInput(f"{root}: expected a readable data directory, got {error}") from error


def _read_node(
    disk: Disk, root: Path, chunks: VerifiedChunks, published: Published
) -> tuple[NodeView, list[ForebayError]]:
    """The node, and the faults of the partitions that had to be left out."""
    if not root.is_dir():
        raise NotADirectoryError(f"no directory at {root}")
    directory = Directory(disk, root, published)
    layout = directory.layout
    directory.require(layout.batch)
    boundary = read_boundary(disk, layout)
    states: list[PartitionState] = []
    partitions: list[Partition] = []
    faults: dict[str, ForebayError] = {}
    for name in layout.partitions():
        with _noted(faults, root, name):
            state = directory.state(name)
            states += [] if state is None else [state]
    for state in states:
        with _noted(faults, root, state.partition):
            partitions.append(_partition(directory, state, chunks))
    silent = tuple(SilentPartition(str(root), name, str(e)) for name, e in faults.items())
    found = list(faults.values())
    if read_boundary(disk, layout).number != boundary.number:
        found.append(_TooOld("a day was handed over meanwhile, and its chunks may have gone"))
    return NodeView(root, boundary, tuple(partitions), silent), found


@contextmanager
def _noted(faults: dict[str, ForebayError], root: Path, partition: str) -> Iterator[None]:
    """Note a fault of one partition, as the others may still be readable."""
    try:
        with _readable(root):
            yield
    except ForebayError as error:
        faults[partition] = error


def _partition(directory: Directory, state: PartitionState, chunks: VerifiedChunks) -> Partition:
    name = state.partition
    catalog = directory.catalog(name)
    if any(chunk.id.incarnation > state.incarnation for chunk in catalog.chunks):
        raise _TooOld(f"partition {name}: its catalog is of a later run than its manifest")
    found = Partition.of(directory, state, catalog)
    try:
        found.require_files(directory)
        for file in found.chunk_files:
            chunks.require(file)
    except MissingFile as error:
        raise _TooOld(f"partition {name}: {error}") from error
    return found
