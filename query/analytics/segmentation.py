"""Segmentation: a measure of one or several events over time, such as users (Amplitude, Event
Segmentation).

    measure       a bucket's value is
    "uniques"     users who did the event
    "totals"      events
    "share"       uniques as a share of the users who did any event in the bucket
    "average"     totals / uniques
    "frequency"   users who did it so many times, a row for each bin of `frequency`
    "sum" "mean" "median" "percentile" "distinct"   of the values of `of`, a property

Overall, a user counts once; so the overall value is not the sum of the buckets.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal, get_args

import polars as pl

from forebay.query.analytics.answer import Answer
from forebay.query.analytics.events import Event, Roles, Where, filtered, property_of
from forebay.query.analytics.groups import (
    ALIKE,
    GROUP,
    filled,
    group_of,
    groups_in,
    matched,
    ms_of_time,
    share,
    top_groups,
    without_group,
)
from forebay.query.analytics.period import Period
from forebay.query.analytics.units import tallied
from forebay.storage.base.errors import BadInput
from forebay.storage.base.times import ms_of, time_of

Measure = Literal[
    "uniques", "totals", "share", "average", "frequency",
    "sum", "mean", "median", "percentile", "distinct",
]  # fmt: skip
OF_A_PROPERTY = frozenset({"sum", "mean", "median", "percentile", "distinct"})
NOTHING_IS_ZERO = frozenset({"uniques", "totals", "sum", "distinct", "frequency"})
FREQUENCY = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
MEASURES: dict[str, Measure] = {
    **{name.upper(): name for name in get_args(Measure) if name != "frequency"},
    "PROPSUM": "sum",
    "PROPAVG": "mean",
}
"""Functions in a formula."""
FORMULA_CHARACTERS = 1000
_OPERATORS: dict[type[ast.operator], Callable[[pl.Expr, pl.Expr], pl.Expr]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
}  # fmt: skip


@dataclass(frozen=True, repr=False)
class Segmentation(Answer):
    """The answer to `question`. Columns `group` and `others` (see `frame.top_groups`) if there is a
    `by`, and `times` (the lower end of the bin, upper end excluded) with the measure "frequency".

    `over_time`  `event` (its place in the question, from 0; not in a formula's), `bucket`, `value`
    `overall`    the same over the whole period
    `before`     as `over_time`, of the preceding period, if that was asked for
    """

    over_time: pl.DataFrame
    overall: pl.DataFrame
    before: pl.DataFrame | None = None


def segmentation(
    frame: pl.LazyFrame,
    roles: Roles,
    events: Sequence[Event],
    period: Period,
    *,
    measure: Measure = "uniques",
    of: str | None = None,
    percentile: float = 90,
    frequency: Sequence[int] = FREQUENCY,
    segment: Sequence[Where] = (),
    by: str | None = None,
    limit: int = 100,
    compare: bool = False,
    now: datetime | None = None,
) -> Segmentation:
    """The measure of each event in each bucket, and overall. `segment` filters all events, `by`
    groups them by a property; the `limit` greatest groups of each event are named.

    With `compare`, the same for as many buckets before the period; if `now` is within the period,
    only the corresponding part of them is read. Raises BadInput.
    """
    question = {name: value for name, value in locals().items() if name not in ("frame", "roles")}
    _check(events, measure, of, percentile, frequency)

    def series(period: Period) -> tuple[pl.DataFrame, pl.DataFrame]:
        found = [
            _series(frame, roles, filtered(event, segment), period, measure, of, by, limit,
                    percentile / 100, frequency)
            for event in events
        ]  # fmt: skip
        tables = zip(*found, strict=True)
        over_time, overall = (
            pl.concat(
                t.select(pl.lit(n, pl.Int32).alias("event"), pl.all()) for n, t in enumerate(ts)
            )
            for ts in tables
        )
        return over_time, overall

    over_time, overall = without_group(by, *series(period))
    before = None
    if compare:
        (before,) = without_group(by, series(preceding(period, now))[0])
    return Segmentation(question, over_time, overall, before)


def formula(
    frame: pl.LazyFrame,
    roles: Roles,
    events: Sequence[Event],
    text: str,
    period: Period,
    **options: object,
) -> Segmentation:
    """A formula over several events, such as "UNIQUES(B) / UNIQUES(A)". Events are A, B, …;
    functions are the measures except "frequency", in capitals, with PROPSUM and PROPAVG for sum and
    mean, as in Amplitude; operators are + - * / and parentheses. A value is null if one it needs is
    null, or a divisor is 0; groups are those named for each event. `options` are those of
    `segmentation` except `measure` and `compare`. Raises BadInput."""
    question = {"events": events, "period": period, "formula": text, **options}
    if not {"measure", "compare"}.isdisjoint(options):
        raise BadInput("formula: expected no measure and no comparison of its own")
    uses: dict[tuple[Measure, int], pl.Expr] = {}
    value = _parsed(text, len(events), uses)
    if not uses:
        raise BadInput(f"formula: expected a measure of an event, such as UNIQUES(A); got {text!r}")
    found = [
        segmentation(
            frame, roles, [events[number]], period,
            measure=measure, **options,  # type: ignore[arg-type]
        )
        for measure, number in uses
    ]  # fmt: skip
    over_time = _joined([one.over_time for one in found], uses, value)
    return Segmentation(question, over_time, _joined([one.overall for one in found], uses, value))


def _joined(
    tables: Sequence[pl.DataFrame], uses: Iterable[tuple[Measure, int]], value: pl.Expr
) -> pl.DataFrame:
    """The value of a formula over the tables of the measures it uses."""
    keys = [name for name in (*GROUP, "bucket") if name in tables[0].columns]
    grid = pl.concat(table.select(pl.lit(0).alias("all"), *keys) for table in tables).unique()
    for table, (measure, number) in zip(tables, uses, strict=True):
        column = f"{measure} {number}"
        one = table.select(pl.lit(0).alias("all"), *keys, pl.col("value").alias(column))
        grid = filled(grid, one, [column] if measure in NOTHING_IS_ZERO else [])
    order = [name for name in ("others", "group", "bucket") if name in keys]
    return grid.sort("all", *order, nulls_last=True).select(*keys, value=value)


def _check(
    events: Sequence[Event],
    measure: str,
    of: str | None,
    percentile: float,
    frequency: Sequence[int],
) -> None:
    if not events:
        raise BadInput("events: expected at least one, got none")
    if measure not in get_args(Measure):
        raise BadInput(f"measure: expected one of {', '.join(get_args(Measure))}; got {measure!r}")
    if (of is None) == (measure in OF_A_PROPERTY):
        wanted = "a property" if of is None else "none"
        raise BadInput(f"of: expected {wanted} with the measure {measure!r}, got {of!r}")
    if not 0 <= percentile <= 100:
        raise BadInput(f"percentile: expected 0 to 100, got {percentile}")
    if not frequency or list(frequency) != sorted(set(frequency)) or frequency[0] < 1:
        raise BadInput(f"frequency: expected ascending numbers from 1 on, got {frequency!r}")


def preceding(period: Period, now: datetime | None) -> Period:
    """The preceding period, cut short where `now` cuts this one."""
    before = period.before
    if now is None or not period.start_ms < ms_of(now) < period.end_ms:
        return before
    return replace(before, end=time_of(before.start_ms + ms_of(now) - period.start_ms))


def _series(
    frame: pl.LazyFrame,
    roles: Roles,
    event: Event,
    period: Period,
    measure: Measure,
    of: str | None,
    by: str | None,
    limit: int,
    quantile: float,
    frequency: Sequence[int],
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The values of one event over time, and overall."""
    schema = frame.collect_schema()
    rows, _ = matched(frame, roles, [event])
    columns = [pl.col(roles.user).alias("user"), ms_of_time(roles), group_of(by, schema)]
    if of is not None:
        held = property_of(of, schema)
        text = measure != "distinct" and not schema.get(of, pl.String()).is_numeric()
        columns.append((held.cast(pl.Float64, strict=False) if text else held).alias("of"))
    if ALIKE in schema:
        columns.append(pl.col(ALIKE))
    rows = rows.filter(period.within(roles.time)).select(columns)
    rows = rows.with_columns(bucket=period.bucket(pl.col("ms")))
    if measure == "totals":  # for which users need not be told apart
        number = pl.len() if ALIKE not in schema else pl.col(ALIKE).sum()
        events = rows.group_by("group", "bucket").agg(events=number)
        found = events.collect(engine="streaming")
    elif of is None:
        found = tallied(rows.drop("ms").collect(engine="streaming"), period.buckets)
    else:
        rows = rows.select("group", "bucket", "of").drop_nulls("of")
        found = rows.collect(engine="streaming")
    active = _active(frame, roles, period) if measure == "share" else None
    value = _value(measure, quantile)
    if by is None:
        found = found.with_columns(others=pl.lit(False))
    else:
        found = top_groups(found, _ranking(found, measure, value), limit)
    groups = groups_in(found if by is not None else found.head(1))
    buckets = pl.DataFrame({"bucket": range(period.buckets)}, {"bucket": pl.Int32})
    tables = []
    for grid in (groups.join(buckets, how="cross", maintain_order="left_right"), groups):
        keys = grid.columns
        if measure == "frequency":
            counts = _frequency(found, keys, frequency)
            bins = pl.DataFrame({"times": list(frequency)}, {"times": pl.Int64})
            grid = grid.join(bins, how="cross", maintain_order="left_right")
        else:
            counts = found.group_by(keys).agg(value=value)
        table = filled(grid, counts, ["value"] if measure in NOTHING_IS_ZERO else [])
        if active is not None:
            table = _shared(table, active)
        if "bucket" in keys:
            table = table.with_columns(bucket=period.label(pl.col("bucket")))
        tables.append(table.with_columns(pl.col("value").cast(pl.Float64)))
    return tables[0], tables[1]


def _value(measure: Measure, quantile: float) -> pl.Expr:
    """The value from rows (user, bucket, `events`), or from rows with values in `of`."""
    users, of = pl.col("user").n_unique(), pl.col("of")
    values: dict[str, Callable[[], pl.Expr]] = {
        "uniques": lambda: users,
        "share": lambda: users,
        "frequency": lambda: users,
        "totals": pl.col("events").sum,
        "average": lambda: pl.col("events").sum() / users,
        "sum": of.sum,
        "mean": of.mean,
        "median": of.median,
        "percentile": lambda: of.quantile(quantile, "linear"),
        "distinct": of.n_unique,
    }
    return values[measure]()


def _ranking(found: pl.DataFrame, measure: Measure, value: pl.Expr) -> pl.DataFrame:
    """The `weight` by which the greatest groups are named: a group's own overall value."""
    return found.group_by("group").agg(weight=value.cast(pl.Float64))


def _frequency(found: pl.DataFrame, keys: list[str], bins: Sequence[int]) -> pl.DataFrame:
    """How many users did it how many times."""
    edges = pl.lit(pl.Series(bins, dtype=pl.Int64))
    per_user = found.group_by(*keys, "user").agg(n=pl.col("events").sum().cast(pl.Int64))
    at = edges.search_sorted(pl.col("n"), side="right") - 1
    per_user = per_user.filter(pl.col("n") >= bins[0])
    return per_user.group_by(*keys, times=edges.gather(at)).agg(value=pl.len())


def _active(frame: pl.LazyFrame, roles: Roles, period: Period) -> pl.DataFrame:
    """Users who did any event, by `bucket`; null is overall."""
    rows, _ = matched(frame, roles, [Event()])
    user = pl.col(roles.user).alias("user")
    rows = rows.filter(period.within(roles.time)).select(
        user, ms_of_time(roles), group_of(None, pl.Schema())
    )
    rows = rows.select("user", "group", bucket=period.bucket(pl.col("ms")))
    found = tallied(rows.collect(engine="streaming"), period.buckets)
    counts = found.group_by("bucket").agg(active=pl.len())
    overall = found.select(bucket=pl.lit(None, pl.Int32), active=pl.col("user").n_unique())
    return pl.concat([counts, overall.cast({"active": counts.schema["active"]})])


def _shared(table: pl.DataFrame, active: pl.DataFrame) -> pl.DataFrame:
    keys = table.columns
    if "bucket" not in keys:
        table = table.with_columns(bucket=pl.lit(None, pl.Int32))
    table = table.join(active, on="bucket", how="left", nulls_equal=True, maintain_order="left")
    value = share("value", "active").fill_null(0)
    return table.with_columns(value=pl.when(pl.col("active") > 0).then(value)).select(keys)


def _parsed(text: str, events: int, uses: dict[tuple[Measure, int], pl.Expr]) -> pl.Expr:
    """The formula as an expression over columns "MEASURE NUMBER", collected in `uses`."""
    try:
        if len(text) > FORMULA_CHARACTERS:
            raise ValueError
        return _expression(ast.parse(text.strip(), mode="eval").body, events, uses)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise BadInput(
            f"formula: expected one such as UNIQUES(B) / UNIQUES(A), of at most"
            f" {FORMULA_CHARACTERS} characters; got {text!r}"
        ) from error


def _expression(node: ast.expr, events: int, uses: dict[tuple[Measure, int], pl.Expr]) -> pl.Expr:
    """Raises ValueError for anything outside the grammar."""
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return pl.lit(float(number))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_expression(operand, events, uses)
        case ast.BinOp(left=left, op=op, right=right):
            first, second = (_expression(one, events, uses) for one in (left, right))
            if isinstance(op, ast.Div):
                return pl.when(second != 0).then(first / second)
            if type(op) in _OPERATORS:
                return _OPERATORS[type(op)](first, second)
        case ast.Call(func=ast.Name(id=name), args=[ast.Name(id=letter)], keywords=[]):
            number = ord(letter) - ord("A") if len(letter) == 1 else -1
            measure = MEASURES.get(name)
            if measure is not None and 0 <= number < events:
                return uses.setdefault((measure, number), pl.col(f"{measure} {number}"))
    raise ValueError
