"""docs/clients.md word for word, with the tools that it names, and the dashboard it shows."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from duckdb_extensions import import_extension

import forebay
from tests.image import ROOT
from tests.serving import FIRST_MS, Server
from tests.serving import filled as filled_with_users
from tests.shop import DAY_MS
from tests.stranger import Block, blocks

PAGE = "docs/clients.md"
DASHBOARD = ROOT / "docker" / "grafana" / "forebay.json"
HERE = "http://localhost:8080"
VARIABLES = {
    "event_column": "kind",
    "first_step": "search",
    "last_step": "purchase",
    "__interval_ms": str(DAY_MS),
    "__from:date:iso": "2024-05-01T00:00:00.000Z",
    "__to:date:iso": "2024-05-05T00:00:00.000Z",
}
"""What Grafana puts in their places."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    partition = filled_with_users(tmp_path_factory.mktemp("clients") / "data")
    yield partition.root
    partition.crash()


@pytest.fixture(scope="module")
def store(root: Path) -> forebay.Store:
    return forebay.open(root)


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[Server]:
    made = Server(root, "--workers", "1")
    yield made
    made.close()


def of_language(language: str) -> list[Block]:
    return [block for block in blocks(PAGE) if block.language == language]


def test_each_tool_reads_as_the_page_says(
    server: Server, store: forebay.Store, capfd: pytest.CaptureFixture[str]
) -> None:
    assert {block.language for block in blocks(PAGE)} == {"python", "m"}
    import_extension("httpfs")
    names: dict[str, Any] = {}
    for block in of_language("python"):
        text = block.text.replace(HERE, f"http://localhost:{server.port}")
        exec(compile(text, f"{block}", "exec"), names)
    rows = store.sql("select count(*) from events").item()
    assert names["rows"] == rows
    assert names["events"].collect().height == rows
    told = capfd.readouterr().out
    assert re.search(rf"\b{rows}\b", told)
    assert "pro" in told


def test_a_spreadsheet_gets_csv_without_formulas(server: Server, store: forebay.Store) -> None:
    [block] = of_language("m")
    variables = dict(re.findall(r"(\w+) = \"(.*)\",?$", block.text, re.MULTILINE))
    path = re.search(r'RelativePath = "(.*)"', block.text)
    assert path
    assert 'format = "spreadsheet", text = Query' in block.text
    given = {"format": "spreadsheet", "text": variables["Query"]}
    answer = server.ask(f"/{path[1]}", given)
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    found = list(csv.DictReader(io.StringIO(answer.body.decode())))
    assert sum(int(row["n"]) for row in found) == store.sql("select count(*) from events").item()
    hostile = {"format": "spreadsheet", "text": "select '=1+1' as \"@a\""}
    assert server.ask("/v1/sql", hostile).body == b"'@a\n'=1+1\n"


# -- the dashboard ------------------------------------------------------------------------------


def filled_in(text: str) -> str:
    for name, value in VARIABLES.items():
        text = text.replace(f"${{{name}}}", value)
    assert "${" not in text, text
    return text


def answered(server: Server, panel: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that a panel's query is answered with, as its data source takes them."""
    [target] = panel["targets"]
    query: dict[str, list[str]] = {}
    for one in target["url_options"]["params"]:
        query.setdefault(one["key"], []).append(filled_in(one["value"]))
    answer = server.ask(target["url"], query)
    assert answer.status == 200, answer.body
    found = answer.json[target["root_selector"]] if target["root_selector"] else answer.json
    assert found, panel["title"]
    for row in found:
        for column in target["columns"]:
            value = row[column["selector"]]
            if value is None:
                continue
            if column["type"] == "timestamp":
                assert datetime.fromisoformat(value.replace("Z", "+00:00")).tzinfo
            else:
                assert isinstance(value, str if column["type"] == "string" else int | float)
    rows: list[dict[str, Any]] = found
    return rows


def test_panels_of_the_dashboard_get_flat_rows_with_the_columns_that_they_name(
    server: Server, store: forebay.Store
) -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    panels = {panel["title"]: answered(server, panel) for panel in dashboard["panels"]}
    total = store.sql("select count(*) from events").item()
    assert sum(row["events"] for row in panels["Events"]) == total
    assert sum(row["events"] for row in panels["Events by type"]) == total
    assert sum(row["events"] for row in panels["Largest event types"]) == total
    assert datetime.fromisoformat("2024-05-01T00:00+00:00").timestamp() * 1000 == FIRST_MS
    steps = store.funnel(["search", "purchase"]).steps["count"].to_list()
    assert [row["count"] for row in panels["Funnel"]] == steps
    assert sum(row["messages"] for row in panels["Rejects by reason"]) == 2
    assert [row["accepted"] for row in panels["Partitions"]] == [total]
    known = {one["name"] for one in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{(\w+)", DASHBOARD.read_text()))
    assert used - known == {"__from", "__to", "__interval_ms"}
