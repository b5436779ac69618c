"""Compiles what the job and questions call, once, for the processes that run tests: each of them
would otherwise do it, all at the same time."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from forebay.serve.compiling import compile_all
from tests.engine import ENGINE

SETTINGS = {
    "FOREBAY_SCHEMA": "none",
    "FOREBAY_COLUMNS": '[{"name": "id", "path": "id"}, {"name": "n", "path": "n", "type": "text"}]',
    "FOREBAY_DEDUP_KEY": '["id"]',
    "FOREBAY_UPLOAD_TIME": "at",
}
EVENT = '{"id": "é\\n%d", "n": 1.50, "at": 1714521600000, "more": [{"a": null}]}\n'


def main() -> None:
    compile_all()
    if find_spec(ENGINE) is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        events = Path(folder) / "events"
        events.mkdir()
        (events / "a.ndjson").write_text("".join(EVENT % n for n in (1, 2, 1)))
        job = [sys.executable, "-m", "forebay.cli.main", "run"]
        subprocess.run(
            job, cwd=folder, env={**os.environ, **SETTINGS}, check=True, capture_output=True
        )


if __name__ == "__main__":
    main()
