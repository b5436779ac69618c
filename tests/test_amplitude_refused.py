"""Amplitude's Dashboard REST API over small data: what is refused, and with which words."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from forebay.serve.problems import Problem
from forebay.storage.base.errors import BadInput
from tests import cases
from tests.amplitude import BUY, DAYS, Api, apis, purchases

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


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with apis(tmp_path_factory) as make:
        yield make(purchases())


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
