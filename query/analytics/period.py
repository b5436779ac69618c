"""The time a question is about, and its buckets in a time zone.

A bucket begins with a local day, or with an equal part of one counted from its beginning. So days
have 23 to 25 hours where clocks change, and an hour that repeats has two buckets. A local day
begins at its first instant, whatever the clock shows then.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date, datetime, time, timedelta, tzinfo
from functools import cached_property
from itertools import pairwise
from typing import Literal, get_args
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import polars as pl

from forebay.storage.base.errors import BadInput
from forebay.storage.base.times import DAY_MS, EPOCH, HOUR_MS, ms_of, time_of

Interval = Literal["5 min", "hour", "day", "week", "month"]
PARTS_MS = {"5 min": 300_000, "hour": HOUR_MS}
BUCKETS_MAX = 100_000


@dataclass(frozen=True)
class Period:
    """From `start` on and before `end`: days of the time zone `zone`, or instants with a zone of
    their own; in buckets of an `interval`. The first bucket may begin before the period and the
    last may end after it, but events outside the period don't count. Weeks begin on `week_start` (0
    is Monday). Raises BadInput."""

    start: date
    end: date
    interval: Interval = "day"
    zone: str = "UTC"
    week_start: int = 0

    def __post_init__(self) -> None:
        if self.interval not in get_args(Interval):
            raise BadInput(
                f"interval: expected one of {', '.join(get_args(Interval))}; got {self.interval!r}"
            )
        if self.week_start not in range(7):
            raise BadInput(
                f"week_start: expected 0 (Monday) to 6 (Sunday), got {self.week_start!r}"
            )
        zone = zone_of(self.zone)
        for name, day in (("start", self.start), ("end", self.end)):
            if isinstance(day, datetime) and day.tzinfo is None:
                raise BadInput(f"{name}: expected a day, or a time with its zone; got {day}")
            if not 1 < (day.astimezone(zone) if isinstance(day, datetime) else day).year < 9999:
                raise BadInput(f"{name}: expected a year from 2 to 9998, got {day}")
        if self.start_ms >= self.end_ms:
            raise BadInput(f"period: expected an end after its start, got {self.start}, {self.end}")
        days = (self.end_ms - self.start_ms) / DAY_MS
        if days * DAY_MS / PARTS_MS.get(self.interval, DAY_MS) > BUCKETS_MAX:
            raise BadInput(
                f"period: expected at most {BUCKETS_MAX:,} buckets, got {days:,.0f} days by"
                f" {self.interval}"
            )

    def __str__(self) -> str:
        last = self.end
        if not isinstance(last, datetime):
            last -= timedelta(days=1)
        days = " to ".join(dict.fromkeys(map(self._told, (self.start, last))))
        return f"{days} by {self.interval} ({self.zone})"

    def _told(self, day: date) -> str:
        if not isinstance(day, datetime):
            return str(day)
        return f"{day.astimezone(zone_of(self.zone)):%Y-%m-%d %H:%M}"

    @cached_property
    def start_ms(self) -> int:
        """Its first millisecond."""
        return _instant(self.start, zone_of(self.zone))

    @cached_property
    def end_ms(self) -> int:
        """The first millisecond after it."""
        return _instant(self.end, zone_of(self.zone))

    @cached_property
    def edges_ms(self) -> npt.NDArray[np.int64]:
        """The beginning of each bucket, and the end of the last one: one more than buckets."""
        zone = zone_of(self.zone)
        first, last = (_local(ms, zone) for ms in (self.start_ms, self.end_ms - 1))
        day = first
        if self.interval == "week":
            day -= timedelta(days=(day.weekday() - self.week_start) % 7)
        elif self.interval == "month":
            day = day.replace(day=1)
        days = [day]
        while days[-1] <= last:
            days.append(_next(days[-1], self.interval))
        edges = [_instant(one, zone) for one in days]
        if part := PARTS_MS.get(self.interval):
            edges = [ms for low, high in pairwise(edges) for ms in range(low, high, part)]
            edges.append(_instant(days[-1], zone))
            low, high = np.searchsorted(edges, [self.start_ms, self.end_ms], side="right")
            edges = edges[low - 1 : high + (edges[high - 1] < self.end_ms)]
        return np.array(edges, dtype=np.int64)

    @property
    def buckets(self) -> int:
        """The number of buckets."""
        return len(self.edges_ms) - 1

    def label(self, number: pl.Expr) -> pl.Expr:
        """The beginning of the bucket of this `number`, Datetime in the zone."""
        starts = pl.Series(self.edges_ms[:-1]).cast(pl.Datetime("ms", "UTC"))
        return pl.lit(starts.dt.convert_time_zone(self.zone)).gather(number)

    @property
    def before(self) -> Period:
        """A period of as many whole buckets, directly before this period's first bucket."""
        days = np.diff(self.edges_ms[[0, -1]]).item()
        zone = zone_of(self.zone)
        if self.interval in PARTS_MS:
            return replace(self, start=time_of(self.start_ms - days), end=time_of(self.start_ms))
        day = _local(int(self.edges_ms[0]), zone)
        for _ in range(self.buckets):
            day = _local(_instant(day, zone) - 1, zone)
            if self.interval == "week":
                day -= timedelta(days=6)
            elif self.interval == "month":
                day = day.replace(day=1)
        return replace(self, start=day, end=_local(int(self.edges_ms[0]), zone))

    def within(self, column: str, *, before_ms: int = 0, after_ms: int = 0) -> pl.Expr:
        """Whether the time in `column` is in the period, or `before_ms` before it, or up to
        `after_ms` after it."""
        low, high = time_of(self.start_ms - before_ms), time_of(self.end_ms + after_ms)
        return pl.col(column).is_between(low, high, closed="left" if not after_ms else "both")

    def bucket(self, ms: pl.Expr) -> pl.Expr:
        """The bucket number of times `ms` in milliseconds, all of which are in the period."""
        widths = np.diff(self.edges_ms)
        if (widths == widths[0]).all():  # unless clocks change
            return ((ms - int(self.edges_ms[0])) // int(widths[0])).cast(pl.Int32)
        edges = pl.lit(pl.Series(self.edges_ms))
        return edges.search_sorted(ms, side="right").cast(pl.Int32) - 1


def zone_of(name: str) -> tzinfo:
    """Raises BadInput for an unknown time zone."""
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, KeyError) as error:
        raise BadInput(f"zone: expected a time zone such as Europe/Berlin, got {name!r}") from error


def _next(day: date, interval: Interval) -> date:
    if interval == "month":
        return (day + timedelta(days=31)).replace(day=1)
    return day + timedelta(days=7 if interval == "week" else 1)


def _local(ms: int, zone: tzinfo) -> date:
    return time_of(ms).astimezone(zone).date()


def _instant(day: date, zone: tzinfo) -> int:
    """Milliseconds of a time, or of the first instant of a local day. (Where clocks skip midnight,
    the offset before the gap makes it the end of the gap.)"""
    if not isinstance(day, datetime):
        day = datetime.combine(day, time(), zone)
    return ms_of(day.astimezone(EPOCH.tzinfo))
