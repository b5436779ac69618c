"""What a query worker answers, question by question, and in which formats.

An answer has rows, as a stream, or tables by name, as frames; in JSON all tables of one are an
object of lists, and rows a list. Its tag is a hash of the question and of the view that was taken
before it, so that an answer with the same tag is never older than what the tag says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from hashlib import blake2b
from typing import Any, BinaryIO, cast

import orjson
import polars as pl
import pyarrow as pa

from forebay import query
from forebay.query.analytics import Answer
from forebay.query.dataset import reader
from forebay.query.frames import exported
from forebay.query.rows import WRITERS
from forebay.query.statement import steady
from forebay.query.store import Store
from forebay.query.tables import Limits
from forebay.serve.amplitude.answers import Answers
from forebay.serve.amplitude.endpoints import ENDPOINTS
from forebay.serve.config import Config
from forebay.serve.parameters import Form
from forebay.serve.problems import Problem
from forebay.serve.question import Question
from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import BadInput
from forebay.storage.base.layout import Layout, is_hash_partition
from forebay.storage.base.times import MINUTE_MS, now_ms
from forebay.storage.formats.frame import REJECT_SCHEMA
from forebay.storage.formats.rejects import RejectFilter
from forebay.storage.formats.replay_request import ask

Values = dict[str, Any]
Tables = dict[str, pl.DataFrame]
ANALYTICS = (
    "segmentation", "formula", "funnel", "retention", "sessions", "stickiness", "paths",
    "lifecycle", "timeline",
)  # fmt: skip
"""Methods of a Store, by which their questions are named."""
TABLE = {"table": (str | None, None)}


@dataclass(frozen=True)
class Prepared:
    """An answer that is not made yet: its tag, if it has one, and what writes it."""

    etag: str | None
    write: Callable[[BinaryIO], object]


@dataclass(frozen=True)
class Kind:
    """One kind of question: its parameters, and what answers it with rows, tables, or an object.
    `about` is what people read about it; `steady` tells whether an answer is the view's alone."""

    form: Form
    answer: Callable[[Store, Values], pa.RecordBatchReader | Tables | Mapping[str, object]]
    about: str
    steady: Callable[[Values], bool] = lambda values: True


class Asked:
    """Answers from one Store. Raises BadInput if it can't be opened."""

    def __init__(self, config: Config) -> None:
        self._config = config
        limits = Limits(
            seconds=2 * config.seconds, rows=config.rows, memory_bytes=config.memory_bytes // 2
        )
        self._store = query.open(
            *config.roots, limits=limits, iceberg=config.catalog, time_zone=config.time_zone
        )
        self._store.sql("select 1")  # the engine takes a while to load
        self.kinds = kinds()
        self._amplitude = Answers(self._store, config.time_zone)

    def prepare(self, question: Question) -> Prepared:
        """Read the question. Raises Problem or an error of ours."""
        if question.name in ENDPOINTS:
            write = partial(self._amplitude.write, question.name, question.given)
            return Prepared(self._tag(question, timely=True), write)
        kind = self.kinds[question.name]
        values = kind.form.read(question.given, question.body, question.path)
        # What is in the future is left out, unless a period is given.
        timely = question.name in ANALYTICS and values.get("period") is None
        etag = self._tag(question, timely=timely) if kind.steady(values) else None
        return Prepared(etag, partial(self._write, kind, values, question))

    def _tag(self, question: Question, *, timely: bool) -> str:
        """With `timely`, one for each minute."""
        found = blake2b(self._store.view().version, digest_size=16)
        found.update(question.key)
        found.update(self._config.time_zone.encode())
        if timely:
            found.update(str(now_ms() // MINUTE_MS).encode())
        return f'W/"{found.hexdigest()}"'

    def _write(self, kind: Kind, values: Values, question: Question, out: BinaryIO) -> None:
        table = values.pop("table", None)
        found = kind.answer(self._store, values)
        if isinstance(found, Mapping) and not _is_tables(found):
            if question.format != "json":
                raise Problem(406, f"{question.name}: expected format json, got {question.format}")
            out.write(orjson.dumps(found, option=orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE))
            return
        write = WRITERS[question.format]
        if not isinstance(found, Mapping):
            write(self._bounded(found), out)
            return
        tables = cast(Tables, found)
        if table is not None and table not in tables:
            raise BadInput(f"table: expected one of {', '.join(tables)}; got {table!r}")
        if question.format != "json" or (table is None and list(tables) == [ROWS]):
            write(_reader(tables[table or next(iter(tables))]), out)
            return
        named = [table] if table is not None else list(tables)
        for number, name in enumerate(named):
            out.write((b"," if number else b"{") + orjson.dumps(name) + b":")
            write(_reader(tables[name]), out)
        out.write(b"}\n")

    def _bounded(self, batches: pa.RecordBatchReader) -> pa.RecordBatchReader:
        """The same rows; an error where there are more than one may ask for."""

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
    """A reader of which errors come as they are: pyarrow's own makes others of them."""

    def __init__(self, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> None:
        self.schema = schema
        self._batches = batches

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        return self._batches


ROWS = "rows"


def _is_tables(found: Mapping[str, object]) -> bool:
    return all(isinstance(one, pl.DataFrame) for one in found.values())


def _reader(frame: pl.DataFrame) -> pa.RecordBatchReader:
    return exported(frame).to_reader(max_chunksize=65_536)


def kinds() -> dict[str, Kind]:
    """All that can be asked, by name."""
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
    }
    for name in ANALYTICS:
        method = getattr(Store, name)
        path = ["user"] if name == "timeline" else []
        form = Form(name, method, TABLE, path)
        found[name] = Kind(form, partial(_analysed, name), _about(method))
    return found


def _about(of: object) -> str:
    lines = (of.__doc__ or "").strip().partition("Raises BadInput")[0].splitlines()
    return "\n".join(line.strip() for line in lines)


def _analysed(name: str, store: Store, values: Values) -> Tables:
    if values.get("roles") is not None:
        values["roles"] = store.roles(**values["roles"])
    answer: Answer = getattr(store, name)(**values)
    return answer.tables


def _receipt(store: Store) -> dict[str, object]:
    store.view()
    return asdict(store.receipt())


def _columns(store: Store) -> pl.DataFrame:
    rows = [(field.name, str(field.type)) for field in store.schema]
    return pl.DataFrame(rows, schema={"name": pl.String, "type": pl.String}, orient="row")


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
    """Ask the job; the number of the request, and how many rejects are meant."""
    view = store.view()
    if len(view.nodes) != 1:
        raise BadInput(f"replay: expected one data directory, got {len(view.nodes)}")
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
