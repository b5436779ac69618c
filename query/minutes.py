"""Events by the minute of their upload, hot and cold separately."""

from __future__ import annotations

from dataclasses import replace

import polars as pl

from forebay.query.analytics.granularity import Alike
from forebay.query.analytics.groups import ALIKE
from forebay.query.scans import Scans
from forebay.query.view import View
from forebay.storage.base.errors import BadInput
from forebay.storage.base.times import MINUTE_MS, time_of
from forebay.storage.formats.schema import UPLOAD_TIME

MINUTES_MAX = 1440
TIME = pl.Datetime("ms", "UTC")


def per_minute(scans: Scans, view: View, minutes: int) -> pl.DataFrame:
    """A row for each of the last `minutes` up to the newest event, in order. Raises BadInput."""
    if not 1 <= minutes <= MINUTES_MAX:
        raise BadInput(f"minutes: expected 1 to {MINUTES_MAX:,}, got {minutes}")
    times = [one.state.stream_time_ms for one in view.partitions]
    newest = max((ms for ms in times if ms is not None), default=None)
    if newest is None:
        return pl.DataFrame(schema={"minute": TIME, "hot": pl.Int64, "cold": pl.Int64})
    last = newest // MINUTE_MS * MINUTE_MS
    first = last - (minutes - 1) * MINUTE_MS
    alike = Alike(UPLOAD_TIME, MINUTE_MS, first, last + MINUTE_MS)
    grid = pl.DataFrame({"minute": range(first, last + 1, MINUTE_MS)})
    grid = grid.select(pl.col("minute").cast(TIME))
    for name, part in (("hot", _hot(view)), ("cold", _cold(view))):
        time = pl.col(UPLOAD_TIME)
        rows = scans.counted(part, alike).filter(time >= time_of(first))
        found = rows.group_by(minute=time.dt.truncate("1m")).agg(pl.col(ALIKE).sum().alias(name))
        grid = grid.join(found.collect(engine="streaming"), on="minute", how="left")
    return grid.sort("minute").with_columns(pl.col("hot", "cold").fill_null(0))


def _hot(view: View) -> View:
    nodes = (
        replace(n, partitions=tuple(replace(p, chunks=()) for p in n.partitions))
        for n in view.nodes
    )
    return View(tuple(nodes))


def _cold(view: View) -> View:
    nodes = (
        replace(n, partitions=tuple(replace(p, hot=()) for p in n.partitions)) for n in view.nodes
    )
    return View(tuple(nodes))
