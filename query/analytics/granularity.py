"""The granularity of a question: what of times it tells apart.

A question about users by day has the same answer if each time is rounded down to the hour, as long
as its days begin with an hour. So a node adds up what it has by such hours, rather than send each
event. What always holds: each instant at which the question cuts time is a multiple of the
granularity; questions that compare single times have none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import gcd
from typing import Any

from forebay.query.analytics.events import Event, Roles, Where
from forebay.query.analytics.lifecycle import lifecycle
from forebay.query.analytics.period import Period
from forebay.query.analytics.segmentation import formula, preceding, segmentation
from forebay.query.analytics.stickiness import stickiness


def granularity_of(
    function: Callable[..., object], asked: Mapping[str, Any], roles: Roles
) -> dict[str, int]:
    """For the column of the role time, the granularity in milliseconds of a `function` of analytics
    that is called with the arguments `asked`; empty if it has none."""
    parts = list(_parts([*asked.values()]))
    firsts = any(isinstance(one, Event) and one.first for one in parts)
    periods = list(_periods(function, asked))
    if not periods or roles.time in parts or firsts:
        return {}
    edges = (int(ms) for one in periods for ms in (*one.edges_ms, one.start_ms, one.end_ms))
    return {roles.time: gcd(*edges)}


def _periods(function: Callable[..., object], asked: Mapping[str, Any]) -> Iterator[Period]:
    """The periods by which such a question cuts time."""
    if function in (segmentation, formula, lifecycle, stickiness):
        period = asked["period"]
        yield replace(period, interval="day") if function is stickiness else period
        if function is lifecycle:
            yield period.before
        if asked.get("compare"):
            yield preceding(period, asked["now"])


def _parts(asked: object) -> Iterator[object]:
    """What a question is made of: its events, names of properties and other values."""
    if isinstance(asked, Where):
        yield asked.property
    elif isinstance(asked, Event):
        yield asked
        yield from _parts(asked.where)
    elif isinstance(asked, Sequence) and not isinstance(asked, str):
        for one in asked:
            yield from _parts(one)
    else:
        yield asked
