"""`forebay serve`: what it answers is what the Store answers, in each format, and shared."""

from __future__ import annotations

import csv
import io
import json
import re
import socket
import threading
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families

import forebay
from forebay.cli.main import main
from forebay.query.analytics import Event, Period, Where
from forebay.query.frames import exported
from forebay.query.rows import WRITERS
from forebay.serve.amplitude.endpoints import ENDPOINTS
from forebay.serve.static import FOLDER
from tests.partition import Partition
from tests.serving import HOSTILE, Server, filled, frame_of
from tests.shop import DAY_MS

COUNTS = "select kind, count(*) as n from events group by all order by all"
PERIOD = Period(date(2024, 5, 1), date(2024, 5, 4))
DE = Where("country", "is", ("DE",))
PURCHASE = Event("purchase", (Where("price", "greater", (1,)),))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Partition]:
    partition = filled(tmp_path_factory.mktemp("served") / "data")
    yield partition
    partition.crash()


@pytest.fixture(scope="module")
def server(data: Partition) -> Iterator[Server]:
    made = Server(data.root, "--workers", "1")
    yield made
    made.close()


@pytest.fixture(scope="module")
def store(data: Partition) -> forebay.Store:
    return forebay.open(data.root)


def written(frame: pl.DataFrame, kind: str = "json") -> bytes:
    out = io.BytesIO()
    WRITERS[kind](exported(frame).to_reader(), out)
    return out.getvalue()


def as_json(tables: dict[str, pl.DataFrame]) -> Any:
    return {name: orjson.loads(written(frame)) for name, frame in tables.items()}


SPAN = {"period": "2024-05-01/2024-05-04"}
QUESTIONS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "funnel": (
        "funnel",
        {**SPAN, "steps": ["search", "purchase where price > 1"], "window": "2h", "by": "country"},
        {"steps": ["search", PURCHASE], "window": timedelta(hours=2), "by": "country"},
    ),
    "retention": (
        "retention",
        {**SPAN, "start": "search", "brackets": [[0, 1], [1, 3]], "segment": "country = DE"},
        {"start": "search", "brackets": [(0, 1), (1, 3)], "segment": [DE]},
    ),
    "segmentation": (
        "segmentation",
        {**SPAN, "events": "purchase", "measure": "sum", "of": "price"},
        {"events": "purchase", "measure": "sum", "of": "price"},
    ),
    "formula": (
        "formula",
        {**SPAN, "events": ["search", "purchase"], "text": "UNIQUES(B) / UNIQUES(A)"},
        {"events": ["search", "purchase"], "text": "UNIQUES(B) / UNIQUES(A)"},
    ),
    "sessions": (
        "sessions",
        {**SPAN, "gap": "30m", "to_midnight": True},
        {"gap": timedelta(minutes=30), "to_midnight": True},
    ),
    "stickiness": (
        "stickiness",
        {"period": {"start": "2024-04-29", "end": "2024-05-06", "interval": "week"}, "limit": 3},
        {"period": Period(date(2024, 4, 29), date(2024, 5, 6), "week"), "limit": 3},
    ),
    "paths": ("paths", {**SPAN, "start": "search", "steps": 2}, {"start": "search", "steps": 2}),
    "lifecycle": ("lifecycle", SPAN, {}),
    "sample": (
        "sample",
        {**SPAN, "event": "purchase where price > 1", "where": "country = DE", "limit": 2},
        {"event": PURCHASE, "where": [DE], "limit": 2},
    ),
    "timeline": ("users/u2", {"limit": 3}, {"user": "u2", "limit": 3}),
}  # fmt: skip


@pytest.mark.parametrize("name", QUESTIONS)
def test_analytics_are_the_answers_of_the_store_by_get_and_by_post(
    server: Server, store: forebay.Store, name: str
) -> None:
    path, given, known = QUESTIONS[name]
    period = {} if name == "timeline" else {"period": PERIOD}
    expected = as_json(getattr(store, name)(**{**period, **known}).tables)
    plain = {n: v for n, v in given.items() if n != "brackets" and not isinstance(v, dict)}
    query = {n: json.dumps(v) for n, v in given.items()} | plain
    query = {n: "true" if v is True else v for n, v in query.items()}
    for reply in (server.ask(f"/v1/{path}", query), server.ask(f"/v1/{path}", body=given)):
        assert (reply.status, reply.json) == (200, expected), reply.body[:400]


def test_sql_progress_and_rejects_are_those_of_the_store(
    server: Server, store: forebay.Store
) -> None:
    assert server.sql(COUNTS).json == orjson.loads(written(store.sql(COUNTS)))
    asked = {"text": "select ? as a, $2 as b", "parameters": ["x", 2]}
    assert server.ask("/v1/sql", body={**asked, "text": "select ? as a, ? as b"}).json == [
        {"a": "x", "b": 2}
    ]
    named = server.ask("/v1/sql", {"text": "select $n + 1 as n", "parameters": '{"n": 41}'})
    assert named.json == [{"n": 42}]
    assert server.ask("/v1/partitions").json == orjson.loads(written(store.partitions()))
    minutes = server.ask("/v1/per_minute", {"minutes": 3}).json
    assert minutes == orjson.loads(written(store.per_minute(3)))
    assert [(one["hot"], one["cold"]) for one in minutes] == [(0, 0), (0, 0), (1, 0)]
    roles = {"user": "who", "event": "kind", "time": "at", "session": "visit"}
    assert server.ask("/v1/roles").json == roles
    receipt = server.ask("/v1/receipt").json
    assert (receipt["hot_rows"], receipt["cold_rows"]) == (store.receipt().hot_rows, 0)
    rejects = server.ask("/v1/rejects", {"reasons": "bad json", "limit": 1}).json
    assert [(one["reason"], one["message"]) for one in rejects] == [("bad json", "{<\ufffd")]
    schema = server.ask("/v1/schema").json
    assert [one["name"] for one in schema] == store.schema.names
    tables = server.ask("/v1/tables").json
    assert list(tables["tables"]["events"]) == store.schema.names
    assert (tables["dedup_key"], tables["roles"]["user"]) == (["id"], "who")
    copies = server.ask("/v1/why", {"key": '{"id": "3"}'}).json["copies"]
    assert [(one["what"], one["offset"]) for one in copies] == [("event", 3)]
    assert server.ask("/v1/why", body={"key": {"id": "3"}}).json["copies"] == copies


def test_each_format_has_the_same_rows(server: Server, store: forebay.Store) -> None:
    expected = store.sql(COUNTS)
    ndjson = server.sql(COUNTS, Accept="application/x-ndjson")
    assert [orjson.loads(line) for line in ndjson.body.splitlines()] == expected.to_dicts()
    text = server.sql(COUNTS, Accept="text/html;q=0.9, text/csv").body.decode()
    assert [one["kind"] for one in csv.DictReader(io.StringIO(text))] == expected["kind"].to_list()
    arrow = server.sql(COUNTS, Accept="application/vnd.apache.arrow.stream")
    assert pl.DataFrame(pa.ipc.open_stream(arrow.body).read_all()).equals(expected)
    parquet = server.ask("/v1/sql", {"text": COUNTS, "format": "parquet"})
    assert parquet.headers["content-type"] == "application/vnd.apache.parquet"
    assert pl.DataFrame(pq.read_table(io.BytesIO(parquet.body))).equals(expected)
    assert server.sql(COUNTS, Accept="image/png").status == 406
    assert server.ask("/v1/receipt", {"format": "csv"}).status == 406
    table = {"event": "search", "format": "csv", "table": "over_time"}
    assert server.ask("/v1/stickiness", table).body.startswith(b"bucket,days,users")


def test_an_unchanged_view_gives_304_and_new_events_another_tag(
    server: Server, data: Partition
) -> None:
    first = server.sql(COUNTS)
    tag = first.headers["etag"]
    again = server.sql(COUNTS, **{"If-None-Match": f'"other", {tag}'})
    assert (again.status, again.body, again.headers["etag"]) == (304, b"", tag)
    assert server.sql(f"{COUNTS} ", **{"If-None-Match": tag}).status == 200
    assert "etag" not in server.sql("select now()").headers
    data.take(frame_of([{"kind": "search", "who": "u1", "at": 3 * DAY_MS}], 1000))
    data.blocks.publish()
    other = {"text": COUNTS, "format": "ndjson"}
    changed = server.ask("/v1/sql", other)
    assert server.ask("/v1/sql", other, headers={"If-None-Match": tag}).status == 200
    assert changed.headers["etag"] != tag


def test_equal_questions_at_once_are_answered_once(server: Server) -> None:
    before = server.metric("forebay_serve_shared_total")
    text = "select count(*) as n from range(30000000) where range % 7 = 3"
    found: list[bytes] = []
    asking = [
        threading.Thread(target=lambda: found.append(server.sql(text).body)) for _ in range(8)
    ]
    for one in asking:
        one.start()
    for one in asking:
        one.join()
    assert set(found) == {b'[\n{"n":4285714}\n]\n'}
    assert server.metric("forebay_serve_shared_total") == before + 7


@pytest.mark.parametrize(
    ("path", "query", "said"),
    [
        ("/v1/sql", {}, "text: expected a value, got none"),
        ("/v1/sql", {"text": "select * from event"}, "did you mean 'events'"),
        ("/v1/sql", {"text": "copy events to 'x'"}, "got COPY"),
        ("/v1/sql", {"text": "select foo from events"}, '"foo" not found'),
        ("/v1/funnel", {"step": "a"}, "step: expected one of steps, .*did you mean 'steps'"),
        ("/v1/funnel", {"steps": "a where"}, "steps: event: expected a name"),
        ("/v1/funnel", {"steps": "a", "window": "1"}, "window: expected a length of time with its"),
        ("/v1/stickiness", {"limit": "many"}, "limit: expected a valid integer.* got 'many'"),
        ("/v1/stickiness", {"limit": ["1", "2"]}, "limit: expected it once, got it 2 times"),
        ("/v1/stickiness", {"period": "2024"}, "period: expected START/END"),
        ("/v1/stickiness", {"period": '{"start": 1, "end": 2}'}, "period: expected a time such as"),
        ("/v1/stickiness", {"table": "x"}, "table: expected one of over_time"),
        ("/v1/retention", {"start": "a", "brackets": "[[1"}, "brackets: expected JSON"),
        ("/v1/rejects", {"reasons": "x"}, "reason: expected one of"),
        ("/v1/users/u1", {"start": "2024-05-01"}, "start: expected a time such as"),
        ("/v1/events", {"last": "-1"}, "last: expected a number from 0 to 1000"),
        ("/v1/events", {"where": "price >"}, "filter on price: expected"),
    ],
)  # fmt: skip
def test_what_can_t_be_asked_says_what_was_expected(
    server: Server, path: str, query: dict[str, Any], said: str
) -> None:
    reply = server.ask(path, query)
    assert (reply.status, reply.headers["content-type"]) == (422, "application/problem+json")
    assert set(reply.json) == {"type", "title", "status", "detail"}
    assert re.search(said, reply.json["detail"], re.DOTALL), reply.json["detail"]


def test_bodies_that_are_no_question_are_refused(server: Server) -> None:
    def status(body: bytes, **headers: str) -> int:
        return server.ask("/v1/sql", body=body, headers=headers).status

    assert status(b"[1]") == 400
    assert status(b"{") == 400
    assert status(b'{"text": "\xff"}') == 400
    assert status(b'{"text": "select 1"}', **{"Content-Type": "text/plain"}) == 415
    assert status(b'{"text": "' + b"x" * (1 << 20) + b'"}') == 413
    assert status(b'{"text": 1}') == 422
    assert status(b'{"text": "select 1", "parameters": ' + b"[" * 500 + b"]" * 500 + b"}") == 400
    assert status(b"[" * 5000) == 400
    assert server.ask("/v1/sql?x=1", body={"text": "select 1"}).status == 400
    assert server.ask("/v1/nothing").status == 404
    assert server.ask("/v1/sql", method="PUT", body={}).status == 405


def test_hostile_names_are_data_and_never_a_page(server: Server) -> None:
    asked = {"text": "select kind from events where who = 'u7'"}
    for kind in ("json", "ndjson"):
        reply = server.ask("/v1/sql", {**asked, "format": kind})
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert "html" not in reply.headers["content-type"]
        assert orjson.loads(reply.body.strip(b"[]\n"))["kind"] == HOSTILE
    reply = server.ask(f"/v1/{HOSTILE}")
    assert (reply.status, reply.headers["content-type"]) == (404, "application/problem+json")
    page = server.ask("/docs")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src" not in policy
    assert b"<script" not in page.body
    assert b"//" not in page.body.replace(b"http://www.w3.org", b"")


def test_its_document_index_and_metrics_name_every_path(server: Server) -> None:
    document = server.ask("/openapi.json").json
    named = set(server.ask("/v1").json["paths"].values()) - set(ENDPOINTS.values())
    assert named == set(document["paths"])
    assert "/api/2" in document["info"]["description"]
    funnel = document["paths"]["/v1/funnel"]["post"]["requestBody"]["content"]
    known = funnel["application/json"]["schema"]["properties"]
    assert {"steps", "period", "window", "hold", "exclude", "roles", "layers"} <= set(known)
    assert server.ask("/livez").status == server.ask("/readyz").status == 200
    text = server.ask("/metrics").body.decode()
    names = {family.name for family in text_string_to_metric_families(text)}
    assert {"forebay_serve_requests", "forebay_serve_request_seconds"} <= names


def test_the_page_is_files_of_known_types_that_are_sent_once(server: Server) -> None:
    page = server.ask("/")
    paths = set(re.findall(r'(?:src|href)="(/page/[^"]+)"', page.body.decode()))
    modules = [path for path in paths if path.endswith(".js")]
    for path in modules:
        found = re.findall(r' from "\./(\w+\.js)";', server.ask(path).body.decode())
        modules += {f"/page/{name}" for name in found} - set(modules)
    kinds = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
    for path in ("/", *paths, *modules):
        reply = server.ask(path)
        suffix = Path(path).suffix or ".html"
        assert reply.headers["content-type"].startswith(kinds.get(suffix, "image/svg+xml"))
        policy = reply.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self'" in policy
        assert "unsafe" not in policy
        assert b"//" not in re.sub(rb"(?m)^\s*//.*|http://www.w3.org|<!--.*-->", b"", reply.body)
        again = server.ask(path, headers={"If-None-Match": reply.headers["etag"]})
        assert (again.status, again.body) == (304, b"")
    assert {Path(path).name for path in (*paths, *modules)} | {"index.html"} == {
        path.name for path in FOLDER.iterdir()
    }
    assert server.ask("/page/none.js").status == 404
    assert server.ask("/", method="POST", body={}).status == 405


def test_a_question_of_analytics_has_the_program_that_asks_the_same(
    server: Server, data: Partition
) -> None:
    path, query, _ = QUESTIONS["segmentation"]
    expected = server.ask(f"/v1/{path}", query).json["over_time"]
    reply = server.ask(f"/v1/{path}", {**query, "format": "python"})
    assert reply.headers["content-type"].startswith("text/x-python")
    found: dict[str, Any] = {}
    exec(reply.body.decode(), found)
    assert as_json(found["answer"].tables)["over_time"] == expected
    text = server.ask(f"/v1/{path}", {**query, "format": "sql"}).body.decode()
    assert [one["value"] for one in server.sql(text).json] == [
        one["value"] for one in expected if one["value"]
    ]
    for name, (path, query, _) in QUESTIONS.items():
        plain = {n: v for n, v in query.items() if isinstance(v, str | int) and v is not True}
        lists = {n: v for n, v in query.items() if isinstance(v, list) and isinstance(v[0], str)}
        reply = server.ask(f"/v1/{path}", {**plain, **lists, "format": "python"})
        assert (reply.status, f"store.{name}(" in reply.body.decode()) == (200, True), reply.body
        assert repr(str(data.root)) in reply.body.decode()
    asked = {"steps": "a", "format": "python", "table": "x)\nexit("}
    assert server.ask("/v1/funnel", asked).status == 422
    funnel = server.ask("/v1/funnel", {"steps": "a", "format": "sql"})
    assert (funnel.status, "no SQL asks the same" in funnel.json["detail"]) == (422, True)
    assert server.ask("/v1/partitions", {"format": "python"}).status == 406


def test_events_that_come_are_sent_once_each(server: Server, data: Partition) -> None:
    query = {"event": "search where price > 5", "last": "3"}
    with server.asked("/v1/events", query) as client:
        assert b"text/event-stream" in _received(client, b"retry: 1000\n\n")
        server.until("forebay_serve_streams", 1)
        for n, price in enumerate((7.0, 3.0, 8.0)):
            row = {"kind": "search", "who": "u1", "price": price, "at": 3 * DAY_MS}
            data.take(frame_of([row], 2000 + n))
        data.blocks.publish()
        found = _received(client, b'"price":8.0')
        prices = [orjson.loads(line[6:])["price"] for line in _lines(found, b"data: ")]
        assert prices == [7.0, 8.0]


def test_a_follower_that_is_back_has_each_event_once(server: Server, data: Partition) -> None:
    def publish(*prices: float) -> None:
        first = 3000 + round(prices[0])
        events = [{"kind": "back", "who": "u1", "price": one, "at": 3 * DAY_MS} for one in prices]
        data.take(frame_of(events, first))
        data.blocks.publish()

    def ids(found: bytes) -> list[str]:
        return re.findall(r"id: (\S+-\d+)\n", found.decode())

    def prices(found: bytes) -> list[float]:
        return [orjson.loads(line[6:])["price"] for line in _lines(found, b"data: {")]

    query = {"event": "back"}
    with server.asked("/v1/events", query) as client:
        _received(client, b"retry: 1000\n\n")
        publish(1.0, 2.0, 3.0)
        first, *others = ids(_received(client, b'"price":3.0'))
    assert len(others) >= 1
    publish(4.0, 5.0)
    with server.asked("/v1/events", query, {"Last-Event-ID": first}) as client:
        found = _received(client, b'"price":5.0')
        assert prices(found) == [2.0, 3.0, 4.0, 5.0]
        publish(6.0)
        assert prices(_received(client, b'"price":6.0'))[-1] == 6.0
        # Another connection goes on in place of this one.
        with server.asked("/v1/events", query, {"Last-Event-ID": ids(found)[0]}) as again:
            assert prices(_received(again, b'"price":6.0')) == [3.0, 4.0, 5.0, 6.0]
            while client.recv(65536):
                pass
    for known in (f"{first}0000", "0-1", "x", first.replace("-", "")):
        with server.asked("/v1/events", query, {"Last-Event-ID": known}) as client:
            found = _received(client, b'event: gap\ndata: {"after":')
            assert known.encode() in found
    with server.asked("/v1/events", {"event": "search"}, {"Last-Event-ID": first}) as client:
        _received(client, b'event: gap\ndata: {"after":')


def _lines(text: bytes, begin: bytes) -> list[bytes]:
    return [line for line in text.split(b"\n") if line.startswith(begin) and line.endswith(b"}")]


def _received(client: socket.socket, end: bytes) -> bytes:
    """What comes until it has `end`, and the rest of that line."""
    found = b""
    while end not in found or (not found.rpartition(end)[2].count(b"\n") and end[-1:] != b"\n"):
        more = client.recv(65536)
        assert more, found
        found += more
    return found


def test_a_folder_that_is_no_data_directory_is_one_error(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["serve", "--data-dir", str(tmp_path / "none")])
    assert result.exit_code == 1
    assert "expected a readable data directory, got none" in result.output
