"""The store: hot blocks and cold chunks of one or several nodes as one table, `events`; and beside
it the `rejects`.

    store = forebay.open("data")
    store.sql("select event_type, count(*) as n from events group by event_type order by n desc")
    store.scan().filter(pl.col("user_id") == "u42").collect()

Columns are `_partition`, `_offset`, `upload_time`, the declared ones, and `raw` if it is kept.
Projection, predicate and row limit reach both layers. One answer comes from one view; `receipt`
says what the last one covered. No chunk is read before its size and footer were found to be as its
catalog says, nor, with `verify`, before all of it was.
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

from forebay.query.analytics.roles import published_roles
from forebay.query.batches import event_batches
from forebay.query.dataset import NotRead, reader
from forebay.query.exchange import Offer, Wanted
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
from forebay.query.scans import Scans, parts, picked_rejects, scan_rejects
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
"""Errors that a query meets before it reads."""

T = TypeVar("T")


class Store(Questions):
    """One data directory, or several nodes' read as one; `open` makes it.

    Reads; never writes. Thread safety: any thread. Each answer comes from a view taken for it. What
    is lazy has to be collected, and a stream read, within the grace period (10 minutes unless the
    job has another `grace`), for then files that were replaced are deleted.

    Methods raise BadInput for what can't be asked; Corruption, FormatVersion or MissingFile if what
    counts can't be read, which with `partial` leaves out its partition.
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
        and `time_zone` are as in `open`, which checks them before."""
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
        """`lost`: the nodes that the answer on its way does without, and why; `view`: the one view
        that all of it is of, if it has to be."""
        self._scans = Scans(self._chunks, self._cache, dict(iceberg or {}), roots)
        self.last_view = self.view()
        """The view that the last answer was made of; no part of the public interface."""

    def __repr__(self) -> str:
        """What the last answer covers, in lines of a terminal."""
        places = shortened(plain(", ".join(map(str, self._places))), REPR_WIDTH - 10)
        return "\n  ".join([f"Store of {places}", *told_of(self.last_view)])

    def _repr_html_(self) -> str:
        """The same as HTML."""
        first, *lines = (escape(line.strip()) for line in repr(self).splitlines())
        return f"<p><b>{first}</b><br>{'<br>'.join(lines)}</p>"

    @cached_property
    def _engine(self) -> Engine:
        """Made for the first query, as are imports of it: DuckDB takes a while to load."""
        from forebay.query.sql import Engine

        folders = [Layout(root).chunks("") for root in self._roots]
        return Engine(folders, self._limits, self._time_zone)

    def view(self) -> View:
        """Take a new view, which `last_view`, `receipt` and the next use of it refer to. What is in
        a view is no part of the public interface."""
        view: View | None = getattr(self._answering, "view", None)
        if view is None:
            view = take_view(
                self._disk, self._places, chunks=self._chunks, published=self._published,
                partial=self._partial, without=getattr(self._answering, "lost", None),
            )  # fmt: skip
            self._cache.keep(view)
            self._chunks.keep(file.path for file in view.chunk_files)
        self.last_view = view
        return view

    def _readable(self, *, events: bool = True, rejects: bool = False) -> View:
        """A new view. With `partial`, without the partitions of which a log that is asked for is
        damaged: they are read beforehand, for a query fails as a whole."""
        view = self.view()
        if self._partial:
            faults = _damaged(view.partitions, self._cache.follow) if events else {}
            if rejects:
                faults |= _damaged(view.partitions, lambda one: deque(one.rejects(ALL), maxlen=0))
            self.last_view = view.without(faults)
        return self.last_view

    @property
    def schema(self) -> pa.Schema:
        """The columns of events as they are now, in Arrow's types."""
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
        """The rows of a part with these columns of `schema`, here and on other nodes."""
        wanted = pa.schema([schema.field(name) for name in columns])
        yield from event_batches(*part, wanted, where)
        names = list(columns) or [OFFSET]
        for batch in remote_events(*part, view.schema, schema, names, where):
            yield batch.select(list(columns))

    def scan(self, layers: Layers = "realtime") -> pl.LazyFrame:
        """All events of a view taken now: those of the real-time layer, from the boundary on, or
        those of both, with `layers` "all".

        Columns are `_partition`, `_offset`, `upload_time` (ms, UTC), the declared ones, and `raw`
        if it is kept. Collect it within the grace period. Raises BadInput for other layers, or for
        "all" without the extra `batch`.
        """
        if layers not in get_args(Layers):
            raise BadInput(f"layers: expected 'realtime' or 'all', got {layers!r}")
        return self._scans.table(self._readable(), TABLE if layers == "realtime" else ALL_EVENTS)

    def late(self) -> pl.LazyFrame:
        """The late table of a view taken now: events below the boundary that came after their time
        was sealed, and that no batch layer took yet."""
        return self._scans.table(self._readable(), LATE)

    def sealed(self) -> pl.LazyFrame:
        """What the newest seal is about to hand over: events below it that no batch layer has, and
        the late table up to it. The same rows in every view until the boundary moves. Raises
        BadInput unless every node has a seal."""
        return self._scans.table(self.view(), SEALED)

    def rejects(self, wanted: RejectFilter = ALL) -> pl.LazyFrame:
        """All rejects of a view taken now, or those that agree with `wanted`: `_partition`,
        `_offset`, `broker_time` (ms, UTC), `reason`, `detail` and `message` (bytes).

        Collect it within the grace period. Raises BadInput for what is no RejectFilter.
        """
        return scan_rejects(self._with_rejects(wanted), wanted)

    def reject_batches(self, wanted: RejectFilter) -> Iterator[pa.RecordBatch]:
        """The rejects that agree with `wanted`, batch by batch, so that memory holds one file's;
        columns as in `rejects`.

        Raises BadInput for what is no RejectFilter; MissingFile if files went meanwhile, for the
        grace period is over.
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

        `key` has a value for each column of the dedup key; `paths` says where a message has it, as
        keys from the outside in, where that is another place than the job has recorded: rejects are
        decoded for it, or searched for the values as text where nothing is known. The batch
        layer's table is asked if it can be read here. Raises BadInput for another key, or where
        nothing has been taken in yet.
        """

        def answer() -> Explanation:
            view = self.view()
            _require_here("why", view)
            table = self._scans.batch(view) if can_read_tables() else None
            return explain(view, key, paths or {}, table)

        return self._retried(answer)

    def sql(self, text: str, parameters: Parameters = None) -> pl.DataFrame:
        """The answer to `text`, one query in DuckDB's SQL over the tables `events`, `events_all`
        (with the batch layer's), `events_late` (the late table), `events_sealed` (what is to be
        handed over) and `rejects`. `parameters` are values for `?`, in order, or for `$name`, by
        name.

        Times have microseconds, and are null outside the years 1 to 9999. `raw` is JSON here:
        `raw->>'$.a.b'`; it is null where a message is no JSON. Whole numbers of 128 bits, such as
        sums, come as Int64 if they fit. Raises BadInput if it is not valid, does more than read
        these tables, or exceeds a limit; Corruption if that is for a damaged chunk.
        """
        statement = _parsed(text)
        return self._retried(
            lambda: self._engine.frame(statement, parameters, self._relations(statement))
        )

    def sql_stream(self, text: str, parameters: Parameters = None) -> pa.RecordBatchReader:
        """The answer to `text` with its `parameters`, as from `sql`, in Arrow and batch by batch,
        so that memory never holds all of it. Read it within the limit of time, which is below the
        grace period. Raises the same, also from the reader."""
        statement = _parsed(text)
        return self._retried(
            lambda: self._engine.stream(statement, parameters, self._relations(statement))
        )

    def _relations(self, statement: Statement) -> dict[str, Relation]:
        """The tables that it reads, of a view taken now."""
        names = statement.tables
        view = self._readable(events=names != {REJECTS}, rejects=REJECTS in names)
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
        """One row a partition: progress, counters, and what is hot and cold now.

        `next_offset` is None where several sources feed a partition; `lag` counts messages that
        the sources had beyond what was read, as last known.
        """
        return partitions_of(self.view())

    def per_minute(self, minutes: int = 60) -> pl.DataFrame:
        """How many events of the last `minutes` up to the newest one are hot and cold now, by the
        minute of their upload: `minute`, `hot`, `cold`, a row for each, none where there are no
        events. Raises BadInput for more than a day."""
        return self._retried(lambda: per_minute(self._scans, self._readable(), minutes))

    def stream(self, table: str = TABLE) -> pa.RecordBatchReader:
        """All rows of a `table`, which is "events", "events_all", "events_late" or "rejects", of a
        view taken now, batch by batch: nothing is read before it is asked for; memory never holds
        all of it.

        Read it within the grace period. Raises BadInput for another table; MissingFile or
        Corruption, also from the reader.
        """
        if table not in STREAMED:
            raise BadInput(f"table: expected one of {', '.join(STREAMED)}; got {table!r}")
        return self._retried(lambda: self._stream(table))

    def files(self, table: str = TABLE) -> pl.DataFrame:
        """The chunk files that count for a `table`, which is "events" or "events_late", in a view
        taken now, one a row: node, partition, path, rows, bytes, first and last upload time.

        Where `from_time` or `before_time` is not null, only rows whose `upload_time` is at or after
        the one, or before the other, are of the table. Hot rows are in no file: `receipt` counts
        them. The files stay for the grace period. Raises BadInput for another table.
        """
        if table not in (TABLE, LATE):
            raise BadInput(f"table: expected {TABLE} or {LATE}, got {table!r}")
        view = self._readable()
        _require_here("files", view)
        [(partitions, between)] = parts(view, table)
        return files_of(partitions, between.first_ms, between.end_ms)

    def files_and_rest(self, table: str = TABLE) -> tuple[pl.DataFrame, pa.RecordBatchReader]:
        """A `table`, which is "events" or "events_late", of one view in two parts, for an engine
        that reads Parquet: the files of which every row counts, as from `files` but without
        conditions, and all other rows, hot ones among them, batch by batch. Together they have each
        row once.

        `lacking` are declared columns that a file has not: they are null in it for other engines,
        while a Store reads them from `raw`. Read both within the grace period. Raises BadInput for
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
        """All events as a stream of batches, for DuckDB, pyarrow and others. It has the columns'
        own types, whatever `requested_schema` asks for, as the protocol allows."""
        return self.stream().__arrow_c_stream__(requested_schema)

    def _retried(self, answer: Callable[[], T]) -> T:
        """Ask again of a new view when a file of the old one has gone; with `partial`, also without
        a node that did not answer to the end. What is part of an answer of one view is not asked
        again by itself."""
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
                # It is Corruption if a chunk's pages, not looked at before, made the query fail.
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
    """The store of one data directory, or of several nodes' `data_dirs` read as one; one that is a
    URL is another node, a `forebay serve`.

    Of such nodes, `token` is the token of all, or a mapping of URLs to tokens (by default what the
    variable FOREBAY_TOKEN has), `ca` the file of the authorities that vouch for them (FOREBAY_CA),
    and `seconds` how long each of a node's answers may take (60); a `Node` has its own.

    With `partial`, a node or partition that can't be read is left out of answers, and the receipt
    says so. With `verify`, every byte of a chunk is verified before its first use; without, only
    its footer, and a flipped bit in its pages can change an answer. `iceberg` has the properties of
    the file system that the batch layer's table is on, if it needs any. `limits` are those of
    queries in SQL, and `time_zone` is the one in which these make days of times, such as
    "Europe/Berlin".
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
    partitions that can't be read; `version` is that of this build. Raises BadInput where it reads
    other nodes."""
    if others := [one for one in store._places if not isinstance(one, Path)]:
        raise BadInput(
            f"node: expected data directories, got the node {others[0]}: ask that one itself"
        )
    view = take_view(store._disk, store._roots, chunks=store._chunks, partial=True)
    return offer_of(view, version)


def of_one_view(store: Store, answer: Callable[[View], T]) -> T:
    """What `answer` makes of a view that is taken for it: all that it asks of the store meanwhile,
    in this thread, is of that view. It is called again, with a new one, where files of it have
    gone."""
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
    if that is too old, or Corruption, also from the iterator."""
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
    """What is wrong with the logs that `read` reads, by the folder of each partition that has a
    damaged one."""
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
    """The rows batch by batch, each made in a `guard`, so that memory never holds all of them."""
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
