"""The page at `/`, as a person has it: in a real Chromium, with clicks, keys, and eyes on nothing
but what is shown."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import orjson
import pytest

from forebay.serve.tokens import add_token
from forebay.storage.partition.rules import Rules
from tests.browser import answered, chromium, faults, opened, page_of
from tests.partition import Partition
from tests.serving import HOSTILE, Server, filled, frame_of
from tests.shop import DAY_MS, SCHEMA

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

EVIL = "<img src=x onerror=alert(1)>"
VIEWS = {
    "live": "#live",
    "segmentation": "#segmentation?events=purchase&events=search&measure=totals&by=country",
    "funnel": "#funnel?steps=search&steps=purchase&window=2h&by=platform",
    "retention": "#retention?start=search&days=2",
    "paths": "#paths?start=search&steps=3",
    "events": "#events?event=purchase&start=2024-05-01&end=2024-05-02&zone=UTC",
    "user": "#user?id=u2",
}
DRAWN = {
    "live": ["00:00: 1 hot, 0 cold"],
    "segmentation": ["2024-05-01, A purchase, DE: 3", "B search, NL: 9"],
    "funnel": ["1. search, iOS: 3 users (100%)", "2. purchase, Web: 1 users (33.3%)"],
    "retention": ["day 1: 100%", "2024-05-01, day 1: 6 of 6 users (100%)"],
    "paths": ["Step 1, search: 6 users", "Step 2, purchase: 3 users"],
}
"""Of each view with charts, names of figures that it has."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Partition]:
    partition = filled(tmp_path_factory.mktemp("paged") / "data")
    yield partition
    partition.crash()


@pytest.fixture(scope="module")
def server(browser: Browser, data: Partition) -> Iterator[Server]:
    made = Server(data.root, "--workers", "1", "--timeout", "300s")
    yield made
    made.close()


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    with page_of(browser, server.port) as found:
        yield found


def figures(page: Page) -> list[str]:
    """The names of all figures of charts."""
    found: list[str] = page.evaluate(
        "() => [...document.querySelectorAll('.mark')].map(one => one.getAttribute('aria-label'))"
    )
    return found


def ask(page: Page) -> None:
    page.get_by_role("button", name="Ask", exact=True).click()
    answered(page)


def test_the_page_shows_what_goes_on_and_asks_a_question(page: Page) -> None:
    opened(page)
    page.locator(".figure", has_text="Hot").get_by_text("34", exact=True).wait_for()
    page.get_by_role("link", name="Segmentation").click()
    answered(page)
    assert page.get_by_role("heading", level=1).inner_text() == "Segmentation"
    assert "2024-05-03: 6" in figures(page)


@pytest.mark.long
@pytest.mark.parametrize("view", DRAWN)
def test_a_view_has_its_charts(page: Page, view: str) -> None:
    opened(page, VIEWS[view])
    page.wait_for_selector(".chart .mark")
    assert set(DRAWN[view]) <= set(figures(page))
    for chart in page.locator(".chart svg").all():
        assert chart.bounding_box()["height"] > 40  # type: ignore[index]


@pytest.mark.long
def test_a_filter_and_groups_are_chosen_and_are_in_the_address(page: Page) -> None:
    opened(page, "#segmentation?events=search")
    assert "2024-05-01: 6" in figures(page)
    page.get_by_role("button", name="Filter all of them").click()
    page.get_by_label("Property", exact=True).select_option("user_properties.plan")
    page.get_by_label("Value").fill("pro")
    page.get_by_label("Group by").select_option("platform")
    page.get_by_label("Measure").select_option("totals")
    ask(page)
    chosen = figures(page)
    assert {"2024-05-01, iOS: 2", "2024-05-01, Web: 1", "iOS: 6", "Web: 3"} <= set(chosen)
    address = page.url
    page.reload()
    answered(page)
    assert figures(page) == chosen
    with page_of(page.context.browser, int(address.split(":")[2].split("/")[0])) as other:  # type: ignore[arg-type]
        opened(other, address.partition("/#")[2] and f"#{address.partition('/#')[2]}")
        assert figures(other) == chosen
        assert other.get_by_label("Property", exact=True).input_value() == "user_properties.plan"
        assert other.get_by_label("Value").input_value() == "pro"


@pytest.mark.long
def test_from_a_figure_to_its_events_and_from_an_event_to_its_user(page: Page) -> None:
    opened(page, "#segmentation?events=purchase&measure=totals")
    page.get_by_label("2024-05-02: 3", exact=True).click()
    answered(page)
    assert page.get_by_text("3 events", exact=True).is_visible()
    assert page.locator("ol.events > li strong").all_inner_texts() == ["purchase"] * 3
    page.get_by_role("link", name="u2").click()
    answered(page)
    names = page.locator("ol.events > li strong").all_inner_texts()
    assert (len(names), names[0], set(names)) == (7, "signup", {"search", "purchase", "signup"})
    page.get_by_text("All of it").first.click()
    assert page.get_by_text('"plan": "pro"').first.is_visible()
    page.go_back()
    answered(page)
    assert page.get_by_text("3 events", exact=True).is_visible()


@pytest.mark.long
@pytest.mark.parametrize(
    ("view", "figure", "events"),
    [
        ("live", "00:00: 1 hot, 0 cold", 1),
        ("funnel", "2. purchase, Web: 1 users (33.3%)", 3),
        ("retention", "2024-05-01, day 1: 6 of 6 users (100%)", 11),
        ("paths", "Step 2, purchase: 3 users", 9),
    ],
)
def test_figures_of_each_chart_lead_to_events(
    page: Page, view: str, figure: str, events: int
) -> None:
    opened(page, VIEWS[view])
    page.get_by_label(figure, exact=True).last.click()
    page.get_by_role("heading", name="Events", exact=True).wait_for()
    answered(page)
    assert page.locator("ol.events > li").count() == events


@pytest.mark.long
def test_hostile_names_and_values_are_text(browser: Browser, tmp_path: Path) -> None:
    partition = filled(tmp_path / "data")
    row = {
        "kind": "search", "who": EVIL, "country": EVIL, "platform": "\u202e\x00\x1b[31m",
        "at": 3 * DAY_MS, "raw": orjson.dumps({EVIL: EVIL, "big": 12345678901234567890}),
    }  # fmt: skip
    partition.take(frame_of([row], 500))
    partition.blocks.publish()
    server = Server(partition.root, "--workers", "1")
    try:
        with page_of(browser, server.port) as page:
            opened(page, "#segmentation?by=country")
            assert f"2024-05-04, {EVIL}: 1" in figures(page)
            page.get_by_label("Event", exact=True).select_option(HOSTILE)
            ask(page)
            told = page.locator(".chart .mark").last.get_attribute("aria-label")
            assert told == "(none): 1"
            page.locator(".chart .mark").last.click()
            answered(page)
            assert HOSTILE in page.locator("ol.events > li strong").inner_text()
            opened(page, f"#user?id={EVIL}")
            page.get_by_text("All of it").click()
            assert page.get_by_text(f'"{EVIL}": "{EVIL}"').is_visible()
            assert page.get_by_text('"big": 12345678901234567890').is_visible()
            opened(page, f"#{EVIL}")
            opened(page, f"#events?event={EVIL}")
            page.goto("/#live")
            page.get_by_text("bad json").first.wait_for()
            page.get_by_text("Message, partition s0").first.click()
            assert page.get_by_text("{<\ufffd").first.is_visible()
            assert page.locator("img").count() == 0
    finally:
        server.close()
        partition.crash()


def tab_to(page: Page, selector: str) -> None:
    for _ in range(80):
        page.keyboard.press("Tab")
        if page.evaluate("(one) => document.activeElement.matches(one)", selector):
            return
    raise AssertionError(f"expected the Tab key to reach {selector}")


@pytest.mark.long
def test_all_of_it_can_be_done_with_the_keyboard(page: Page) -> None:
    opened(page)
    tab_to(page, "#skip")
    tab_to(page, 'nav a[href="#segmentation"]')
    page.keyboard.press("Enter")
    answered(page)
    assert page.evaluate("document.activeElement.tagName") == "H1"
    tab_to(page, "fieldset select")
    page.keyboard.type("purchase")
    tab_to(page, "button.main")
    page.keyboard.press("Enter")
    page.get_by_label("2024-05-01: 3", exact=True).wait_for()
    tab_to(page, "a.mark")
    page.keyboard.press("ArrowRight")
    focused = "document.activeElement.getAttribute('aria-label')"
    assert page.evaluate(focused) == "2024-05-02: 3"
    assert page.locator(".readout").first.inner_text() == "2024-05-02: 3"
    page.keyboard.press("End")
    assert page.evaluate(focused) == "2024-05-04: 0"
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    page.get_by_text("3 events", exact=True).wait_for()
    tab_to(page, "ol.events a")
    page.keyboard.press("Enter")
    page.get_by_text("the newest first").wait_for()
    assert page.locator("#user-id").input_value() == "u0"


@pytest.mark.long
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(
    browser: Browser, server: Server, scheme: Literal["light", "dark"]
) -> None:
    with page_of(browser, server.port, scheme=scheme) as page:
        for view, address in VIEWS.items():
            opened(page, address)
            if view == "live":
                page.wait_for_selector("ol.events > li")
            page.evaluate("() => document.querySelectorAll('details').forEach(o => o.open = true)")
            assert faults(page) == [], view
        opened(page, "#segmentation")
        page.get_by_role("button", name="Filter this event").click()
        page.get_by_label("Period", exact=True).select_option("")
        assert faults(page) == []


@pytest.mark.long
def test_it_fits_a_narrow_window(browser: Browser, server: Server) -> None:
    with page_of(browser, server.port, width=360) as page:
        for view, address in VIEWS.items():
            opened(page, address)
            wide = page.evaluate("() => document.documentElement.scrollWidth")
            assert wide <= 360, view


@pytest.mark.long
def test_the_code_that_asks_the_same_is_shown(page: Page) -> None:
    opened(page, "#segmentation?events=purchase&by=country")
    page.get_by_text("Python that asks the same").click()
    page.get_by_text("answer = store.segmentation(").wait_for()
    page.get_by_text("SQL that asks the same").click()
    page.get_by_text('count(distinct "who") as value').wait_for()
    opened(page, VIEWS["retention"])
    assert page.get_by_text("Python that asks the same").is_visible()
    assert page.get_by_text("SQL that asks the same").count() == 0


@pytest.mark.long
def test_events_are_shown_as_they_come(page: Page, data: Partition) -> None:
    opened(page)
    page.locator("ol.events li", has_text="u5").first.wait_for()
    data.take(frame_of([{"kind": "a new one", "who": "u9", "at": 3 * DAY_MS}], 3000))
    data.blocks.publish()
    new = page.locator("ol.events li", has_text="a new one")
    new.wait_for()
    assert new.get_by_role("link", name="u9").is_visible()
    page.get_by_role("button", name="Pause").click()
    assert page.get_by_role("button", name="Follow").is_visible()


@pytest.mark.long
def test_a_store_without_events_says_so(browser: Browser, tmp_path: Path) -> None:
    partition = Partition(tmp_path / "data", Rules(SCHEMA, DAY_MS, DAY_MS, 60_000)).start()
    partition.blocks.publish()
    server = Server(partition.root, "--workers", "1")
    try:
        with page_of(browser, server.port) as page:
            for address in ("", "#funnel", "#user?id=u1", "#events?event=a"):
                opened(page, address)
                page.get_by_text("No events yet.").wait_for()
            assert faults(page) == []
    finally:
        server.close()
        partition.crash()


@pytest.mark.long
def test_a_node_that_goes_is_said_and_the_page_goes_on_when_it_is_back(
    browser: Browser, tmp_path: Path
) -> None:
    node = filled(tmp_path / "data")
    other = Partition(tmp_path / "other", Rules(SCHEMA, DAY_MS, DAY_MS, 60_000), name="p01").start()
    other.blocks.publish()
    server = Server(node.root, "--workers", "1", "--data-dir", str(other.root))
    try:
        with page_of(browser, server.port, expected=("Failed to load resource",)) as page:
            opened(page)
            page.get_by_role("heading", name="Partitions").wait_for()
            shutil.move(other.root, tmp_path / "away")
            alert = page.get_by_role("alert").first
            alert.wait_for()
            assert str(other.root) in alert.inner_text()
            assert faults(page) == []
            shutil.move(tmp_path / "away", other.root)
            alert.wait_for(state="detached")
    finally:
        server.close()
        node.crash()
        other.crash()


@pytest.mark.long
def test_a_question_that_takes_long_can_be_cancelled(page: Page, server: Server) -> None:
    opened(page, "#segmentation?events=search")
    server.until("forebay_serve_workers", 1)
    stopped = server.children
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        page.get_by_label("Measure").select_option("totals")
        page.get_by_role("button", name="Ask", exact=True).click()
        page.get_by_role("button", name="Cancel").click()
        page.get_by_text("Cancelled").wait_for()
    finally:
        for pid in stopped:
            if Path(f"/proc/{pid}").exists():
                os.kill(pid, signal.SIGCONT)
    page.get_by_role("button", name="Try again").click()
    figure = page.get_by_label("2024-05-01: 6", exact=True)
    figure.wait_for()
    assert figure.is_visible()


@pytest.mark.long
def test_an_error_is_shown_as_the_server_says_it(browser: Browser, server: Server) -> None:
    with page_of(browser, server.port, expected=("422",)) as page:
        opened(page, "#funnel?steps=search&window=9999999d&order=this")
        assert re.search("window: expected", page.get_by_role("alert").inner_text())
        opened(page, "#segmentation?where=x")
        assert "address: expected a JSON object" in page.get_by_role("alert").inner_text()


@pytest.mark.long
def test_with_tokens_it_asks_for_one_and_keeps_it_in_the_tab(
    browser: Browser, data: Partition, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens.json"
    token = add_token(tokens, "reader", "read")
    server = Server(data.root, "--workers", "1", "--tokens", str(tokens))
    try:
        with page_of(browser, server.port, expected=("401",)) as page:
            page.goto("/")
            page.get_by_role("dialog").wait_for()
            assert faults(page) == []
            page.get_by_role("textbox", name="Token").fill("forebay_wrong")
            page.keyboard.press("Enter")
            page.get_by_text("knows no such token").wait_for()
            page.get_by_role("textbox", name="Token").fill(token)
            page.get_by_role("button", name="Use it").click()
            page.locator("ol.events > li").first.wait_for()
            page.reload()
            page.locator("ol.events > li").first.wait_for()
            assert page.evaluate("() => Object.values(sessionStorage)") == [token]
            assert page.evaluate("() => [localStorage.length, document.cookie]") == [0, ""]
            assert token not in page.url
    finally:
        server.close()
