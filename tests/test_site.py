"""The documentation as a site: its links lead somewhere, every page is in the navigation, and no
page loads anything from another address.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typing_extensions import override

from tests import site
from tests.browser import chromium, page_of

SECTIONS = ["Tutorial", "How-to", "Reference", "Explanation"]
"""Those of Diátaxis, https://diataxis.fr."""


@pytest.fixture(scope="module")
def zensical(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command, in an environment of its own."""
    venv = tmp_path_factory.mktemp("docs") / "venv"
    declared = tomllib.loads((site.ROOT / "pyproject.toml").read_text())["project"]
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    install = f"{venv}/bin/python -m pip install --quiet".split()
    subprocess.run([*install, *declared["optional-dependencies"]["docs"]], check=True)
    return venv / "bin" / "zensical"


@pytest.fixture(scope="module")
def built(zensical: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("site") / "site"
    site.build(found, zensical)
    return found


def test_each_page_is_in_the_navigation_once() -> None:
    assert sorted(site.navigation()) == site.sources()


def test_the_navigation_has_the_four_kinds_of_documents() -> None:
    first, *rest = tomllib.loads((site.ROOT / site.CONFIG).read_text())["project"]["nav"]
    assert first == {"Overview": "README.md"}
    assert [name for entry in rest for name in entry] == SECTIONS


def test_faults_of_a_site_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<h1 id="top">A</h1><a href="#top">1</a><a href="b.html#here">2</a><a href="c.html">3</a>'
        '<a href="b.html#gone">4</a><a href="https://example.com">5</a>'
        '<script src="//cdn.example.com/x.js"></script><img src="data:image/png;base64,AA">'
        '<link rel="preconnect" href="https://fonts.example.com"><link rel="canonical" href="/x">'
    )
    (tmp_path / "b.html").write_text('<p id="here">B</p>')
    assert [line for line in site.faults(tmp_path) if line.startswith("a.html")] == [
        "a.html: loads //cdn.example.com/x.js",
        "a.html: loads https://fonts.example.com",
        "a.html: expected c.html to lead somewhere",
        "a.html: expected b.html#gone to lead somewhere",
    ]


@pytest.mark.long
def test_every_link_of_the_site_leads_somewhere_and_no_page_loads_from_elsewhere(
    built: Path,
) -> None:
    assert len(list(built.rglob("*.html"))) == len(site.sources()) + 1
    assert site.faults(built) == []


@pytest.mark.long
def test_a_link_to_a_page_or_heading_that_is_not_there_fails_the_build(
    zensical: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "README.md").write_text("# A\n\n[b](b.md) [here](#nowhere)\n")
    (tmp_path / site.CONFIG).write_text(
        '[project]\nsite_name = "A"\ndocs_dir = "pages"\nsite_dir = "site"\n'
    )
    monkeypatch.setattr(site, "ROOT", tmp_path)
    monkeypatch.setattr(site, "PARTS", ("README.md",))
    with pytest.raises(subprocess.CalledProcessError) as raised:
        site.build(tmp_path / "built", zensical)
    assert "page does not exist" in raised.value.output
    assert "anchor does not exist" in raised.value.output


@pytest.mark.long
@pytest.mark.browser
def test_a_browser_asks_nobody_else_for_any_page_and_finds_a_word(built: Path) -> None:
    with chromium() as browser, _served(built) as port, page_of(browser, port) as page:
        for path in sorted(built.rglob("*.html")):
            page.goto(path.relative_to(built).as_posix(), wait_until="networkidle")
        page.get_by_role("button", name="Search").first.click()
        page.keyboard.type("librdkafka")
        found = page.get_by_text(re.compile(r"^[1-9]\d* results$"))
        found.wait_for()
        assert found.is_visible()


@contextmanager
def _served(folder: Path) -> Iterator[int]:
    """The port at which the folder is served."""

    class Quiet(SimpleHTTPRequestHandler):
        @override
        def log_message(self, format: str, *args: object) -> None:
            """Nothing, for what is wrong the browser says."""

    with ThreadingHTTPServer(("localhost", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()
