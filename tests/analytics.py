"""Random events for the tests of analytics, and how their seeds are printed.

Times are few and close, so that simultaneous events, ends of windows and changes of clocks are met.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl

from forebay.query.analytics import Event, Roles, Where
from tests import LONG, cases

ROLES = Roles("user", "event", "time", "session")
SCHEMA: dict[str, Any] = {
    "user": pl.String, "event": pl.String, "time": pl.Datetime("ms", "UTC"),
    "session": pl.Int64, "plan": pl.String, "price": pl.Float64, "raw": pl.Binary,
}  # fmt: skip
START = datetime(2024, 3, 30, tzinfo=UTC)
"""The day before clocks change in Berlin."""


@dataclass(frozen=True)
class Row:
    user: str
    event: str
    ms: int
    """Since START."""
    session: int | None = None
    plan: str | None = None
    price: float | None = None
    raw: bytes | None = None

    @property
    def time(self) -> datetime:
        return START + timedelta(milliseconds=self.ms)


def frame(rows: list[Row]) -> pl.LazyFrame:
    columns = {name: [getattr(row, name) for row in rows] for name in SCHEMA}
    return pl.DataFrame(columns, SCHEMA).lazy()


def as_values(rows: list[Row]) -> str:
    """The rows as a table of ClickHouse's, with one of nobody so that there is one."""
    given = [*((row.user, row.ms, row.event) for row in rows), ("", 0, "")]
    return f"values('user String, ms UInt64, event String', {str(given)[1:-1]})"


def random_rows(
    rng: random.Random, *, most: int = 25, users: int = 3, kinds: str = "abcx",
    span_ms: int = 20_000, grain_ms: int = 500,
) -> list[Row]:  # fmt: skip
    def row() -> Row:
        plan = rng.choice(["free", "pro", None])
        return Row(
            user=f"u{rng.randrange(users)}",
            event=rng.choice(kinds),
            ms=rng.randrange(span_ms // grain_ms) * grain_ms,
            session=rng.choice([-1, None, 1, 2, 3]),
            plan=plan,
            price=rng.choice([None, 1.0, 2.5, 4.0]),
            raw=rng.choice(
                [json.dumps({"p": {"plan": plan}}).encode(), b"\xff not JSON", b"", None]
            ),
        )

    return [row() for _ in range(rng.randrange(most + 1))]


def seeds(quick: int, full: int) -> Iterator[int]:
    """So many (a hundred times as many new ones in `make fuzz`), each printed before its case so
    that a failure names it."""
    low = random.SystemRandom().randrange(10**9) if LONG else 0
    for seed in range(low, low + cases(quick, full, 100 * full)):
        print(f"seed {seed}")
        yield seed


def holds(event: Event, row: Row) -> bool:
    """Whether a row is such an event, by the plain meaning of the filters used in tests."""
    return event.name in (None, row.event) and all(passes(where, row) for where in event.where)


def passes(where: Where, row: Row) -> bool:
    value = getattr(row, where.property)
    if where.op == "is":
        return value in where.values
    if where.op == "is not":
        return value not in where.values
    raise AssertionError(where.op)


def by_user(rows: list[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.user, []).append(row)
    return {user: sorted(mine, key=lambda row: row.ms) for user, mine in found.items()}
