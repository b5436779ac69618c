"""Lifecycle: how many users are new, returning, resurrected and dormant in each bucket.

An active user of a bucket is new if the frame has no earlier event of the kind, returning if there
is one in the preceding bucket, else resurrected. Dormant users were active in the preceding bucket
and are not in this one (Amplitude, Lifecycle; PostHog's "dormant" is the same). The bucket before
the first one ends where the period begins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from forebay.query.analytics.answer import Answer
from forebay.query.analytics.events import Event, Roles
from forebay.query.analytics.groups import matched, ms_of_time
from forebay.query.analytics.period import Period
from forebay.storage.base.times import time_of


@dataclass(frozen=True, repr=False)
class Lifecycle(Answer):
    """The answer to `question`: `over_time` has `bucket`, and numbers of users: `new`, `returning`,
    `resurrected`, `dormant`."""

    over_time: pl.DataFrame


def lifecycle(
    frame: pl.LazyFrame, roles: Roles, period: Period, *, event: Event | None = None
) -> Lifecycle:
    """The lifecycle of users by `event`, by default any. Reads the whole frame before the end of
    the period. Raises BadInput."""
    question = {"period": period, "event": event}
    rows, _ = matched(frame, roles, [event or Event()])
    edges = np.insert(period.edges_ms, 0, period.before.edges_ms[-2])
    edges[1] = period.start_ms
    place = pl.lit(pl.Series(edges)).search_sorted(pl.col("ms"), side="right").cast(pl.Int32) - 2
    kept = pl.col("place")
    found = (
        rows.filter(pl.col(roles.time) < time_of(period.end_ms))
        .select(pl.col(roles.user).alias("user"), ms_of_time(roles))
        .select("user", place=place)
        .unique()
        .collect(engine="streaming")
        .sort("user", "place")
        .with_columns(before=kept.shift().over("user"), after=kept.shift(-1).over("user"))
    )
    before = pl.col("before")
    kinds = {
        "new": found.filter(kept >= 0, before.is_null()),
        "returning": found.filter(kept >= 0, before == kept - 1),
        "resurrected": found.filter(kept >= 0, before < kept - 1),
        "dormant": found.filter(
            kept.is_between(-1, period.buckets - 2),
            pl.col("after").is_null() | (pl.col("after") > kept + 1),
        ).with_columns(kept + 1),
    }
    table = pl.DataFrame({"place": range(period.buckets)}, {"place": pl.Int32})
    for name, users in kinds.items():
        counts = users.group_by("place").agg(pl.len().alias(name))
        table = table.join(counts, on="place", how="left", maintain_order="left")
    label = period.label(pl.col("place")).alias("bucket")
    return Lifecycle(question, table.select(label, pl.col(list(kinds)).fill_null(0)))
