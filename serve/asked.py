"""What a query worker answers to each question, and in which formats.

An answer has rows, as a stream, or tables by name, as frames; in JSON, an answer's tables are an
object of lists, and rows a list. All of it comes from one view, and its tag is a hash of the
question and that view.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import BinaryIO, cast

import orjson
import polars as pl
import pyarrow as pa

from forebay import query
from forebay.query.analytics import Answer
from forebay.query.frames import exported
from forebay.query.rows import WRITERS, spreadsheet
from forebay.query.store import Store, of_one_view
from forebay.query.tables import Limits
from forebay.query.view import View
from forebay.serve.amplitude.answers import Answers
from forebay.serve.amplitude.endpoints import ENDPOINTS
from forebay.serve.brief import brief_object, brief_rows, brief_tables
from forebay.serve.config import Config
from forebay.serve.kinds import ANALYTICS, ROWS, Bundle, Kind, Tables, Values, kinds
from forebay.serve.offering import write_offer, write_rows
from forebay.serve.problems import Problem
from forebay.serve.programs import python_of, sql_of
from forebay.serve.question import BRIEF, BUNDLE, Question
from forebay.serve.routes import PROGRAMS
from forebay.storage.base.errors import BadInput, NodeError
from forebay.storage.base.times import MINUTE_MS, now_ms

FORMATS = {**WRITERS, "spreadsheet": spreadsheet}


@dataclass(frozen=True)
class Prepared:
    """An answer that is not made yet: its tag, if it has one, and a function that writes it."""

    etag: str | None
    write: Callable[[BinaryIO], object]
    missing: Callable[[], Sequence[str]] = tuple
    """The nodes missing in the answer, known once it has begun."""

    def head(self) -> bytes:
        """What precedes the answer. If a node is missing, there is no tag, as the same question may
        soon get a fuller answer."""
        missing = self.missing()
        return orjson.dumps({"etag": None if missing else self.etag, "missing": missing})


class Asked:
    """Answers from one Store. Raises BadInput if it can't be opened."""

    def __init__(self, config: Config) -> None:
        self._config = config
        limits = Limits(
            seconds=2 * config.seconds, rows=config.rows, memory_bytes=config.memory_bytes // 2
        )
        self._open = partial(
            query.open, *config.roots, *config.nodes, limits=limits, iceberg=config.catalog,
            time_zone=config.time_zone, partial=config.partial, seconds=config.node_seconds,
        )  # fmt: skip
        self._opened: Store | None = None
        with suppress(NodeError):  # questions report it; it may be back by then
            self._store.sql("select 1")  # the engine takes a while to load
        self.kinds = kinds(config.seconds)

    @property
    def _store(self) -> Store:
        if self._opened is None:
            self._opened = self._open()
        return self._opened

    def answer(self, question: Question, send: Callable[[Prepared], None]) -> None:
        """Have the answer sent: once, or again if files of its view go meanwhile. Raises Problem or
        an error of ours."""
        if question.name == "offer":
            send(Prepared(None, partial(write_offer, self._store)))
            return
        if question.name == "scan":
            send(Prepared(None, partial(write_rows, self._store, question.body or "")))
            return
        if question.name in ENDPOINTS:
            answers = Answers(self._store, self._config.time_zone)
            write, timely = partial(answers.write, question.name, question.given), True
            steady = True
        else:
            kind = self.kinds[question.name]
            values = kind.form.read(question.given, question.body, question.path)
            # Future events are left out, unless a period is given.
            timely = question.name in ANALYTICS and values.get("period") is None
            write, steady = partial(self._write, kind, values, question), kind.steady(values)

        def sent(view: View) -> None:
            etag = self._tag(view, question, timely=timely) if steady else None
            send(Prepared(etag, write, self._silent))

        of_one_view(self._store, sent)

    def _silent(self) -> Sequence[str]:
        return self._store.receipt().silent_nodes

    def _tag(self, view: View, question: Question, *, timely: bool) -> str:
        """The tag of an answer; with `timely`, it changes every minute."""
        found = blake2b(view.version, digest_size=16)
        found.update(question.key)
        found.update(self._config.time_zone.encode())
        if timely:
            found.update(str(now_ms() // MINUTE_MS).encode())
        return f'W/"{found.hexdigest()}"'

    def _write(self, kind: Kind, values: Values, question: Question, out: BinaryIO) -> None:
        values = dict(values)
        table = values.pop("table", None) if question.name in ANALYTICS else None
        if question.format in PROGRAMS:
            out.write(self._program(question, values, table).encode())
            return
        found = kind.answer(self._store, values)
        if isinstance(found, Bundle):
            if question.format != BUNDLE:
                raise Problem(406, f"{question.name}: expected format json, got {question.format}")
            found.write(out)
            return
        if question.format == BRIEF:
            out.write(_in_brief(found, table, question.rows))
            return
        if isinstance(found, Answer):
            found = found.tables
        if isinstance(found, Mapping) and not _is_tables(found):
            if question.format != "json":
                raise Problem(406, f"{question.name}: expected format json, got {question.format}")
            out.write(orjson.dumps(found, option=orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE))
            return
        write = FORMATS[question.format]
        if not isinstance(found, Mapping):
            write(self._bounded(found), out)
            return
        tables = cast(Tables, found)
        _require_table(table, tables)
        if question.format != "json" or (table is None and list(tables) == [ROWS]):
            write(_reader(tables[table or next(iter(tables))]), out)
            return
        named = [table] if table is not None else list(tables)
        for number, name in enumerate(named):
            out.write((b"," if number else b"{") + orjson.dumps(name) + b":")
            write(_reader(tables[name]), out)
        out.write(b"}\n")

    def _program(self, question: Question, values: Values, table: str | None) -> str:
        """A program that asks the same. Raises Problem if it is not a question of analytics."""
        if question.name not in ANALYTICS:
            raise Problem(406, f"{question.name}: expected no program, got {question.format}")
        if question.format == "sql":
            return sql_of(self._store, question.name, values)
        return python_of(
            [*map(str, self._config.roots), *self._config.nodes], question.name, values, table
        )

    def _bounded(self, batches: pa.RecordBatchReader) -> pa.RecordBatchReader:
        """The same rows; raises an error if there are too many."""

        def counted() -> Iterator[pa.RecordBatch]:
            rows = 0
            for batch in batches:
                rows += batch.num_rows
                if rows > self._config.rows:
                    raise BadInput(
                        f"query: expected at most {self._config.rows:,} rows, got more: add a"
                        " LIMIT, or aggregate"
                    )
                yield batch

        return _Batches(batches.schema, counted())


class _Batches:
    """A reader that passes on errors as they are; pyarrow's own converts them."""

    def __init__(self, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> None:
        self.schema = schema
        self._batches = batches

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        return self._batches


def _in_brief(
    found: pa.RecordBatchReader | Answer | Tables | Mapping[str, object],
    table: str | None,
    rows: int,
) -> bytes:
    """Any answer, showing at most `rows` rows."""
    about = "" if not isinstance(found, Answer) else _period(found)
    if isinstance(found, Answer):
        found = found.tables
    if not isinstance(found, Mapping):
        return brief_rows(found, rows)
    if not _is_tables(found):
        return brief_object(found, rows)
    tables = cast(Tables, found)
    _require_table(table, tables)
    return brief_tables(tables, table or next(iter(tables)), about, rows)


def _period(answer: Answer) -> str:
    period = answer.question.get("period")
    return "" if period is None else str(period)


def _require_table(table: str | None, tables: Tables) -> None:
    if table is not None and table not in tables:
        raise BadInput(f"table: expected one of {', '.join(tables)}; got {table!r}")


def _is_tables(found: Mapping[str, object]) -> bool:
    return all(isinstance(one, pl.DataFrame) for one in found.values())


def _reader(frame: pl.DataFrame) -> pa.RecordBatchReader:
    return exported(frame).to_reader(max_chunksize=65_536)
