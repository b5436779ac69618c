"""Retention against a count window by window, and the faults that others had."""

from __future__ import annotations

import random
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from benchmarks.query import Engine
from forebay.query.analytics import Event, Period, Where, retention
from forebay.storage.base.errors import BadInput
from tests.analytics import (
    ROLES,
    START,
    Row,
    as_values,
    by_user,
    frame,
    holds,
    passes,
    random_rows,
    seeds,
)

HOUR_MS, DAY_MS = 3_600_000, 86_400_000
DAYS = 4
ZONES = ["UTC", "Europe/Berlin", "Asia/Kolkata", "Asia/Shanghai", "America/Los_Angeles"]
A, B = Event("a"), Event("b")


def local(row: Row, zone: str) -> datetime:
    return row.time.astimezone(ZoneInfo(zone))


def day_start(day: date, zone: str) -> datetime:
    return datetime.combine(day, time(), ZoneInfo(zone)).astimezone(UTC)


def ranges(period: Period) -> list[tuple[date, date]]:
    """First day and end of each bucket."""
    step = 7 if period.interval == "week" else 1
    day = period.start - timedelta(days=(period.start.weekday() - period.week_start) % step)
    found = []
    while day < period.end:
        found.append((day, day + timedelta(days=step)))
        day += timedelta(days=step)
    return found


class Reference:
    def __init__(self, period: Period, calendar: bool, segment: tuple[Where, ...]) -> None:
        self.period, self.calendar, self.segment = period, calendar, segment
        self.buckets, self.step = ranges(period), 7 if period.interval == "week" else 1

    def starts(self, rows: list[Row]) -> dict[int, Row]:
        """Of one user: the first start event of each bucket."""
        found: dict[int, Row] = {}
        for row in rows:
            day = local(row, self.period.zone).date()
            if holds(A, row) and all(passes(one, row) for one in self.segment):
                for number, (low, high) in enumerate(self.buckets):
                    if low <= day < high and self.period.start <= day < self.period.end:
                        found.setdefault(number, row)
        return found

    def unit_of(self, start: Row, bucket: int, row: Row) -> int:
        """How many days or weeks after the start a return comes."""
        if self.calendar:
            passed = local(row, self.period.zone).date() - self.buckets[bucket][0]
            return passed.days // self.step
        began = local(start, self.period.zone)
        into_the_hour_ms = began.minute * 60_000 + began.second * 1000 + began.microsecond // 1000
        return (row.ms - start.ms + into_the_hour_ms) // (self.step * DAY_MS)

    def cells(self, rows: list[Row], now: datetime) -> dict[tuple[int, int], list[list[int]]]:
        """For each bucket and group-free window: the units in which its user came back."""
        found: dict[tuple[int, int], list[list[int]]] = {}
        for mine in by_user(rows).values():
            for bucket, start in self.starts(mine).items():
                back = [r for r in mine if holds(B, r) and r.ms >= start.ms and r.time < now]
                found.setdefault((bucket, 0), []).append(
                    [self.unit_of(start, bucket, row) for row in back]
                )
        return found

    def over(self, bucket: int, units: int) -> datetime:
        first = self.buckets[bucket][0]
        if self.calendar:
            return day_start(first + timedelta(days=units * self.step), self.period.zone)
        return day_start(first, self.period.zone) + timedelta(days=units * self.step)


@pytest.mark.few(3)
@pytest.mark.cases
@pytest.mark.parametrize("calendar", [False, True])
@pytest.mark.parametrize("mode", ["on", "on or after", "brackets"])
def test_counts_are_those_of_a_look_at_each_window(calendar: bool, mode: str) -> None:
    for seed in seeds(12, 200):
        rng = random.Random(seed)
        rows = random_rows(
            rng, most=120, users=10, kinds="ab", span_ms=9 * DAY_MS, grain_ms=HOUR_MS // 4
        )
        low = date(2024, 3, 30) + timedelta(days=rng.randrange(3))
        period = Period(
            low, low + timedelta(days=rng.randrange(1, 5)),
            rng.choice(["day", "week"]), rng.choice(ZONES), week_start=rng.randrange(7),
        )  # fmt: skip
        segment = rng.choice([(), (Where("plan", "is", ("pro",)),)])
        now = START + timedelta(hours=rng.randrange(24, 12 * 24))
        brackets = rng.choice([[(0, 1), (1, 3), (3, 5)], [(1, 2)], [(0, 2), (4, 5)]])
        more: dict[str, Any] = {"mode": mode, "days": DAYS}
        if mode == "brackets":
            more = {"brackets": brackets}
        found = retention(
            frame(rows), ROLES, A, B, period, calendar=calendar, segment=segment, now=now, **more
        )
        reference = Reference(period, calendar, segment)
        cells = reference.cells(rows, now)
        bounds = brackets if mode == "brackets" else [(n, n + 1) for n in range(DAYS + 1)]
        expected, overall = [], []
        for low_unit, high_unit in bounds:
            counts, sizes = 0, 0
            for bucket in range(len(reference.buckets)):
                windows = cells.get((bucket, 0), [])
                came = sum(
                    any(
                        unit >= low_unit and (mode == "on or after" or unit < high_unit)
                        for unit in units
                    )
                    for units in windows
                )
                complete = reference.over(bucket, high_unit) <= now
                expected.append((bucket, low_unit, came, len(windows), complete))
                if complete:
                    counts, sizes = counts + came, sizes + len(windows)
            overall.append((counts, sizes))
        table = found.cohorts.with_columns(number=found.cohorts["cohort"].rank("dense") - 1)
        got = table.select("number", "from_day", "count", "out_of", "complete").rows()
        assert sorted(got) == sorted(expected)
        assert found.overall.select("count", "out_of").rows() == overall


def on_days(starts: list[datetime], returns: list[datetime], period: Period, **more: Any) -> Any:
    def row(event: str, at: datetime) -> Row:
        return Row("u", event, round((at - START).total_seconds() * 1000))

    rows = [*(row("a", at) for at in starts), *(row("b", at) for at in returns)]
    now = datetime(2024, 6, 1, tzinfo=UTC)
    found = retention(frame(rows), ROLES, A, B, period, days=3, now=now, **more).overall
    return found.filter(found["count"] > 0)["from_day"].to_list()


def test_a_return_an_hour_short_of_a_day_is_of_day_one() -> None:
    """Amplitude's example: the start on Wednesday at 17:59, the return on Thursday at 17:00."""
    period = Period(date(2024, 4, 3), date(2024, 4, 4))
    start = datetime(2024, 4, 3, 17, 59, tzinfo=UTC)
    assert on_days([start], [datetime(2024, 4, 4, 17, 0, tzinfo=UTC)], period) == [1]
    assert on_days([start], [datetime(2024, 4, 4, 16, 59, tzinfo=UTC)], period) == [0]


def test_days_of_a_zone_ahead_of_utc_are_not_one_off() -> None:
    zone = ZoneInfo("Asia/Shanghai")
    period = Period(date(2024, 4, 3), date(2024, 4, 4), zone="Asia/Shanghai")
    start = datetime(2024, 4, 3, 0, 30, tzinfo=zone)
    for hour, day in ((23, 0), (24, 1), (47, 1), (48, 2)):
        back = datetime(2024, 4, 3, tzinfo=zone) + timedelta(hours=hour)
        assert on_days([start], [back], period, calendar=True) == [day]
        assert on_days([start], [back], period) == [day]


def test_a_day_on_which_clocks_change_is_one_day() -> None:
    zone = ZoneInfo("Europe/Berlin")
    period = Period(date(2024, 3, 30), date(2024, 3, 31), zone="Europe/Berlin")
    start = datetime(2024, 3, 30, 12, 0, tzinfo=zone)
    late = datetime(2024, 3, 31, 23, 59, tzinfo=zone)
    assert on_days([start], [late], period, calendar=True) == [1]
    assert on_days([start], [late + timedelta(minutes=1)], period, calendar=True) == [2]


def test_a_start_on_several_days_opens_several_windows() -> None:
    period = Period(date(2024, 4, 1), date(2024, 4, 4))
    starts = [datetime(2024, 4, day, 9, 30, tzinfo=UTC) for day in (1, 2, 3)]
    found = on_days(starts, [datetime(2024, 4, 4, 9, 15, tzinfo=UTC)], period)
    assert found == [1, 2, 3]


def test_today_is_not_counted_against_whole_days() -> None:
    period = Period(date(2024, 4, 1), date(2024, 4, 3))
    rows = [Row(user, "a", day * DAY_MS) for day in (2, 3) for user in ("u", "v")]
    rows += [Row("u", "b", 3 * DAY_MS + HOUR_MS)]
    now = datetime(2024, 4, 3, 12, tzinfo=UTC)
    found = retention(frame(rows), ROLES, A, B, period, days=1, now=now).overall
    assert found.select("from_day", "count", "out_of").rows() == [(0, 1, 4), (1, 1, 2)]


def test_cohorts_are_divided_by_the_property_of_the_start_event() -> None:
    rows = [
        Row("u", "a", 0, plan="free"), Row("u", "b", 1000, plan="pro"),
        Row("v", "a", 0, plan="pro"), Row("w", "a", 5, plan="pro"), Row("x", "a", 5),
    ]  # fmt: skip
    period = Period(date(2024, 3, 30), date(2024, 3, 31))
    now = datetime(2024, 6, 1, tzinfo=UTC)
    found = retention(frame(rows), ROLES, A, B, period, days=0, by="plan", limit=2, now=now)
    columns = ["group", "others", "count", "out_of"]
    assert found.overall.select(columns).rows() == [
        ("free", False, 1, 1), ("pro", False, 0, 2), ("(others)", True, 0, 1),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mode": "rolling"}, "expected 'on' or 'on or after', got 'rolling'"),
        ({"days": -1}, "expected 0 to 999, got -1"),
        ({"brackets": [(1, 3), (2, 4)]}, "expected ranges in order"),
        ({"brackets": [(0, 1)], "mode": "on or after"}, "expected none"),
        ({"limit": 0}, "expected 1 to 1000 groups, got 0"),
    ],
)
def test_what_cannot_be_asked_is_refused(options: dict[str, Any], said: str) -> None:
    period = Period(date(2024, 3, 30), date(2024, 3, 31))
    with pytest.raises(BadInput, match=said):
        retention(frame([]), ROLES, A, B, period, **options)


@pytest.mark.long
@pytest.mark.parametrize("mode", ["on", "on or after"])
def test_clickhouse_retains_the_same_users(clickhouse: Engine, mode: Any) -> None:
    """Its `retention`, where it is defined: one cohort, and whole days after that of the start."""
    on = "=" if mode == "on" else ">="
    back = ", ".join(f"event = 'b' and ms div {DAY_MS} {on} {day}" for day in range(1, DAYS + 1))
    period = Period(START.date(), START.date() + timedelta(days=1))
    now = START + timedelta(days=30)
    for seed in seeds(100, 300):
        rows = random_rows(
            random.Random(seed), most=200, users=20, kinds="abx", span_ms=6 * DAY_MS,
            grain_ms=HOUR_MS,
        )  # fmt: skip
        _, answer = clickhouse.ask(
            f"select sumForEach(r) from (select retention(event = 'a' and ms < {DAY_MS}, {back})"
            f" as r from {as_values(rows)} group by user)"
        )
        found = retention(
            frame(rows), ROLES, A, B, period, mode=mode, days=DAYS, calendar=True, now=now
        ).cohorts
        assert [found["out_of"][0], *found["count"][1:]] == [int(n) for n in answer[0][0]]


def test_an_event_of_a_clock_ahead_completes_no_cohort() -> None:
    """What is asked about is the time up to the newest event that is not in the future."""
    rows = [Row("u", "a", 0), Row("v", "a", DAY_MS)]
    ahead = [*rows, Row("w", "x", 50 * 365 * DAY_MS)]
    period = Period(date(2024, 3, 30), date(2024, 4, 2))
    expected = retention(frame(rows), ROLES, A, B, period, days=1).overall.rows()
    assert retention(frame(ahead), ROLES, A, B, period, days=1).overall.rows() == expected
    assert expected[0][-2:] != expected[1][-2:]
