"""The granularity of a question: what of times it tells apart.

A question about users by day has the same answer if each time is rounded down to the hour, as long
as its days begin with an hour. So a node adds up what it has by such hours, rather than send each
event. What always holds: each instant at which the question cuts time is a multiple of the
granularity; questions that compare single times have none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import gcd
from typing import Any

from forebay.query.analytics.events import Event, Roles, Where
from forebay.query.analytics.lifecycle import lifecycle
from forebay.query.analytics.period import Period
from forebay.query.analytics.segmentation import formula, preceding, segmentation
from forebay.query.analytics.stickiness import stickiness
from forebay.storage.base.times import HOUR_MS, MINUTE_MS

STEPS_MS = (HOUR_MS, 15 * MINUTE_MS, 5 * MINUTE_MS, MINUTE_MS)
"""Few, so that questions by the day and by the hour find the same rows alike."""


@dataclass(frozen=True)
class Alike:
    """Which events a question takes for alike: those with equal columns, when the column `time` is
    rounded down to `granularity_ms`, and of the column `masked` it only matters whether it is null.
    The question is about times from `first_ms` on and before `end_ms`."""

    time: str
    granularity_ms: int
    first_ms: int
    end_ms: int
    masked: str | None = None

    @property
    def rounding(self) -> tuple[str, int, str | None]:
        """What does not depend on the times that the question is about."""
        return self.time, self.granularity_ms, self.masked


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


def alike_of(
    function: Callable[..., object], asked: Mapping[str, Any], roles: Roles
) -> Alike | None:
    """What such a question takes for alike, if it counts events by whole minutes or more."""
    parts = list(_parts([*asked.values()]))
    if function is not segmentation or asked["measure"] != "totals" or roles.user in parts:
        return None
    exact_ms = granularity_of(function, asked, roles).get(roles.time, 1)
    step_ms = next((ms for ms in STEPS_MS if exact_ms % ms == 0), None)
    if step_ms is None:
        return None
    periods = list(_periods(function, asked))
    first_ms, end_ms = min(p.start_ms for p in periods), max(p.end_ms for p in periods)
    return Alike(roles.time, step_ms, first_ms, end_ms, roles.user)


def properties_of(asked: Mapping[str, Any]) -> set[str]:
    """The properties that a question of `segmentation` filters or groups by."""
    parts = list(_parts([asked["events"], asked["segment"]]))
    return {one for one in (*parts, asked["by"]) if isinstance(one, str)}


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
