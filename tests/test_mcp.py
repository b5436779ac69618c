"""`forebay mcp` and `/mcp` of a server: what a language model is shown is what the Store answers,
bounded, over both transports and in both eras of the protocol."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, Literal

import httpx2
import polars as pl
import pytest
from click.testing import CliRunner
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult, TextContent, Tool

import forebay
from forebay.cli.main import main
from forebay.query.analytics import Event, Where
from forebay.query.frames import exported
from forebay.query.rows import json_value
from forebay.serve.brief import BYTES, COLUMNS_MAX, TEXT_MAX, brief_object, brief_rows, brief_tables
from forebay.serve.brief import ROWS_MAX as BRIEF_ROWS_MAX
from forebay.serve.kinds import kinds
from forebay.serve.tokens import add_token
from forebay.serve.tools import ROWS, ROWS_MAX, TOOLS
from tests.checkout import BASE
from tests.serving import HOSTILE, LONG, WAIT_S, Server, ended, filled

Mode = Literal["legacy", "auto"]
MODES: tuple[Mode, ...] = ("auto", "legacy")
COUNTS = "select kind, count(*) as n from events group by all order by all"
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    },
}
INITIALIZED = {"jsonrpc": "2.0", "method": "notifications/initialized"}
ACCEPT = {"Accept": "application/json, text/event-stream"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    partition = filled(tmp_path_factory.mktemp("asked") / "data")
    yield partition.root
    partition.crash()


@pytest.fixture(scope="module")
def store(root: Path) -> forebay.Store:
    return forebay.open(root)


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    path = tmp_path_factory.mktemp("tokens") / "tokens.json"
    return path, add_token(path, "model", "read")


@pytest.fixture(scope="module")
def server(root: Path, token: tuple[Path, str]) -> Iterator[Server]:
    made = Server(root, "--workers", "1", "--tokens", str(token[0]))
    yield made
    made.close()


def command(root: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "forebay", "mcp", "--data-dir", str(root), *options]


def over_streams(root: Path, mode: Mode) -> Client:
    name, *arguments = command(root)
    return Client(StdioServerParameters(command=name, args=arguments), mode=mode)


@asynccontextmanager
async def over_http(server: Server, token: str, mode: Mode) -> AsyncIterator[Client]:
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx2.AsyncClient(headers=headers, timeout=WAIT_S) as http:
        address = f"http://127.0.0.1:{server.port}/mcp"
        async with Client(streamable_http_client(address, http_client=http), mode=mode) as client:
            yield client


def texts(result: CallToolResult) -> list[str]:
    assert all(isinstance(one, TextContent) for one in result.content)
    return [one.text for one in result.content if isinstance(one, TextContent)]


def shown(result: CallToolResult) -> Any:
    assert not result.is_error, texts(result)
    return json.loads(texts(result)[0])


async def asked_all(client: Client, store: forebay.Store) -> None:
    """Each tool, compared with what the Store answers."""
    tools: list[Tool] = (await client.list_tools()).tools
    assert [tool.name for tool in tools] == [tool.name for tool in TOOLS]
    assert all(tool.annotations and tool.annotations.read_only_hint for tool in tools)

    tables = shown(await client.call_tool("tables", {}))
    assert list(tables["tables"]["events"]) == store.schema.names
    assert tables["tables"]["events_all"] == "as events"
    assert "expected a seal" in tables["tables"]["events_sealed"]["unreadable"]
    assert tables["dedup_key"] == ["id"]
    assert tables["roles"] == {"user": "who", "event": "kind", "time": "at", "session": "visit"}

    found = shown(await client.call_tool("sql", {"text": COUNTS}))
    assert found["rows"] == [list(row) for row in store.sql(COUNTS).rows()]
    assert HOSTILE in {row[0] for row in found["rows"]}
    given = {"text": "select ? + 1 as n", "parameters": [41]}
    assert shown(await client.call_tool("sql", given)) == {"columns": ["n"], "rows": [[42]]}

    answer = store.funnel(["search", "purchase"], window=timedelta(hours=2))
    funnel = shown(
        await client.call_tool("funnel", {"steps": ["search", "purchase"], "window": "2h"})
    )
    assert (funnel["table"], funnel["about"]) == ("steps", str(answer.question["period"]))
    assert funnel["rows"] == [list(row) for row in answer.steps.rows()]
    assert funnel["other_tables"] == {
        name: frame.height for name, frame in answer.tables.items() if name != "steps"
    }
    wanted = {"events": ["purchase where price > 1"], "by": "country", "table": "overall"}
    segments = shown(await client.call_tool("segmentation", wanted))
    purchase = Event("purchase", (Where("price", "greater", (1,)),))
    by_country = store.segmentation(purchase, by="country").overall
    assert segments["columns"] == by_country.columns
    assert segments["rows"] == json.loads(json_value(by_country.rows()))
    back = shown(await client.call_tool("retention", {"start": "search", "table": "overall"}))
    overall = store.retention("search").overall
    assert [row[:3] for row in back["rows"]] == [list(row[:3]) for row in overall.rows()]

    copies = shown(await client.call_tool("why", {"key": {"id": "3"}}))["copies"]
    assert [(one["what"], one["offset"]) for one in copies] == [("event", 3)]
    receipt, partitions = map(json.loads, texts(await client.call_tool("status", {})))
    assert receipt["hot_rows"] == store.receipt().hot_rows
    assert len(partitions["rows"]) == store.partitions().height == 1


async def told_what_to_do(client: Client) -> None:
    for name, arguments, said in (
        ("sql", {"text": "select * from evnts"}, "did you mean 'events'"),
        ("sql", {"text": "copy events to 'x'"}, "got COPY"),
        ("sql", {"txt": "select 1"}, "txt: expected one of text, parameters.* did you mean 'text'"),
        ("sql", {"text": "select 1", "rows": 0}, "rows: expected a whole number from 1 to 1,000"),
        ("funnel", {"steps": ["a where"]}, "steps: event: expected a name"),
        ("funnel", {"steps": ["a", "b"], "window": "1"}, "window: expected a length of time"),
        ("retention", {"start": "search", "table": "cohort"}, "table: expected one of .*cohorts"),
        ("why", {"key": {"it": "3"}}, "expected the key columns id; got it"),
    ):
        result = await client.call_tool(name, arguments)
        assert result.is_error
        assert re.search(said, texts(result)[0]), texts(result)


@pytest.mark.few(1)
@pytest.mark.parametrize("mode", MODES)
def test_over_standard_streams_tools_answer_as_the_store_does(
    root: Path, store: forebay.Store, mode: Mode
) -> None:
    async def ask() -> None:
        async with over_streams(root, mode) as client:
            await asked_all(client, store)
            await told_what_to_do(client)
            assert client.server_info
            assert client.server_info.name == "forebay"

    asyncio.run(ask())


@pytest.mark.parametrize("mode", MODES)
def test_over_http_tools_answer_as_the_store_does(
    server: Server, token: tuple[Path, str], store: forebay.Store, mode: Mode
) -> None:
    async def ask() -> None:
        async with over_http(server, token[1], mode) as client:
            await asked_all(client, store)
            await told_what_to_do(client)

    asyncio.run(ask())


def test_a_tool_shows_no_parameter_that_its_question_has_not() -> None:
    known = kinds(seconds=60)
    for tool in TOOLS:
        for name in tool.asks:
            assert tool.properties.keys() - {"rows"} <= known[name].form.model.model_fields.keys()
        assert set(tool.required) <= tool.properties.keys()
    assert ROWS_MAX == BRIEF_ROWS_MAX


# -- in brief -----------------------------------------------------------------------------------


def brief(frame: pl.DataFrame, rows: int = ROWS) -> Any:
    found = brief_rows(exported(frame).to_reader(max_chunksize=100), rows)
    assert len(found) < 2 * BYTES
    return json.loads(found)


def test_an_answer_in_brief_says_what_was_cut_and_how_to_ask_for_less() -> None:
    rows = brief(pl.DataFrame({"n": range(1000)}), 7)
    assert rows["rows"] == [[n] for n in range(7)]
    assert re.fullmatch(
        "rows: the first 7, and there are more: .*up to 1,000 with rows", rows["cut"]
    )
    assert "cut" not in brief(pl.DataFrame({"n": range(7)}), 7)
    assert brief(pl.DataFrame({"n": []}))["rows"] == []
    long = brief(pl.DataFrame({"n": range(1000), "text": "x" * 400}), ROWS_MAX)
    assert 40 < len(long["rows"]) < 50
    assert re.search("the first 4., and there are more: .*fewer columns", long["cut"])
    text = brief(pl.DataFrame({"text": ["x" * 10_000, "y"]}))
    assert text["rows"] == [["x" * TEXT_MAX + "… (10,000 characters)"], ["y"]]
    assert f"texts are shown up to {TEXT_MAX} characters" in text["cut"]
    wide = brief(pl.DataFrame({f"c{n}": ["z" * 100] for n in range(300)}))
    assert len(wide["columns"]) == COLUMNS_MAX == len(wide["rows"][0])
    assert "columns: 200 of 300" in wide["cut"]


def test_what_is_hostile_takes_no_more_room_than_the_rest() -> None:
    worst = brief(pl.DataFrame({f"c{n}": ["\x1b" * 10_000] * 100 for n in range(40)}), ROWS_MAX)
    assert worst["rows"]
    assert brief(pl.DataFrame({"b": [b"{<\xff"], "l": [[1, 2]]}))["rows"] == [["{<\ufffd", "[1,2]"]]


def test_tables_and_objects_in_brief_say_what_they_lack() -> None:
    tables = {"a": pl.DataFrame({"n": range(9)}), "b": pl.DataFrame({"n": [1, 2]})}
    found = json.loads(brief_tables(tables, "a", "of days", 3))
    assert (found["table"], found["about"], found["other_tables"]) == ("a", "of days", {"b": 2})
    assert found["rows"] == [[0], [1], [2]]
    assert found["cut"].startswith("rows: the first 3 of 9: ")
    given = {"list": list(range(9)), "text": "x" * 1000, "one": {"a": 1}, "other": {"a": 1}}
    shown = json.loads(brief_object(given, 3))
    assert (shown["list"], shown["one"], shown["other"]) == ([0, 1, 2], {"a": 1}, "as one")
    assert "list: 3 of 9 are shown" in shown["cut"]
    assert "text: texts are shown up to 500" in shown["cut"]


# -- the process --------------------------------------------------------------------------------


class Piped:
    """`forebay mcp`, spoken to line by line."""

    def __init__(self, root: Path, *options: str) -> None:
        self.process = subprocess.Popen(
            command(root, *options),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self.ask(INITIALIZE)
        self.tell(INITIALIZED)

    def tell(self, message: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        self.process.stdin.flush()

    def ask(self, message: object) -> Any:
        self.tell(message)
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())["result"]

    def sql(self, text: str) -> Any:
        return self.ask(called("sql", text=text))

    @property
    def children(self) -> list[int]:
        pid = self.process.pid
        return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def end(self) -> tuple[int, bytes, bytes]:
        out, err = self.process.communicate(timeout=WAIT_S)
        return self.process.returncode, out, err


def called(name: str, **arguments: object) -> dict[str, Any]:
    params = {"name": name, "arguments": arguments}
    return {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": params}


def test_nothing_but_the_protocol_is_written_until_the_end_of_input(root: Path) -> None:
    """Also where a question takes too long, or is cut."""
    piped = Piped(root, "--timeout", "1s")
    assert piped.sql("select 1 as n")["content"][0]["text"] == '{"columns":["n"],\n"rows":[\n[1]]}'
    slow = piped.sql(LONG)
    assert slow["isError"]
    assert slow["content"][0]["text"] == "expected an answer within 1 s, got none"
    cut = piped.sql("select range as n from range(100000000)")
    assert "the first 50, and there are more" in cut["content"][0]["text"]
    assert piped.sql("select 2 as n")["content"][0]["text"].endswith("[2]]}")
    workers = piped.children
    assert workers
    assert piped.end() == (0, b"", b"")
    assert ended(workers)


@pytest.mark.few(1)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_ends_it_and_its_workers_quietly(root: Path, number: int, code: int) -> None:
    piped = Piped(root)
    piped.tell(called("sql", text=LONG))
    workers = piped.children
    os.kill(piped.process.pid, number)
    assert piped.process.wait(WAIT_S) == code
    assert ended(workers)
    assert piped.end()[1:] == (b"", b"")


@pytest.mark.long
@pytest.mark.executed
def test_modules_of_the_folder_it_is_started_in_are_not_run(root: Path, tmp_path: Path) -> None:
    (tmp_path / "http.py").write_text("raise SystemExit('not ours')")
    forebay = [str(Path(sys.executable).with_name("forebay")), *command(root)[3:]]
    answered = subprocess.run(
        forebay, cwd=tmp_path, input=json.dumps(INITIALIZE).encode(), capture_output=True
    )
    assert (answered.returncode, answered.stderr) == (0, b"")


def test_without_data_or_the_extra_one_line_says_what_to_do(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = CliRunner().invoke(main, ["mcp", "--data-dir", str(tmp_path / "none")])
    assert nothing.exit_code == 1
    assert "expected" in nothing.output
    find = importlib.util.find_spec

    def found(name: str) -> ModuleSpec | None:
        return None if name == "mcp" else find(name)

    monkeypatch.setattr("forebay.cli.options.find_spec", found)
    told = CliRunner().invoke(main, ["mcp", "--data-dir", str(root)])
    assert (told.exit_code, told.output) == (
        1, "Error: mcp: expected the extra mcp, got no mcp: pip install 'forebay[mcp]'\n",
    )  # fmt: skip


# -- over HTTP ----------------------------------------------------------------------------------


def test_over_http_the_gate_lets_in_whom_it_lets_in_elsewhere(
    server: Server, token: tuple[Path, str]
) -> None:
    mine = {"Authorization": f"Bearer {token[1]}", **ACCEPT}
    for headers, status in (
        (ACCEPT, 401),
        ({**mine, "Authorization": "Bearer forebay_x"}, 401),
        ({**mine, "Host": "evil.example"}, 421),
        ({**mine, "Origin": "http://evil.example"}, 403),
        ({**mine, "Sec-Fetch-Site": "cross-site"}, 403),
        (mine, 200),
    ):
        reply = server.ask("/mcp", body=INITIALIZE, headers=headers)
        assert reply.status == status, reply.body
    assert reply.json["result"]["serverInfo"]["name"] == "forebay"
    assert server.ask("/mcp", headers=mine).status == 405
    assert server.ask("/mcp", body=b"x" * (2 << 20), headers=mine).status == 413
    assert server.ask("/mcp", body=b"{", headers=mine).status == 400


def test_a_model_that_leaves_ends_its_question(server: Server, token: tuple[Path, str]) -> None:
    for more in ({}, {"MCP-Protocol-Version": "2025-06-18"}):
        body = json.dumps(called("sql", text=LONG)).encode()
        headers = {
            "Host": "localhost", "Authorization": f"Bearer {token[1]}", **ACCEPT, **more,
            "Content-Type": "application/json", "Content-Length": str(len(body)),
        }  # fmt: skip
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        with socket.create_connection(("127.0.0.1", server.port), timeout=WAIT_S) as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.sendall(f"POST /mcp HTTP/1.1\r\n{lines}\r\n".encode() + body)
            assert becomes_busy(server, token[1], 1)
        assert becomes_busy(server, token[1], 0)


def becomes_busy(server: Server, token: str, count: int) -> bool:
    """Whether it comes to work on so many questions."""
    for _ in range(600):
        text = server.ask("/metrics", headers={"Authorization": f"Bearer {token}"}).body.decode()
        if f"\nforebay_serve_busy {count}.0\n" in text:
            return True
        select.select([], [], [], 0.05)
    return False


# -- a client of another make -------------------------------------------------------------------

EARLIER = """
import asyncio, json, sys

from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamablehttp_client


async def ask(streams):
    async with ClientSession(*streams[:2]) as session:
        about = await session.initialize()
        tools = await session.list_tools()
        found = await session.call_tool("sql", {"text": "select count(*) as n from events"})
        wrong = await session.call_tool("sql", {"text": "select * from evnts"})
        print(json.dumps([
            about.serverInfo.name, [one.name for one in tools.tools], found.content[0].text,
            wrong.isError, wrong.content[0].text.splitlines()[0],
        ]))


async def main(address, command):
    async with stdio_client(StdioServerParameters(command=command[0], args=command[1:])) as streams:
        await ask(streams)
    async with streamablehttp_client(address) as streams:
        await ask(streams)


asyncio.run(main(sys.argv[1], sys.argv[2:]))
"""


@pytest.mark.long
@pytest.mark.executed
def test_a_client_of_the_earlier_library_lists_and_calls_tools(root: Path, tmp_path: Path) -> None:
    python = tmp_path / "venv" / "bin" / "python"
    own = {name: text for name, text in os.environ.items() if not name.startswith("PYTHON")}
    for words in (
        [str(BASE), "-m", "venv", str(tmp_path / "venv")],
        [str(python), "-m", "pip", "--quiet", "install", "mcp>=1.30,<2"],
    ):
        made = subprocess.run(words, env=own, capture_output=True, text=True)
        assert made.returncode == 0, made.stdout + made.stderr
    server = Server(root, "--workers", "1")
    try:
        address = f"http://127.0.0.1:{server.port}/mcp"
        words = [str(python), "-c", EARLIER, address, *command(root)]
        done = subprocess.run(words, env=own, capture_output=True, text=True)
    finally:
        server.close()
    assert done.returncode == 0, done.stderr
    over_both = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(over_both) == 2
    for name, tools, found, wrong, told in over_both:
        assert (name, tools) == ("forebay", [tool.name for tool in TOOLS])
        assert json.loads(found)["rows"] == [[34]]
        assert wrong
        assert told.endswith("did you mean 'events'?")
