"""Paths: what users do after an event, step by step (Amplitude, Journeys).

A user's path begins with the first occurrence of the start event in the period, and continues with
the events that follow within `window` of it, one per step. With `collapse`, an event with the same
name as the one before is not a step. At each step the events with the most users are named; the
others are one node, and so are the paths that have ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import polars as pl

from forebay.query.analytics.answer import Answer
from forebay.query.analytics.events import Event, Roles
from forebay.query.analytics.groups import OTHERS, matched, ms_of_time
from forebay.query.analytics.period import Period
from forebay.query.analytics.units import ordered
from forebay.storage.base.errors import BadInput

STEPS_MAX = 9
DROPPED = "(dropped off)"
NODE = ["event", "kind"]


@dataclass(frozen=True, repr=False)
class Paths(Answer):
    """The answer to `question`. A node is `event` and `kind`: "event", "others" or "dropped off".

    `nodes`  `step` (1 is the start event), `event`, `kind`, `users`, most first
    `links`  `step`, `event` and `kind`, `next_event` and `next_kind` at the step after it, `users`
    """

    nodes: pl.DataFrame
    links: pl.DataFrame


def paths(
    frame: pl.LazyFrame,
    roles: Roles,
    start: Event,
    period: Period,
    *,
    steps: int = 5,
    limit: int = 10,
    window: timedelta = timedelta(days=1),
    collapse: bool = False,
    among: Sequence[Event] = (),
) -> Paths:
    """What follows `start` in `steps` steps, as the module defines it. `limit` is the number of
    named events at each step; after the first step, only events of `among` (if given) are steps.
    Raises BadInput."""
    question = {name: value for name, value in locals().items() if name not in ("frame", "roles")}
    if not 1 <= steps <= STEPS_MAX:
        raise BadInput(f"steps: expected 1 to {STEPS_MAX}, got {steps}")
    if limit < 1 or window < timedelta(seconds=1):
        raise BadInput(f"paths: expected a limit and a window above 0, got {limit}, {window}")
    window_ms = window // timedelta(milliseconds=1)
    rows, found = matched(frame, roles, [start, *(among or [Event()])])
    columns = [
        pl.col(roles.user).alias("user"), ms_of_time(roles), pl.col(roles.event).alias("event"),
        (found[0] & period.within(roles.time)).alias("starts"),
        pl.any_horizontal(found[1:]).alias("among"),
    ]  # fmt: skip
    rows = rows.filter(period.within(roles.time, after_ms=window_ms)).select(columns)
    followed = _followed(rows.drop_nulls("event").collect(engine="streaming"), window_ms, collapse)
    named = _named(followed.filter(pl.col("step") <= steps), steps, limit)
    following = named.select("user", step=pl.col("step") - 1, next_event="event", next_kind="kind")
    links = (
        named.join(following, on=["user", "step"])
        .group_by("step", *NODE, "next_event", "next_kind")
        .agg(users=pl.len())
        .filter(pl.col("kind") != "dropped off")
        .sort("step", "users", *NODE, "next_event", "next_kind",
              descending=[False, True, False, False, False, False])
    )  # fmt: skip
    nodes = named.group_by("step", *NODE).agg(users=pl.len())
    nodes = nodes.sort("step", "users", *NODE, descending=[False, True, False, False])
    return Paths(question, nodes, links)


def _followed(rows: pl.DataFrame, window_ms: int, collapse: bool) -> pl.DataFrame:
    """`user` (a number now), `step` and `event` from each user's first start event on."""
    order, users = ordered(rows.select("user"), rows["ms"].to_numpy())
    flags = rows.select(pl.col("starts", "among").fill_null(False))
    ms, starts, among = (one.to_numpy()[order] for one in (rows["ms"], *flags))
    begins, at = np.flatnonzero(starts), np.arange(len(order))
    begun, nth = np.unique(users[begins], return_index=True)
    firsts = np.full(users.max(initial=-1) + 1, len(order))
    firsts[begun] = begins[nth]
    first = firsts[users]  # beyond all rows for who never starts
    followed = (at == first) | ((at > first) & among)
    kept = np.flatnonzero(followed)
    kept = kept[ms[kept] - ms[first[kept]] <= window_ms]
    mine = pl.DataFrame(
        {"user": users[kept], "event": rows["event"][order[kept]], "first": kept == first[kept]}
    )
    if collapse:
        changed = (pl.col("event") != pl.col("event").shift()) | pl.col("first")
        mine = mine.filter(changed.fill_null(True))
    runs = mine["user"].rle().struct.field("len").to_numpy() if mine.height else np.array([], int)
    begins = np.repeat(np.cumsum(runs, dtype=np.int64) - runs, runs)
    return mine.select("user", pl.Series("step", np.arange(1, mine.height + 1) - begins), "event")


def _named(followed: pl.DataFrame, steps: int, limit: int) -> pl.DataFrame:
    """Every user at each step, and one step after their path's end: `event` and `kind`."""
    top = (
        followed.group_by("step", "event")
        .agg(users=pl.len())
        .sort("step", "users", "event", descending=[False, True, False])
        .filter(pl.int_range(pl.len()).over("step") < limit)
        .select("step", "event", kind=pl.lit("event"))
    )
    kind = pl.col("kind")
    named = followed.join(top, on=["step", "event"], how="left").with_columns(
        event=pl.when(kind.is_null()).then(pl.lit(OTHERS)).otherwise("event"),
        kind=kind.fill_null("others"),
    )
    ends = named.group_by("user").agg(step=pl.col("step").max() + 1)
    ends = ends.filter(pl.col("step") <= steps)
    dropped = ends.with_columns(event=pl.lit(DROPPED), kind=pl.lit("dropped off"))
    return pl.concat([named, dropped.select(named.columns)])
