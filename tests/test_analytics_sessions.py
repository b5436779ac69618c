"""Sessions against a walk through each user's events."""

from __future__ import annotations

import random
import statistics
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from forebay.query.analytics import Period, Roles, Where, sessions
from forebay.storage.base.errors import BadInput
from tests.analytics import ROLES, Row, by_user, frame, passes, random_rows, seeds

MINUTE_MS, DAY_MS = 60_000, 86_400_000
PERIOD = Period(date(2024, 3, 30), date(2024, 4, 3), zone="Europe/Berlin")
GAP = timedelta(minutes=30)


@dataclass
class Session:
    rows: list[Row]

    @property
    def length_ms(self) -> int:
        return self.rows[-1].ms - self.rows[0].ms


def day_of(row: Row, zone: str) -> date:
    return row.time.astimezone(ZoneInfo(zone)).date()


def by_id(rows: list[Row]) -> list[Session]:
    found: dict[tuple[str, int], list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.ms):
        if row.session not in (None, -1):
            found.setdefault((row.user, row.session or 0), []).append(row)
    return [Session(mine) for mine in found.values()]


def by_gap(rows: list[Row], gap_ms: int, to_midnight: bool, zone: str) -> list[Session]:
    found: list[Session] = []
    for mine in by_user(rows).values():
        last: Row | None = None
        for row in mine:
            if (
                last is None
                or row.ms - last.ms > gap_ms
                or (to_midnight and day_of(row, zone) != day_of(last, zone))
            ):
                found.append(Session([]))
            found[-1].rows.append(row)
            last = row
    return found


@pytest.mark.cases
@pytest.mark.parametrize("how", ["id", "gap", "gap to midnight"])
def test_measures_are_those_of_a_walk_through_each_users_events(how: str) -> None:
    for seed in seeds(25, 400):
        rng = random.Random(seed)
        rows = random_rows(
            rng, most=120, users=8, span_ms=3 * DAY_MS, grain_ms=rng.choice([1, 10]) * MINUTE_MS
        )
        low = date(2024, 3, 30) + timedelta(days=rng.randrange(2))
        period = Period(low, low + timedelta(days=2), zone=rng.choice(["UTC", "Asia/Kolkata"]))
        where = rng.choice([(), (Where("plan", "is not", ("free",)),)])
        more: dict[str, Any] = {} if how == "id" else {"gap": GAP, "to_midnight": how != "gap"}
        found = sessions(frame(rows), ROLES, period, where=where, longest=timedelta(days=9), **more)
        kept = [row for row in rows if all(passes(one, row) for one in where)]
        if how == "id":
            expected = by_id(kept)
        else:
            expected = by_gap(kept, 30 * MINUTE_MS, how != "gap", period.zone)
        expected = [
            one for one in expected if period.start <= day_of(one.rows[0], period.zone) < period.end
        ]
        days: list[date | None] = [period.start, period.start + timedelta(days=1), None]
        tables = [*found.over_time.to_dicts(), *found.overall.to_dicts()]
        for day, one in zip(days, tables, strict=True):
            mine = [s for s in expected if day is None or day_of(s.rows[0], period.zone) == day]
            lengths = [session.length_ms for session in mine]
            users = {session.rows[0].user for session in mine}
            assert one["sessions"] == len(mine)
            assert one["users"] == len(users)
            if mine:
                assert one["mean_ms"] == pytest.approx(statistics.mean(lengths))
                assert one["median_ms"] == statistics.median(lengths)
                events = sum(len(session.rows) for session in mine)
                assert one["events_per_session"] == pytest.approx(events / len(mine))
                assert one["per_user"] == pytest.approx(len(mine) / len(users))
            else:
                assert one["mean_ms"] is one["per_user"] is None
        for bin in found.lengths.to_dicts():
            high = bin["to_ms"] or 10**12
            assert bin["sessions"] == sum(
                bin["from_ms"] <= one.length_ms < high for one in expected
            )


def count(rows: list[Row], **more: Any) -> int:
    (found,) = sessions(frame(rows), ROLES, PERIOD, **more).overall["sessions"].to_list()
    assert isinstance(found, int)
    return found


def test_an_id_of_minus_one_is_no_session() -> None:
    assert count([Row("u", "a", 0, -1), Row("u", "a", 1, None), Row("u", "a", 2, 7)]) == 1


def test_two_users_with_one_id_have_two_sessions() -> None:
    assert count([Row("u", "a", 0, 7), Row("v", "a", 0, 7)]) == 2


def test_a_gap_of_just_the_time_does_not_end_a_session() -> None:
    rows = [Row("u", "a", 0), Row("u", "a", 30 * MINUTE_MS)]
    assert count(rows, gap=GAP) == 1
    assert count([*rows, Row("u", "a", 60 * MINUTE_MS + 1)], gap=GAP) == 2


def test_a_session_is_of_the_day_on_which_it_starts() -> None:
    midnight = 23 * 60 * MINUTE_MS  # in Berlin
    rows = [Row("u", "a", midnight - 1), Row("u", "a", midnight + 1)]
    found = sessions(frame(rows), ROLES, PERIOD, gap=GAP).over_time
    assert found["sessions"].to_list() == [1, 0, 0, 0]
    found = sessions(frame(rows), ROLES, PERIOD, gap=GAP, to_midnight=True).over_time
    assert found["sessions"].to_list() == [1, 1, 0, 0]


def test_a_session_that_began_before_the_period_is_not_counted_in_it() -> None:
    period = Period(date(2024, 3, 31), date(2024, 4, 1))
    rows = [Row("u", "a", DAY_MS + minute * MINUTE_MS) for minute in (-5, 5)]
    (found,) = sessions(frame(rows), ROLES, period, gap=GAP).overall["sessions"]
    assert found == 0


def test_sessions_are_divided_by_the_property_of_their_first_event() -> None:
    rows = [Row("u", "a", 5, 1, "pro"), Row("u", "a", 0, 1, "free"), Row("v", "a", 0, 1, "pro")]
    found = sessions(frame(rows), ROLES, PERIOD, by="plan").overall
    assert found.select("group", "sessions").rows() == [("free", 1), ("pro", 1)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gap": timedelta(0)}, "expected more than 0"),
        ({"to_midnight": True}, "expected a time such as 30 minutes"),
        ({"bins_ms": (5, 1)}, "expected ascending lengths"),
    ],
)
def test_what_cannot_be_asked_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        sessions(frame([]), ROLES, PERIOD, **options)


def test_without_a_role_for_sessions_a_gap_is_needed() -> None:
    with pytest.raises(BadInput, match="no role has sessions"):
        sessions(frame([]), Roles("user", "event", "time"), PERIOD)
