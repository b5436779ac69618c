"""SQL over the tables of a view: DuckDB answers it, and reads chunk files directly.

This is the second of two fences; the first is `forebay.query.statement`, which only admits
statements that read our tables. What always holds: the engine can open files in the chunk folders
of its data directories, and in a folder of its own for what does not fit into memory, but nothing
else: no other file, no network, no extension, no Python variable. Its settings are locked. A query
ends at its deadline, and on Ctrl-C.

Thread safety: any thread; each query has a cursor of its own.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from tempfile import gettempdir, mkdtemp
from typing import Any, cast

import duckdb
import polars as pl
import pyarrow as pa

from forebay.query.dataset import NotRead, reader
from forebay.query.partition import ChunkFile
from forebay.query.sql_types import framed, require_types
from forebay.query.statement import Statement, said
from forebay.query.tables import BATCH_ROWS, Limits, Parameters, Relation, literal, quoted
from forebay.storage.base.errors import BadInput, ForebayError
from forebay.storage.formats.checksum import Checksum

GONE_MAX = 500
"""Of so many files that are gone, footers may be kept."""
HEARD_S = 0.1
"""How long Ctrl-C may go unnoticed."""
ENDED_S = 1.0
"""How long to wait for an interrupted engine. It checks for interrupts only between two vectors of
rows, and a single value may take minutes; after this time its thread is abandoned."""
Waited = Callable[[Callable[[], Any]], Any]

USERS = (
    duckdb.BinderException, duckdb.CatalogException, duckdb.ConstraintException,
    duckdb.ConversionException, duckdb.DataError, duckdb.NotImplementedException,
    duckdb.OutOfRangeException, duckdb.ParserException, duckdb.PermissionException,
    duckdb.SyntaxException, duckdb.TypeMismatchException,
)  # fmt: skip
"""Errors of a query, or of what it does with values; not of what it reads."""
OF_FILES = re.compile(r"parquet|zstd|decompress|thrift|page|file", re.IGNORECASE)


class Engine:
    """The engine of one store; it opens nothing outside the chunk folders `folders`."""

    def __init__(self, folders: Sequence[Path], limits: Limits, time_zone: str) -> None:
        self._folders = {folder: self._without_patterns(folder) for folder in folders}
        self._limits = limits
        self._time_zone = time_zone
        self._lock = threading.Lock()
        self._instance: duckdb.DuckDBPyConnection | None = None
        self._known: dict[Path, Checksum] = {}

    def located(self, file: ChunkFile) -> str:
        """Where the engine finds a file of the chunk folders. As names are never reused, it does
        not check again what it knows of a file; but if the data directory was recreated, it must
        forget everything."""
        path, checksum = file.path, file.chunk.checksum
        with self._lock:
            if self._known.setdefault(path, checksum) != checksum:
                self._known, self._instance = {path: checksum}, None
        for folder, named in self._folders.items():
            if path.is_relative_to(folder):
                return str(named / path.relative_to(folder))
        return str(path)

    def keep(self, files: int) -> None:
        """Forget all footers once most are of files that are gone, for each takes 0.1 MB or more.
        So many `files` are there now."""
        with self._lock:
            if len(self._known) > 2 * files + GONE_MAX:
                self._known, self._instance = {}, None

    def _without_patterns(self, folder: Path) -> Path:
        """A name of the folder that the engine does not treat as a glob pattern, which would match
        other files."""
        if not re.search(r"[*?\[]", str(folder.absolute())):
            return folder.absolute()
        links = Path(mkdtemp(prefix="forebay-sql-"))
        weakref.finalize(self, shutil.rmtree, links, ignore_errors=True)
        (links / "chunks").symlink_to(folder.absolute())
        return links / "chunks"

    def frame(
        self, statement: Statement, parameters: Parameters, relations: Mapping[str, Relation]
    ) -> pl.DataFrame:
        """The whole answer. Raises BadInput if the query is invalid or the answer has too many
        rows; NotRead if its input can't be read."""
        with self._running(statement, parameters, relations) as (cursor, waited):
            kinds = [str(one[1]) for one in cursor.description or ()]
            found = cursor.to_arrow_reader(BATCH_ROWS)
            batches, rows = [], 0
            while (batch := waited(partial(next, found, None))) is not None:
                batches.append(batch)
                rows += batch.num_rows
                if rows > self._limits.rows:
                    raise BadInput(
                        f"query: expected at most {self._limits.rows:,} rows, got more: add a"
                        " LIMIT, aggregate, or stream them"
                    )
            return framed(pa.Table.from_batches(batches, found.schema), kinds)

    def stream(
        self, statement: Statement, parameters: Parameters, relations: Mapping[str, Relation]
    ) -> pa.RecordBatchReader:
        """The answer batch by batch; the first batch is read now. The time that its reader takes
        counts towards the query's limit."""

        def answer() -> Iterator[Any]:
            with self._running(statement, parameters, relations) as (cursor, waited):
                found = cursor.to_arrow_reader(BATCH_ROWS)
                yield found.schema
                while (batch := waited(partial(next, found, None))) is not None:
                    yield batch

        batches = answer()
        return reader(next(batches), batches)

    @contextmanager
    def _running(
        self, statement: Statement, parameters: Parameters, relations: Mapping[str, Relation]
    ) -> Iterator[tuple[duckdb.DuckDBPyConnection, Waited]]:
        """A cursor to run the query until the deadline, and a function that waits for its calls.
        The engine works on another thread, as it may not notice a signal while it works."""
        _require_text(parameters)
        cursor = self._cursor()
        deadline = time.monotonic() + self._limits.seconds
        thread = _Thread()

        def waited(call: Callable[[], Any]) -> Any:
            asked = thread.submit(call)
            try:
                # Polars' signal handler lets a wait go on: Python notices the signal after it.
                while not wait([asked], HEARD_S).done and time.monotonic() <= deadline:
                    pass
            except KeyboardInterrupt:
                _end(cursor, asked)
                raise
            if time.monotonic() > deadline:
                _end(cursor, asked)
                raise duckdb.InterruptException
            return asked.result()

        datasets = [one for relation in relations.values() for one in relation.datasets.values()]
        try:
            for name, relation in relations.items():
                for own, dataset in relation.datasets.items():
                    cursor.register(own, dataset)
                cursor.execute(f"create or replace temp view {quoted(name)} as {relation.text}")
            waited(partial(cursor.execute, statement.text, parameters))
            require_types(cursor.description or ())
            yield cursor, waited
        except (duckdb.Error, RuntimeError, OSError, pa.ArrowException) as error:
            for dataset in datasets:
                if isinstance(dataset.failure, ForebayError):
                    raise dataset.failure from error
            raise self._told(error, time.monotonic() > deadline) from error
        finally:
            if thread.end():
                cursor.close()

    def _told(self, error: Exception, late: bool) -> BaseException:
        """The engine's error as ours: NotRead if files may be at fault."""
        text = str(error)
        if isinstance(error, duckdb.FatalException | duckdb.InternalException):
            self._instance = None  # it no longer answers
        if late:
            return BadInput(
                f"query: expected an answer within {self._limits.seconds:g} s, got none"
            )
        if isinstance(error, duckdb.OutOfMemoryException):
            return BadInput(f"query: {said(error).splitlines()[0]}: aggregate or filter more")
        of_files = OF_FILES.search(text) or type(error) is duckdb.Error  # for which it has no class
        if isinstance(error, USERS) or not of_files:
            return BadInput(f"query: {said(cast(Any, error))}{_hint(text)}")
        return NotRead(said(cast(Any, error)))

    def _cursor(self) -> duckdb.DuckDBPyConnection:
        with self._lock:
            if self._instance is None:
                self._instance = self._open()
            return self._instance.cursor()

    def _open(self) -> duckdb.DuckDBPyConnection:
        # The engine creates it when memory runs out, and removes it.
        spill = Path(gettempdir()) / f"forebay-sql-{uuid.uuid4().hex}"
        memory = self._limits.memory_bytes or _half_of_memory()
        instance = duckdb.connect(
            ":memory:",
            config={
                "memory_limit": f"{memory // 1024}KiB",
                "temp_directory": str(spill),
                "max_temp_directory_size": f"{self._limits.disk_bytes // 1024}KiB",
                "python_enable_replacements": False,
                "autoinstall_known_extensions": False,
                "autoload_known_extensions": False,
                "allow_community_extensions": False,
                # It would filter datasets by a join's keys, with kinds of filters that pyarrow does
                # not have.
                "disabled_optimizers": "join_filter_pushdown",
            },
        )
        folders = ", ".join(literal(f"{folder}/") for folder in self._folders.values())
        instance.execute("load icu")
        try:
            instance.execute(f"set global timezone = {literal(self._time_zone)}")
        except duckdb.Error as error:
            raise BadInput(
                f"time_zone: expected a name such as Europe/Berlin, got {self._time_zone!r}"
            ) from error
        # As a setting, even to disable it, this needs ipywidgets in a notebook.
        instance.execute("pragma disable_progress_bar")
        instance.execute("set global parquet_metadata_cache = true")
        instance.execute("set global validate_external_file_cache = 'NO_VALIDATION'")
        instance.execute(f"set allowed_directories = [{folders}]")
        instance.execute("set enable_external_access = false")
        instance.execute("set lock_configuration = true")
        return instance


def _require_text(parameters: Parameters) -> None:
    """Raise BadInput for text that is not valid Unicode, such as half of a surrogate pair."""
    given = parameters.values() if isinstance(parameters, Mapping) else parameters or ()
    for value in given:
        try:
            value.encode() if isinstance(value, str) else None
        except UnicodeEncodeError as error:
            raise BadInput(f"parameters: expected Unicode text, got {error}") from error


class _Thread:
    """Makes calls, one after the other. The process may exit during a call."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._asked: Future[Any] | None = None
        threading.Thread(target=self._run, name="forebay-sql", daemon=True).start()

    def submit(self, call: Callable[[], Any]) -> Future[Any]:
        self._asked = Future()
        self._calls.put((self._asked, call))
        return self._asked

    def end(self) -> bool:
        """Accept no more calls; return whether none is running."""
        self._calls.put(None)
        return self._asked is None or self._asked.done()

    def _run(self) -> None:
        while (given := self._calls.get()) is not None:
            asked, call = given
            try:
                asked.set_result(call())
            except BaseException as error:  # noqa: BLE001  # who asked has it raised
                asked.set_exception(error)
            del given, asked, call  # so that no answer is kept until the next call


def _end(cursor: duckdb.DuckDBPyConnection, asked: Future[Any]) -> None:
    """Interrupt a call until it has ended, but for a bounded time. A query that begins after an
    interrupt clears it."""
    until = time.monotonic() + ENDED_S
    while not wait([asked], HEARD_S).done and time.monotonic() < until:
        cursor.interrupt()


def _half_of_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _hint(text: str) -> str:
    unknown = re.search(r'Referenced column "([^"]+)" not found', text)
    if unknown is None:
        return ""
    return (
        f"\na field without a column of its own is in raw, if that is kept: raw->>'$.{unknown[1]}'"
    )
