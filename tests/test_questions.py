"""The questions of product analytics as methods of a store, and how their answers show themselves:
as text, in a page, and as charts."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

import polars as pl
import pytest

import forebay
from forebay import Event, Period, Roles
from forebay.query import analytics
from forebay.query.analytics.answer import Answer
from forebay.query.analytics.charts import CHARTS
from forebay.query.frames import scan_frames
from forebay.query.questions import Questions
from forebay.storage.base.errors import BadInput, MissingFile
from tests.analytics import START, frame
from tests.analytics import Row as R
from tests.shop import taken

ROLES = Roles("who", "kind", "at", "visit")
DAYS = Period(date(2024, 5, 1), date(2024, 5, 4))
WEEK = replace(DAYS, interval="week")
HOSTILE = "</script><script>alert(1)//\x1b[31m"

METHODS: dict[str, tuple[Any, ...]] = {
    "funnel": (["search", "purchase"], DAYS),
    "retention": ("search", "purchase", DAYS),
    "segmentation": (["search", "signup"], DAYS),
    "formula": (["search", "signup"], "UNIQUES(B) / UNIQUES(A)", DAYS),
    "sessions": (DAYS,),
    "stickiness": ("search", WEEK),
    "paths": ("search", DAYS),
    "lifecycle": (DAYS,),
    "sample": ("purchase", DAYS),
    "timeline": ("u2",),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[forebay.Store]:
    partition = taken(tmp_path_factory.mktemp("questions") / "data")
    yield forebay.open(partition.root)
    partition.crash()


def _events(given: Any) -> Any:
    if isinstance(given, list):
        return [Event(name) for name in given]
    return Event(given) if isinstance(given, str) else given


@pytest.mark.parametrize("name", METHODS)
def test_a_method_answers_what_its_function_does(name: str, store: forebay.Store) -> None:
    first, *rest = METHODS[name]
    given = (first if name == "timeline" else _events(first), *rest)
    if name == "retention":
        given = tuple(map(_events, given))
    expected = getattr(analytics, name)(store.scan(), ROLES, *given)
    found: Answer = getattr(store, name)(*METHODS[name])
    assert any(table.height for table in found.tables.values())
    assert found.tables.keys() == expected.tables.keys()
    for key, table in found.tables.items():
        assert table.equals(expected.tables[key])


@pytest.mark.parametrize("name", [name for name in METHODS if name != "formula"])
def test_a_method_has_the_parameters_of_its_function(name: str) -> None:
    """And their defaults, but for what every method makes of its own."""
    of_function = inspect.signature(getattr(analytics, name)).parameters
    of_method = inspect.signature(getattr(Questions, name)).parameters
    assert list(of_method)[1:] == [*list(of_function)[2:], "roles", "layers"]
    hints = get_type_hints(getattr(Questions, name)), get_type_hints(getattr(analytics, name))
    for key, parameter in of_function.items():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            assert of_method[key].default == parameter.default, key
            if "Event" not in str(hints[1][key]):
                assert hints[0][key] == hints[1][key], key


def test_the_period_is_that_of_the_data_unless_it_is_given(store: forebay.Store) -> None:
    assert store.segmentation("search").question["period"] == DAYS
    assert store.stickiness().question["period"] == WEEK
    assert store.roles() == ROLES


def test_other_roles_and_layers_can_be_asked(store: forebay.Store) -> None:
    found = store.segmentation("search", DAYS, roles=store.roles(user="device"), layers="all")
    assert found.overall["value"].to_list() == [2]
    with pytest.raises(BadInput, match="layers: expected"):
        store.sessions(DAYS, layers="alll")  # type: ignore[arg-type]


def test_a_store_is_asked_again_when_a_file_has_gone(
    store: forebay.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, scans = store.scan(), [0]
    schema = dict(rows.collect_schema())

    def gone(*_: object) -> Iterator[pl.DataFrame]:
        raise MissingFile("log: expected 100 bytes, no file")
        yield

    def scan(*_: object) -> pl.LazyFrame:
        scans[0] += 1
        return rows if scans[0] == 3 else scan_frames(gone, schema, "gone")

    monkeypatch.setattr(store, "_scanned", scan)
    assert store.funnel(["search"], DAYS).steps["count"].to_list() == [6]
    assert scans == [3]
    monkeypatch.setattr(store, "_scanned", lambda *_: scan_frames(gone, schema, "gone"))
    with pytest.raises(MissingFile, match="after 5 views"):
        store.funnel(["search"], DAYS)


# -- how answers show themselves ----------------------------------------------------------------

MAY = Period(START.date(), START.date() + timedelta(days=4), zone="Europe/Berlin")


@pytest.fixture(scope="module")
def hostile() -> pl.LazyFrame:
    """Events whose names and groups are what one would not write into a page."""
    hour = 3_600_000
    return frame([
        R(f"u{user}", event, (24 * day + user) * hour + at * 60_000, session=day, plan=plan)
        for user, plan in enumerate([HOSTILE, "<b>", None])
        for day in range(3)
        for at, event in enumerate([HOSTILE, "purchase", "<b>"][: 3 - (user + day) % 2])
    ])  # fmt: skip


@pytest.fixture(scope="module")
def answers(hostile: pl.LazyFrame) -> dict[str, Answer]:
    asked = Roles("user", "event", "time", "session")
    first, second, weeks = Event(HOSTILE), Event("purchase"), replace(MAY, interval="week")
    ask: dict[str, partial[Any]] = {
        "Funnel": partial(analytics.funnel, steps=[first, second], period=MAY),
        "Retention": partial(analytics.retention, start=first, back=second, period=MAY, days=2),
        "Segmentation": partial(analytics.segmentation, events=[first, second], period=MAY),
        "Sessions": partial(analytics.sessions, period=MAY),
        "Stickiness": partial(analytics.stickiness, event=first, period=weeks),
        "Paths": partial(analytics.paths, start=first, period=MAY),
        "Lifecycle": partial(analytics.lifecycle, period=MAY),
        "Sample": partial(analytics.sample, event=first, period=MAY),
        "Timeline": partial(analytics.timeline, user="u0"),
    }  # fmt: skip
    found = {name: one(hostile, asked) for name, one in ask.items()}
    divided = {
        f"{name} by": one(hostile, asked, by="plan")
        for name, one in ask.items()
        if "by" in found[name].question
    }
    return found | divided


NAMES = [*CHARTS, *(f"{name} by" for name in list(CHARTS)[:5])]
EACH = [(name, table) for name in NAMES for table in CHARTS[name.split()[0]]]


def values(chart: Any) -> list[dict[str, Any]]:
    """The rows of a chart."""
    spec = chart.to_dict()
    held = spec["datasets"].values() if "datasets" in spec else [spec["data"]["values"]]
    [found] = held
    return list(found)


def fields(spec: Any) -> Iterator[str]:
    """The names of the columns that a specification shows."""
    if isinstance(spec, dict):
        if isinstance(spec.get("field"), str):
            yield spec["field"]
        for key, inner in spec.items():
            if key not in ("data", "datasets"):
                yield from fields(inner)
    elif isinstance(spec, list):
        for inner in spec:
            yield from fields(inner)


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_is_a_few_lines_of_text_that_say_what_was_asked(
    name: str, answers: dict[str, Answer]
) -> None:
    lines = repr(answers[name]).splitlines()
    assert lines[0].startswith(name.split()[0])
    assert max(map(len, lines)) <= 80
    assert all(line.isprintable() for line in lines)
    if name != "Timeline":
        assert "2024-03-30 to 2024-04-02" in lines[1]
        assert lines[1].endswith("by plan" if "by" in name else "(Europe/Berlin)")
    tables = [line.split()[0] for line in lines if line.startswith("  .")]
    assert tables == [f".{one}" for one in answers[name].tables]


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_in_a_page_is_text(name: str, answers: dict[str, Answer]) -> None:
    page = answers[name]._repr_html_()
    assert "<script" not in page
    assert "<b>" not in page
    assert "<table>" in page
    assert page.isprintable()


@pytest.mark.few(8)
@pytest.mark.parametrize(("name", "table"), EACH)
def test_a_chart_has_its_rows_and_the_columns_that_it_shows(
    name: str, table: str, answers: dict[str, Answer]
) -> None:
    chart = answers[name].chart(table)
    rows, spec = values(chart), chart.to_dict()
    assert rows
    shown = set(fields(spec))
    assert len(shown) >= 2
    assert shown <= set(rows[0])
    if "by" in name:
        assert {"group", "series"} & shown
    page = chart.to_html(inline=False)
    assert page.count("</script>") == page.count("<script")
    assert "alert(1)" not in page or "<script>alert(1)" not in page


def test_a_funnel_is_bars_of_shares_with_their_counts(answers: dict[str, Answer]) -> None:
    rows = values(answers["Funnel"].chart())
    assert [(row["told"], row["of_first"]) for row in rows] == [
        ("3 (100.0%)", 1),
        ("3 (100.0%)", 1),
    ]
    assert rows[1]["name"] == "2. purchase"


def test_retention_is_a_curve_of_days_and_a_heatmap_of_cohorts(answers: dict[str, Answer]) -> None:
    curve = values(answers["Retention"].chart())
    assert [row["from_day"] for row in curve] == [0, 1]  # no cohort has come to day 2
    heat = values(answers["Retention"].chart("cohorts"))
    assert {(row["name"], row["from_day"]) for row in heat} >= {("2024-03-30 (3 users)", 0)}


def test_times_of_a_chart_are_those_of_the_zone(answers: dict[str, Answer]) -> None:
    """Clocks change on the second day; the browser is told that it is UTC."""
    chart = answers["Segmentation"].chart()
    days = sorted({row["bucket"] for row in values(chart)})
    assert days == [f"2024-{day}T00:00:00.000Z" for day in ("03-30", "03-31", "04-01", "04-02")]
    assert chart.to_dict()["encoding"]["x"]["scale"] == {"type": "utc"}
    assert [row["series"] for row in values(chart)[-1:]] == ["B purchase"]


@pytest.mark.parametrize("name", ["Funnel", "Retention by"])
def test_a_chart_is_saved_without_a_network(
    name: str, answers: dict[str, Answer], tmp_path: Path
) -> None:
    chart = answers[name].chart()
    chart.save(tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert (tmp_path / "chart.png").stat().st_size > 5_000
    chart.save(tmp_path / "chart.html", inline=True)
    page = (tmp_path / "chart.html").read_text()
    loaded = re.findall(r"<(?:script|link)[^>]*(?:src|href)=[\"'](\w+)", page)
    assert not {"http", "https"} & set(loaded)
    assert len(page) > 500_000


def test_a_chart_of_an_unknown_table_or_without_the_library_is_a_line(
    answers: dict[str, Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadInput, match="among steps, over_time, distribution; got 'whole'"):
        answers["Funnel"].chart("whole")
    monkeypatch.setitem(sys.modules, "altair", None)
    with pytest.raises(BadInput) as caught:
        answers["Funnel"].chart()
    assert str(caught.value).endswith("pip install 'forebay[charts]'")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", CHARTS)
def test_a_chart_of_nothing_is_empty(name: str, answers: dict[str, Answer]) -> None:
    """No chart fails where no event was found."""
    found = answers[name]
    none: dict[str, Any] = {key: table.clear() for key, table in found.tables.items()}
    empty = replace(found, **none)
    for table in CHARTS[name]:
        assert values(empty.chart(table)) == []


def test_a_store_says_what_it_covers(store: forebay.Store) -> None:
    store.scan()
    lines = repr(store).splitlines()
    assert lines[0].startswith("Store of ")
    assert lines[1:] == [
        "  33 events (33 hot, 0 cold) in 1 partition",
        "  uploaded from 2024-05-01T00:00:00Z to 2024-05-03T05:20:00Z",
    ]
    assert "<script" not in store._repr_html_()


def test_a_store_of_a_hostile_folder_is_text(alone: None) -> None:
    Path("<b>").mkdir()
    page = forebay.open("<b>")._repr_html_()
    assert "&lt;b&gt;" in page
    assert page.count("<b>") == 1
