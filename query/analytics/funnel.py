"""The funnel: how many users go from one step to the next, and how long it takes.

A path begins with its entry, an event of step 1 in the period, and all of its events are within the
window from its first one. Definitions are Amplitude's (Funnel Analysis: "How Amplitude computes
funnels", "How Amplitude handles simultaneous events") unless an option says otherwise:

- `order`: "this" (other events may lie between), "exact" (none may, except those simultaneous with
  a step) or "any" (step k counts if the steps up to k occur in any sequence).
- `count`: "uniques" (each unit's longest, then earliest path) or "totals" (all paths; each event
  belongs to one of them only).
- `reentry`: "any" entry may begin the path that counts; or Mixpanel's "first" (only the first
  entry; in totals, no entry while a path is open) and "latest" (the last entry before step 2).
- `resolution`: events in the same second are simultaneous, and either order counts; 0 orders them
  by milliseconds, and simultaneous events don't follow one another.
- `segment`: filters on the entry only. `by`: a property that groups the paths by its value at
  `attribution`: "entry" or, as in PostHog, "first touch", "last touch" (the first or last step with
  a value), "all steps" (all with one value: the unit is user and value), or a step's number.
- `hold`: the unit is a user with one value of this property; events without it don't count.
- `exclude`: a path ends before a step if such an event lies in between; with `exclusion` "drop", as
  in PostHog, its unit is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import reduce
from operator import and_
from typing import Literal, get_args

import numpy as np
import polars as pl

from forebay.query.analytics.answer import Answer
from forebay.query.analytics.events import Event, Roles, Where, property_of
from forebay.query.analytics.groups import (
    GROUP,
    filled,
    groups_in,
    matched,
    ms_of_time,
    share,
    top_groups,
    without_group,
)
from forebay.query.analytics.period import Period
from forebay.query.analytics.sequences import PathRules, UnitPaths, paths
from forebay.storage.base.errors import BadInput

Order = Literal["this", "exact", "any"]
Reentry = Literal["any", "first", "latest"]
Attribution = Literal["entry", "first touch", "last touch", "all steps"] | int
STEPS_MAX = 30
BINS = 12
ROUNDING_MS = 60_000
"""At least what rounding moves a time by."""


@dataclass(frozen=True)
class Exclusion:
    """Events that must not lie between two steps: nothing like `event` after the step `after` (from
    1) and before the step `before`; by default the first and last."""

    event: Event
    after: int = 1
    before: int | None = None


@dataclass(frozen=True, repr=False)
class Funnel(Answer):
    """The answer to `question`. All frames have the column `group` (with `others`, see
    `frame.top_groups`) where there is a `by`; counts are of units or paths, times in milliseconds.

    `steps`         `step` (from 1), `event`, `count`, `of_first`, `of_previous` (shares, null of
                    none), `mean_ms` and `median_ms` since the step before
    `over_time`     the same by `bucket` of entry: a unit that enters in several counts in each
    `whole`         `count`, `mean_ms` and `median_ms` of paths with all steps, first to last event
    `distribution`  of these: `from_ms`, `to_ms`, `count`, in bins of equal width, the last closed
    `whole_over_time`  as `whole`, by `bucket` of entry
    """

    steps: pl.DataFrame
    over_time: pl.DataFrame
    whole: pl.DataFrame
    distribution: pl.DataFrame
    whole_over_time: pl.DataFrame


def funnel(
    frame: pl.LazyFrame,
    roles: Roles,
    steps: Sequence[Event],
    period: Period,
    *,
    order: Order = "this",
    window: timedelta = timedelta(days=1),
    count: Literal["uniques", "totals"] = "uniques",
    reentry: Reentry = "any",
    resolution: timedelta = timedelta(seconds=1),
    segment: Sequence[Where] = (),
    by: str | None = None,
    attribution: Attribution = "entry",
    limit: int = 100,
    hold: str | None = None,
    exclude: Sequence[Exclusion] = (),
    exclusion: Literal["break", "drop"] = "break",
) -> Funnel:
    """The funnel of `steps`, as the module defines it. `limit` is the number of named groups.
    Raises BadInput."""
    question = {name: value for name, value in locals().items() if name not in ("frame", "roles")}
    _check(steps, order, window, count, reentry, resolution, attribution, exclude, exclusion)
    window_ms = window // timedelta(milliseconds=1)
    rules = PathRules(
        steps=len(steps),
        window=window_ms,
        resolution=resolution // timedelta(milliseconds=1),
        order=get_args(Order).index(order),
        reentry=get_args(Reentry).index(reentry),
        bounds=tuple((one.after - 1, (one.before or len(steps)) - 1) for one in exclude),
        drop=exclusion == "drop",
        edges=period.edges_ms,
    )
    unit = [roles.user]
    held = hold if attribution != "all steps" else by
    if attribution == "all steps" and by is None:
        raise BadInput("attribution: expected a property to divide by, got none")
    if hold is not None and held != hold:
        raise BadInput("attribution: expected no other property held than the one of all steps")
    rows = _events(frame, roles, steps, period, window_ms, order, segment, by, held, exclude)
    if held is not None:
        unit.append("held")
    found = paths(
        rows.select(unit),
        rows["ms"].to_numpy(),
        rows["mask"].to_numpy(),
        rules,
        totals=count == "totals",
    )
    counted = _counted(rows, found, period, by, attribution, rules.drop)
    ranking = counted.select("group", weight=pl.col("longest").cast(pl.UInt32))
    return _answer(question, top_groups(counted, ranking, limit), steps, period)


def _check(
    steps: Sequence[Event],
    order: str,
    window: timedelta,
    count: str,
    reentry: str,
    resolution: timedelta,
    attribution: object,
    exclude: Sequence[Exclusion],
    exclusion: str,
) -> None:
    """Raise BadInput for an invalid question."""
    if not 1 <= len(steps) <= STEPS_MAX:
        raise BadInput(f"steps: expected 1 to {STEPS_MAX}, got {len(steps)}")
    if len(exclude) > STEPS_MAX:
        raise BadInput(f"exclude: expected at most {STEPS_MAX}, got {len(exclude)}")
    for name, value, known in (
        ("order", order, get_args(Order)),
        ("count", count, ("uniques", "totals")),
        ("reentry", reentry, get_args(Reentry)),
        ("exclusion", exclusion, ("break", "drop")),
    ):
        if value not in known:
            raise BadInput(f"{name}: expected one of {', '.join(known)}; got {value!r}")
    named = ("entry", "first touch", "last touch", "all steps", *range(1, len(steps) + 1))
    if attribution not in named:
        raise BadInput(f"attribution: expected one of {named}, got {attribution!r}")
    if not timedelta(seconds=1) <= window <= timedelta(days=366):
        raise BadInput(f"window: expected one second to 366 days, got {window}")
    if not timedelta(0) <= resolution <= timedelta(minutes=1):
        raise BadInput(f"resolution: expected 0 to one minute, got {resolution}")
    if order == "any" and reentry == "latest":
        raise BadInput("reentry: expected 'any' or 'first' for steps in any order, got 'latest'")
    for one in exclude:
        before = len(steps) if one.before is None else one.before
        if not 1 <= one.after < before <= len(steps):
            raise BadInput(
                f"exclude: expected steps from 1 to {len(steps)}, the first before the second;"
                f" got {one.after}, {before}"
            )
        if order == "any" and (one.after, before) != (1, len(steps)):
            raise BadInput("exclude: expected all steps, as they come in any order; got two")


def _events(
    frame: pl.LazyFrame,
    roles: Roles,
    steps: Sequence[Event],
    period: Period,
    window_ms: int,
    order: Order,
    segment: Sequence[Where],
    by: str | None,
    hold: str | None,
    exclude: Sequence[Exclusion],
) -> pl.DataFrame:
    """The relevant events: user, `ms`, `mask`, and `value` and `held` if asked for. All events are
    relevant if none may lie between steps."""
    schema = frame.collect_schema()
    kinds = [*steps, *(one.event for one in exclude)]
    rows, found = matched(frame, roles, kinds, every=order == "exact")
    entry = reduce(and_, (one.expr(schema) for one in segment), found[0])
    found[0] = entry & period.within(roles.time)
    bits = [one.cast(pl.UInt64) * (1 << bit) for bit, one in enumerate(found)]
    columns = [pl.col(roles.user), ms_of_time(roles), pl.sum_horizontal(bits).alias("mask")]
    for name, alias in ((by, "value"), (hold, "held")):
        if name is not None:
            columns.append(property_of(name, schema).cast(pl.String).alias(alias))
    before_ms = window_ms + ROUNDING_MS if order == "any" else 0
    near = period.within(roles.time, before_ms=before_ms, after_ms=window_ms + ROUNDING_MS)
    rows = rows.filter(near).select(columns)
    if order != "exact":
        rows = rows.filter(pl.col("mask") > 0)
    return (rows if hold is None else rows.drop_nulls("held")).collect(engine="streaming")


def _counted(
    rows: pl.DataFrame,
    found: UnitPaths,
    period: Period,
    by: str | None,
    attribution: str | int,
    drop: bool,
) -> pl.DataFrame:
    """One row per path: `longest`, `reached` (how many steps), `bucket` of entry, `group`, and
    `elapsed_1`, …: from the first event of all steps so far to the last, null if not reached."""
    reached = found.lengths[:, 1]
    events = np.where(np.arange(found.events.shape[1]) < reached[:, None], found.events, -1)
    kept = reached > 0
    if drop:
        kept &= found.lengths[:, 0] == reached
    events, reached = events[kept], reached[kept]
    at = [pl.Series(column).replace(-1, None) for column in events.T]
    times = pl.DataFrame({f"{k}": rows["ms"].gather(step) for k, step in enumerate(at)})
    names = times.columns
    counted = times.select(
        pl.Series("longest", found.longest[kept]),
        pl.Series("reached", reached),
        period.bucket(pl.col("0")).alias("bucket"),
        *(
            pl.when(pl.col(name).is_not_null())
            .then(pl.max_horizontal(names[: k + 1]) - pl.min_horizontal(names[: k + 1]))
            .alias(f"elapsed_{k + 1}")
            for k, name in enumerate(names)
        ),
    )
    if by is None:
        return counted.with_columns(group=pl.lit(None, pl.String))
    touched = {"first touch": at, "last touch": at[::-1]}.get(str(attribution))
    if touched is None:
        touched = [at[attribution - 1 if isinstance(attribution, int) else 0]]
    values = pl.DataFrame([rows["value"].gather(s).alias(f"{n}") for n, s in enumerate(touched)])
    return counted.with_columns(values.select(group=pl.coalesce(pl.all())).to_series())


def _answer(
    question: Mapping[str, object], paths: pl.DataFrame, steps: Sequence[Event], period: Period
) -> Funnel:
    labels = [step.label for step in steps]
    once = paths.filter("longest")
    groups = groups_in(once)
    buckets = pl.DataFrame({"bucket": range(period.buckets)}, {"bucket": pl.Int32})
    days, label = groups.join(buckets, how="cross"), period.label(pl.col("bucket"))
    last = pl.col(f"elapsed_{len(steps)}")
    finished = paths.filter(pl.col("reached") == len(steps))
    tables = (
        _by_step(once, groups, labels),
        _by_step(paths, days, labels).with_columns(bucket=label),
        _whole(finished.filter("longest"), groups, last),
        _distribution(finished.filter("longest"), groups, last),
        _whole(finished, days, last).with_columns(bucket=label),
    )
    return Funnel(question, *without_group(question["by"], *tables))


def _whole(finished: pl.DataFrame, grid: pl.DataFrame, last: pl.Expr) -> pl.DataFrame:
    """For each row of the grid: how many paths have all steps, and how long they took."""
    times = finished.group_by(grid.columns).agg(
        count=pl.len(), mean_ms=last.mean(), median_ms=last.median()
    )
    return filled(grid, times, ["count"])


def _by_step(paths: pl.DataFrame, grid: pl.DataFrame, labels: Sequence[str]) -> pl.DataFrame:
    """For each row of the grid and each step: how many paths reached it, and the time it took."""
    keys, found = grid.columns, []
    for step, label in enumerate(labels, 1):
        since = pl.lit(None, pl.Int64)
        if step > 1:
            since = pl.col(f"elapsed_{step}") - pl.col(f"elapsed_{step - 1}")
        one = (
            paths.filter(pl.col("reached") >= step)
            .group_by(keys)
            .agg(count=pl.len(), mean_ms=since.mean(), median_ms=since.median())
        )
        rows = filled(grid.with_row_index("row"), one, ["count"])
        found.append(rows.with_columns(step=pl.lit(step, pl.Int32), event=pl.lit(label)))
    table = pl.concat(found).sort("row", "step")
    first = pl.col("count").first().over("row")
    previous = pl.when(pl.col("step") == 1).then("count").otherwise(pl.col("count").shift())
    return table.with_columns(first=first, previous=previous).select(
        *keys, "step", "event", "count", of_first=share("count", "first"),
        of_previous=share("count", "previous"), mean_ms="mean_ms", median_ms="median_ms",
    )  # fmt: skip


def _distribution(finished: pl.DataFrame, groups: pl.DataFrame, last: pl.Expr) -> pl.DataFrame:
    """The durations of paths with all steps, in BINS bins from 0 to the longest."""
    longest = finished.select(last.max()).item() or 0
    width = max(1, -(-longest // BINS))
    number = (last // width).clip(0, BINS - 1)
    counts = finished.group_by(*GROUP, from_ms=number * width).agg(count=pl.len())
    bins = pl.DataFrame({"from_ms": [width * n for n in range(BINS)]})
    table = filled(groups.join(bins, how="cross"), counts, ["count"])
    return table.select(*GROUP, "from_ms", to_ms=pl.col("from_ms") + width, count="count")
