"""What a query worker answers to each question, and in which formats.

An answer has rows, as a stream, or tables by name, as frames; in JSON, an answer's tables are an
object of lists, and rows a list. All of it comes from one view, and its tag is a hash of the
question and that view.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from functools import partial
from hashlib import blake2b
from typing import Any, BinaryIO, Literal, cast

import orjson
import polars as pl
import pyarrow as pa

from forebay import query
from forebay.query.analytics import Answer
from forebay.query.dataset import reader
from forebay.query.frames import exported
from forebay.query.rows import WRITERS, spreadsheet
from forebay.query.statement import steady
from forebay.query.store import Store, of_one_view
from forebay.query.tables import TABLE, TABLES, Limits
from forebay.query.view import View
from forebay.serve import handing
from forebay.serve.amplitude.answers import Answers
from forebay.serve.amplitude.endpoints import ENDPOINTS
from forebay.serve.brief import brief_object, brief_rows, brief_tables
from forebay.serve.config import Config
from forebay.serve.offering import write_offer, write_rows
from forebay.serve.parameters import Form
from forebay.serve.problems import Problem
from forebay.serve.programs import python_of, sql_of
from forebay.serve.question import BRIEF, BUNDLE, Question
from forebay.serve.routes import PROGRAMS
from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import BadInput, NodeError
from forebay.storage.base.layout import Layout, is_hash_partition
from forebay.storage.base.times import MINUTE_MS, now_ms
from forebay.storage.formats.frame import REJECT_SCHEMA
from forebay.storage.formats.rejects import RejectFilter
from forebay.storage.formats.replay_request import ask

Values = dict[str, Any]
Tables = dict[str, pl.DataFrame]
ANALYTICS = (
    "segmentation", "formula", "funnel", "retention", "sessions", "stickiness", "paths",
    "lifecycle", "sample", "timeline",
)  # fmt: skip
"""Methods of a Store; their names are those of the questions."""
FORMATS = {**WRITERS, "spreadsheet": spreadsheet}
OF_ANSWER = {"table": (str | None, None)}


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


@dataclass(frozen=True)
class Bundle:
    """Files, and the rows that are in none of them: `rest` is None if they are not wanted."""

    listed: Mapping[str, object]
    rest: pa.RecordBatchReader | None

    def write(self, out: BinaryIO) -> None:
        out.write(orjson.dumps(self.listed, option=orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE))
        if self.rest is not None:
            out.write(WRITERS["parquet"](self.rest, out).to_bytes(8, "big"))


@dataclass(frozen=True)
class Kind:
    """One kind of question: its parameters, and what answers it with rows, tables, or an object.
    `about` describes it for people; `steady` tells whether an answer depends on the view alone."""

    form: Form
    answer: Callable[
        [Store, Values], pa.RecordBatchReader | Answer | Bundle | Tables | Mapping[str, object]
    ]
    about: str
    steady: Callable[[Values], bool] = lambda values: True


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


ROWS = "rows"


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


def kinds(seconds: float) -> dict[str, Kind]:
    """All kinds of questions by name, for a server whose answers may take this long."""
    found = {
        "sql": Kind(
            Form("sql", Store.sql_stream),
            lambda store, values: store.sql_stream(values["text"], values.get("parameters")),
            f"{_about(Store.sql)}",
            lambda values: steady(values["text"]),
        ),
        "partitions": Kind(
            Form("partitions", Store.partitions),
            lambda store, _: {ROWS: store.partitions()},
            _about(Store.partitions),
        ),
        "per_minute": Kind(
            Form("per_minute", Store.per_minute),
            lambda store, values: {ROWS: store.per_minute(**values)},
            _about(Store.per_minute),
        ),
        "receipt": Kind(
            Form("receipt", Store.receipt),
            lambda store, _: _receipt(store),
            _about(query.Receipt),
        ),
        "schema": Kind(
            Form("schema", Store.receipt),
            lambda store, _: {ROWS: _columns(store)},
            "The columns of the table `events`, and their types in Arrow.",
        ),
        "tables": Kind(
            Form("tables", Store.receipt),
            lambda store, _: _tables(store),
            "The tables that SQL reads, their columns with types, the columns of the dedup key, and"
            " those that have the user, the event and its time.",
        ),
        "files": Kind(
            Form("files", _files_form),
            _files,
            "The Parquet files that have the events now, each row once: those of chunks, and one"
            " with the rows that are in none of these (hot ones, mostly).",
        ),
        "why": Kind(
            Form("why", Store.why),
            lambda store, values: asdict(store.why(**values)),
            _about(Store.why),
        ),
        "roles": Kind(
            Form("roles", Store.receipt),
            lambda store, _: asdict(store.roles()),
            "The columns that have the user, the event, its time and the session.",
        ),
        "rejects": Kind(
            Form("rejects", RejectFilter, {"limit": (int | None, 1000)}),
            _rejects,
            "The messages that could not become events, at most `limit` of them: those that agree"
            " with everything given.",
        ),
        "replay": Kind(
            Form("replay", RejectFilter),
            _replay,
            "Have rejects decoded again by the job, under the configuration that it runs with.",
            lambda _: False,
        ),
        "seal": Kind(
            Form("seal", handing.seal_form),
            lambda store, values: handing.seal(store.view(), seconds, **values),
            _about(handing.seal),
            lambda _: False,
        ),
        "complete": Kind(
            Form("complete", handing.complete_form),
            lambda store, values: handing.complete(store.view(), seconds, **values),
            _about(handing.complete),
            lambda _: False,
        ),
    }
    for name in ANALYTICS:
        method = getattr(Store, name)
        path = ["user"] if name == "timeline" else []
        form = Form(name, method, OF_ANSWER, path)
        found[name] = Kind(form, partial(_analysed, name), _about(method))
    return found


def _about(of: object) -> str:
    lines = (of.__doc__ or "").strip().partition("Raises BadInput")[0].splitlines()
    return "\n".join(line.strip() for line in lines)


def _analysed(name: str, store: Store, values: Values) -> Answer:
    if values.get("roles") is not None:
        values["roles"] = store.roles(**values["roles"])
    answer: Answer = getattr(store, name)(**values)
    return answer


def _receipt(store: Store) -> dict[str, object]:
    store.view()
    return asdict(store.receipt())


def _columns(store: Store) -> pl.DataFrame:
    rows = [(field.name, str(field.type)) for field in store.schema]
    return pl.DataFrame(rows, schema={"name": pl.String, "type": pl.String}, orient="row")


def _tables(store: Store) -> dict[str, object]:
    """All that queries can name; for a table that can't be read now, the reason."""
    tables: dict[str, object] = {}
    for name in TABLES:
        try:
            rows = store.sql(f"describe {name}").select("column_name", "column_type").rows()
            tables[name] = dict(rows)
        except BadInput as error:
            tables[name] = {"unreadable": str(error)}
    try:
        roles: object = asdict(store.roles())
    except BadInput as error:
        roles = {"unknown": str(error)}
    return {"tables": tables, "dedup_key": list(store.last_view.key), "roles": roles}


def _files_form(table: Literal["events", "events_late"] = "events", rest: bool = True) -> None:
    """Parameters of a list of files: of which `table`, and whether with the `rest`."""


def _files(store: Store, values: Values) -> Bundle:
    files, rest = store.files_and_rest(values.get("table", TABLE))
    view = store.last_view
    listed = [
        {**row, "id": blake2b(row["path"].encode(), digest_size=12).hexdigest()}
        for row in files.to_dicts()
    ]
    columns = [{"name": one.name, "type": str(one.type)} for one in rest.schema]
    about = {
        "batch_number": view.batch_number,
        "covered_until": view.covered_until,
        "columns": columns,
        "files": listed,
    }
    return Bundle(about, rest if values.get("rest", True) else None)


def _wanted(values: Values) -> RejectFilter:
    known = {field.name for field in fields(RejectFilter)}
    given = {name: value for name, value in values.items() if name in known}
    typed: Values = {n: tuple(v) if isinstance(v, list) else v for n, v in given.items()}
    return RejectFilter(**typed)


def _rejects(store: Store, values: Values) -> pa.RecordBatchReader:
    limit = values.get("limit", 1000)
    if limit is not None and limit < 1:
        raise BadInput(f"limit: expected at least 1, got {limit}")

    def first() -> Iterator[pa.RecordBatch]:
        left = limit
        for batch in store.reject_batches(_wanted(values)):
            yield batch if left is None else batch.slice(0, left)
            if left is not None and (left := left - batch.num_rows) <= 0:
                return

    return reader(REJECT_SCHEMA, first())


def _replay(store: Store, values: Values) -> dict[str, object]:
    """Ask the job for a replay; returns the request's number, and how many rejects match."""
    view = store.view()
    if len(view.nodes) != 1 or view.nodes[0].node is not None:
        names = ", ".join(node.name for node in view.nodes)
        raise BadInput(f"replay: expected one data directory, got {names}")
    if any(is_hash_partition(partition.name) for partition in view.partitions):
        raise BadInput(
            "replay: expected partitions that are the source's own, got hash partitions"
            " (hash_partitions): send the messages again instead"
        )
    wanted = _wanted(values)
    count = store.rejects(wanted).select(pl.len()).collect().item()
    if not count:
        return {"request": None, "rejects": 0}
    runs = {partition.name: partition.state.incarnation for partition in view.partitions}
    request = ask(Disk(), Layout(view.nodes[0].root), wanted, runs)
    return {"request": request.number, "rejects": count}
