"""The batch layer's Iceberg table: opened, brought up to date, appended to once for each seal.

A snapshot that adds rows carries the seal's id. Of the snapshots in the table's main branch, at
most one has a given id, whoever else is at work: a commit requires the branch to be where it was
when duplicates were looked for, pyiceberg never repeats a commit by itself, and whether one has
landed is read from the table alone, not from the catalog's answer, which can be lost.

Columns are those of events, except `_partition` (see `query.iceberg`). Only columns of numbers and
times have bounds in the table: pyiceberg can't round up a text that ends in U+D7FF.
"""

import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
from pyiceberg import exceptions
from pyiceberg.catalog import load_catalog
from pyiceberg.manifest import ManifestEntryStatus
from pyiceberg.table import Table
from pyiceberg.table.snapshots import Snapshot, ancestors_of
from pyiceberg.transforms import DayTransform
from sqlalchemy import URL
from sqlalchemy.exc import SQLAlchemyError

from forebay.flows.sections import BatchSettings
from forebay.query.iceberg import SOURCE_PARTITION
from forebay.storage.base.errors import BadInput, Corruption, ForebayError
from forebay.storage.formats.schema import PARTITION, UPLOAD_TIME

SEAL = "forebay.seal"
"""The property of a snapshot that has the seal's id."""
TIME = pa.timestamp("us", tz="UTC")
DAY_FIELD = "upload_time_day"
RETRIES = "commit.retry.num-retries"
BOUNDS = "write.metadata.metrics"
TRIES, PAUSE_S = 6, 0.05
NOT_NOW = (
    exceptions.CommitFailedException,
    exceptions.RESTError,
    exceptions.WaitingForLockException,
    SQLAlchemyError,
    exceptions.TableAlreadyExistsError,
    exceptions.NamespaceAlreadyExistsError,
    OSError,
)
"""What a catalog, or the file system below, raises when others are at work or an answer is lost."""
REFUSED = (
    ValueError,
    NotImplementedError,
    exceptions.NoSuchPropertyException,
    exceptions.NotInstalledError,
    exceptions.ResolveError,
    exceptions.ValidationError,
    exceptions.ValidationException,
)
"""What pyiceberg raises for what can't be done, however often it is tried."""

NOT_SHOWN = "no error, but a table without it"
"""What a catalog answers whose reads are behind its changes."""


@dataclass(frozen=True)
class Landed:
    """What the snapshot of a seal has added: files with their rows, and the snapshot's properties.
    Rows may have been moved to other files since."""

    files: dict[str, int]
    properties: Mapping[str, str]

    @property
    def rows(self) -> int:
        return sum(self.files.values())


class EventTable:
    """The configured table; if no catalog is configured, in a SQLite one in `folder`. Created if
    missing, unless a handoff named one (`handed_over`).

    Raises BadInput if it can't be opened, or can't have the columns of events, `schema`.
    """

    def __init__(
        self, config: BatchSettings, folder: Path, schema: pa.Schema, handed_over: str | None
    ) -> None:
        self._name = config.table
        self._handed_over = handed_over
        self._refused = NOT_SHOWN
        catalog = config.catalog or own_catalog(folder)
        with self._told():
            self.table = self._tried(lambda: self._open(catalog, schema))

    @property
    def head(self) -> int | None:
        """The newest snapshot of the main branch, at the last look."""
        snapshot = self.table.current_snapshot()
        return snapshot.snapshot_id if snapshot else None

    def landed(self, seal: str) -> Landed | None:
        """What was added for this seal, at the last look. Raises Corruption if that is there more
        than once, or can't be read."""
        history = ancestors_of(self.table.current_snapshot(), self.table.metadata)
        found = [snapshot for snapshot in history if _properties(snapshot).get(SEAL) == seal]
        if not found:
            return None
        if len(found) > 1:
            ids = ", ".join(str(snapshot.snapshot_id) for snapshot in found)
            raise Corruption(
                f"table {self._name}: expected one snapshot with seal {seal}, got {ids}: its rows"
                " are there more than once"
            )
        return Landed(self._added(found[0]), _properties(found[0]))

    def append(self, paths: list[str], seal: str, properties: Mapping[str, str]) -> None:
        """Try to add these files, if the table is as it was at the last look; then look again.
        `landed` says whether they are there now. Raises BadInput if they do not fit."""
        self._refused = NOT_SHOWN
        try:
            with self._told(), self.table.transaction() as change:
                change.add_files(paths, snapshot_properties={SEAL: seal, **properties})
        except NOT_NOW as error:
            self._refused = _one_line(error)
        self.look()

    def delete(self, path: str) -> None:
        """Delete a file that no snapshot names."""
        self.table.io.delete(path)

    def look(self) -> None:
        """See what the catalog has now."""
        self.table = self._tried(lambda: self._catalog.load_table(self._name))

    def not_now(self) -> BadInput:
        """Judged by what the catalog last refused."""
        return BadInput(
            f"table {self._name}: expected the catalog to take a change, got {self._refused},"
            f" {TRIES} times; try again later"
        )

    def _added(self, snapshot: Snapshot) -> dict[str, int]:
        io = self.table.io
        try:
            return {
                entry.data_file.file_path: entry.data_file.record_count
                for manifest in snapshot.manifests(io)
                if manifest.added_snapshot_id == snapshot.snapshot_id
                for entry in manifest.fetch_manifest_entry(io)
                if entry.status == ManifestEntryStatus.ADDED
                and entry.snapshot_id == snapshot.snapshot_id
            }
        except FileNotFoundError as error:
            raise Corruption(
                f"table {self._name}: expected snapshot {snapshot.snapshot_id} to be readable, got"
                f" {error}; roll the table back to the snapshot before it"
            ) from error

    def _tried(self, act: Callable[[], Table]) -> Table:
        """What `act` returns, repeated while the catalog can't do it just now."""
        for _ in attempts():
            try:
                return act()
            except NOT_NOW as error:
                self._refused = _one_line(error)
        raise self.not_now()

    def _open(self, catalog: Mapping[str, str], schema: pa.Schema) -> Table:
        self._catalog = load_catalog("forebay", **catalog)
        table = self._load_or_make(schema)
        self.schema = self._as_named(schema, table.schema().column_names)
        self._bring_up_to_date(table)
        return table

    def _load_or_make(self, schema: pa.Schema) -> Table:
        try:
            return self._catalog.load_table(self._name)
        except exceptions.NoSuchTableError:
            if self._handed_over is not None:
                raise BadInput(
                    f"table {self._name}: expected it in the catalog, for the last handoff named"
                    f" {self._handed_over}; register that file under this name"
                ) from None
        namespace, _, _ = self._name.rpartition(".")
        self._catalog.create_namespace_if_not_exists(namespace)
        columns = self._as_named(schema, [])
        return self._catalog.create_table(self._name, columns, properties={RETRIES: "0"})

    def _as_named(self, schema: pa.Schema, columns: Sequence[str]) -> pa.Schema:
        """The columns of events, named as in a table with these columns: `_partition` keeps its
        name where a declared column has ours for it, unless the table already uses ours."""
        if SOURCE_PARTITION not in schema.names:
            own = {PARTITION: SOURCE_PARTITION}
            return pa.schema([field.with_name(own.get(field.name, field.name)) for field in schema])
        if SOURCE_PARTITION in columns and PARTITION not in columns:
            raise BadInput(
                f"table {self._name}: expected no declared column {SOURCE_PARTITION}, as it has"
                f" {PARTITION} there"
            )
        return schema

    def _bring_up_to_date(self, table: Table) -> None:
        with table.transaction() as change:
            names = table.schema().column_names
            if PARTITION in names and PARTITION not in self.schema.names:
                with change.update_schema() as columns:
                    columns.rename_column(PARTITION, SOURCE_PARTITION)
            with change.update_schema() as columns:
                columns.union_by_name(self.schema)
            if table.spec().is_unpartitioned():
                with change.update_spec() as spec:
                    spec.add_field(UPLOAD_TIME, DayTransform(), _free(DAY_FIELD, self.schema.names))
            wanted = {RETRIES: "0", **_bounds(self.schema)}
            if missing := {k: v for k, v in wanted.items() if table.properties.get(k) != v}:
                change.set_properties(missing)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What pyiceberg permanently refuses is raised as BadInput."""
        try:
            yield
        except (ForebayError, *NOT_NOW):
            raise
        except REFUSED as error:
            raise BadInput(f"table {self._name}: {type(error).__name__}: {error}") from error


def own_catalog(folder: Path) -> dict[str, str]:
    """A SQLite catalog and a warehouse in this folder, whatever characters its path has: a URI goes
    to SQLite only, and elsewhere only if it is the same with and without quoting."""
    place = str(folder.resolve())
    file = f"file:{quote(place)}/catalog.db"
    uri = URL.create("sqlite", database=file, query={"uri": "true"})
    return {
        "type": "sql",
        "uri": uri.render_as_string(hide_password=False),
        "warehouse": f"{'file://' if quote(place) == place else ''}{place}/warehouse",
    }


def attempts() -> Iterator[int]:
    """Bounded tries, with growing pauses between them that no two runs have in common."""
    for number in range(TRIES):
        if number:
            time.sleep(PAUSE_S * 2**number * random.uniform(0.5, 1))
        yield number


def _one_line(error: Exception) -> str:
    """As it is reported, in one line: SQLAlchemy adds its statements in more."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _bounds(schema: pa.Schema) -> dict[str, str]:
    """Properties: which columns have bounds in the table's metadata."""
    ordered = {f.name for f in schema if pa.types.is_integer(f.type) or f.type == TIME}
    columns = {name: "full" if name in ordered else "counts" for name in schema.names}
    return {
        f"{BOUNDS}.default": "counts",
        **{f"{BOUNDS}.column.{name}": mode for name, mode in columns.items()},
    }


def _free(name: str, taken: Iterable[str]) -> str:
    """The name, with a number if a column has it."""
    known = {one.casefold() for one in taken}
    names = (name, *(f"{name}_{number}" for number in range(2, len(known) + 3)))
    return next(one for one in names if one.casefold() not in known)


def _properties(snapshot: Snapshot) -> Mapping[str, str]:
    return snapshot.summary.additional_properties if snapshot.summary else {}
