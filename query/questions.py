"""The questions of product analytics as methods of a store.

    store.funnel(["search", "purchase"]).steps
    store.retention("signup", by="country", layers="all").overall

Each calls the function of the same name in `forebay.query.analytics`, which documents the options,
on the events of a fresh view, and again on a newer one if a file has gone. What always holds: an
event is an `Event` or its name; roles are those of the data unless given; the period is the last 30
days of the data unless given.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal, TypeVar

import polars as pl

from forebay.query import analytics
from forebay.query.analytics.events import Event, Roles, Where
from forebay.query.analytics.funnel import Attribution, Exclusion, Funnel, Order, Reentry
from forebay.query.analytics.granularity import Alike, alike_of, granularity_of, properties_of
from forebay.query.analytics.groups import recent
from forebay.query.analytics.lifecycle import Lifecycle
from forebay.query.analytics.paths import Paths
from forebay.query.analytics.period import Interval, Period
from forebay.query.analytics.retention import Mode, Retention
from forebay.query.analytics.roles import roles_of
from forebay.query.analytics.sample import Sample
from forebay.query.analytics.segmentation import FREQUENCY, Measure, Segmentation
from forebay.query.analytics.sessions import LENGTHS_MS, Sessions
from forebay.query.analytics.stickiness import Stickiness
from forebay.query.analytics.timeline import Timeline
from forebay.query.dataset import Dataset
from forebay.query.folded import EXACT, Granularity

Layers = Literal["realtime", "all"]
T = TypeVar("T")
ANY = Event()


def _events(given: object) -> Event | list[Event]:
    """An event, or several, each given as such or by name."""
    if isinstance(given, Sequence) and not isinstance(given, str):
        return [Event.parse(one) for one in given]
    return Event.parse(given)


class Questions(Dataset):
    """Questions about users; a `Store` has these methods.

    All take a `period` (by default the 30 days up to the newest event, or since the first one),
    `layers` as in `Store.scan`, and `roles`: the columns of user, event, time and session, by
    default those of the data. In those that take it, `by` is a property that divides the answer
    into groups, of which the `limit` largest are named; `segment` or `where` filters events. A
    property is a column, or a path such as "user_properties.plan" into `raw`.

    Answers hold tidy frames and the question; `answer.chart()` draws one. Raises BadInput for an
    invalid question, and otherwise the same errors as the other methods of a Store.
    """

    @abstractmethod
    def _published_roles(self) -> list[Mapping[str, str]]:
        """The roles of each partition with events."""

    @abstractmethod
    def _scanned(self, layers: Layers, granularity_ms: Granularity) -> pl.LazyFrame:
        """All events of a view taken now; times may be rounded down to `granularity_ms`."""

    @abstractmethod
    def _counted(self, alike: Alike, properties: set[str]) -> pl.LazyFrame | None:
        """The events of the real-time layer for a question about these `properties` that takes
        events for alike; None if none of them are."""

    def roles(self, **named: str) -> Roles:
        """The columns that have the user, the event, its time and the session, as published by the
        job; `named` ones (user=…, event=…, time=…, session=…) take precedence. Raises BadInput if a
        role is unknown or differs between data directories."""
        return roles_of(self._published_roles(), **named)

    def funnel(
        self,
        steps: Sequence[Event | str],
        period: Period | None = None,
        *,
        order: Order = "this",
        window: timedelta = timedelta(days=1),
        count: Literal["uniques", "totals"] = "uniques",
        reentry: Reentry = "any",
        resolution: timedelta = timedelta(seconds=1),
        segment: Sequence[Where] = (),
        by: str | None = None,
        attribution: Attribution = "entry",
        limit: int = 100,
        hold: str | None = None,
        exclude: Sequence[Exclusion] = (),
        exclusion: Literal["break", "drop"] = "break",
        roles: Roles | None = None,
        layers: Layers = "realtime",
    ) -> Funnel:
        """How many users go through the `steps`, one after the other, and how long it takes them.

        `order`: "this" (other events may lie between), "exact" (none may) or "any". `window`: from
        the first step to the last. `count`: "uniques" (a user's longest path), or "totals" (all
        paths). `reentry`: which entry a path begins with. Events within `resolution` are
        simultaneous. `segment` filters the first step only. `attribution`: the step whose value of
        `by` counts. `hold`: a property that must have one value at all steps. `exclude`: events
        that must not lie between steps; they end a path, or with `exclusion` "drop" its user.
        """
        return self._asked(analytics.funnel, locals(), "steps")

    def retention(
        self,
        start: Event | str,
        back: Event | str = ANY,
        period: Period | None = None,
        *,
        mode: Mode = "on",
        days: int = 30,
        brackets: Sequence[tuple[int, int]] | None = None,
        calendar: bool = False,
        segment: Sequence[Where] = (),
        by: str | None = None,
        limit: int = 100,
        now: datetime | None = None,
        roles: Roles | None = None,
        layers: Layers = "realtime",
    ) -> Retention:
        """How many of those who did `start` did `back` (by default any event) on later days.

        `mode`: "on" day X, or "on or after" it. `days`: the last day asked about, counted in
        intervals of the period; `brackets`: ranges of days instead, ends not included. `calendar`:
        days of the zone, not 24 hours from the start. `segment` filters start events. `now`: the
        time of asking, by default that of the newest event.
        """
        return self._asked(analytics.retention, locals(), "start", "back")

    def segmentation(
        self,
        events: Event | str | Sequence[Event | str],
        period: Period | None = None,
        *,
        measure: Measure = "uniques",
        of: str | None = None,
        percentile: float = 90,
        frequency: Sequence[int] = FREQUENCY,
        segment: Sequence[Where] = (),
        by: str | None = None,
        limit: int = 100,
        compare: bool = False,
        now: datetime | None = None,
        roles: Roles | None = None,
        layers: Layers = "realtime",
    ) -> Segmentation:
        """A measure of one or several `events` in each interval of the period, and overall.

        `measure`: "uniques", "totals", "share", "average", "frequency"; or "sum", "mean", "median",
        "percentile" and "distinct", which take the property `of`. `percentile`: 0 to 100.
        `frequency`: the lower ends of its bins. `compare`: the same for the preceding period, up to
        the point that this one has reached at `now`.
        """
        events = [events] if isinstance(events, Event | str) else events
        return self._asked(analytics.segmentation, locals(), "events")

    def formula(
        self,
        events: Sequence[Event | str],
        text: str,
        period: Period | None = None,
        *,
        of: str | None = None,
        percentile: float = 90,
        segment: Sequence[Where] = (),
        by: str | None = None,
        limit: int = 100,
        roles: Roles | None = None,
        layers: Layers = "realtime",
    ) -> Segmentation:
        """A formula `text` over several `events`, which are A, B, … in it, such as
        "UNIQUES(B) / UNIQUES(A)"; its functions are the measures of `segmentation`, of which some
        take the property `of` and a `percentile`."""
        return self._asked(analytics.formula, locals(), "events")

    def sessions(
        self,
        period: Period | None = None,
        *,
        gap: timedelta | None = None,
        to_midnight: bool = False,
        where: Sequence[Where] = (),
        by: str | None = None,
        limit: int = 100,
        longest: timedelta = timedelta(days=1),
        bins_ms: Sequence[int] = LENGTHS_MS,
        roles: Roles | None = None,
        layers: Layers = "realtime",
    ) -> Sessions:
        """How many sessions begin in each interval, their length, and their events.

        A session is a user's events with one id in the role session; with `gap`, a run of a user's
        events without a longer pause, which with `to_midnight` ends with the day. `longest`: how
        far outside the period events are read. `bins_ms`: lower ends of the table of lengths.
        """
        return self._asked(analytics.sessions, locals())

    def stickiness(
        self,
        event: Event | str = ANY,
        period: Period | None = None,
        *,
        at_least: bool = False,
        by: str | None = None,
        limit: int = 100,
        roles: Roles | None = None,
        layers: Layers = "realtime",
    ) -> Stickiness:
        """On how many days of a week or month users did `event`, by default any: exactly that many,
        or with `at_least` that many or more. The default period is divided into weeks."""
        return self._asked(analytics.stickiness, locals(), "event", interval="week")

    def paths(
        self,
        start: Event | str,
        period: Period | None = None,
        *,
        steps: int = 5,
        limit: int = 10,
        window: timedelta = timedelta(days=1),
        collapse: bool = False,
        among: Sequence[Event | str] = (),
        roles: Roles | None = None,
        layers: Layers = "realtime",
    ) -> Paths:
        """What users do after their first `start` in the period, in `steps` steps within `window`;
        each step names its `limit` most frequent events. `collapse`: an event that is repeated
        directly is one step. `among`: after the first, only these are steps."""
        return self._asked(analytics.paths, locals(), "start", "among")

    def lifecycle(
        self,
        period: Period | None = None,
        *,
        event: Event | str | None = None,
        roles: Roles | None = None,
        layers: Layers = "realtime",
    ) -> Lifecycle:
        """In each interval, how many users who did `event` (by default any) are new, returning,
        resurrected or dormant."""
        return self._asked(analytics.lifecycle, locals(), "event")

    def sample(
        self,
        event: Event | str = ANY,
        period: Period | None = None,
        *,
        where: Sequence[Where] = (),
        limit: int = 50,
        roles: Roles | None = None,
        layers: Layers = "realtime",
    ) -> Sample:
        """At most `limit` of the events that are `event` and pass `where`, and how many there are:
        in the period, or without one of all times. Events without a user count too."""
        return self._asked(analytics.sample, locals(), "event", interval=None)

    def timeline(
        self,
        user: str,
        *,
        start: datetime | None = None,
        end: datetime | None = None,
        limit: int = 1000,
        offset: int = 0,
        earliest: bool = False,
        roles: Roles | None = None,
        layers: Layers = "realtime",
    ) -> Timeline:
        """The newest `limit` events of a `user` (with `earliest`, the earliest), in order of time,
        from `start` on and before `end`, after skipping `offset` of them."""
        return self._asked(analytics.timeline, locals())

    def _asked(
        self,
        function: Callable[..., T],
        given: dict[str, Any],
        *kinds: str,
        interval: Interval | None = "day",
    ) -> T:
        """Call a function of analytics with a method's arguments, of which `kinds` are events;
        without an `interval`, a period that is not given stays open."""
        del given["self"]
        named, layers = given.pop("roles"), given.pop("layers")
        given |= {name: _events(given[name]) for name in kinds if given[name] is not None}

        def answer() -> T:
            roles, asked = named or self.roles(), given
            if interval is not None and given.get("period", ...) is None:
                period = recent(self._scanned(layers, EXACT), roles, interval)
                asked = {**given, "period": period}
            alike, frame = alike_of(function, asked, roles), None
            if alike is not None and layers == "realtime":
                frame = self._counted(alike, properties_of(asked))
            if frame is None:
                frame = self._scanned(layers, granularity_of(function, asked, roles))
            return function(frame, roles, **asked)

        return self._retried(answer)
