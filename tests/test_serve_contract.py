"""`forebay serve` against its own OpenAPI document: what it allows is answered, and what it
does not is refused."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving import Server, filled

EXAMPLES = 5
"""Of each operation, beside those that cover its document."""
EXPECTED = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "422"]

[[operations]]
include-path = "/v1/files/{name}"

[operations.checks.positive_data_acceptance]
expected-statuses = ["2xx", "404"]
"""
"""No document says which text is SQL, or a formula over so many events, or names of files."""


@pytest.mark.long
def test_it_keeps_to_its_own_document(tmp_path: Path) -> None:
    """All checks on all paths but that of events as they come, of which an answer has no end, and
    that of MCP, which has a document of its own."""
    partition = filled(tmp_path / "data")
    (tmp_path / "expected.toml").write_text(EXPECTED)
    server = Server(partition.root, "--workers", "2", "--timeout", "300s")  # a first one compiles
    try:
        done = subprocess.run(
            [
                str(Path(sys.executable).with_name("schemathesis")),
                *("--config-file", str(tmp_path / "expected.toml"), "run"),
                f"http://127.0.0.1:{server.port}/openapi.json",
                *("--exclude-path", "/v1/events", "--exclude-path", "/mcp"),
                *("--max-examples", str(EXAMPLES)),
                *("--phases", "examples,coverage,fuzzing", "--checks", "all", "--no-shrink"),
                *("--workers", "1", "--request-timeout", "600", "--seed", "1"),
                *("--continue-on-failure", "--no-color"),
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
        found = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
        assert found, done.stdout[-2000:]
        assert int(found[1]) > 1000
        print(done.stdout[-1500:])
        assert server.ask("/readyz").status == 200
        assert server.metric('forebay_serve_workers_replaced_total{reason="ended"}') == 0
    finally:
        server.close()
        partition.crash()
