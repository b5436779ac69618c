"""Times that a calendar has: those of the years 1 to 9999.

A source, or a query, may give any number of milliseconds. Engines panic over a time outside these
years, and Python has no type for it: it is null wherever values leave.
"""

from __future__ import annotations

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

DAYS = -719_162, 2_932_896
"""Days since 1970 of the first day of year 1 and the last day of year 9999."""
PER_DAY = {"s": 86_400, "ms": 86_400_000, "us": 86_400_000_000, "ns": 86_400_000_000_000}


def on_calendar(answer: pl.DataFrame) -> pl.DataFrame:
    """With null for each time that no calendar has."""
    return answer.with_columns(
        _within(answer[name], dtype) for name, dtype in answer.schema.items() if dtype.is_temporal()
    )


def batch_on_calendar(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The same for a batch of Arrow's."""
    columns = [times_on_calendar(column) for column in batch.columns]
    return pa.RecordBatch.from_arrays(columns, schema=batch.schema)


def times_on_calendar(column: pa.Array) -> pa.Array:
    """The same for a column, of whatever type it is."""
    if not pa.types.is_timestamp(column.type):
        return column
    lowest, highest = _bounds(PER_DAY[column.type.unit])
    counts = column.cast(pa.int64())
    fits = pc.and_(pc.greater_equal(counts, lowest), pc.less_equal(counts, highest))
    if pc.all(fits, min_count=0).as_py():
        return column
    return pc.if_else(fits, counts, pa.scalar(None, pa.int64())).cast(column.type)


def _within(times: pl.Series, dtype: pl.DataType) -> pl.Series:
    if isinstance(dtype, pl.Datetime):
        lowest, highest = _bounds(PER_DAY[dtype.time_unit])
    elif dtype == pl.Date:
        lowest, highest = DAYS
    else:
        return times
    counts = times.to_physical()
    fits = (counts >= lowest) & (counts <= highest)
    return times if fits.all() else times.set(~fits, None)


def _bounds(per_day: int) -> tuple[int, int]:
    """The least and the greatest count, within what 64 bits hold."""
    return max(DAYS[0] * per_day, -(2**63)), min((DAYS[1] + 1) * per_day, 2**63) - 1
