"""The parameters of a request to Amplitude's API, as texts, and their meaning.

A day is YYYYMMDD in the project's time zone; `start` and `end` are both included. Everything here
raises Problem, which names the parameter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta

import orjson

from forebay.query.analytics.period import Interval, Period
from forebay.serve.problems import Problem
from forebay.storage.base.text import did_you_mean, shortened

INTERVALS: dict[str, Interval] = {
    "-300000": "5 min", "-3600000": "hour", "1": "day", "7": "week", "30": "month",
}  # fmt: skip
DAYS_MAX: dict[Interval, int] = {"5 min": 2, "hour": 7, "day": 365}
"""The longest periods, as in Amplitude."""
CALENDAR = ("1", "7", "30")
CAME_CHARACTERS = 200


def invalid(detail: str, title: str = "") -> Problem:
    """The problem of an invalid value."""
    return Problem(400, detail, title=title)


def unsupported(detail: str) -> Problem:
    """The problem of a value that may be valid, but can't be answered here."""
    return Problem(400, detail, title="Not supported")


def came(value: object) -> str:
    return shortened(repr(value), CAME_CHARACTERS)


class Given:
    """The parameters of one request. `known` are the names that its endpoint accepts."""

    def __init__(self, given: Mapping[str, Sequence[str]], known: Sequence[str]) -> None:
        for name in given:
            if name not in known:
                near = did_you_mean(name, list(known))
                takes = f"one of {', '.join(known)}" if known else "no parameter"
                raise invalid(f"{name}: expected {takes}; got an unknown name{near}")
        self._given = given

    def all(self, name: str) -> list[str]:
        """Each value given, in order, without empty ones."""
        return [text for text in self._given.get(name, ()) if text.strip()]

    def text(self, name: str) -> str | None:
        found = self.all(name)
        if len(found) > 1:
            raise invalid(f"{name}: expected it once, got it {len(found)} times")
        return found[0].strip() if found else None

    def needed(self, name: str) -> str:
        found = self.text(name)
        if found is None:
            raise invalid(f"{name}: expected a value, got none")
        return found

    def choice(self, name: str, known: Sequence[str], *, default: str) -> str:
        found = self.text(name)
        if found is None:
            return default
        if found not in known:
            near = did_you_mean(found, list(known))
            raise invalid(f"{name}: expected one of {', '.join(known)}; got {came(found)}{near}")
        return found

    def number(self, name: str, low: int, high: int, *, default: int) -> int:
        found = self.text(name)
        if found is None:
            return default
        if not re.fullmatch(r"\d{1,15}", found) or not low <= int(found) <= high:
            raise invalid(f"{name}: expected a number from {low} to {high}, got {came(found)}")
        return int(found)

    def json(self, name: str) -> object | None:
        found = self.text(name)
        return None if found is None else parsed(name, found)

    def period(self, zone: str, intervals: Sequence[str] = tuple(INTERVALS)) -> Period:
        """The days from `start` to `end` in intervals of `i`, if the endpoint takes it."""
        start, end = (_day(name, self.needed(name)) for name in ("start", "end"))
        interval = INTERVALS[self.choice("i", intervals, default="1")]
        if start > end:
            raise invalid(f"end: expected a day from {start} on, got {end}")
        days, most = (end - start).days + 1, DAYS_MAX.get(interval)
        if most is not None and days > most:
            raise invalid(f"i: expected at most {most} days by {interval}, got {days}")
        return Period(start, end + timedelta(days=1), interval, zone)


def parsed(name: str, text: str) -> object:
    """The parsed JSON of the named parameter."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise invalid(f"{name}: expected JSON, got {came(text)}: {error}") from error


def _day(name: str, text: str) -> date:
    try:
        if re.fullmatch(r"\d{8}", text):
            return datetime.strptime(text, "%Y%m%d").date()
    except ValueError as error:
        raise invalid(f"{name}: expected a day such as 20240501, got {came(text)}") from error
    raise invalid(f"{name}: expected a day such as 20240501, got {came(text)}")


def hour(name: str, text: str) -> datetime:
    """An hour such as 20240501T09, without a zone."""
    try:
        if re.fullmatch(r"\d{8}T\d{1,2}", text):
            return datetime.strptime(text, "%Y%m%dT%H")
    except ValueError as error:
        raise invalid(f"{name}: expected an hour such as 20240501T09, got {came(text)}") from error
    raise invalid(f"{name}: expected an hour such as 20240501T09, got {came(text)}")
