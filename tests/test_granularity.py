"""The granularity of a question: times that are rounded down to it give the same answer, and it is
coarse enough for a node to add up what it has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from forebay.query.analytics import formula, funnel, lifecycle, segmentation, stickiness
from forebay.query.analytics.events import Event, Roles, Where
from forebay.query.analytics.granularity import granularity_of
from forebay.query.analytics.period import Interval, Period

ROLES = Roles("who", "kind", "at")
TYPES = pl.Schema(
    [
        ("who", pl.String()),
        ("kind", pl.String()),
        ("at", pl.Datetime("ms", "UTC")),
        ("price", pl.Int64()),
    ]
)
HOUR_MS, DAY_MS = 3_600_000, 86_400_000
MARCH = datetime(2024, 3, 28, tzinfo=UTC)
"""Three days before clocks change in Europe."""

rows = st.lists(
    st.tuples(
        st.sampled_from(["u1", "u2", "u3", None]),
        st.sampled_from(["search", "purchase"]),
        st.integers(0, 10 * DAY_MS).map(lambda ms: MARCH + timedelta(milliseconds=ms)),
        st.sampled_from([1, 5, None]),
    ),
    max_size=60,
)
intervals: st.SearchStrategy[Interval] = st.sampled_from(["5 min", "hour", "day", "week", "month"])
starts = st.sampled_from([date(2024, 3, 29), MARCH + timedelta(hours=7, minutes=30, seconds=1)])
periods = st.builds(
    lambda start, days, interval, zone: Period(
        start, start + timedelta(days=days), interval, zone=zone
    ),
    starts,
    st.integers(1, 8),
    intervals,
    st.sampled_from(["UTC", "Europe/Berlin", "Asia/Kathmandu", "America/St_Johns"]),
)
nows = st.none() | st.integers(0, 9 * DAY_MS).map(lambda ms: MARCH + timedelta(milliseconds=ms))
questions = st.one_of(
    st.fixed_dictionaries(
        {
            "events": st.just([Event("search"), Event()]),
            "measure": st.sampled_from(["uniques", "totals", "share", "average", "frequency"]),
            "by": st.sampled_from([None, "price", "kind"]),
            "segment": st.sampled_from([(), (Where("price", "greater", (1,)),)]),
            "compare": st.booleans(),
            "now": nows,
        }
    ).map(lambda asked: (segmentation, asked)),
    st.just((formula, {"events": [Event("search"), Event()], "text": "UNIQUES(A) / TOTALS(B)"})),
    st.just((lifecycle, {"event": Event("search")})),
    st.just((stickiness, {"event": Event(), "by": "kind"})),
)
Question = tuple[Callable[..., Any], Mapping[str, Any]]


@pytest.mark.cases
@given(rows, questions, periods)
def test_times_rounded_down_to_it_give_the_same_answer(
    given: list[tuple[Any, ...]], question: Question, period: Period
) -> None:
    function, asked = question
    assume(function is not stickiness or period.interval in ("week", "month"))
    frame = pl.DataFrame(given, TYPES, orient="row").lazy()
    granularity_ms = granularity_of(function, {"period": period, **asked}, ROLES)["at"]
    rounded = frame.with_columns(pl.col("at").dt.truncate(f"{granularity_ms}ms"))
    exact, found = (function(one, ROLES, period=period, **asked) for one in (frame, rounded))
    for name, table in vars(exact).items():
        if isinstance(table, pl.DataFrame):
            assert_frame_equal(getattr(found, name), table)


WEEK = Period(date(2024, 3, 28), date(2024, 4, 4))


@pytest.mark.parametrize(
    ("function", "asked", "expected_ms"),
    [
        (segmentation, {}, DAY_MS),
        (segmentation, {"period": Period(WEEK.start, WEEK.end, "hour")}, HOUR_MS),
        (segmentation, {"period": Period(WEEK.start, WEEK.end, "week", "Europe/Berlin")}, HOUR_MS),
        (segmentation, {"compare": True, "now": MARCH + timedelta(hours=4)}, 4 * HOUR_MS),
        (stickiness, {"period": Period(WEEK.start, WEEK.end, "week")}, DAY_MS),
        (lifecycle, {}, DAY_MS),
    ],
)
def test_it_is_what_all_instants_are_multiples_of(
    function: Callable[..., Any], asked: Mapping[str, Any], expected_ms: int
) -> None:
    assert granularity_of(function, {"period": WEEK, **asked}, ROLES) == {"at": expected_ms}


@pytest.mark.parametrize(
    ("function", "asked"),
    [
        (funnel, {"steps": [Event("search"), Event("purchase")]}),
        (segmentation, {"events": [Event("search", first=True)]}),
        (segmentation, {"events": [Event("search", (Where("at", "greater", (MARCH,)),))]}),
        (segmentation, {"segment": (Where("at", "greater", (MARCH,)),)}),
        (segmentation, {"by": "at"}),
        (segmentation, {"measure": "distinct", "of": "at"}),
    ],
)
def test_a_question_that_compares_single_times_has_none(
    function: Callable[..., Any], asked: Mapping[str, Any]
) -> None:
    assert granularity_of(function, {"period": WEEK, **asked}, ROLES) == {}
