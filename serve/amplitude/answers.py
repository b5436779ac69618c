"""The answer of each endpoint: read the parameters, ask the Store, and shape its answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, timedelta
from itertools import product
from typing import BinaryIO
from zoneinfo import ZoneInfo

import orjson

from forebay.query.analytics.events import Event, Roles
from forebay.query.analytics.funnel import STEPS_MAX
from forebay.query.analytics.groups import GROUPS_MAX, latest
from forebay.query.analytics.period import Period
from forebay.query.analytics.retention import WIDTHS_MS
from forebay.query.analytics.sessions import LENGTHS_MS, Sessions
from forebay.query.questions import Layers
from forebay.query.store import Store
from forebay.serve.amplitude import bins, export, people, shapes
from forebay.serve.amplitude.events import Asked, Segment, read_event, read_group, read_segments
from forebay.serve.amplitude.measures import (
    FORMULA,
    HISTOGRAM,
    MEASURES,
    MODES,
    OF_VALUES,
    ORDERS,
    brackets,
    divided,
    formula,
)
from forebay.serve.amplitude.parameters import CALENDAR, Given, came, hour, invalid, unsupported
from forebay.serve.amplitude.properties import Properties
from forebay.storage.base.times import DAY_MS, MINUTE_MS, ms_of, now_ms, time_of, utc_text

Json = Mapping[str, object]
DAYS = ("start", "end")
INTERVALS_MAX = 365
"""Of a retention answer."""
WINDOW_S = 30 * 24 * 3600
WINDOW_MAX_S = 366 * 24 * 3600
REALTIME_MS = 5 * MINUTE_MS
GAP = timedelta(minutes=30)
"""Ends a session if no role has sessions, as in Amplitude's web SDK."""
EXPORT_MAX = timedelta(days=365)


class Answers:
    """The answers of one Store. `zone` is the project's time zone, `clock` the time in ms."""

    def __init__(self, store: Store, zone: str, clock: Callable[[], int] = now_ms) -> None:
        self._store = store
        self._zone = zone
        self._clock = clock
        self._endpoints: dict[str, Callable[[Mapping[str, Sequence[str]]], Json]] = {
            "amplitude segmentation": self.segmentation,
            "amplitude events": self.events,
            "amplitude funnels": self.funnels,
            "amplitude retention": self.retention,
            "amplitude users": self.users,
            "amplitude session lengths": self.session_lengths,
            "amplitude session average": self.session_average,
            "amplitude sessions per user": self.sessions_per_user,
            "amplitude composition": self.composition,
            "amplitude realtime": self.realtime,
            "amplitude user activity": self.user_activity,
            "amplitude user search": self.user_search,
            "amplitude annotations": self.annotations,
            "amplitude cohorts": self.cohorts,
        }

    def write(self, name: str, given: Mapping[str, Sequence[str]], out: BinaryIO) -> None:
        """Write the answer of the named endpoint. Raises Problem, or what a Store raises."""
        if name not in self._endpoints:
            self.export(given, out)
            return
        out.write(orjson.dumps(self._endpoints[name](given), option=orjson.OPT_APPEND_NEWLINE))

    def segmentation(self, given: Mapping[str, Sequence[str]]) -> Json:
        known = ("e", "e2", "m", "n", *DAYS, "i", "s", "g", "g2", "limit", FORMULA)
        read, properties = self._read(given, (*known, "rollingWindow", "rollingAverage"))
        for name in ("rollingWindow", "rollingAverage"):
            if read.text(name) is not None:
                raise unsupported(f"{name}: expected none, got one")
        measure = read.choice("m", (*MEASURES, HISTOGRAM, FORMULA), default="uniques")
        if measure == HISTOGRAM:
            raise unsupported(f"m: expected one of {', '.join(MEASURES)} or {FORMULA}")
        read.choice("n", ("any", "active"), default="any")
        events = [
            read_event(name, text, properties)
            for name, text in (("e", read.needed("e")), ("e2", read.text("e2")))
            if text is not None
        ]
        period, segments = read.period(self._zone), read_segments(read, properties)
        group = read_group(read, properties, segments)
        limit = read.number("limit", 1, GROUPS_MAX, default=100)
        if measure == FORMULA:
            text = formula(read.needed(FORMULA))
            found = self._formula(events, text, period, segments, group, limit)
            return {"data": shapes.segmentation(found, period, plain=group is not None)}
        if read.text(FORMULA) is not None:
            raise invalid(f"{FORMULA}: expected m={FORMULA} with it, got {measure}")
        layers = self._layers(period.start_ms)
        found = []
        for event, segment in product(events, segments):
            of, by = divided(event, group, measure)
            found.append(
                shapes.lines(
                    self._store.segmentation(
                        event.event, period, measure=MEASURES[measure], of=of, segment=segment,
                        by=by, limit=limit, layers=layers,
                    )
                )
            )  # fmt: skip
        return {"data": shapes.segmentation(found, period, plain=group is not None)}

    def _formula(
        self,
        events: Sequence[Asked],
        text: str,
        period: Period,
        segments: Sequence[Segment],
        group: str | None,
        limit: int,
    ) -> list[list[shapes.Line]]:
        named = {event.by for event in events if event.by is not None}
        if len(named) > 1:
            raise unsupported("e2: expected the same group_by as in e")
        measured = OF_VALUES.search(text) is not None
        if named and group is not None and not measured:
            raise unsupported("g: expected none beside a group_by of the event")
        of, layers = next(iter(named), None), self._layers(period.start_ms)
        return [
            shapes.lines(
                self._store.formula(
                    [event.event for event in events], text, period, segment=segment, limit=limit,
                    of=of if measured else None, by=group if measured else of or group,
                    layers=layers,
                )
            )
            for segment in segments
        ]  # fmt: skip

    def events(self, given: Mapping[str, Sequence[str]]) -> Json:
        Given(given, ())
        if self._empty:
            return {"data": []}
        today = time_of(self._clock()).astimezone(ZoneInfo(self._zone)).date()
        monday = today - timedelta(days=today.weekday())
        week = Period(monday, monday + timedelta(days=7), zone=self._zone)
        layers = self._layers(week.start_ms)
        return {"data": people.events(self._store, self._store.roles(), week, layers)}

    def funnels(self, given: Mapping[str, Sequence[str]]) -> Json:
        known = ("e", *DAYS, "mode", "n", "i", "s", "g", "cs", "limit")
        read, properties = self._read(given, known)
        texts = read.all("e")
        if not 1 <= len(texts) <= STEPS_MAX:
            raise invalid(f"e: expected 1 to {STEPS_MAX} events, got {len(texts)}")
        steps = [read_event("e", text, properties) for text in texts]
        if any(step.by is not None for step in steps):
            raise unsupported("e: expected no group_by in a step; g divides by the first one")
        if read.choice("n", ("active", "new"), default="active") == "new":
            raise unsupported("n: expected active, got new")
        order = ORDERS[read.choice("mode", tuple(ORDERS), default="ordered")]
        period, segments = read.period(self._zone), read_segments(read, properties)
        group = read_group(read, properties, segments)
        window = timedelta(seconds=read.number("cs", 1, WINDOW_MAX_S, default=WINDOW_S))
        if order == "any":
            window = timedelta(days=window.days)
            if not window:
                raise invalid("cs: expected at least a day with mode=unordered, got less")
        limit = read.number("limit", 1, GROUPS_MAX, default=100)
        labels = [step.label for step in steps]
        before_ms = window // timedelta(milliseconds=1) if order == "any" else 0
        layers = self._layers(period.start_ms - before_ms)
        found: list[Json] = []
        for number, segment in enumerate(segments):
            answer = self._store.funnel(
                [step.event for step in steps], period, order=order, window=window,
                segment=segment, by=group, limit=limit, layers=layers,
            )  # fmt: skip
            found += shapes.funnels(answer, period, labels, number)
        return {"data": found}

    def retention(self, given: Mapping[str, Sequence[str]]) -> Json:
        read, properties = self._read(given, ("se", "re", *DAYS, "rm", "rb", "i", "s", "g"))
        named = read.text("rm") or "n-day"
        if named not in MODES:
            raise invalid(
                f"rm: expected one of {', '.join(MODES)}; got {came(named)}",
                "Invalid retention method.",
            )
        start = read_event("se", read.needed("se"), properties, new=True)
        back = read_event("re", read.needed("re"), properties)
        if start.by is not None or back.by is not None:
            raise unsupported("se, re: expected no group_by; g divides by the start event")
        ranges = brackets(read.json("rb"), named == "bracket")
        period, segments = read.period(self._zone, CALENDAR), read_segments(read, properties)
        _require_any(start.event, segments)
        group = read_group(read, properties, segments)
        layers = self._layers(0 if start.event.first else period.start_ms)
        newest_ms = latest(self._store.scan(layers), self._store.roles()) + 1
        begun = (newest_ms - period.start_ms) // WIDTHS_MS[period.interval]
        found = [
            self._store.retention(
                start.event, back.event, period, mode=MODES[named], brackets=ranges,
                days=min(max(begun, 0), INTERVALS_MAX), segment=segment, by=group,
                limit=GROUPS_MAX, now=time_of(newest_ms), layers=layers,
            )
            for segment in segments
        ]  # fmt: skip
        return {"data": shapes.retention(found, period)}

    def users(self, given: Mapping[str, Sequence[str]]) -> Json:
        read, properties = self._read(given, (*DAYS, "m", "i", "s", "g"))
        event = Event(first=read.choice("m", ("active", "new"), default="active") == "new")
        period, segments = read.period(self._zone, CALENDAR), read_segments(read, properties)
        _require_any(event, segments)
        group = read_group(read, properties, segments)
        layers = self._layers(0 if event.first else period.start_ms)
        found = [
            shapes.lines(
                self._store.segmentation(
                    event, period, segment=one, by=group, limit=GROUPS_MAX, layers=layers
                )
            )
            for one in segments
        ]
        return {"data": shapes.users(found, period)}

    def composition(self, given: Mapping[str, Sequence[str]]) -> Json:
        read, properties = self._read(given, (*DAYS, "p"))
        if len(names := read.all("p")) > 1:
            raise unsupported(f"p: expected one property, got {len(names)}")
        name, period = read.needed("p"), read.period(self._zone)
        answer = self._store.segmentation(
            Event(), period, by=properties.user(name), limit=GROUPS_MAX,
            layers=self._layers(period.start_ms),
        )  # fmt: skip
        return {"data": shapes.composition(shapes.lines(answer), name)}

    def session_lengths(self, given: Mapping[str, Sequence[str]]) -> Json:
        read = Given(given, (*DAYS, *bins.NAMES))
        period, edges_ms = read.period(self._zone), bins.edges_ms(read)
        answer = self._sessions(period, edges_ms or LENGTHS_MS)
        shape = shapes.session_lengths(answer, edges_ms or LENGTHS_MS, open_ended=edges_ms is None)
        return {"data": shape}

    def session_average(self, given: Mapping[str, Sequence[str]]) -> Json:
        period = Given(given, DAYS).period(self._zone)
        answer = self._sessions(period)
        return {"data": shapes.session_days(answer, period, "mean_ms", 1000)}

    def sessions_per_user(self, given: Mapping[str, Sequence[str]]) -> Json:
        period = Given(given, DAYS).period(self._zone)
        return {"data": shapes.session_days(self._sessions(period), period, "per_user", 1)}

    def realtime(self, given: Mapping[str, Sequence[str]]) -> Json:
        """Two days, up to the end of the current five minutes."""
        Given(given, ("i",)).choice("i", ("5",), default="5")
        end_ms = (self._clock() // REALTIME_MS + 1) * REALTIME_MS
        start = time_of(end_ms - 2 * DAY_MS)
        period = Period(start, time_of(end_ms), "5 min", self._zone)
        layers = self._layers(period.start_ms)
        answer = self._store.segmentation(Event(), period, layers=layers)
        return {"data": shapes.realtime(answer, period)}

    def user_activity(self, given: Mapping[str, Sequence[str]]) -> Json:
        read, properties = self._read(given, ("user", "offset", "limit", "direction"))
        id = read.needed("user")
        if not re.fullmatch(r"\d{1,18}", id):
            raise invalid(f"user: expected an Amplitude ID, which is a number; got {came(id)}")
        limit = read.number("limit", 1, people.EVENTS_MAX, default=people.EVENTS_MAX)
        offset = read.number("offset", 0, 10**9, default=0)
        earliest = read.choice("direction", ("latest", "earliest"), default="latest") == "earliest"
        return people.activity(
            self._store, properties, int(id), limit=limit, offset=offset, earliest=earliest,
            zone=self._zone, gap=self._gap(self._store.roles()), layers=self._layers(0),
        )  # fmt: skip

    def user_search(self, given: Mapping[str, Sequence[str]]) -> Json:
        read, properties = self._read(given, ("user",))
        return people.search(self._store, properties, read.needed("user"), self._layers(0))

    def annotations(self, given: Mapping[str, Sequence[str]]) -> Json:
        """Always empty: none are kept here."""
        return {"data": []}

    def cohorts(self, given: Mapping[str, Sequence[str]]) -> Json:
        """Always empty: none are kept here."""
        return {"cohorts": []}

    def export(self, given: Mapping[str, Sequence[str]], out: BinaryIO) -> None:
        read = Given(given, DAYS)
        start, end = (hour(name, read.needed(name)).replace(tzinfo=UTC) for name in DAYS)
        if start > end:
            raise invalid(f"end: expected an hour from {start} on, got {end}")
        if end - start > EXPORT_MAX:
            raise invalid(f"end: expected at most {EXPORT_MAX.days} days, got {end - start}")
        if self._empty:
            raise export.nothing(start, end)
        _, properties = self._read(given, DAYS)
        until_ms = self._store.view().covered_until_ms
        if until_ms is not None and ms_of(start) < until_ms:
            raise unsupported(
                f"start: expected an hour from {utc_text(until_ms)} on, got {start}: what was"
                " uploaded before is with the batch layer"
            )
        export.write(self._store, properties, start, end + timedelta(hours=1), out)

    @property
    def _empty(self) -> bool:
        """Whether no event ever arrived, so that no roles are known."""
        return not any(one.state.counters.accepted for one in self._store.view().partitions)

    def _read(
        self, given: Mapping[str, Sequence[str]], known: Sequence[str]
    ) -> tuple[Given, Properties]:
        read = Given(given, known)
        return read, Properties.of(self._store.view(), self._store.roles())

    def _sessions(self, period: Period, bins_ms: Sequence[int] = LENGTHS_MS) -> Sessions:
        layers = self._layers(period.start_ms - DAY_MS)
        gap = self._gap(self._store.roles())
        return self._store.sessions(period, gap=gap, bins_ms=bins_ms, layers=layers)

    def _layers(self, first_ms: int) -> Layers:
        """The layers that have the events from this time on. Events uploaded before the boundary
        are with the batch layer, even those of a clock that is ahead. Raises Problem if its table
        is not known."""
        view = self._store.view()
        until_ms = view.covered_until_ms
        if until_ms is None or first_ms >= until_ms + DAY_MS:
            return "realtime"
        if view.table is not None:
            return "all"
        if first_ms < until_ms:
            raise unsupported(
                f"expected days from {utc_text(until_ms)} on: what was uploaded before is with a"
                " batch layer that can't be asked here"
            )
        return "realtime"

    @staticmethod
    def _gap(roles: Roles) -> timedelta | None:
        return GAP if roles.session is None else None


def _require_any(event: Event, segments: Sequence[Segment]) -> None:
    """A filter would change who is new: those whose first matching event is in the period."""
    if event.first and any(segments):
        raise unsupported("s: expected no segment of new users")
