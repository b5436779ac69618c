"""The notebooks in `examples/` run from top to bottom, without a network, and show numbers and
charts."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import engine
from tests.image import ROOT

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
NUMBERS = {
    "first-look": [r"50,000 events \(", r"purchase", r"bad json"],
    "funnel-and-retention": [r"[\d,]+ events \([\d,]+ hot", r"add to cart", r"from_day"],
}
CHARTS = {"first-look": 1, "funnel-and-retention": 7}


def cells(notebook: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(notebook.read_text())["cells"]
    return found


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs(notebook: Path) -> None:
    code = [cell for cell in cells(notebook) if cell["cell_type"] == "code"]
    assert code
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert f"examples/{notebook.name}" in (ROOT / "docs" / "analytics.md").read_text()


@pytest.mark.long
@pytest.mark.executed
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_numbers_and_charts(
    notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clean: None
) -> None:
    engine.need()
    import nbformat
    from nbclient import NotebookClient

    # What a notebook's own commands find; whoever asks the network gets no answer.
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("TMPDIR", "IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    read = nbformat.read(notebook, as_version=4)  # type: ignore[no-untyped-call]
    NotebookClient(read, timeout=300, kernel_name="python3").execute()
    outputs = [output for cell in read.cells if cell.cell_type == "code" for output in cell.outputs]
    shown = "\n".join(str(one.get("data", {}).get("text/plain", "")) for one in outputs)
    for pattern in NUMBERS[notebook.stem]:
        assert re.search(pattern, shown), shown
    assert not [one for one in outputs if one.output_type == "error"]
    pictures = [one.data["image/png"] for one in outputs if "image/png" in one.get("data", {})]
    assert len(pictures) == CHARTS[notebook.stem]
    assert all(len(picture) > 5_000 for picture in pictures)
