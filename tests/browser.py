"""A real Chromium, without a window, on the page of a server under test.

What always holds: a page whose console has an error that no test expects, a script that fails, or a
request to anywhere but the server, fails its test.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Dialog, Page, Request

NAMES = ("chromium", "chromium-browser", "google-chrome")
WAIT_MS = 120_000
"""For an answer: a first one compiles, beside other tests."""
SERIOUS = ("serious", "critical")


@contextmanager
def chromium() -> Iterator[Browser]:
    """Skips where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"expected one of {', '.join(NAMES)} on PATH, got none")
    with sync_api.sync_playwright() as playwright:
        # Without a sandbox, which root has not; it meets no page but ours.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def page_of(
    browser: Browser,
    port: int,
    *,
    width: int = 1200,
    scheme: Literal["light", "dark"] = "light",
    expected: tuple[str, ...] = (),
) -> Iterator[Page]:
    """A page of a fresh profile; `expected` are parts of what its console may say as errors."""
    context = browser.new_context(
        base_url=f"http://localhost:{port}",
        color_scheme=scheme,
        viewport={"width": width, "height": 900},
        reduced_motion="reduce",
    )
    context.set_default_timeout(WAIT_MS)
    page = context.new_page()
    wrong: list[str] = []

    own = f"http://localhost:{port}/"

    def said(message: ConsoleMessage) -> None:
        quiet = any(one in message.text for one in expected)
        if message.type in ("error", "warning") and not quiet:
            wrong.append(message.text)

    def asked(request: Request) -> None:
        if not request.url.startswith(own):
            wrong.append(request.url)

    def opened_a_dialog(dialog: Dialog) -> None:
        wrong.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    page.on("console", said)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", opened_a_dialog)
    page.on("request", asked)
    yield page
    context.close()
    assert not wrong, wrong


def opened(page: Page, address: str = "") -> None:
    """Go to an address, until all that it asks is answered."""
    page.goto("about:blank")
    page.goto(f"/{address}")
    answered(page)


def answered(page: Page) -> None:
    """Wait for all that is shown at an address."""
    page.wait_for_selector("main:not([aria-busy]) h1")
    page.wait_for_selector(".chart:not(:has(svg))", state="detached")


def faults(page: Page) -> list[dict[str, Any]]:
    """What axe finds that is serious: rule, and the elements."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [
        {"rule": one["id"], "elements": [node["html"][:200] for node in one["nodes"]]}
        for one in found
        if one["impact"] in SERIOUS
    ]
