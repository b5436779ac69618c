"""The store: hot blocks and cold chunks of one or several nodes as one table, `events`; and the
`rejects`.

    store = forebay.open("data")
    store.sql("select event_type, count(*) as n from events group by event_type order by n desc")
    store.scan().filter(pl.col("user_id") == "u42").collect()

Columns are `_partition`, `_offset`, `upload_time`, the declared ones, and `raw` if it is kept.
Projection, predicate and row limit reach both layers. Each answer comes from one view; `receipt`
says what the last one covered. Before a chunk is read, its size and footer are checked against its
catalog; with `verify`, all of its bytes are.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from html import escape
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, get_args
from zoneinfo import available_timezones

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from forebay.query.analytics.granularity import Alike
from forebay.query.analytics.roles import published_roles
from forebay.query.batches import event_batches
from forebay.query.dataset import NotRead, reader
from forebay.query.exchange import Offer, Wanted
from forebay.query.folded import EXACT, Granularity
from forebay.query.folds import Folds
from forebay.query.frames import (
    arrow_of,
    exported,
    polars_schema,
)
from forebay.query.hot import HotCache
from forebay.query.iceberg import can_read_tables
from forebay.query.minutes import per_minute
from forebay.query.node import Node, places_of
from forebay.query.offered import offer_of, rows_of
from forebay.query.partition import Partition, Published, VerifiedChunks
from forebay.query.questions import Layers, Questions
from forebay.query.receipt import (
    Receipt,
    files_of,
    partitions_of,
    receipt_of,
    told_of,
    whole_files_of,
)
from forebay.query.remote import remote, remote_events
from forebay.query.scans import Scans, can_count, parts, picked_rejects, scan_rejects
from forebay.query.tables import (
    ALL_EVENTS,
    LATE,
    REJECTS,
    SEALED,
    TABLE,
    Limits,
    Parameters,
    Part,
    Relation,
)
from forebay.query.view import View, take_view
from forebay.query.why import Explanation, explain
from forebay.storage.base.directory import (
    require_data_directories,
    require_distinct,
)
from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import BadInput, Corruption, MissingFile, NodeError
from forebay.storage.base.layout import Layout
from forebay.storage.base.text import plain, shortened
from forebay.storage.formats.frame import REJECT_SCHEMA
from forebay.storage.formats.rejects import ALL, RejectFilter
from forebay.storage.formats.schema import OFFSET

if TYPE_CHECKING:
    from forebay.query.sql import Engine
    from forebay.query.statement import Statement

STREAMED = (TABLE, ALL_EVENTS, LATE, REJECTS)
RETRIES = 5
STREAM_ROWS = 65_536
REPORTED_CHARACTERS = 1000
REPR_WIDTH = 80
NOT_VALID = (
    pl.exceptions.ColumnNotFoundError,
    pl.exceptions.InvalidOperationError,
    pl.exceptions.SchemaError,
)
"""Errors that a query raises before it reads anything."""

T = TypeVar("T")


class Store(Questions):
    """One data directory, or those of several nodes read as one; made by `open`.

    Reads; never writes. Thread safety: any thread. Each answer comes from a view taken for it. Lazy
    frames must be collected, and streams read, within the grace period (10 minutes unless the job
    has another `grace`), as replaced files are deleted after that.

    Methods raise BadInput for an invalid question; Corruption, FormatVersion or MissingFile if data
    that counts can't be read. With `partial`, its partition is left out instead.
    """

    def __init__(
        self,
        places: Sequence[Path | Node],
        *,
        partial: bool = False,
        verify: bool = False,
        iceberg: Mapping[str, str] | None = None,
        limits: Limits | None = None,
        time_zone: str = "UTC",
    ) -> None:
        """`places` are data directories and other nodes; `partial`, `verify`, `iceberg`, `limits`
        and `time_zone` are as in `open`, which checks them."""
        super().__init__()
        self._limits = limits or Limits()
        self._time_zone = time_zone
        self._disk = Disk()
        self._places = places
        self._roots = roots = [one for one in places if isinstance(one, Path)]
        self._partial = partial
        self._chunks = VerifiedChunks(whole=verify)
        self._wanted_chunks = VerifiedChunks(whole=verify)
        self._published = Published()
        self._cache = HotCache()
        self._answering = threading.local()
        """`lost`: the nodes that the current answer does without, and why; `view`: the view that
        all of it must come from, if any."""
        self._folds = Folds(self._chunks, self._cache)
        self._scans = Scans(self._chunks, self._cache, self._folds, dict(iceberg or {}), roots)
        self.last_view = self.view()
        """The view of the last answer; not part of the public interface."""

    def __repr__(self) -> str:
        """What the last answer covers, as lines of text."""
        places = shortened(plain(", ".join(map(str, self._places))), REPR_WIDTH - 10)
        return "\n  ".join([f"Store of {places}", *told_of(self.last_view)])

    def _repr_html_(self) -> str:
        """The same as HTML."""
        first, *lines = (escape(line.strip()) for line in repr(self).splitlines())
        return f"<p><b>{first}</b><br>{'<br>'.join(lines)}</p>"

    @cached_property
    def _engine(self) -> Engine:
        """Made, like its imports, for the first query: DuckDB takes a while to load."""
        from forebay.query.sql import Engine

        folders = [Layout(root).chunks("") for root in self._roots]
        return Engine(folders, self._limits, self._time_zone)

    def view(self) -> View:
        """Take a new view, which `last_view`, `receipt` and the next use of it refer to. The
        content of a view is not part of the public interface."""
        view: View | None = getattr(self._answering, "view", None)
        if view is None:
            view = take_view(
                self._disk, self._places, chunks=self._chunks, published=self._published,
                partial=self._partial, without=getattr(self._answering, "lost", None),
            )  # fmt: skip
            self._cache.keep(view)
            self._folds.keep(view)
            self._chunks.keep(file.path for file in view.chunk_files)
        self.last_view = view
        return view

    def _readable(self, *, events: bool = True, rejects: bool = False) -> View:
        """A new view. With `partial`, without partitions that have a damaged log of the kinds asked
        for: these logs are read first, as a query fails as a whole."""
        view = self.view()
        if self._partial:
            faults = _damaged(view.partitions, self._cache.follow) if events else {}
            if rejects:
                faults |= _damaged(view.partitions, lambda one: deque(one.rejects(ALL), maxlen=0))
            self.last_view = view.without(faults)
        return self.last_view

    @property
    def schema(self) -> pa.Schema:
        """The current columns of events, in Arrow's types."""
        return arrow_of(polars_schema(self.view().schema))

    def _rows(
        self, columns: Sequence[str], where: pc.Expression | None
    ) -> Iterator[pa.RecordBatch]:
        view = self._readable()
        schema = arrow_of(polars_schema(view.schema))
        [part] = parts(view, TABLE)
        return self._events(view, part, schema, columns, where)

    def _events(
        self, view: View, part: Part, schema: pa.Schema, columns: Sequence[str],
        where: pc.Expression | None = None,
    ) -> Iterator[pa.RecordBatch]:  # fmt: skip
        """The rows of a part with these columns of `schema`, from here and other nodes."""
        wanted = pa.schema([schema.field(name) for name in columns])
        yield from event_batches(*part, wanted, where)
        names = list(columns) or [OFFSET]
        for batch in remote_events(*part, view.schema, schema, names, where):
            yield batch.select(list(columns))

    def scan(self, layers: Layers = "realtime") -> pl.LazyFrame:
        """All events of a view taken now: those of the real-time layer, from the boundary on, or of
        both layers, with `layers` "all".

        Columns are `_partition`, `_offset`, `upload_time` (ms, UTC), the declared ones, and `raw`
        if it is kept. Collect it within the grace period. Raises BadInput for other layers, or for
        "all" without the extra `batch`.
        """
        return self._scanned(layers, EXACT)

    def _scanned(self, layers: Layers, granularity_ms: Granularity) -> pl.LazyFrame:
        if layers not in get_args(Layers):
            raise BadInput(f"layers: expected 'realtime' or 'all', got {layers!r}")
        table = TABLE if layers == "realtime" else ALL_EVENTS
        return self._scans.table(self._readable(), table, granularity_ms)

    def _counted(self, alike: Alike, properties: set[str]) -> pl.LazyFrame | None:
        asked = self._readable(), alike, properties
        return self._scans.counted(*asked) if can_count(*asked) else None

    def late(self) -> pl.LazyFrame:
        """The late table of a view taken now: events below the boundary that arrived after their
        time was sealed, and that no batch layer has taken yet."""
        return self._scans.table(self._readable(), LATE)

    def sealed(self) -> pl.LazyFrame:
        """What the newest seal is about to hand over: events below it that no batch layer has, and
        the late table up to it. The rows are the same in every view until the boundary moves.
        Raises BadInput unless every node has a seal."""
        return self._scans.table(self.view(), SEALED)

    def rejects(self, wanted: RejectFilter = ALL) -> pl.LazyFrame:
        """All rejects of a view taken now, or those that match `wanted`: `_partition`, `_offset`,
        `broker_time` (ms, UTC), `reason`, `detail` and `message` (bytes).

        Collect it within the grace period. Raises BadInput for anything but a RejectFilter.
        """
        return scan_rejects(self._with_rejects(wanted), wanted)

    def reject_batches(self, wanted: RejectFilter) -> Iterator[pa.RecordBatch]:
        """The rejects that match `wanted`, batch by batch, so that memory holds those of one file;
        columns as in `rejects`.

        Raises BadInput for anything but a RejectFilter; MissingFile if files have gone meanwhile,
        as the grace period is over.
        """
        return picked_rejects(self._with_rejects(wanted), wanted)

    def _with_rejects(self, wanted: object) -> View:
        if not isinstance(wanted, RejectFilter):
            raise BadInput(f"rejects: expected a RejectFilter, got {wanted!r}")
        return self._readable(events=False, rejects=True)

    def why(
        self, key: Mapping[str, object], paths: Mapping[str, tuple[str, ...]] | None = None
    ) -> Explanation:
        """Where the event of this dedup key is, or why it is not there.

        `key` has a value for each column of the dedup key. `paths` says where messages have it, as
        keys from the outside in, if not where the job has recorded: rejects are decoded for it, or
        searched for the values as text if nothing is known. The batch layer's table is searched if
        it can be read here. Raises BadInput for another key, or if nothing has been ingested yet.
        """

        def answer() -> Explanation:
            view = self.view()
            _require_here("why", view)
            table = self._scans.batch(view) if can_read_tables() else None
            return explain(view, key, paths or {}, table)

        return self._retried(answer)

    def sql(self, text: str, parameters: Parameters = None) -> pl.DataFrame:
        """The answer to `text`, one query in DuckDB's SQL over the tables `events`, `events_all`
        (including the batch layer's), `events_late` (the late table), `events_sealed` (about to be
        handed over) and `rejects`. `parameters` are values for `?`, in order, or for `$name`, by
        name.

        Times have microseconds, and are null outside the years 1 to 9999. `raw` is JSON here:
        `raw->>'$.a.b'`; it is null if a message is not JSON. 128-bit integers, such as sums, become
        Int64 if they fit. Raises BadInput if the query is invalid, does more than read these
        tables, or exceeds a limit; Corruption if it fails because of a damaged chunk.
        """
        statement = _parsed(text)
        return self._retried(
            lambda: self._engine.frame(statement, parameters, self._relations(statement))
        )

    def sql_stream(self, text: str, parameters: Parameters = None) -> pa.RecordBatchReader:
        """The answer to `text` with its `parameters`, as from `sql`, in Arrow and batch by batch,
        so that memory never holds all of it. Read it within the time limit, which is less than the
        grace period. Raises the same errors, also from the reader."""
        statement = _parsed(text)
        return self._retried(
            lambda: self._engine.stream(statement, parameters, self._relations(statement))
        )

    def _relations(self, statement: Statement) -> dict[str, Relation]:
        """The tables that the statement reads, of a view taken now."""
        names = statement.tables
        view = self._readable(events=names != {REJECTS}, rejects=REJECTS in names)
        self._engine.keep(len(view.chunk_files))
        located, asks = self._engine.located, statement.asks_for
        return {name: self._scans.relation(view, name, located, asks) for name in sorted(names)}

    def _published_roles(self) -> list[Mapping[str, str]]:
        if len(self._roots) == len(self._places):
            return published_roles(*self._roots)
        partitions = self.last_view.partitions or self.view().partitions
        return [one.state.roles for one in partitions if one.state.counters.accepted]

    def receipt(self) -> Receipt:
        """What the last answer covers."""
        return receipt_of(self.last_view)

    def partitions(self) -> pl.DataFrame:
        """One row per partition: progress, counters, and what is hot and cold now.

        `next_offset` is null if several sources feed a partition; `lag` is the number of messages
        in the sources that were not read yet, as last known.
        """
        return partitions_of(self.view())

    def per_minute(self, minutes: int = 60) -> pl.DataFrame:
        """How many events of the last `minutes` up to the newest one are hot and cold now, by
        minute of upload: `minute`, `hot`, `cold`, a row for each minute; no rows if there are no
        events. Raises BadInput for more than a day."""
        return self._retried(lambda: per_minute(self._scans, self._readable(), minutes))

    def stream(self, table: str = TABLE) -> pa.RecordBatchReader:
        """All rows of a `table` ("events", "events_all", "events_late" or "rejects") of a view
        taken now, batch by batch: nothing is read before it is asked for; memory never holds all of
        it.

        Read it within the grace period. Raises BadInput for another table; MissingFile or
        Corruption, also from the reader.
        """
        if table not in STREAMED:
            raise BadInput(f"table: expected one of {', '.join(STREAMED)}; got {table!r}")
        return self._retried(lambda: self._stream(table))

    def files(self, table: str = TABLE) -> pl.DataFrame:
        """The chunk files that count for a `table` ("events" or "events_late") in a view taken now,
        one per row: node, partition, path, rows, bytes, first and last upload time.

        If `from_time` or `before_time` is not null, only rows whose `upload_time` is at or after
        the former, or before the latter, belong to the table. Hot rows are in no file: `receipt`
        counts them. The files stay for the grace period. Raises BadInput for another table.
        """
        if table not in (TABLE, LATE):
            raise BadInput(f"table: expected {TABLE} or {LATE}, got {table!r}")
        view = self._readable()
        _require_here("files", view)
        [(partitions, between)] = parts(view, table)
        return files_of(partitions, between.first_ms, between.end_ms)

    def files_and_rest(self, table: str = TABLE) -> tuple[pl.DataFrame, pa.RecordBatchReader]:
        """A `table` ("events" or "events_late") of one view in two parts, for an engine that reads
        Parquet: the files in which every row counts, as from `files` but without conditions; and
        all other rows, including hot ones, batch by batch. Together they have each row once.

        `lacking` are declared columns that a file lacks: other engines see null there, while a
        Store decodes them from `raw`. Read both within the grace period. Raises BadInput for
        another table; MissingFile or Corruption, also from the reader.
        """
        if table not in (TABLE, LATE):
            raise BadInput(f"table: expected {TABLE} or {LATE}, got {table!r}")
        return self._retried(lambda: self._files_and_rest(table))

    def _files_and_rest(self, table: str) -> tuple[pl.DataFrame, pa.RecordBatchReader]:
        view = self._readable()
        _require_here("files", view)
        [(partitions, between)] = parts(view, table)
        whole = {
            file.path
            for partition in partitions
            for file in partition.chunk_files
            if between.all_of(file.chunk) and not self._chunks.outside_years(file.path)
        }
        rest = [partition.without_files(whole) for partition in partitions]
        schema = arrow_of(polars_schema(view.schema))
        return whole_files_of(partitions, whole), reader(
            schema, event_batches(rest, between, schema)
        )

    def _stream(self, table: str) -> pa.RecordBatchReader:
        view = self._readable(events=table != REJECTS, rejects=table == REJECTS)
        if table == REJECTS:
            return reader(REJECT_SCHEMA, picked_rejects(view, ALL))
        if table == ALL_EVENTS and view.table is not None:
            return stream(self._scans.all(view), self._reported_as_ours)
        schema = arrow_of(polars_schema(view.schema))
        [part] = parts(view, table)
        return reader(schema, self._events(view, part, schema, schema.names))

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """All events as a stream of batches, for DuckDB, pyarrow and others. Columns keep their own
        types, whatever `requested_schema` asks for, as the protocol allows."""
        return self.stream().__arrow_c_stream__(requested_schema)

    def _retried(self, answer: Callable[[], T]) -> T:
        """Ask again with a new view if a file of the old one has gone; with `partial`, also without
        a node that did not answer completely. A part of an answer that must come from one view is
        not retried by itself."""
        if getattr(self._answering, "view", None) is not None:
            with self._reported_as_ours():
                return answer()
        lost: dict[str, str] = {}
        self._answering.lost, tries = lost, 0
        try:
            while tries < RETRIES:
                try:
                    with self._reported_as_ours():
                        return answer()
                except (MissingFile, FileNotFoundError) as error:
                    failure, tries = error, tries + 1
                except NodeError as error:
                    if not self._partial or error.node in lost:
                        raise
                    lost[error.node] = str(error).removeprefix(f"{error.node}: ")
        finally:
            self._answering.lost = None
        raise MissingFile(f"after {RETRIES} views: {failure}") from failure

    @contextmanager
    def _reported_as_ours(self) -> Iterator[None]:
        """The one place where errors of the engine become ours."""
        try:
            yield
        except (pl.exceptions.PanicException, pl.exceptions.PolarsError, NotRead) as error:
            if not isinstance(error, NOT_VALID):
                # It is Corruption if the pages of a chunk, not checked before, made the query fail.
                for file in self.last_view.chunk_files:
                    file.require_whole()
            raise _not_answered(error) from error


def open(
    *data_dirs: str | PathLike[str] | Node,
    partial: bool = False,
    verify: bool = False,
    iceberg: Mapping[str, str] | None = None,
    limits: Limits | None = None,
    time_zone: str = "UTC",
    token: str | Mapping[str, str] | None = None,
    ca: str | PathLike[str] | None = None,
    seconds: float | None = None,
) -> Store:
    """The store of one data directory, or of several nodes' `data_dirs` read as one; a URL is that
    of another node, a `forebay serve`.

    For such nodes, `token` is the token of all, or a mapping of URLs to tokens (by default from the
    variable FOREBAY_TOKEN), `ca` the file of the authorities that vouch for them (FOREBAY_CA), and
    `seconds` how long each of a node's answers may take (60); a `Node` has its own.

    With `partial`, a node or partition that can't be read is left out of answers, and the receipt
    says so. With `verify`, every byte of a chunk is verified before its first use; otherwise only
    its footer is, and a flipped bit in its pages can change an answer. `iceberg` has the properties
    of the file system of the batch layer's table, if it needs any. `limits` are those of SQL
    queries, and `time_zone`, such as "Europe/Berlin", is the one in which SQL converts times to
    days.
    Raises BadInput if a directory can't be read, NodeError if a node can't.
    """
    if not data_dirs:
        raise BadInput("forebay.open: expected at least one data directory, got none")
    places = places_of(data_dirs, token=token, ca=ca, seconds=seconds)
    roots = [one for one in places if isinstance(one, Path)]
    if iceberg is not None and not isinstance(iceberg, Mapping):
        raise BadInput(f"forebay.open: iceberg: expected a mapping, got {type(iceberg).__name__}")
    if time_zone not in available_timezones():
        raise BadInput(
            f"forebay.open: time_zone: expected a name such as Europe/Berlin, got {time_zone!r}"
        )
    (require_distinct if partial else require_data_directories)("forebay.open", roots)
    return Store(
        places,
        partial=partial,
        verify=verify,
        iceberg=iceberg,
        limits=limits,
        time_zone=time_zone,
    )


def offer(store: Store, version: str) -> Offer:
    """What another node may read of the store's data directories, in a view taken now, without
    partitions that can't be read; `version` is that of this build. Raises BadInput if the store
    reads other nodes."""
    if others := [one for one in store._places if not isinstance(one, Path)]:
        raise BadInput(
            f"node: expected data directories, got the node {others[0]}: ask that one itself"
        )
    view = take_view(store._disk, store._roots, chunks=store._chunks, partial=True)
    return offer_of(view, version)


def of_one_view(store: Store, answer: Callable[[View], T]) -> T:
    """What `answer` returns for a view taken for it: all that it asks of the store meanwhile, in
    this thread, comes from that view. If files of the view have gone, it is called again with a new
    one."""
    answering = store._answering

    def answered() -> T:
        view = answering.view = store.view()
        try:
            return answer(view)
        finally:
            answering.view = None

    return store._retried(answered)


def rows_for(store: Store, wanted: Wanted) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """The rows that another node wants of a view that it was offered. Raises BadInput; MissingFile
    if the view is too old, or Corruption, also from the iterator."""
    return rows_of(store._scans, store._disk, store._roots, store._wanted_chunks, wanted)


def _require_here(what: str, view: View) -> None:
    """Raise BadInput if another node has a partition of the view."""
    for partition in remote(view.partitions):
        assert partition.remote is not None
        raise BadInput(
            f"{what}: expected data directories, got the node {partition.remote.node}: ask there"
        )


def _parsed(text: object) -> Statement:
    from forebay.query.statement import parse

    return parse(text)


def _damaged(
    partitions: Sequence[Partition], read: Callable[[Partition], object]
) -> dict[Path, str]:
    """The faults of the logs that `read` reads, by folder, for each partition with a damaged
    log."""
    found = {}
    for partition in partitions:
        try:
            read(partition)
        except Corruption as error:
            found[partition.folder] = str(error)
    return found


def stream(
    rows: pl.LazyFrame, guard: Callable[[], AbstractContextManager[None]] = nullcontext
) -> pa.RecordBatchReader:
    """The rows batch by batch, each made within a `guard`; memory never holds all of them."""
    frames = rows.collect_batches(chunk_size=STREAM_ROWS, lazy=True)

    def batches() -> Iterator[pa.RecordBatch]:
        while True:
            with guard():
                frame = next(frames, None)
            if frame is None:
                return
            yield from exported(frame).to_batches()

    return reader(arrow_of(dict(rows.collect_schema())), batches())


def _not_answered(error: BaseException) -> BadInput:
    reported = (str(error).splitlines() or [type(error).__name__])[0]
    return BadInput(f"query: {shortened(reported, REPORTED_CHARACTERS)}")
