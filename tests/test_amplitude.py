"""Amplitude's Dashboard REST API over small data: what its documentation and its servers were seen
to answer, figure by figure, and what is refused."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import random
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import forebay
from forebay.serve.amplitude.answers import Answers
from forebay.serve.amplitude.refusals import body_of
from forebay.serve.amplitude.shapes import number
from forebay.serve.problems import Problem
from forebay.storage.base.errors import BadInput
from forebay.storage.base.times import ms_of
from tests import cases
from tests.amplitude import (
    MINUTE_MS,
    SCHEMA,
    Event,
    event,
    messages_of,
    random_events,
    taken,
    utc,
)
from tests.shop import taken as taken_of_another

NOW = utc("2026-03-04 12:00")
DAYS = {"start": "20260302", "end": "20260303"}
X = ["2026-03-02", "2026-03-03"]
BUY = {"event_type": "buy"}
Ask = Callable[..., Any]
Make = Callable[..., "Api"]


class Api:
    """The endpoints over some events; `ask` gives what is answered, as JSON."""

    def __init__(self, root: Path, zone: str = "UTC") -> None:
        self.store = forebay.open(root)
        self.answers = Answers(self.store, zone, lambda: ms_of(NOW))

    def written(self, name: str, **given: object) -> bytes:
        out = io.BytesIO()
        texts = {
            key: [text if isinstance(text, str) else json.dumps(text) for text in several(value)]
            for key, value in given.items()
        }
        self.answers.write(f"amplitude {name}", texts, out)
        return out.getvalue()

    def ask(self, name: str, **given: object) -> Any:
        return json.loads(self.written(name, **given))

    def refused(self, name: str, **given: object) -> dict[str, Any]:
        with pytest.raises((Problem, BadInput)) as caught:
            self.written(name, **given)
        told = caught.value
        problem = told if isinstance(told, Problem) else Problem(422, str(told))
        error: dict[str, Any] = json.loads(body_of(problem))["error"]
        return error


def several(value: object) -> list[object]:
    """A tuple is a repeated parameter."""
    return list(value) if isinstance(value, tuple) else [value]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Make]:
    partitions = []

    def make(events: list[Event], zone: str = "UTC") -> Api:
        root = tmp_path_factory.mktemp("amplitude") / "data"
        partitions.append(taken(root, messages_of(events)))
        return Api(root, zone)

    yield make
    for partition in partitions:
        partition.crash()


@pytest.fixture(scope="module")
def shop(made: Make) -> Api:
    """On the first day u1, u2 and u3 of NL buy 2, 2 and 1 times, and u4 of nowhere twice; on the
    second u1 twice, and u5 of NL three times."""
    counts = {(2, 1): 2, (2, 2): 2, (2, 3): 1, (2, 4): 2, (3, 1): 2, (3, 5): 3}
    return made(
        [
            event(
                f"u{user}", "buy", f"2026-03-0{day} 09:0{n}",
                country=None if user == 4 else "NL", session_id=day,
                event_properties={"price": user, "kind": "a.b" if user < 3 else "c"},
                user_properties={"plan": "pro" if user == 1 else "free"},
            )
            for (day, user), count in counts.items()
            for n in range(count)
        ]
    )  # fmt: skip


def test_segmentation_of_totals_is_as_in_the_specification(shop: Api) -> None:
    assert shop.ask("segmentation", e=BUY, m="totals", **DAYS) == {
        "data": {
            "series": [[7, 5]],
            "seriesLabels": [0],
            "seriesCollapsed": [[{"setId": "", "value": 12}]],
            "xValues": X,
        }
    }


def test_segmentation_of_uniques_by_country_is_as_in_the_specification(shop: Api) -> None:
    assert shop.ask("segmentation", e=BUY, m="uniques", g="country", **DAYS) == {
        "data": {
            "series": [[3, 2], [1, 0]],
            "seriesLabels": ["NL", "(none)"],
            "seriesCollapsed": [[{"setId": "", "value": 4}], [{"setId": "", "value": 1}]],
            "xValues": X,
        }
    }


def test_a_group_by_of_an_event_is_labelled_with_its_number(shop: Api) -> None:
    grouped = {**BUY, "group_by": [{"type": "user", "value": "gp:plan"}]}
    found = shop.ask("segmentation", e=grouped, e2=BUY, **DAYS)["data"]
    assert found["seriesLabels"] == [[0, "free"], [0, "pro"], 1]
    assert found["series"] == [[3, 1], [1, 1], [4, 2]]


def test_the_limit_leaves_the_smaller_groups_out(shop: Api) -> None:
    found = shop.ask("segmentation", e=BUY, g="country", limit=1, **DAYS)["data"]
    assert (found["seriesLabels"], found["series"]) == (["NL"], [[3, 2]])


@pytest.mark.parametrize(
    ("measure", "series", "whole"),
    [("sums", [17, 17], 34), ("value_avg", [17 / 7, 17 / 5], 34 / 12)],
)
def test_a_property_in_the_group_by_is_measured(
    shop: Api, measure: str, series: list[float], whole: float
) -> None:
    of = {**BUY, "group_by": [{"type": "event", "value": "price"}]}
    found = shop.ask("segmentation", e=of, m=measure, **DAYS)["data"]
    assert found["series"] == [pytest.approx(series)]
    assert found["seriesCollapsed"][0][0]["value"] == pytest.approx(whole)


def test_averages_shares_and_formulas_are_those_of_the_events(shop: Api) -> None:
    price = {"subprop_type": "event", "subprop_key": "price", "subprop_op": "less"}
    some = {**BUY, "filters": [{**price, "subprop_value": ["2"]}]}
    asked: dict[str, dict[str, object]] = {
        "average": {"e": BUY, "m": "average"},
        "share": {"e": some, "m": "pct_dau"},
        "formula": {"e": some, "e2": BUY, "m": "formula", "formula": "TOTALS(A) / TOTALS(B)"},
        "values": {
            "e": {**BUY, "group_by": [{"type": "event", "value": "price"}]},
            "m": "formula", "formula": "PROPSUM(A)",
        },
    }  # fmt: skip
    found = {
        name: shop.ask("segmentation", **given, **DAYS)["data"]["series"]
        for name, given in asked.items()
    }
    assert found == {
        "average": [[7 / 4, 5 / 2]],
        "share": [[0.25, 0.5]],
        "formula": [[2 / 7, 2 / 5]],
        "values": [[17, 17]],
    }


def test_formulas_and_sums_are_divided_like_other_measures(shop: Api) -> None:
    of = {**BUY, "group_by": [{"type": "event", "value": "price"}]}
    plan = {**BUY, "group_by": [{"type": "user", "value": "gp:plan"}]}
    ratio = {"m": "formula", "formula": "TOTALS(A) / UNIQUES(A)"}
    asked: dict[str, dict[str, object]] = {
        "ratio": {"e": BUY, "g": "country", **ratio},
        "sums": {"e": of, "m": "sums", "g": "country"},
        "formula of sums": {"e": of, "m": "formula", "formula": "PROPSUM(A)", "g": "country"},
        "by event": {"e": plan, **ratio},
    }
    found = {
        name: shop.ask("segmentation", **given, **DAYS)["data"] for name, given in asked.items()
    }
    assert {name: (one["seriesLabels"], one["series"]) for name, one in found.items()} == {
        "ratio": (["NL", "(none)"], [[5 / 3, 5 / 2], [2, 0]]),
        "sums": (["NL", "(none)"], [[9, 17], [8, 0]]),
        "formula of sums": (["NL", "(none)"], [[9, 17], [8, 0]]),
        "by event": ([[0, "pro"], [0, "free"]], [[2, 2], [5 / 3, 3]]),
    }


def test_numbers_are_whole_as_far_as_a_double_tells_them_apart() -> None:
    found = [number(one) for one in (None, 2.0, 2.5, 1e300, float("inf"), -3.0)]
    assert json.dumps(found) == "[0, 2, 2.5, 1e+300, Infinity, -3]"


@pytest.mark.parametrize(
    ("op", "key", "values", "expected"),
    [
        ("is", "gp:plan", ["pro"], [1, 1]),
        ("is not", "gp:plan", ["pro"], [3, 1]),
        ("is", "country", ["(none)"], [1, 0]),
        ("is not", "country", ["(none)"], [3, 2]),
        ("is not", "country", ["(none)", "NL"], [0, 0]),
        ("contains", "country", ["N"], [3, 2]),
        ("does not contain", "country", ["N"], [1, 0]),
    ],
)
def test_operators_mean_the_same_in_segments_and_in_filters(
    shop: Api, op: str, key: str, values: list[str], expected: list[int]
) -> None:
    own = {"subprop_type": "user", "subprop_key": key, "subprop_op": op, "subprop_value": values}
    for given in (
        {"e": {**BUY, "filters": [own]}},
        {"e": BUY, "s": ([{"prop": key, "op": op, "values": values}],)},
        {
            "e": BUY,
            "s": json.dumps([{"prop": key, "op": op, "values": values, "type": "property"}]),
        },
    ):
        assert shop.ask("segmentation", **given, **DAYS)["data"]["series"] == [expected]


def test_event_properties_compare_by_size(shop: Api) -> None:
    for op, expected in {
        "less": [2, 1], "less or equal": [3, 1], "greater": [1, 1], "greater or equal": [2, 1],
    }.items():  # fmt: skip
        own = {"subprop_type": "event", "subprop_key": "price", "subprop_op": op}
        some = {**BUY, "filters": [{**own, "subprop_value": ["3"]}]}
        assert shop.ask("segmentation", e=some, **DAYS)["data"]["series"] == [expected]


def test_segments_are_repeated_and_keep_their_order(shop: Api) -> None:
    segments = tuple([{"prop": "gp:plan", "op": "is", "values": [one]}] for one in ("pro", "free"))
    found = shop.ask("segmentation", e=BUY, s=segments, **DAYS)["data"]
    assert (found["series"], found["seriesLabels"]) == ([[1, 1], [3, 1]], [0, 1])
    steps = shop.ask("funnels", e=(BUY, BUY), s=segments, **DAYS)["data"]
    assert [one["meta"] for one in steps] == [{"segmentIndex": 0}, {"segmentIndex": 1}]


def test_intervals_are_days_weeks_months_hours_and_five_minutes(shop: Api) -> None:
    def x(i: int, **days: str) -> list[str]:
        found: list[str] = shop.ask("segmentation", e=BUY, i=i, **{**DAYS, **days})["data"][
            "xValues"
        ]
        return found

    assert x(7, start="20260301") == ["2026-02-23", "2026-03-02"]
    assert x(30, start="20260115") == ["2026-01-01", "2026-02-01", "2026-03-01"]
    assert x(-3600000)[:2] == ["2026-03-02T00:00:00", "2026-03-02T01:00:00"]
    assert x(-300000)[:2] == ["2026-03-02T00:00:00", "2026-03-02T00:05:00"]
    assert len(x(-300000)) == 2 * 288


def test_days_are_those_of_the_projects_time_zone(made: Make) -> None:
    api = made([event("u1", "buy", "2026-03-02 23:30")], "Europe/Amsterdam")
    assert api.ask("segmentation", e=BUY, **DAYS)["data"]["series"] == [[0, 1]]
    hours = api.ask("segmentation", e=BUY, i=-3600000, **DAYS)["data"]
    assert hours["xValues"][hours["series"][0].index(1)] == "2026-03-03T00:00:00"


def test_a_day_of_the_future_is_zero_and_not_absent(shop: Api) -> None:
    found = shop.ask("segmentation", e=BUY, start="20260303", end="20260305")["data"]
    assert found["series"] == [[2, 0, 0]]


@pytest.fixture(scope="module")
def visits(made: Make) -> Api:
    """Five users do a on the first day, of whom two do b four seconds later; three others do a on
    the second. Those of even numbers are on iOS, but u7 and u8."""
    events = []
    for user in range(1, 9):
        day = "2026-03-02" if user < 6 else "2026-03-03"
        platform = "Web" if user > 6 else "iOS"
        events.append(event(f"u{user}", "a", f"{day} 09:00:00", platform=platform))
        if user < 3:
            events.append(event(f"u{user}", "b", f"{day} 09:00:04", platform=platform))
    return made(events)


def test_a_funnel_is_as_in_the_specification(visits: Api) -> None:
    x = {"xValues": X, "formattedXValues": ["Mar 02", "Mar 03"]}
    steps = ({"event_type": "a"}, {"event_type": "b"})
    assert visits.ask("funnels", e=steps, **DAYS) == {
        "data": [
            {
                "meta": {"segmentIndex": 0},
                "groupValue": "",
                "events": ["a", "b"],
                "cumulativeRaw": [8, 2],
                "cumulative": [1.0, 0.25],
                "stepByStep": [1.0, 0.25],
                "medianTransTimes": [4000, 4000],
                "avgTransTimes": [4000, 4000],
                "dayFunnels": {"series": [[5, 2], [3, 0]], **x},
                "dayMedianTransTimes": {"series": [[4000, 4000], [0, 0]], **x},
                "dayAvgTransTimes": {"series": [[4000, 4000], [0, 0]], **x},
            }
        ]
    }


def test_a_funnel_by_platform_is_as_in_the_specification(visits: Api) -> None:
    steps = ({"event_type": "a"}, {"event_type": "b"})
    found = visits.ask("funnels", e=steps, g="platform", **DAYS)["data"]
    told = [(one["groupValue"], one["cumulativeRaw"], one["stepByStep"]) for one in found]
    assert told == [("iOS", [6, 2], [1.0, 2 / 6]), ("Web", [2, 0], [1.0, 0.0])]


def test_orders_and_windows_of_funnels_are_amplitudes(made: Make) -> None:
    api = made(
        [
            event("u1", kind, f"2026-03-02 09:00:{second:02}")
            for kind, second in (("b", 0), ("a", 10), ("x", 20), ("b", 30), ("c", 55))
        ]
    )

    def reached(mode: str, cs: int = 86400, *kinds: str) -> list[int]:
        steps = tuple({"event_type": kind} for kind in kinds or ("a", "b"))
        (found,) = api.ask("funnels", e=steps, mode=mode, cs=cs, **DAYS)["data"]
        raw: list[int] = found["cumulativeRaw"]
        return raw

    assert reached("ordered") == [1, 1]
    assert reached("ordered", 19) == [1, 0]
    assert reached("sequential") == [1, 0]
    assert reached("unordered", 86400, "c", "b") == [1, 1]
    assert reached("ordered", 86400, "c", "b") == [1, 0]
    assert api.refused("funnels", e=(BUY, BUY), mode="unordered", cs=3600, **DAYS)
    steps = tuple({"event_type": kind} for kind in "abc")
    (found,) = api.ask("funnels", e=steps, **DAYS)["data"]
    assert found["avgTransTimes"] == [45_000, 20_000, 25_000]
    assert found["dayAvgTransTimes"]["series"] == [[45_000, 20_000, 25_000], [0, 0, 0]]


@pytest.fixture(scope="module")
def newcomers(made: Make) -> Api:
    """Four users begin on the first day, of whom two return after a day; six on the second, of whom
    one does."""
    events = []
    for user in range(1, 11):
        day = 2 if user < 5 else 3
        events.append(event(f"u{user}", "open", f"2026-03-0{day} 09:00"))
        if user in (1, 2, 5):
            events.append(event(f"u{user}", "open", f"2026-03-0{day + 1} 09:30"))
    return made(events)


def test_retention_is_as_in_the_specification(newcomers: Api) -> None:
    def point(count: int, outof: int, incomplete: bool = False) -> dict[str, object]:
        return {"count": count, "outof": outof, "incomplete": incomplete}

    new, active = {"event_type": "_new"}, {"event_type": "_active"}
    found = newcomers.ask("retention", se=new, re=active, **DAYS)["data"]
    (series,) = found["series"]
    assert series["dates"] == ["Mar 03", "Mar 02"]
    assert {day: points[:3] for day, points in series["values"].items()} == {
        "Mar 02": [point(4, 4), point(4, 4), point(2, 4)],
        "Mar 03": [point(6, 6), point(6, 6), point(1, 6, incomplete=True)],
    }
    assert series["combined"][:3] == [
        {**point(10, 10), "retainedSetId": None},
        {**point(10, 10), "retainedSetId": None},
        {**point(2, 4), "retainedSetId": None},
    ]
    assert found["seriesMeta"] == [{"segmentIndex": 0, "eventIndex": 0}]
    assert found["seriesLabels"] == [0]


def test_an_unknown_method_of_retention_is_refused_as_by_amplitude(newcomers: Api) -> None:
    active = {"event_type": "_active"}
    error = newcomers.refused("retention", se=active, re=active, rm="bogus", **DAYS)
    assert (error["http_code"], error["type"]) == (400, "invalid")
    assert error["message"] == "Invalid retention method."


def test_methods_of_retention_are_n_day_rolling_and_brackets(newcomers: Api) -> None:
    active = {"event_type": "_active"}

    def counts(**given: object) -> list[int]:
        asked = {"se": {"event_type": "_new"}, "re": active, **DAYS, **given}
        (series,) = newcomers.ask("retention", **asked)["data"]["series"]
        return [one["count"] for one in series["values"]["Mar 02"]]

    assert counts() == counts(rm="n-day") == counts(rm="nday") == [4, 4, 2, 0]
    assert counts(rm="rolling") == [4, 4, 2, 0]
    assert counts(rm="bracket", rb=[[0, 1], [1, 5]]) == [4, 4, 2]


def test_retention_by_a_property_has_a_series_for_each_value(made: Make) -> None:
    api = made(
        [
            event("u1", "open", "2026-03-02 09:00", platform="iOS"),
            event("u2", "open", "2026-03-02 09:00", platform="Web"),
            event("u3", "open", "2026-03-02 09:00", platform="Web"),
        ]
    )
    active = {"event_type": "_all"}
    found = api.ask("retention", se=active, re=active, g="platform", **DAYS)["data"]
    assert found["seriesLabels"] == ["Web", "iOS"]
    assert [one["combined"][0]["count"] for one in found["series"]] == [2, 1]


@pytest.fixture(scope="module")
def crowd(made: Make) -> Api:
    """Users by day and country, as the specification counts them."""
    numbers = itertools.count(1)
    return made(
        [
            event(f"u{next(numbers)}", "open", f"2026-03-0{day} 09:00", country=country)
            for day, country, count in ((2, "NL", 6), (3, "NL", 5), (2, "US", 3), (3, "US", 2))
            for _ in range(count)
        ]
    )


def test_users_are_as_in_the_specification(crowd: Api) -> None:
    assert crowd.ask("users", **DAYS) == {
        "data": {
            "xValues": X,
            "series": [[9, 7]],
            "seriesCollapsed": [[0]],
            "seriesLabels": [0],
            "seriesMeta": [{"segmentIndex": 0}],
        }
    }
    found = crowd.ask("users", g="country", **DAYS)["data"]
    assert found["series"] == [[6, 5], [3, 2]]
    assert found["seriesLabels"] == found["seriesMeta"] == ["NL", "US"]


def test_new_users_are_counted_on_their_first_day(newcomers: Api) -> None:
    assert newcomers.ask("users", m="new", **DAYS)["data"]["series"] == [[4, 6]]
    assert newcomers.ask("users", m="active", **DAYS)["data"]["series"] == [[4, 8]]


def test_composition_counts_users_by_the_value_of_a_property(crowd: Api) -> None:
    found = crowd.ask("composition", p="country", **DAYS)
    assert found == {
        "data": {"series": [[11, 5]], "seriesLabels": ["country"], "xValues": ["NL", "US"]}
    }


@pytest.fixture(scope="module")
def sittings(made: Make) -> Api:
    """On the first day, of twelve users, eleven sessions of half a minute and four of 90 s."""
    events = []
    for n in range(15):
        user, start = f"u{n % 12 + 1}", datetime(2026, 3, 2, 9 + n // 12)
        seconds = 30 if n < 11 else 90
        for at in (start, start + timedelta(seconds=seconds)):
            events.append(event(user, "open", at, session_id=n))
    events.append(event("u1", "open", "2026-03-02 08:00", session_id=-1))
    return made(events)


def test_sessions_are_as_in_the_specification(sittings: Api) -> None:
    bins = {"TimeUnit": "minutes", "Min": 0, "Max": 2, "Size": 1}
    given = {f"timeHistogramConfigBin{name}": value for name, value in bins.items()}
    assert sittings.ask("session lengths", **given, **DAYS) == {
        "data": {"series": [[11, 4]], "xValues": ["0s-60s", "60s-120s"]}
    }
    tail = {"seriesMeta": [{"segmentIndex": 0}], "xValues": X}
    average = (11 * 30 + 4 * 90) / 15
    assert sittings.ask("session average", **DAYS) == {"data": {"series": [[average, 0]], **tail}}
    per_user = {"data": {"series": [[1.25, 0]], **tail}}
    assert sittings.ask("sessions per user", **DAYS) == per_user


def test_lengths_have_amplitudes_bins_unless_others_are_valid(sittings: Api) -> None:
    expected = [0, 0, 0, 11, 4, 0, 0, 0, 0]
    for unit in ({}, {"TimeUnit": "days", "Min": 0, "Max": 10}, {"TimeUnit": "hours", "Min": 0}):
        given = {f"timeHistogramConfigBin{name}": value for name, value in unit.items()}
        found = sittings.ask("session lengths", **given, **DAYS)["data"]
        assert found["series"] == [expected]
        assert found["xValues"][:2] == ["0s-3s", "3s-10s"]
        assert found["xValues"][-1] == "3600s-86400s"


def test_real_time_is_two_days_by_five_minutes_up_to_now(made: Make) -> None:
    api = made(
        [
            event("u1", "open", "2026-03-04 12:01"),
            event("u2", "open", "2026-03-04 12:02"),
            event("u1", "open", "2026-03-04 11:59"),
            event("u1", "open", "2026-03-03 12:04"),
            event("u1", "open", "2026-03-02 12:01"),
        ]
    )
    found = api.ask("realtime", i=5)["data"]
    assert found["seriesLabels"] == ["Today", "Yesterday"]
    assert (len(found["xValues"]), found["xValues"][-2:]) == (288, ["11:55", "12:00"])
    today, yesterday = found["series"]
    assert (today[-2:], yesterday[-1], sum(yesterday)) == ([1, 2], 1, 1)
    assert api.ask("realtime") == {"data": found}
    assert api.refused("realtime", i=7)["http_code"] == 400


def test_a_user_is_known_by_amplitude_id_and_shown_with_events(shop: Api) -> None:
    found = shop.ask("user activity", user="1", limit=1)
    assert found["userData"]["user_id"] == "u1"
    known = {
        "canonical_amplitude_id": 1, "num_events": 4, "num_sessions": 2, "usage_time": 120_000,
        "first_used": "2026-03-02", "last_used": "2026-03-03", "country": "NL",
        "device_ids": ["d1"], "properties": {"plan": "pro"},
    }  # fmt: skip
    assert {name: found["userData"][name] for name in known} == known
    (newest,) = found["events"]
    assert newest["event_type"] == "buy"
    assert newest["event_time"] == "2026-03-03 09:01:00.000000"
    assert newest["event_properties"] == {"price": 1, "kind": "a.b"}
    earliest = shop.ask("user activity", user="1", limit=2, offset=1, direction="earliest")
    times = [one["event_time"][:16] for one in earliest["events"]]
    assert times == ["2026-03-02 09:01", "2026-03-03 09:00"]


def test_an_unknown_user_is_answered_with_nothing(shop: Api) -> None:
    found = shop.ask("user activity", user="99")
    assert (found["events"], found["userData"]["user_id"]) == ([], None)
    assert (found["userData"]["num_events"], found["userData"]["usage_time"]) == (0, 0)
    assert shop.refused("user activity", user="u1")["http_code"] == 400


@pytest.mark.parametrize(
    ("user", "kind", "users"),
    [
        ("u1", "match_user_or_device_id", ["u1"]),
        ("d1", "match_user_or_device_id", ["u1"]),
        ("1", "match_amplitude_id", ["u1"]),
        ("u", "match_user_prefix", ["u5", "u1", "u2", "u4", "u3"]),
        ("zz", "nomatch", []),
    ],
)
def test_users_are_found_by_each_of_their_names(
    shop: Api, user: str, kind: str, users: list[str]
) -> None:
    matches = [{"user_id": one, "amplitude_id": int(one[1:])} for one in users]
    assert shop.ask("user search", user=user) == {"matches": matches, "type": kind}


def test_events_are_listed_with_the_totals_of_this_week(made: Make) -> None:
    api = made(
        [
            *(event("u1", "buy", f"2026-03-02 09:{n:02}") for n in range(12)),
            event("u1", "old", "2026-03-01 09:00"),
        ]
    )
    first, second = api.ask("events")["data"]
    assert first.pop("id") > second.pop("id") - 2**53
    flags = dict.fromkeys(("non_active", "hidden", "deleted", "flow_hidden"), False)
    assert first == {"value": "buy", "name": "buy", "display": "buy", "totals": 12, **flags}
    assert (second["value"], second["totals"]) == ("old", 0)


def test_an_empty_project_has_no_events_and_no_export(made: Make) -> None:
    api = made([])
    assert api.ask("events") == {"data": []}
    assert api.refused("export", start="20260302T09", end="20260302T11")["http_code"] == 404


def test_where_nothing_happened_are_no_groups_and_no_export(made: Make) -> None:
    api = made([event("u1", "buy", "2026-03-02 09:00")])
    assert api.refused("export", start="20260302T10", end="20260302T11")["http_code"] == 404
    assert api.ask("users", start="20260310", end="20260310", g="country")["data"]["series"] == []


def exported(api: Api, **given: str) -> dict[str, list[bytes]]:
    archive = zipfile.ZipFile(io.BytesIO(api.written("export", **given)))
    assert archive.testzip() is None
    return {name: gzip.decompress(archive.read(name)).splitlines() for name in archive.namelist()}


def test_an_export_has_the_messages_as_they_came_by_the_hour_of_upload(
    tmp_path: Path,
) -> None:
    events = [event("u1", "buy", f"2026-03-02 {hour:02}:30:00.123") for hour in (8, 9, 9, 10, 11)]
    messages = messages_of(events)
    partition = taken(tmp_path / "data", messages)
    api = Api(partition.root)
    found = exported(api, start="20260302T9", end="20260302T10")
    assert found == {
        "forebay/forebay_2026-03-02_9#0.json.gz": messages[1:3],
        "forebay/forebay_2026-03-02_10#0.json.gz": messages[3:4],
    }
    assert exported(api, start="20260302T09", end="20260302T10") == found
    partition.crash()


def test_an_export_has_each_event_of_chunks_and_of_hot_blocks_once(tmp_path: Path) -> None:
    events = random_events(3, 150, datetime(2026, 3, 2), 1)
    messages = messages_of(sorted(events, key=lambda one: str(one["server_upload_time"])))
    partition = taken(tmp_path / "data", messages, span_ms=90 * MINUTE_MS)
    partition.merge()
    partition.blocks.publish()
    api = Api(partition.root)
    found = exported(api, start="20260302T03", end="20260302T22")
    receipt = api.store.receipt()
    assert receipt.cold_rows > 0 < receipt.hot_rows

    def hour(message: bytes) -> datetime:
        text: str = json.loads(message)["server_upload_time"]
        return datetime.fromisoformat(text).replace(minute=0, second=0)

    first, last = datetime(2026, 3, 2, 3), datetime(2026, 3, 2, 22)
    expected = sorted(one for one in messages if first <= hour(one) <= last)
    assert sorted(itertools.chain(*found.values())) == expected
    for name, lines in found.items():
        (at,) = {hour(line) for line in lines}
        assert name == f"forebay/forebay_{at:%Y-%m-%d}_{at.hour}#0.json.gz"
    partition.crash()


def test_what_a_message_lacks_of_an_export_is_added(tmp_path: Path) -> None:
    sent = {
        "event_type": "buy", "time": ms_of(utc("2026-03-02 09:00:01")), "user_id": "u1",
        "device_id": "d1", "insert_id": "i1", "note": "two\nlines",
        "server_upload_time": "2026-03-02T09:00:02Z",
    }  # fmt: skip
    partition = taken(tmp_path / "data", [json.dumps(sent, indent=1).encode()])
    api = Api(partition.root)
    ((line,),) = exported(api, start="20260302T00", end="20260302T23").values()
    assert json.loads(line) == {
        **sent,
        "event_time": "2026-03-02 09:00:01.000000",
        "server_upload_time": "2026-03-02 09:00:02.000000",
        "$insert_id": "i1",
    }
    partition.crash()


def test_without_messages_an_export_has_the_columns(tmp_path: Path) -> None:
    messages = messages_of([event("u1", "buy", "2026-03-02 09:00", country="NL")])
    partition = taken(tmp_path / "data", messages, replace(SCHEMA, raw=False))
    api = Api(partition.root)
    ((line,),) = exported(api, start="20260302T00", end="20260302T23").values()
    record = json.loads(line)
    assert (record["event_type"], record["country"]) == ("buy", "NL")
    assert record["event_time"] == "2026-03-02 09:00:00.000000"
    lacking = {**BUY, "group_by": [{"type": "event", "value": "price"}]}
    assert "messages are not kept" in api.refused(
        "segmentation", e=lacking, **DAYS)["metadata"]["details"]  # fmt: skip
    partition.crash()


def test_data_of_another_form_is_asked_by_its_own_names(tmp_path: Path) -> None:
    partition = taken_of_another(tmp_path / "data")
    api = Api(partition.root)
    days = {"start": "20240501", "end": "20240503"}
    price = {"subprop_type": "event", "subprop_key": "price", "subprop_op": "greater"}
    some = {"event_type": "purchase", "filters": [{**price, "subprop_value": ["1"]}]}
    found = api.ask("segmentation", e=some, g="country", **days)["data"]
    assert (found["series"], found["seriesLabels"]) == ([[2, 2, 2]], ["DE"])
    plan = api.ask("composition", p="gp:user_properties.plan", **days)["data"]
    assert plan["xValues"] == ["free", "pro"]
    told = api.refused("user search", user="u1")["metadata"]["details"]
    assert "amplitude_id" in told
    (lines,) = list(exported(api, start="20240501T00", end="20240501T00").values())
    assert {json.loads(line)["event_type"] for line in lines} == {"search", "signup", "purchase"}
    partition.crash()


ONE = [{"prop": "country", "op": "is", "values": ["NL"]}]
UNSUPPORTED: dict[str, tuple[str, dict[str, object]]] = {
    "a rolling window": ("segmentation", {"rollingWindow": 7}),
    "a rolling average": ("segmentation", {"rollingAverage": 7}),
    "a histogram": ("segmentation", {"m": "histogram"}),
    "a custom event": ("segmentation", {"e": {"event_type": "ce:mine"}}),
    "revenue": ("segmentation", {"e": {"event_type": "revenue_amount"}}),
    "two groups": ("segmentation", {"g": ("country", "platform")}),
    "a second group": ("segmentation", {"g": "country", "g2": "platform"}),
    "two groups of an event": (
        "segmentation", {"e": {**BUY, "group_by": [{"type": "user", "value": "country"}] * 2}},
    ),
    "a cohort": (
        "segmentation", {"s": ([{"prop": "userdata_cohort", "op": "is", "values": ["a"]}],)},
    ),
    "who performed an event": (
        "segmentation", {"s": ([{"type": "event", "event_type": "buy", "value": 1}],)},
    ),
    "an operator of sets": (
        "segmentation", {"s": ([{"prop": "country", "op": "set is", "values": ["NL"]}],)},
    ),
    "sizes of text": (
        "segmentation", {"s": ([{"prop": "version", "op": "less", "values": ["1"]}],)},
    ),
    "none and another": (
        "segmentation", {"s": ([{"prop": "country", "op": "is", "values": ["(none)", "NL"]}],)},
    ),
    "a function of formulas": (
        "segmentation", {"m": "formula", "formula": "CUMSUM(A)"},
    ),
    "os": ("segmentation", {"g": "os"}),
    "new users of a segment": ("users", {"m": "new", "s": (ONE,)}),
    "new users in a funnel": ("funnels", {"n": "new"}),
    "a group_by in a step": (
        "funnels", {"e": {**BUY, "group_by": [{"type": "user", "value": "country"}]}},
    ),
    "a filter on new users": (
        "retention", {"se": {"event_type": "_new", "filters": [
            {"subprop_type": "user", "subprop_key": "country", "subprop_op": "is",
             "subprop_value": ["NL"]}]}},
    ),
    "two compositions": ("composition", {"p": ("country", "platform")}),
}  # fmt: skip
"""By what it is, an endpoint and the parameters that ask for it."""
ASKED: dict[str, dict[str, object]] = {
    "segmentation": {"e": BUY}, "funnels": {"e": BUY}, "users": {}, "composition": {},
    "retention": {"se": BUY, "re": BUY},
}  # fmt: skip


@pytest.mark.parametrize("what", UNSUPPORTED)
def test_what_cannot_be_answered_is_refused_and_called_so(shop: Api, what: str) -> None:
    name, given = UNSUPPORTED[what]
    error = shop.refused(name, **{**ASKED[name], **DAYS, **given})
    assert (error["http_code"], error["message"]) == (400, "Not supported"), error


INVALID: dict[str, tuple[str, dict[str, object]]] = {
    "e: expected a value, got none": ("segmentation", {"e": ""}),
    "e: expected JSON, got": ("segmentation", {"e": "buy"}),
    "e: expected an event_type, got": ("segmentation", {"e": {}}),
    "e: expected an object with event_type": ("segmentation", {"e": [BUY]}),
    "start: expected a day such as 20240501, got '2026-03-02'": ("users", {"start": "2026-03-02"}),
    "start: expected a day such as 20240501, got '20260230'": ("users", {"start": "20260230"}),
    "end: expected a day from 2026-03-02 on, got 2026-03-01": ("users", {"end": "20260301"}),
    "i: expected one of 1, 7, 30; got '2'": ("users", {"i": 2}),
    "i: expected at most 365 days by day, got 366": ("users", {"start": "20250303"}),
    "i: expected at most 7 days by hour, got": (
        "segmentation", {"i": -3600000, "start": "20260222"},
    ),
    "limt: expected one of": ("segmentation", {"limt": 3}),
    "limit: expected a number from 1 to 1000, got '1001'": ("segmentation", {"limit": 1001}),
    "m: expected one of uniques, totals": ("segmentation", {"m": "unique"}),
    "m: expected an event with a group_by for sums": ("segmentation", {"m": "sums"}),
    "formula: expected m=formula with it, got uniques": (
        "segmentation", {"formula": "UNIQUES(A)"},
    ),
    "formula: expected a value, got none": ("segmentation", {"m": "formula"}),
    "g: expected a single segment, got 2": ("segmentation", {"s": (ONE, ONE), "g": "platform"}),
    "Invalid user property foo": ("segmentation", {"g": "foo"}),
    "s: expected an object with prop": ("segmentation", {"s": (["a"],)}),
    "s: country: expected an operator among": (
        "segmentation", {"s": ([{"prop": "country", "op": "=", "values": ["NL"]}],)},
    ),
    "s: country: expected a list of values": (
        "segmentation", {"s": ([{"prop": "country", "op": "is"}],)},
    ),
    "mode: expected one of ordered": ("funnels", {"mode": "any"}),
    "cs: expected a number from 1 to 31622400": ("funnels", {"cs": 0}),
    "rb: expected brackets with rm=bracket": ("retention", {"rb": [[0, 5]]}),
    "rb: expected brackets such as [[0,5]]": ("retention", {"rm": "bracket", "rb": [0, 5]}),
    "brackets: expected ranges in order": ("retention", {"rm": "bracket", "rb": [[5, 0]]}),
    "e: expected _new as the start of retention only": (
        "segmentation", {"e": {"event_type": "_new"}},
    ),
    "p: expected a value, got none": ("composition", {}),
}  # fmt: skip
"""What is said, and an endpoint and parameters of which it is said."""


@pytest.mark.parametrize("told", INVALID)
def test_what_is_not_valid_is_refused_with_what_was_expected(shop: Api, told: str) -> None:
    name, given = INVALID[told]
    error = shop.refused(name, **{**ASKED[name], **DAYS, **given})
    assert (error["http_code"], error["type"]) == (400, "invalid")
    assert told in error["metadata"]["details"], error


JUNK: list[object] = [
    "", " ", "0", "-1", "1", "20260302", "99999999", "00010101", "\ud7ff", "a\0b", "x" * 300,
    "null", "[]", "{}", "[[]]", "[null]", "[{}]", "1e999", "true", '"a"', "[[0,5]]",
    "[[0,99999999999999]]", "country", "gp:", "gp:a.b", "gp:a'b", "gp:.", "os", "u1",
    "nday", "bracket", "formula", "sums", "UNIQUES(A)", "UNIQUES(B)", "((", "A" * 2000,
    "-3600000", "30", "new", "unordered", "latest", "minutes", BUY, {"event_type": "_new"},
    {"event_type": 1}, {"event_type": "buy", "filters": {}},
    {"event_type": "buy", "filters": [None]}, {"event_type": "buy", "group_by": ["a"]},
    {"event_type": "buy", "filters": [{"subprop_type": "event", "subprop_key": "price",
                                       "subprop_op": "less", "subprop_value": [None]}]},
    {"event_type": "buy", "filters": [{"subprop_type": "event", "subprop_key": "a'b",
                                       "subprop_op": "is", "subprop_value": [{}]}]},
    {"event_type": "buy", "group_by": [{"type": "event", "value": "price"}]},
    [{"prop": "country", "op": "is", "values": []}], [{"prop": "amplitude_id", "op": "is"}],
    [{"prop": "country", "op": ["is"], "values": ["NL"]}], [{"prop": {}, "op": {}, "values": {}}],
    [{"type": "event"}], [[0, 1], [1, 3]], [[True, 2]], 2**70, "1" * 18,
]  # fmt: skip
PARAMETERS = {
    "segmentation": "e e2 m n start end i s g limit formula", "events": "x",
    "funnels": "e start end mode n i s g cs limit", "retention": "se re start end rm rb i s g",
    "users": "start end m i s g", "composition": "start end p", "session average": "start end",
    "session lengths": "start end timeHistogramConfigBinTimeUnit timeHistogramConfigBinMin"
    " timeHistogramConfigBinMax timeHistogramConfigBinSize",
    "sessions per user": "start end", "realtime": "i", "user search": "user",
    "user activity": "user offset limit direction", "export": "start end",
}  # fmt: skip


@pytest.mark.parametrize("name", PARAMETERS)
def test_whatever_is_given_is_answered_or_refused(shop: Api, name: str) -> None:
    rng, refused = random.Random(name), 0
    for _ in range(cases(8, 24, 3000)):
        given: dict[str, object] = {**ASKED.get(name, {}), **(DAYS if rng.random() < 0.9 else {})}
        known = PARAMETERS[name].split()
        given = {key: value for key, value in given.items() if key in known}
        for key in rng.sample(known, min(len(known), rng.randrange(1, 4))):
            given[key] = tuple(rng.sample(JUNK, rng.choice([1, 1, 1, 2])))
        try:
            shop.written(name, **given)
        except (Problem, BadInput):
            refused += 1
    assert refused, "expected junk among what is given"
