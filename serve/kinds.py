"""The kinds of questions: which parameters each has, and what answers it.

An answer has rows, as a stream, or tables by name, as frames; or it is an object, or files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from hashlib import blake2b
from typing import Any, BinaryIO, Literal

import orjson
import polars as pl
import pyarrow as pa

from forebay import query
from forebay.query.analytics import Answer
from forebay.query.dataset import reader
from forebay.query.rows import WRITERS
from forebay.query.statement import steady
from forebay.query.store import Store
from forebay.query.tables import TABLE, TABLES
from forebay.serve import handing
from forebay.serve.parameters import Form
from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import BadInput
from forebay.storage.base.layout import Layout, is_hash_partition
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
OF_ANSWER = {"table": (str | None, None)}
ROWS = "rows"
"""The table of an answer that has only one."""


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


def kinds(seconds: float) -> dict[str, Kind]:
    """All kinds of questions by name, for a server whose answers may take this long."""
    return {**_of_data(), **_of_analytics(), **_of_the_job(seconds)}


def _of_data() -> dict[str, Kind]:
    return {
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
    }


def _of_analytics() -> dict[str, Kind]:
    found = {}
    for name in ANALYTICS:
        method = getattr(Store, name)
        path = ["user"] if name == "timeline" else []
        form = Form(name, method, OF_ANSWER, path)
        found[name] = Kind(form, partial(_analysed, name), _about(method))
    return found


def _of_the_job(seconds: float) -> dict[str, Kind]:
    """What the job is asked to do."""
    return {
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
