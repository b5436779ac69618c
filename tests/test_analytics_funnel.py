"""The funnel against a search of every path, and the faults that others had."""

from __future__ import annotations

import itertools
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import date, timedelta
from typing import Any

import pytest
from polars.testing import assert_frame_equal

from benchmarks.query import Engine
from forebay.query.analytics import (
    Event,
    Exclusion,
    Period,
    Where,
    funnel,
    longest,
    sequences,
)
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

PERIOD = Period(date(2024, 3, 30), date(2024, 4, 2))
A, B, C, X = (Event(name) for name in "abcx")
SECOND, HOUR_MS, DAY_MS = 1000, 3_600_000, 86_400_000


def counts(rows: list[Row], steps: Sequence[Event], period: Period = PERIOD, **more: Any) -> Any:
    """How many reach each step, of all groups in order."""
    found = funnel(frame(rows), ROLES, steps, period, **more).steps
    if "by" not in more:
        return found["count"].to_list()
    return {
        group: part["count"].to_list()
        for (group,), part in found.group_by(["group"], maintain_order=True)
    }


def events(text: str, user: str = "u") -> list[Row]:
    """Such as `a@0 b@1.5`: at seconds."""
    rows = []
    for one in text.split():
        name, _, at = one.partition("@")
        rows.append(Row(user, name, round(float(at) * SECOND)))
    return rows


def rounded(ms: int, resolution_ms: int) -> int:
    return (ms + resolution_ms // 2) // resolution_ms * resolution_ms if resolution_ms else ms


class Reference:
    """Tries every choice of events for the steps, one user (or user and value) at a time."""

    def __init__(
        self, steps: Sequence[Event], order: str, window_ms: int, resolution_ms: int,
        segment: Sequence[Where] = (),
    ) -> None:  # fmt: skip
        self.steps, self.order, self.window_ms = steps, order, window_ms
        self.resolution_ms, self.segment = resolution_ms, segment

    def at(self, row: Row) -> int:
        return rounded(row.ms, self.resolution_ms)

    def enters(self, row: Row) -> bool:
        return holds(self.steps[0], row) and all(passes(one, row) for one in self.segment)

    def follows(self, earlier: Row, later: Row) -> bool:
        if self.resolution_ms:
            return self.at(later) >= self.at(earlier)
        return later.ms > earlier.ms

    def longest(self, entry: Row, rows: list[Row]) -> int:
        """The length of the longest path of an entry."""
        for length in range(len(self.steps), 1, -1):
            for rest in self._choices(entry, rows, length):
                if self._is_path([entry, *rest], rows):
                    return length
        return 1

    def _choices(self, entry: Row, rows: list[Row], length: int) -> Iterator[tuple[Row, ...]]:
        others = [row for row in rows if row is not entry]
        fitting = [[row for row in others if holds(step, row)] for step in self.steps[1:length]]
        for choice in itertools.product(*fitting):
            if len({id(row) for row in choice}) == len(choice):
                yield choice

    def _is_path(self, path: list[Row], rows: list[Row]) -> bool:
        at = [self.at(row) for row in path]
        if max(at) - min(at) > self.window_ms:
            return False
        if self.order == "any":
            return True
        if not all(self.follows(*pair) for pair in itertools.pairwise(path)):
            return False
        if self.order == "this":
            return True
        return not any(at[0] < self.at(row) < at[-1] and self.at(row) not in at for row in rows)


def expected(rows: list[Row], reference: Reference, period: Period = PERIOD) -> list[int]:
    found = [0] * len(reference.steps)
    for mine in by_user(rows).values():
        entries = [row for row in mine if reference.enters(row)]
        best = max((reference.longest(entry, mine) for entry in entries), default=0)
        for step in range(best):
            found[step] += 1
    return found


OVERLAPPING = [Event("a"), Event("a"), Event("b", (Where("plan", "is", ("pro",)),)), Event(None)]


@pytest.mark.cases
@pytest.mark.parametrize("order", ["this", "exact", "any"])
@pytest.mark.parametrize("resolution_ms", [1000, 0])
def test_no_longer_and_no_shorter_path_than_a_search_of_all_finds(
    order: str, resolution_ms: int
) -> None:
    for seed in seeds(15, 300):
        rng = random.Random(seed)
        steps = rng.sample(rng.choice([[A, B, C], OVERLAPPING, [A, A, B]]), 3)
        rows = random_rows(rng, most=60, users=10, span_ms=rng.choice([3_000, 12_000]))
        window_ms = rng.choice([1, 2, 4, 30]) * SECOND
        segment = rng.choice([(), (Where("plan", "is not", ("free",)),)])
        found = counts(
            rows, steps, order=order, window=timedelta(milliseconds=window_ms), segment=segment,
            resolution=timedelta(milliseconds=resolution_ms),
        )  # fmt: skip
        reference = Reference(steps, order, window_ms, resolution_ms, segment)
        assert found == expected(rows, reference)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("c@0 a@0 a@1 b@2", [1, 1, 1]),
        ("c@0 a@0 a@1 a@2 b@3", [1, 1, 0]),
        ("c@0 a@0 a@1 x@2 b@3", [1, 1, 0]),
    ],
)
def test_in_exact_order_a_step_is_left_to_the_next_second_where_that_makes_a_longer_path(
    text: str, found: list[int]
) -> None:
    assert counts(events(text), [C, A, B], order="exact") == found


class Totals:
    """The paths of all events of one user, each event taken in turn by a plain list of paths."""

    def __init__(self, steps: Sequence[Event], order: str, window_ms: int, reentry: str) -> None:
        self.steps, self.order, self.window_ms, self.reentry = steps, order, window_ms, reentry

    def lengths(self, rows: list[Row]) -> list[int]:
        found: list[dict[int, Row]] = []
        seconds = sorted({rounded(row.ms, 1000) for row in rows})
        fits = {id(r): [n for n, s in enumerate(self.steps) if holds(s, r)] for r in rows}
        for second in seconds:
            now = [row for row in rows if rounded(row.ms, 1000) == second and fits[id(row)]]
            for row in sorted(now, key=lambda row: (fits[id(row)][0], row.ms)):
                place = seconds.index(second)
                live = [path for path in found if self._open(path, second, place, seconds)]
                if self.reentry != "any":
                    live = [path for path in live if path is found[-1]]
                self._take(row, fits[id(row)], found, live)
        whole = [len(list(itertools.takewhile(path.__contains__, range(99)))) for path in found]
        return [length for length in whole if length]

    def _open(self, path: dict[int, Row], second: int, place: int, seconds: list[int]) -> bool:
        at = [rounded(row.ms, 1000) for row in path.values()]
        follows = self.order != "exact" or seconds.index(max(at)) >= place - 1
        return len(path) < len(self.steps) and second - min(at) <= self.window_ms and follows

    def _take(
        self, row: Row, fits: list[int], found: list[dict[int, Row]], live: list[dict[int, Row]]
    ) -> None:
        if self.order == "any":
            for path in live:
                for step in fits:
                    if step not in path:
                        path[step] = row
                        return
            if self.reentry == "any" or not live:
                found.append({fits[0]: row})
            return
        for length in range(len(self.steps) - 1, 0, -1):
            for path in live:
                if len(path) == length and length in fits:
                    path[length] = row
                    return
        if 0 not in fits:
            return
        if self.reentry == "latest" and live and len(live[0]) == 1:
            found.remove(live[0])
        elif self.reentry != "any" and live:
            return
        found.append({0: row})


@pytest.mark.few(4)
@pytest.mark.cases
@pytest.mark.parametrize(
    ("order", "reentry"),
    [
        (order, reentry)
        for order in ("this", "exact", "any")
        for reentry in ("any", "first", "latest")
        if (order, reentry) != ("any", "latest")  # no step is the second where any may come first
    ],
)
def test_totals_are_those_of_a_list_of_open_paths(order: str, reentry: str) -> None:
    for seed in seeds(12, 300):
        rng = random.Random(seed)
        steps = rng.sample(rng.choice([[A, B, C], OVERLAPPING, [A, A, B]]), 3)
        rows = random_rows(rng, most=100, users=6, span_ms=20_000, grain_ms=250)
        rows = list({(row.user, row.ms): row for row in rows}.values())
        window_ms = rng.choice([1, 3, 30]) * SECOND
        found = counts(
            rows, steps, order=order, window=timedelta(milliseconds=window_ms), count="totals",
            reentry=reentry,
        )  # fmt: skip
        reference = Totals(steps, order, window_ms, reentry)
        lengths = [n for mine in by_user(rows).values() for n in reference.lengths(mine)]
        assert found == [sum(length > step for length in lengths) for step in range(3)]


@pytest.mark.few(3)
@pytest.mark.cases
@pytest.mark.parametrize("reentry", ["any", "first", "latest"])
@pytest.mark.parametrize("exclusion", ["break", "drop"])
def test_the_path_of_each_user_and_day_is_the_longest_then_the_earliest(
    reentry: Any, exclusion: Any
) -> None:
    """With exclusions, groups and times; steps have events of their own, and milliseconds count."""
    for seed in seeds(12, 300):
        rng = random.Random(seed)
        rows = random_rows(rng, most=120, users=8, span_ms=3 * DAY_MS, grain_ms=HOUR_MS)
        rows = list({(row.user, row.ms): row for row in rows}.values())
        window_ms = rng.choice([3, 12, 40]) * HOUR_MS
        after, before = rng.choice([(1, 3), (1, 2), (2, 3)])
        more: Any = {"by": "plan"} if rng.random() < 0.5 else {}
        found = funnel(
            frame(rows), ROLES, [A, B, C], PERIOD, window=timedelta(milliseconds=window_ms),
            resolution=timedelta(0), reentry=reentry, exclude=[Exclusion(X, after, before)],
            exclusion=exclusion, **more,
        )  # fmt: skip
        chosen: dict[tuple[str, date | None], tuple[int, list[Row]]] = {}
        for user, mine in by_user(rows).items():
            for number, (whole, allowed) in enumerate(
                walks(mine, window_ms, after - 1, before - 1, reentry)
            ):
                length = len(whole if exclusion == "drop" else allowed)
                for day in (None, whole[0].time.date()):
                    key = (user, day)
                    if reentry == "first" and number:
                        continue
                    if key not in chosen or length > chosen[key][0]:
                        chosen[key] = (length, allowed if len(allowed) == length else [])
        paths = {key: path for key, (_, path) in chosen.items() if path}
        for one in (*found.steps.to_dicts(), *found.over_time.to_dicts()):
            day = one["bucket"].date() if "bucket" in one else None
            there = [
                path for (_, at), path in paths.items()
                if at == day and (not more or path[0].plan == one["group"])
            ]  # fmt: skip
            step = one["step"]
            reached = [path for path in there if len(path) >= step]
            assert one["count"] == len(reached)
            assert one["of_first"] == (len(reached) / len(there) if there else None)
            if step > 1 and reached:
                since = [path[step - 1].ms - path[step - 2].ms for path in reached]
                assert one["median_ms"] == statistics.median(since)
                assert one["mean_ms"] == pytest.approx(statistics.mean(since))
        for one in found.whole_over_time.to_dicts():
            ended = [
                path[-1].ms - path[0].ms for (_, at), path in paths.items()
                if at == one["bucket"].date() and len(path) == 3
                and (not more or path[0].plan == one["group"])
            ]  # fmt: skip
            assert one["count"] == len(ended)
            assert one["median_ms"] == (statistics.median(ended) if ended else None)
        ended = [path[-1].ms - path[0].ms for (_, day), path in paths.items()
                 if day is None and len(path) == 3]  # fmt: skip
        assert found.whole["count"].sum() == len(ended) == found.distribution["count"].sum()
        if not more and ended:
            assert found.whole["median_ms"].item() == statistics.median(ended)
            for low, high, count in found.distribution.rows():
                assert count == sum(low <= ms < high or ms == high == max(ended) for ms in ended)


def walks(
    rows: list[Row], window_ms: int, after: int, before: int, reentry: str
) -> Iterator[tuple[list[Row], list[Row]]]:
    """Of each entry the path of the earliest events, and what an exclusion leaves of it."""
    for entry in (row for row in rows if row.event == "a"):
        path = [entry]
        for name in "bc":
            later = (r for r in rows if path[-1].ms < r.ms <= entry.ms + window_ms)
            path += list(itertools.islice((row for row in later if row.event == name), 1))
            if path[-1].event != name:
                break
        if reentry == "latest" and len(path) > 1:
            between = (row for row in rows if entry.ms < row.ms < path[1].ms)
            if any(row.event == "a" for row in between):
                path = path[:1]
        allowed = path
        for length in range(len(path), 1, -1):
            low, high = (
                path[after].ms if after < length else 10**12,
                path[min(before, length - 1)].ms,
            )
            if any(row.event == "x" and low < row.ms < high for row in rows):
                allowed = path[: length - 1]
        yield path, allowed


def test_four_searches_and_a_purchase_are_one_conversion() -> None:
    rows = events("a@0 a@60 a@120 a@180 b@240")
    assert counts(rows, [A, B]) == [1, 1]
    assert counts(rows, [A, B], count="totals") == [4, 1]
    assert counts(rows, [A, B], count="totals", reentry="latest") == [1, 1]


def test_one_event_never_fills_two_steps() -> None:
    for order in ("this", "exact", "any"):
        assert counts(events("a@0"), [A, A], order=order) == [1, 0]
        assert counts(events("a@0 a@5"), [A, A], order=order) == [1, 1]


def test_events_of_one_second_count_in_either_order_unless_milliseconds_do() -> None:
    rows = events("b@10.1 a@10.4")
    assert counts(rows, [A, B]) == [1, 1]
    assert counts(rows, [A, B], resolution=timedelta(0)) == [1, 0]
    assert counts(events("b@10 a@11"), [A, B]) == [1, 0]
    assert counts(events("b@10 a@11"), [A, B], resolution=timedelta(seconds=2)) == [1, 0]
    assert counts(events("b@11 a@12"), [A, B], resolution=timedelta(seconds=2)) == [1, 1]


def test_a_chain_through_events_of_one_type_is_not_lost() -> None:
    """On which windowFunnel's strict_increase ends at step 1."""
    rows = events("a@0 a@1 b@2")
    assert counts(rows, [A, B], resolution=timedelta(0)) == [1, 1]


def test_a_step_that_repeats_needs_an_event_each_time_in_any_order() -> None:
    assert counts(events("b@0 a@9"), [A, A, B], order="any") == [1, 0, 0]
    assert counts(events("b@0 a@9 a@5"), [A, A, B], order="any") == [1, 1, 1]


def test_in_any_order_nobody_enters_without_the_first_step() -> None:
    assert counts(events("b@0 c@1"), [A, B, C], order="any") == [0, 0, 0]
    assert counts(events("c@0 b@1 a@2"), [A, B, C], order="any") == [1, 1, 1]


def test_a_filter_on_step_two_leaves_step_one_alone() -> None:
    paid = Event("b", (Where("plan", "is", ("pro",)),))
    rows = [Row("u", "a", 0, plan="free"), Row("u", "b", 5000, plan="pro"), Row("v", "a", 0)]
    assert counts(rows, [A, paid]) == [2, 1]


def test_a_segment_filters_the_first_step_only() -> None:
    rows = [Row("u", "a", 0, plan="pro"), Row("u", "b", 5000, plan="free")]
    for plan, found in (("pro", [1, 1]), ("free", [0, 0])):
        assert counts(rows, [A, B], segment=[Where("plan", "is", (plan,))]) == found


def test_a_user_is_counted_in_one_group() -> None:
    rows = [Row("u", "a", 0, plan="free"), Row("u", "a", 5000, plan="pro"), Row("u", "b", 9000)]
    assert counts(rows, [A, B], by="plan") == {"free": [1, 1]}


@pytest.mark.parametrize(
    ("attribution", "found"),
    [
        ("entry", {None: [1, 1, 1]}),
        ("first touch", {"free": [1, 1, 1]}),
        ("last touch", {"pro": [1, 1, 1]}),
        (2, {"free": [1, 1, 1]}),
        (3, {"pro": [1, 1, 1]}),
    ],
)
def test_a_path_is_of_the_group_of_the_step_asked_for(attribution: Any, found: Any) -> None:
    rows = [Row("u", "a", 0), Row("u", "b", 5000, plan="free"), Row("u", "c", 9000, plan="pro")]
    assert counts(rows, [A, B, C], by="plan", attribution=attribution) == found


def test_with_all_steps_of_one_value_or_one_held_the_unit_is_user_and_value() -> None:
    rows = [Row("u", "a", 0, 1, "x"), Row("u", "b", 5000, 2, "x"), Row("u", "b", 9000, 1, "y")]
    assert counts(rows, [A, B], by="plan", attribution="all steps") == {"x": [1, 1]}
    assert counts(rows[:2], [A, B], hold="session") == [1, 0]
    assert counts(rows, [A, B], hold="session") == [1, 1]
    assert counts([*rows, Row("u", "a", 1, 2)], [A, B], hold="session") == [2, 2]
    assert counts([Row("u", "a", 0)], [A, B], hold="session") == [0, 0]


def test_a_user_who_enters_on_two_days_counts_on_both() -> None:
    rows = [Row("u", "a", 0), Row("u", "b", HOUR_MS), Row("u", "a", DAY_MS)]
    found = funnel(frame(rows), ROLES, [A, B], PERIOD)
    assert found.steps["count"].to_list() == [1, 1]
    assert found.over_time["count"].to_list() == [1, 1, 1, 0, 0, 0]


def test_the_entry_is_in_the_period_and_later_steps_need_not_be() -> None:
    period = Period(date(2024, 3, 31), date(2024, 4, 1), zone="Europe/Berlin")
    high = period.end_ms - PERIOD.start_ms
    for at, found in ((high - 1000, [1, 1]), (high, [0, 0])):
        assert counts([Row("u", "a", at), Row("u", "b", at + 2 * HOUR_MS)], [A, B], period) == found


def test_the_end_of_the_window_is_in_it() -> None:
    for at, found in ((60, [1, 1]), (61, [1, 0])):
        assert counts(events(f"a@0 b@{at}"), [A, B], window=timedelta(minutes=1)) == found


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"order": "loose"}, "order: expected one of this, exact, any; got 'loose'"),
        ({"window": timedelta(days=367)}, "expected one second to 366 days"),
        ({"count": "sums"}, "expected one of uniques, totals"),
        ({"attribution": 4}, "expected one of .*; got 4|attribution: expected one of"),
        ({"order": "any", "reentry": "latest"}, "got 'latest'"),
        ({"exclude": [Exclusion(X, 2, 2)]}, "expected steps from 1 to 3"),
        ({"order": "any", "exclude": [Exclusion(X, 1, 2)]}, "expected all steps"),
        ({"resolution": timedelta(hours=1)}, "expected 0 to one minute"),
        ({"by": "plan", "attribution": "all steps", "hold": "session"}, "expected no other"),
        ({"attribution": "all steps"}, "expected a property"),
    ],
)
def test_what_cannot_be_asked_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        funnel(frame([]), ROLES, [A, B, C], PERIOD, **options)


@pytest.mark.few(1)
@pytest.mark.parametrize("order", ["this", "exact", "any"])
def test_events_that_make_no_difference_are_left_out_of_the_search(
    order: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in seeds(30, 300):
        rng = random.Random(seed)
        rows = random_rows(rng, most=80, users=2, span_ms=4 * SECOND, grain_ms=250)
        more = {
            "order": order, "exclude": rng.choice([(), (Exclusion(X),)]), "by": "plan",
            "attribution": rng.choice(["entry", "last touch", 2]),
        }  # fmt: skip
        period = replace(PERIOD, interval="5 min", start=START, end=START + timedelta(seconds=3))
        tables = []
        for least in (10**6, 0):
            monkeypatch.setattr(sequences, "GROUP_EVENTS", least)
            found = funnel(frame(rows), ROLES, [A, B, C], period, **more)
            tables.append(tuple(found.tables.values()))
        for searched, spared in zip(*tables, strict=True):
            assert_frame_equal(searched, spared)


@pytest.mark.parametrize("order", ["this", "exact", "any"])
def test_of_thousands_of_events_in_a_second_a_few_are_searched(
    order: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search compares all events of a second: no more than as many of a kind as there are
    steps."""
    searched, search = [], longest.longest_paths

    def counted(units: Any, *arguments: Any) -> Any:
        searched.append(len(units))
        return search(units, *arguments)

    monkeypatch.setattr(sequences, "longest_paths", counted)
    rows = [Row("u", "ab"[n % 2], n % 400) for n in range(20_000)]
    assert counts(rows, [A, B, C], order=order) == [1, 1, 0]
    assert searched == [3 * len("ab")]


@pytest.mark.long
def test_clickhouse_reaches_the_same_steps(clickhouse: Engine) -> None:
    """windowFunnel, where it is defined: a user has one event at a time, a step its own events."""
    for seed in seeds(100, 300):
        rng = random.Random(seed)
        rows = random_rows(rng, most=200, users=12, span_ms=60_000, grain_ms=50)
        rows = list({(row.user, row.ms): row for row in rows}.values())
        window_ms = rng.choice([1_000, 3_000, 20_000])
        _, answer = clickhouse.ask(
            "select countIf(n >= 1), countIf(n >= 2), countIf(n >= 3) from (select user,"
            f" windowFunnel({window_ms})(ms, event = 'a', event = 'b', event = 'c') as n"
            f" from {as_values(rows)} group by user)"
        )
        window = timedelta(milliseconds=window_ms)
        found = counts(rows, [A, B, C], window=window, resolution=timedelta(0))
        assert [found] == [[int(n) for n in row] for row in answer]
