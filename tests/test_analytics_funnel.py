"""The funnel against a search of every path, and the faults that others had."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from typing import Any

import pytest

from forebay.query.analytics import Event, Period, Where, funnel
from tests.analytics import ROLES, Row, by_user, frame, holds, passes, random_rows, seeds

PERIOD = Period(date(2024, 3, 30), date(2024, 4, 2))
A, B, C, X = (Event(name) for name in "abcx")
SECOND = 1000


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
    for seed in seeds(60, 600):
        rng = random.Random(seed)
        steps = rng.sample(rng.choice([[A, B, C], OVERLAPPING, [A, A, B]]), 3)
        rows = random_rows(rng, most=12, users=2, span_ms=rng.choice([3_000, 12_000]))
        window_ms = rng.choice([1, 2, 4, 30]) * SECOND
        segment = rng.choice([(), (Where("plan", "is not", ("free",)),)])
        found = counts(
            rows, steps, order=order, window=timedelta(milliseconds=window_ms), segment=segment,
            resolution=timedelta(milliseconds=resolution_ms),
        )  # fmt: skip
        reference = Reference(steps, order, window_ms, resolution_ms, segment)
        assert found == expected(rows, reference)
