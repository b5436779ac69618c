"""Stickiness, lifecycle, paths and the timeline against a look at each user."""

from __future__ import annotations

import random
from collections import Counter
from datetime import date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from forebay.query.analytics import (
    Event,
    Period,
    lifecycle,
    paths,
    stickiness,
    timeline,
)
from forebay.storage.base.errors import BadInput
from tests.analytics import ROLES, START, Row, by_user, frame, random_rows, seeds

HOUR_MS, DAY_MS = 3_600_000, 86_400_000
A, X = Event("a"), Event("x")
DAYS = Period(date(2024, 3, 30), date(2024, 4, 3), zone="Europe/Berlin")


def day_of(row: Row, zone: str) -> date:
    return row.time.astimezone(ZoneInfo(zone)).date()


@pytest.mark.cases
@pytest.mark.parametrize("at_least", [False, True])
def test_stickiness_counts_the_days_of_each_user_in_each_week_or_month(at_least: bool) -> None:
    for seed in seeds(20, 300):
        rng = random.Random(seed)
        rows = random_rows(rng, most=120, users=8, span_ms=20 * DAY_MS, grain_ms=HOUR_MS)
        zone = rng.choice(["UTC", "America/Los_Angeles"])
        first, last = date(2024, 3, 30), date(2024, 4, 15)
        interval: Any = rng.choice(["week", "month"])
        period = Period(first, last, interval, zone)
        found = stickiness(frame(rows), ROLES, A, period, at_least=at_least)
        active: dict[tuple[date, str], set[date]] = {}
        for row in rows:
            day = day_of(row, zone)
            if row.event == "a" and first <= day < last:
                low = day.replace(day=1)
                if interval == "week":
                    low = day - timedelta(days=day.weekday())
                active.setdefault((low, row.user), set()).add(day)
        for one in found.over_time.to_dicts():
            there = [days for (low, _), days in active.items() if low == one["bucket"].date()]
            users = sum(
                len(days) >= one["days"] if at_least else len(days) == one["days"] for days in there
            )
            assert one["users"] == users
            assert one["share"] == (pytest.approx(users / len(there)) if there else None)
        total = sum(one["users"] for one in found.over_time.to_dicts())
        assert found.overall["users"].sum() == total
        assert {low for low, _ in active} <= {b.date() for b in found.over_time["bucket"]}


@pytest.mark.cases
def test_lifecycle_divides_the_users_of_each_bucket() -> None:
    for seed in seeds(40, 600):
        rng = random.Random(seed)
        rows = random_rows(rng, most=60, users=12, span_ms=8 * DAY_MS, grain_ms=HOUR_MS)
        zone = rng.choice(["UTC", "Asia/Kolkata"])
        low = date(2024, 3, 30) + timedelta(days=rng.randrange(5))
        period = Period(low, low + timedelta(days=rng.randrange(1, 5)), zone=zone)
        event = rng.choice([None, A])
        found = lifecycle(frame(rows), ROLES, period, event=event).over_time
        active: dict[str, set[date]] = {}
        for row in rows:
            if event is None or row.event == "a":
                active.setdefault(row.user, set()).add(day_of(row, zone))
        expected = []
        for number in range((period.end - period.start).days):
            day, kinds = period.start + timedelta(days=number), Counter[str]()
            for days in active.values():
                yesterday = day - timedelta(days=1) in days
                if day not in days:
                    kinds["dormant"] += yesterday
                elif yesterday:
                    kinds["returning"] += 1
                else:
                    kinds["resurrected" if min(days) < day else "new"] += 1
            names = ("new", "returning", "resurrected", "dormant")
            expected.append((day, *(kinds[name] for name in names)))
        assert [(one[0].date(), *one[1:]) for one in found.rows()] == expected


def test_what_came_in_the_first_bucket_before_the_period_is_of_the_bucket_before() -> None:
    """The period is from Wednesday to Sunday, by week."""
    monday, thursday = 2 * DAY_MS, 5 * DAY_MS
    rows = [Row("only before", "a", monday), Row("both", "a", monday), Row("both", "a", thursday)]
    rows.append(Row("new", "a", thursday))
    period = Period(date(2024, 4, 3), date(2024, 4, 8), "week")
    found = lifecycle(frame(rows), ROLES, period).over_time
    assert found.drop("bucket").rows(named=True) == [
        {"new": 1, "returning": 1, "resurrected": 0, "dormant": 1}
    ]


def followed(
    rows: list[Row], steps: int, window_ms: int, collapse: bool, among: set[str]
) -> list[list[str]]:
    """The names of each user's path; one with fewer than `steps` has dropped off."""
    found = []
    for mine in by_user(rows).values():
        starts = [
            n for n, row in enumerate(mine)
            if row.event == "a" and DAYS.start <= day_of(row, DAYS.zone) < DAYS.end
        ]  # fmt: skip
        if not starts:
            continue
        first = mine[starts[0]]
        after = [row for row in mine[starts[0] + 1 :] if row.ms - first.ms <= window_ms]
        names = ["a", *(row.event for row in after if row.event in among)]
        if collapse:
            names = [n for at, n in enumerate(names) if at == 0 or n != names[at - 1]]
        found.append(names[:steps])
    return found


@pytest.mark.cases
@pytest.mark.parametrize("collapse", [False, True])
def test_paths_name_the_events_of_most_users_at_each_step(collapse: bool) -> None:
    for seed in seeds(20, 400):
        rng = random.Random(seed)
        rows = random_rows(rng, most=120, users=10, span_ms=4 * DAY_MS, grain_ms=1)
        rows = list({(row.user, row.ms): row for row in rows}.values())
        steps, limit, window_ms = rng.randrange(1, 6), rng.randrange(1, 4), rng.choice([1, 60])
        window_ms *= HOUR_MS
        among = rng.choice([[], [A, X], [Event("b"), X]])
        found = paths(
            frame(rows), ROLES, A, DAYS, steps=steps, limit=limit, collapse=collapse,
            window=timedelta(milliseconds=window_ms), among=among,
        )  # fmt: skip
        names = {event.name or "" for event in among} or {*"abcx"}
        walks = followed(rows, steps, window_ms, collapse, names)
        named = []
        for step in range(steps):
            counts = Counter(walk[step] for walk in walks if len(walk) > step)
            top = sorted(counts, key=lambda name: (-counts[name], name))[:limit]
            named.append({*top})

        def node(walk: list[str], step: int, named: list[set[str]] = named) -> tuple[str, str]:
            if len(walk) <= step:
                return ("(dropped off)", "dropped off")
            name = walk[step]
            return (name, "event") if name in named[step] else ("(others)", "others")

        nodes, links = Counter[Any](), Counter[Any]()
        for walk in walks:
            for step in range(min(len(walk) + 1, steps)):
                nodes[step + 1, *node(walk, step)] += 1
                if step:
                    links[step, *node(walk, step - 1), *node(walk, step)] += 1
        assert {tuple(row[:-1]): row[-1] for row in found.nodes.rows()} == nodes
        assert {tuple(row[:-1]): row[-1] for row in found.links.rows()} == links


def test_a_path_begins_with_the_first_start_of_the_period_and_not_before() -> None:
    rows = [Row("u", name, at) for name, at in (("a", -5 * HOUR_MS), ("b", -1), ("a", 0), ("x", 1))]
    found = paths(frame(rows), ROLES, A, DAYS, steps=3, among=[X])
    assert found.nodes.select("step", "event").rows() == [(1, "a"), (2, "x"), (3, "(dropped off)")]


def test_a_timeline_has_the_newest_events_of_one_user_in_order() -> None:
    for seed in seeds(20, 100):
        rng = random.Random(seed)
        rows = random_rows(rng, most=40, users=2, grain_ms=1)
        rows = list({row.ms: row for row in rows}.values())
        mine = [row.time for row in by_user(rows).get("u0", [])]
        limit, offset = rng.randrange(1, 9), rng.randrange(4)
        found = timeline(frame(rows), ROLES, "u0", limit=limit, offset=offset).events
        assert found["time"].to_list() == mine[: max(0, len(mine) - offset)][-limit:]
        found = timeline(frame(rows), ROLES, "u0", limit=limit, offset=offset, earliest=True).events
        assert found["time"].to_list() == mine[offset : offset + limit]
        middle = START + timedelta(seconds=10)
        early = timeline(frame(rows), ROLES, "u0", end=middle).events["time"].to_list()
        late = timeline(frame(rows), ROLES, "u0", start=middle).events["time"].to_list()
        assert early == [at for at in mine if at < middle]
        assert early + late == mine


def test_what_cannot_be_asked_is_refused() -> None:
    table = frame([])
    with pytest.raises(BadInput, match="expected week or month, got 'day'"):
        stickiness(table, ROLES, A, DAYS)
    with pytest.raises(BadInput, match="expected 1 to 9, got 10"):
        paths(table, ROLES, A, DAYS, steps=10)
    with pytest.raises(BadInput, match="expected a limit and a window above 0"):
        paths(table, ROLES, A, DAYS, limit=0)
    with pytest.raises(BadInput, match="expected 1 to 100,000 events"):
        timeline(table, ROLES, "u", limit=0)
    with pytest.raises(BadInput, match="expected a time with its zone"):
        timeline(table, ROLES, "u", start=datetime(2024, 1, 1))
