"""`/v1/files` of a server: the files that have the events, each once, and how other engines read
them over HTTP."""

from __future__ import annotations

import io
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import sqlalchemy
from duckdb_extensions import import_extension
from polars.testing import assert_frame_equal
from starlette.datastructures import Headers

import forebay
from forebay.serve.config import Config
from forebay.serve.gate import Gate
from forebay.serve.problems import Problem
from forebay.serve.tokens import Tokens, add_token
from tests.lane import IN_ORDER, Lane, events, filled, hand_off
from tests.partition import START_MS
from tests.serving import Server

CUT_MS = START_MS + 450
"""A boundary that goes through a chunk."""


@pytest.fixture(scope="module")
def lane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lane]:
    made = filled(Lane(tmp_path_factory.mktemp("served") / "data").start())
    hand_off(made.root, 1, CUT_MS)
    yield made
    made.files.close()


@pytest.fixture(scope="module")
def store(lane: Lane) -> forebay.Store:
    return forebay.open(lane.root)


@pytest.fixture(scope="module")
def server(lane: Lane) -> Iterator[Server]:
    made = Server(lane.root, "--workers", "1")
    yield made
    made.close()


def listed(server: Server, **query: str) -> list[dict[str, Any]]:
    found = server.ask("/v1/files", query)
    assert found.status == 200, found.body
    files: list[dict[str, Any]] = found.json["files"]
    return files


def read(url: str) -> bytes:
    with urllib.request.urlopen(url) as answer:
        data: bytes = answer.read()
        return data


def in_all(files: list[dict[str, Any]]) -> pl.DataFrame:
    """The rows of these files, read one by one."""
    found = [pl.read_parquet(io.BytesIO(read(file["url"]))) for file in files]
    assert [frame.height for frame in found] == [file["rows"] for file in files]
    return pl.concat(found, how="diagonal_relaxed").sort(IN_ORDER)


def same(found: pl.DataFrame, expected: pl.DataFrame) -> None:
    typed = found.select(pl.col(name).cast(dtype) for name, dtype in expected.schema.items())
    assert_frame_equal(typed.sort(IN_ORDER), expected.sort(IN_ORDER))


# -- the list and its files ---------------------------------------------------------------------


def test_the_files_of_a_list_have_each_event_once(server: Server, store: forebay.Store) -> None:
    """Also where the boundary goes through a chunk: its rows are with those that are in no file."""
    found = server.ask("/v1/files")
    expected = store.scan().collect()
    files = found.json["files"]
    assert len(files) > 2
    same(in_all(files), expected)
    for file in files[:-1]:
        size = len(read(file["url"]))
        assert (size, file["partition"], file["lacking"]) == (file["bytes"], "p00", [])
    assert files[-1]["partition"] is None
    assert files[-1]["rows"] > store.receipt().hot_rows > 0
    assert found.json["batch_number"] == 1
    assert found.json["covered_until"] == "2023-11-14T22:13:20.450000Z"
    assert [one["name"] for one in found.json["columns"]] == store.schema.names
    assert listed(server, rest="false") == files[:-1]
    assert in_all(listed(server, table="events_late")).height == store.late().collect().height
    again = server.ask("/v1/files", headers={"If-None-Match": found.headers["etag"]})
    assert (again.status, again.body) == (304, b"")
    wrong = server.ask("/v1/files", {"table": "rejects"})
    assert wrong.status == 422
    assert "table: expected 'events' or 'events_late'" in wrong.json["detail"]


def test_a_list_stays_right_until_its_files_have_gone(tmp_path: Path) -> None:
    """While the job goes on, and after a handoff: until the grace period is over."""
    lane = filled(Lane(tmp_path / "data").start())
    server = Server(lane.root, "--workers", "1")
    try:
        before = forebay.open(lane.root).scan().collect()
        old = listed(server)
        assert [one["url"] for one in listed(server)] == [one["url"] for one in old]
        lane.take(*events(500, 40, START_MS + 2_000)).publish().merge()
        after = forebay.open(lane.root).scan().collect()
        assert after.height == before.height + 40
        new = listed(server, rest="true")  # the same question would have the same answer for 1 s
        assert {one["url"] for one in new} - {one["url"] for one in old}
        same(in_all(old), before)
        same(in_all(new), after)
        gone = forebay.open(lane.root).files()["path"][0]
        hand_off(lane.root, 1, START_MS + 10_000)
        assert listed(server, rest="false") == []
        same(in_all(old), before)
        Path(gone).unlink()
        first = server.ask(_path(old[0]))
        assert first.status == 410
        assert "list /v1/files again" in first.json["detail"]
    finally:
        server.close()
        lane.files.close()


def test_a_file_is_read_in_ranges(server: Server) -> None:
    file = listed(server)[0]
    path, whole, size = _path(file), read(file["url"]), file["bytes"]
    assert size > 1000
    head = server.ask(path, method="HEAD")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == str(size)
    assert head.headers["accept-ranges"] == "bytes"
    tag = head.headers["etag"]
    for wanted, part in (
        ("bytes=0-3", whole[:4]),
        ("bytes=-262144", whole),
        ("bytes=-8", whole[-8:]),
        (f"bytes={size - 8}-", whole[-8:]),
        (f"bytes=4-{size + 9}", whole[4:]),
    ):
        for more in ({}, {"If-Range": tag}):
            got = server.ask(path, headers={"Range": wanted, **more})
            assert (got.status, got.body) == (206, part)
            assert got.headers["content-range"].endswith(f"/{size}")
    changed = server.ask(path, headers={"Range": "bytes=0-3", "If-Range": '"other"'})
    assert (changed.status, changed.body) == (200, whole)
    beyond = server.ask(path, headers={"Range": f"bytes={size}-"})
    assert (beyond.status, beyond.headers["content-range"]) == (416, f"bytes */{size}")
    assert "Range: expected bytes of the file" in beyond.json["detail"]
    known = server.ask(path, headers={"If-None-Match": f'"x", {tag}'})
    assert (known.status, known.body, known.headers["etag"]) == (304, b"", tag)


def test_only_files_that_have_events_can_be_named(server: Server, lane: Lane) -> None:
    for name in (
        "../batch.json",
        "..%2f..%2fbatch.json",
        "%2fetc%2fpasswd",
        "x.parquet",
        "0.parquet",
    ):
        got = server.ask(f"/v1/files/{name}")
        assert got.status == 404, name
        assert got.headers["content-type"] == "application/problem+json"
    for name in ("0" * 24, "rest-" + "0" * 32):
        got = server.ask(f"/v1/files/{name}.parquet")
        assert got.status in (404, 410)
        assert "list /v1/files again" in got.json["detail"]
    assert server.ask("/v1/files", method="POST", body={}).status == 405


@pytest.mark.long
def test_files_need_a_token_where_questions_do(lane: Lane, tmp_path: Path) -> None:
    token = add_token(tmp_path / "tokens.json", "panel", "read")
    server = Server(lane.root, "--workers", "1", "--tokens", str(tmp_path / "tokens.json"))
    try:
        mine = {"Authorization": f"Bearer {token}"}
        files = server.ask("/v1/files", headers=mine).json["files"]
        assert server.ask("/v1/files").status == server.ask(_path(files[0])).status == 401
        assert server.ask(_path(files[0]), headers=mine).status == 200
        with connected() as connection:
            header = f"MAP {{'Authorization': 'Bearer {token}'}}"
            connection.execute(f"create secret (type http, extra_http_headers {header})")
            urls = [file["url"] for file in files]
            found = connection.execute(
                "select count(*) from read_parquet($1, union_by_name = true)", [urls]
            ).fetchone()
        assert found == (sum(file["rows"] for file in files),)
    finally:
        server.close()


def _path(file: dict[str, Any]) -> str:
    return "/v1/files/" + str(file["url"]).rpartition("/")[2]


@pytest.mark.parametrize("path", ["/v1/files", "/v1/files/0.parquet", "/mcp"])
def test_the_gate_asks_for_a_token(path: str, tmp_path: Path) -> None:
    token = add_token(tmp_path / "tokens.json", "panel", "read")
    gate = Gate(_no_app, Config((tmp_path,)), Tokens(tmp_path / "tokens.json"))
    gate.check(Headers({"host": "localhost", "authorization": f"Bearer {token}"}), path)
    with pytest.raises(Problem, match="Authorization: expected Bearer"):
        gate.check(Headers({"host": "localhost"}), path)


async def _no_app(*_: object) -> None:
    raise AssertionError("expected no request")


# -- who reads them -----------------------------------------------------------------------------


def connected() -> duckdb.DuckDBPyConnection:
    import_extension("httpfs")
    connection = duckdb.connect()
    connection.execute("set timezone = 'UTC'; load httpfs")
    return connection


BY_TEXT = "select text, count(*) as n from {} group by all order by all"


def test_duckdb_reads_them(server: Server, store: forebay.Store) -> None:
    with connected() as connection:
        connection.execute(
            "set variable files = (select list(f.url) from (select unnest(files) as f from"
            f" read_json('http://127.0.0.1:{server.port}/v1/files')))"
        )
        table = "read_parquet(getvariable('files'), union_by_name = true)"
        found = connection.sql(BY_TEXT.format(table)).pl()
        assert_frame_equal(found, store.sql(BY_TEXT.format("events")))
        names = ", ".join(f'"{name}"' for name in store.schema.names)
        same(connection.sql(f"select {names} from {table}").pl(), store.scan().collect())


def test_polars_scans_them(server: Server, store: forebay.Store) -> None:
    urls = [file["url"] for file in listed(server)]
    found = pl.scan_parquet(urls, missing_columns="insert", extra_columns="ignore")
    counts = found.group_by("text").agg(n=pl.len().cast(pl.Int64)).sort("text").collect()
    assert_frame_equal(counts, store.sql(BY_TEXT.format("events")).sort("text"))


def test_pandas_reads_them(server: Server, store: forebay.Store) -> None:
    found = pd.concat([pd.read_parquet(file["url"]) for file in listed(server)])
    assert sorted(found["_offset"]) == sorted(store.scan().collect()["_offset"])
    csv = f"http://127.0.0.1:{server.port}/v1/sql?format=csv&text="
    counts = pd.read_csv(csv + quote(BY_TEXT.format("events")))
    assert counts["n"].sum() == len(found)


def test_pyarrow_reads_a_stream_of_an_answer(server: Server, store: forebay.Store) -> None:
    text = quote(BY_TEXT.format("events"))
    address = f"http://127.0.0.1:{server.port}/v1/sql?format=arrow&text={text}"
    with pa.ipc.open_stream(urllib.request.urlopen(address)) as stream:
        found = pl.DataFrame(stream.read_all())
    assert_frame_equal(found, store.sql(BY_TEXT.format("events")))


def test_sqlalchemy_reads_them_as_superset_does(server: Server, store: forebay.Store) -> None:
    import_extension("httpfs")
    engine = sqlalchemy.create_engine(
        "duckdb:///:memory:", connect_args={"preload_extensions": ["httpfs"]}
    )
    urls = [file["url"] for file in listed(server)]
    with engine.connect() as connection:
        quoted = ", ".join(f"'{url}'" for url in urls)
        table = f"read_parquet([{quoted}], union_by_name = true)"
        rows = connection.execute(sqlalchemy.text(BY_TEXT.format(table))).all()
    assert [tuple(row) for row in rows] == store.sql(BY_TEXT.format("events")).rows()
    engine.dispose()
