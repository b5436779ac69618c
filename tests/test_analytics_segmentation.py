"""Segmentation and filters against counts in plain Python, and the same in SQL."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from forebay.query.analytics import (
    Event,
    Period,
    Where,
    formula,
    parse_filters,
    segmentation,
    units,
)
from forebay.query.analytics.events import property_of
from forebay.storage.base.errors import BadInput
from tests.analytics import ROLES, Row, frame, random_rows, seeds

HOUR_MS, DAY_MS = 3_600_000, 86_400_000
ZONES = ["UTC", "Europe/Berlin", "Asia/Kolkata", "America/Los_Angeles"]
PERIOD = Period(date(2024, 3, 30), date(2024, 4, 3), zone="Europe/Berlin")
FOREVER = Period(date(2024, 1, 1), date(2025, 1, 1), "month")
A, B = Event("a"), Event("b")


def bucket_of(row: Row, period: Period) -> datetime:
    """The local beginning of its bucket, the clock read in the zone."""
    at = row.time.astimezone(ZoneInfo(period.zone))
    midnight = datetime.combine(at.date(), time(), at.tzinfo)
    if period.interval == "day":
        return midnight
    if period.interval == "week":
        return midnight - timedelta(days=(at.weekday() - period.week_start) % 7)
    if period.interval == "month":
        return midnight.replace(day=1)
    minute = at.minute - at.minute % 5 if period.interval == "5 min" else 0
    return at.replace(minute=minute, second=0, microsecond=0)


MEASURES: dict[str, Callable[[list[Row]], float | None]] = {
    "uniques": lambda rows: len({row.user for row in rows}),
    "totals": len,
    "average": lambda rows: len(rows) / len({row.user for row in rows}) if rows else None,
    "sum": lambda rows: sum(prices(rows)),
    "mean": lambda rows: statistics.mean(prices(rows)) if prices(rows) else None,
    "median": lambda rows: statistics.median(prices(rows)) if prices(rows) else None,
    "percentile": lambda rows: linear(sorted(prices(rows)), 0.75),
    "distinct": lambda rows: len(set(prices(rows))),
}


def prices(rows: list[Row]) -> list[float]:
    return [row.price for row in rows if row.price is not None]


def linear(values: list[float], share: float) -> float | None:
    if not values:
        return None
    low, rest = divmod(share * (len(values) - 1), 1)
    high = min(int(low) + 1, len(values) - 1)
    return values[int(low)] + rest * (values[high] - values[int(low)])


@pytest.mark.few(4)
@pytest.mark.cases
@pytest.mark.parametrize("measure", MEASURES)
def test_each_bucket_and_group_has_the_value_of_its_rows(measure: Any) -> None:
    for seed in seeds(15, 300):
        rng = random.Random(seed)
        rows = random_rows(rng, most=60, users=4, kinds="ab", span_ms=4 * DAY_MS, grain_ms=200_000)
        low = date(2024, 3, 30)
        period = Period(
            low, low + timedelta(days=rng.randrange(1, 4)),
            rng.choice(["5 min", "hour", "day", "week", "month"]), rng.choice(ZONES),
            rng.randrange(7),
        )  # fmt: skip
        by = rng.choice([None, "plan", "p.plan"])
        options: dict[str, Any] = {"of": "price"} if measure not in _COUNTED else {}
        found = segmentation(
            frame(rows), ROLES, [A], period, measure=measure, by=by, percentile=75, limit=3,
            **options,
        )  # fmt: skip
        counted = [row for row in rows if row.event == "a" and inside(row, period)]
        if options:
            counted = [row for row in counted if row.price is not None]
        value = MEASURES[measure]
        groups = {group_of(row, by) for row in counted} or {None}
        got = {
            (one.get("group"), one["bucket"]): one["value"] for one in found.over_time.to_dicts()
        }
        for (group, bucket), number in got.items():
            mine = [r for r in counted if group_of(r, by) == group]
            there = [row for row in mine if bucket_of(row, period) == bucket]
            assert number == pytest.approx(value(there)), (group, bucket)
        assert {group for group, _ in got} == groups
        assert {bucket_of(row, period) for row in counted} <= {bucket for _, bucket in got}
        for one in found.overall.to_dicts():
            mine = [row for row in counted if group_of(row, by) == one.get("group")]
            assert one["value"] == pytest.approx(value(mine))


_COUNTED = ("uniques", "totals", "average")


def inside(row: Row, period: Period) -> bool:
    return period.start <= row.time.astimezone(ZoneInfo(period.zone)).date() < period.end


def group_of(row: Row, by: str | None) -> str | None:
    if by == "p.plan":
        return row.plan if row.raw is not None and row.raw.startswith(b"{") else None
    return row.plan if by else None


def values(rows: list[Row], *events: Event, period: Period = FOREVER, **more: Any) -> Any:
    found = segmentation(frame(rows), ROLES, events or [A], period, **more).overall
    return [tuple(row) for row in found.drop("event").rows()]


def test_the_greatest_groups_are_named_and_a_user_of_several_others_counts_once_there() -> None:
    rows = [Row(user, "a", 0, plan=plan) for user, plan in zip("uuvwx", "12333", strict=True)]
    assert values(rows, by="plan", limit=1) == [("3", False, 3.0), ("(others)", True, 1.0)]


def test_a_value_named_as_the_others_is_a_group_of_its_own() -> None:
    rows = [Row(user, "a", 0, plan="(others)") for user in "uv"] + [Row("w", "a", 0, plan="x")]
    found = [("(others)", False, 2.0), ("(others)", True, 1.0)]
    assert values(rows, by="plan", limit=1) == found


def test_a_share_is_of_the_users_who_did_anything() -> None:
    rows = [Row("u", "a", 0), Row("v", "b", 0), Row("w", "x", 0), Row("u", "b", 1)]
    assert values(rows, measure="share") == [(pytest.approx(1 / 3),)]


def test_frequency_counts_users_by_how_often_they_did_it() -> None:
    rows = [
        Row(user, "a", n) for user, times in (("u", 1), ("v", 3), ("w", 9)) for n in range(times)
    ]
    found = values(rows, measure="frequency", frequency=(1, 2, 5))
    assert found == [(1, 1.0), (2, 1.0), (5, 1.0)]


def test_the_period_before_is_read_only_as_far_as_this_one_has_come() -> None:
    period = Period(date(2024, 4, 1), date(2024, 4, 2))
    rows = [Row("u", "a", 1 * DAY_MS + hour * HOUR_MS) for hour in (1, 13)]
    rows.append(Row("u", "a", 2 * DAY_MS + HOUR_MS))
    for now, before in ((None, 2), (datetime(2024, 4, 1, 12, tzinfo=UTC), 1)):
        found = segmentation(
            frame(rows), ROLES, [A], period, measure="totals", compare=True, now=now
        )
        assert found.over_time["value"].to_list() == [1]
        assert found.before is not None
        assert found.before["value"].to_list() == [before]


def test_the_months_before_march_are_as_many_and_end_where_it_begins() -> None:
    period = Period(date(2024, 3, 5), date(2024, 5, 2), "month", "Europe/Berlin")
    assert (period.before.start, period.before.end) == (date(2023, 12, 1), date(2024, 3, 1))
    weeks = Period(date(2024, 3, 27), date(2024, 4, 3), "week", "Europe/Berlin", week_start=6)
    assert (weeks.before.start, weeks.before.end) == (date(2024, 3, 10), date(2024, 3, 24))


@pytest.mark.parametrize(
    ("day", "zone", "hours"),
    [
        (date(2024, 3, 31), "Europe/Berlin", 23),
        (date(2024, 10, 27), "Europe/Berlin", 25),
        (date(2018, 11, 4), "America/Sao_Paulo", 23),
        (date(2018, 2, 17), "America/Sao_Paulo", 25),
        (date(2024, 4, 7), "Australia/Lord_Howe", 25),
    ],
)
def test_a_day_has_as_many_hours_as_its_clock_shows(day: date, zone: str, hours: int) -> None:
    period = Period(day, day + timedelta(days=1), "hour", zone)
    assert period.buckets == hours
    assert period.edges_ms[[0, -1]].tolist() == [period.start_ms, period.end_ms]


def test_users_are_new_once_in_the_frame_and_not_in_the_period() -> None:
    rows = [Row("u", "x", 0), Row("u", "a", 2 * DAY_MS), Row("v", "a", 2 * DAY_MS)]
    period = Period(date(2024, 4, 1), date(2024, 4, 2))
    assert values(rows, Event(None, first=True), period=period) == [(1.0,)]
    assert values(rows, Event("a", first=True), period=period) == [(2.0,)]


def test_a_formula_is_computed_in_each_bucket_and_group() -> None:
    rows = [Row("u", "a", 0, plan="x"), Row("u", "b", 1, plan="x"), Row("v", "a", 2, plan="x")]
    rows += [Row("w", "b", 3, plan="y", price=2.5)]

    def overall(text: str, **more: Any) -> Any:
        return formula(frame(rows), ROLES, [A, B], text, FOREVER, **more).overall.rows()

    assert overall("UNIQUES(B) / UNIQUES(A) * 100") == [(100.0,)]
    assert overall("-(TOTALS(A) + 1) - 0.5") == [(-3.5,)]
    assert overall("UNIQUES(B) / UNIQUES(A)", by="plan") == [("x", False, 0.5), ("y", False, None)]
    assert overall("PROPSUM(B) / 2", of="price") == [(1.25,)]


@pytest.mark.parametrize(
    "text", ["", "UNIQUES(C)", "A", "UNIQUES(A) ** 2", "__import__('os')", "UNIQUES(A).x",
             "True", "1 + 2", "UNIQUES(A", "(" * 900 + "1" + ")" * 900, "FREQUENCY(A)"],
)  # fmt: skip
def test_what_is_no_formula_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="formula: expected"):
        formula(frame([]), ROLES, [A, B], text, FOREVER)


FILTERS: list[tuple[str, list[Any], Callable[[Any], bool]]] = [
    ("is", ["pro", "x"], lambda v: v in ("pro", "x")),
    ("is not", ["pro", "x"], lambda v: v not in ("pro", "x")),
    ("contains", ["r", "q"], lambda v: v is not None and ("r" in v or "q" in v)),
    ("does not contain", ["fr"], lambda v: v is None or "fr" not in v),
    ("set", [], lambda v: v is not None),
    ("not set", [], lambda v: v is None),
    ("greater", ["free"], lambda v: v is not None and v > "free"),
    ("between", ["free", "g"], lambda v: v is not None and "free" <= v <= "g"),
]


@pytest.mark.parametrize("path", ["plan", "p.plan", "$.p.plan"])
@pytest.mark.parametrize(("op", "wanted", "holds"), FILTERS, ids=[op for op, *_ in FILTERS])
def test_filters_hold_on_columns_and_in_messages_of_which_some_are_not_json(
    path: str, op: str, wanted: list[Any], holds: Callable[[Any], bool]
) -> None:
    (where,) = parse_filters([{"property": path, "op": op, "values": wanted}])
    by = "plan" if path == "plan" else "p.plan"
    for seed in seeds(3, 20):
        rows = random_rows(random.Random(seed), most=60)
        table = frame(rows)
        kept = table.filter(where.expr(table.collect_schema())).collect().height
        assert kept == sum(holds(group_of(row, by)) for row in rows)


@pytest.mark.parametrize(
    ("op", "wanted", "kept"),
    [
        ("is", ["2.5"], 1), ("is", [4], 1), ("greater", [2], 2), ("less or equal", ["2.5"], 2),
        ("between", [1, 3], 2), ("is not", [1], 3), ("greater or equal", [2.5], 2),
        ("less", [2.5], 1),
    ],
)  # fmt: skip
def test_numbers_are_compared_as_numbers(op: str, wanted: list[Any], kept: int) -> None:
    rows = [Row("u", "a", 0, price=price) for price in (1.0, 2.5, 4.0, None)]
    rows = [Row("u", "a", 0, price=row.price, raw=b'{"n": %d}' % (row.price or 0)) for row in rows]
    (where,) = parse_filters([{"property": "price", "op": op, "values": wanted}])
    assert frame(rows).filter(where.expr(frame(rows).collect_schema())).collect().height == kept


def test_numbers_in_messages_are_compared_as_numbers() -> None:
    messages = [b'{"n": 9}', b'{"n": 10}', b'{"n": "11"}', b'{"n": "x"}', b'{"n": null}', b"{"]
    rows = [Row("u", "a", 0, raw=message) for message in messages]
    where = Where("n", "greater", (9,))
    assert frame(rows).filter(where.expr(frame(rows).collect_schema())).collect().height == 2


def test_only_the_columns_and_rows_that_count_are_read() -> None:
    rows = frame([Row("u", "a", 0)])
    read: list[tuple[list[str] | None, str]] = []

    def source(with_columns: Any, predicate: Any, n_rows: Any, batch_size: Any) -> Any:
        read.append((with_columns, str(predicate)))
        table = rows.collect() if predicate is None else rows.collect().filter(predicate)
        yield table.select(with_columns or table.columns)

    scanned = pl.io.plugins.register_io_source(source, schema=rows.collect_schema())
    segmentation(scanned, ROLES, [A], FOREVER, by="plan")
    (columns, predicate), = read  # fmt: skip
    assert columns is not None
    assert set(columns) == {"user", "event", "time", "plan"}
    for text in ("event", "time", "user"):
        assert f'col("{text}")' in predicate


def test_the_same_in_sql() -> None:
    for seed in seeds(5, 50):
        rows = random_rows(random.Random(seed), most=60, span_ms=4 * DAY_MS, grain_ms=1_000_000)
        events = frame(rows).collect()  # noqa: F841
        found = segmentation(frame(rows), ROLES, [A], PERIOD).over_time
        connection = duckdb.connect()
        connection.execute("set timezone = 'Europe/Berlin'")
        expected = connection.execute(
            "select epoch(date_trunc('day', time)), count(distinct user) from events"
            " where event = 'a' and time >= '2024-03-30' and time < '2024-04-03'"
            " group by 1 order by 1"
        ).fetchall()
        got = found.filter(found["value"] > 0).select("bucket", "value").rows()
        assert [(day.timestamp(), n) for day, n in got] == expected


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([{"property": "plan", "op": "like", "values": ["x"]}], "expected an operator among"),
        ([{"property": "plan", "op": "is", "values": []}], "expected at least one values of 'is'"),
        ([{"property": "plan", "op": "between", "values": [1]}], "expected 2 values"),
        ([{"property": "plan", "op": "is", "values": "x"}], "expected a list of values"),
        ([{"property": "plan"}], "expected an object with property, op and values"),
        ("plan", "expected a list"),
    ],
)
def test_what_is_no_filter_is_refused(given: object, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        parse_filters(given)


def test_a_property_needs_a_column_or_whole_messages() -> None:
    schema = pl.Schema({"user": pl.String, "plan": pl.String})
    with pytest.raises(BadInput, match=r"expected a column among user, plan.*did you mean 'plan'"):
        property_of("plam", schema)
    with pytest.raises(BadInput, match="expected a path such as"):
        property_of("a.'b", pl.Schema({"raw": pl.Binary}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"zone": "Mars/Olympus"}, "expected a time zone such as Europe/Berlin"),
        ({"end": date(2024, 3, 1)}, "expected an end after its start"),
        ({"interval": "year"}, "expected one of 5 min, hour, day, week, month; got 'year'"),
        ({"week_start": 7}, "expected 0 .Monday. to 6"),
        ({"start": datetime(2024, 3, 1)}, "expected a day, or a time with its zone"),
        ({"end": date(2026, 3, 1), "interval": "5 min"}, "expected at most 100,000 buckets"),
    ],
)
def test_what_is_no_period_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        Period(**{"start": date(2024, 3, 30), "end": date(2024, 4, 1), **changes})


def test_roles_need_columns_of_their_types() -> None:
    found = frame([Row("u", "a", 0)]).with_columns(pl.col("time").dt.replace_time_zone(None))
    with pytest.raises(BadInput, match="expected a column of times in UTC"):
        segmentation(found, ROLES, [A], FOREVER)
    with pytest.raises(BadInput, match=r"role user: expected a column among .*; got 'user'"):
        segmentation(found.drop("user"), ROLES, [A], FOREVER)


@pytest.mark.parametrize(("slots", "dense"), [(2, 4), (1 << 17, 0)])
def test_users_count_the_same_however_they_are_numbered(
    slots: int, dense: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table that is too small is replaced, and cells that are too many are not an array."""
    rows = random_rows(random.Random(1), most=400, users=40)
    found = segmentation(frame(rows), ROLES, [Event()], FOREVER, by="plan")
    monkeypatch.setattr(units, "SLOTS", slots)
    monkeypatch.setattr(units, "DENSE", dense)
    again = segmentation(frame(rows), ROLES, [Event()], FOREVER, by="plan")
    assert_frame_equal(found.over_time, again.over_time)
    assert_frame_equal(found.overall, again.overall)


def test_users_of_one_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = random_rows(random.Random(2), most=400, users=40)
    found = segmentation(frame(rows), ROLES, [Event()], FOREVER, by="plan")
    same = pl.Series([0], dtype=pl.UInt64)
    monkeypatch.setattr(
        pl.DataFrame, "hash_rows", lambda frame, seed: same.new_from_index(0, frame.height)
    )
    again = segmentation(frame(rows), ROLES, [Event()], FOREVER, by="plan")
    assert_frame_equal(found.overall, again.overall)
