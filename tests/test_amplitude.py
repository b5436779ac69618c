"""Amplitude's Dashboard REST API over small data: its charts, figure by figure, as its
documentation and its servers were seen to answer."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from datetime import datetime, timedelta

import pytest

from forebay.serve.amplitude.shapes import number
from tests.amplitude import BUY, DAYS, Api, Make, apis, event, purchases

X = ["2026-03-02", "2026-03-03"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Make]:
    with apis(tmp_path_factory) as make:
        yield make


@pytest.fixture(scope="module")
def shop(made: Make) -> Api:
    return made(purchases())


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
