"""Times that an answer may have: those of the years 1 to 9999.

A query can make any time of any number. Engines panic over one outside these years, and Python has
no type for it.
"""

from __future__ import annotations

import polars as pl

from forebay.storage.base.times import END_S, FIRST_S, PER_SECOND

PER_DAY_S = 86_400


def on_calendar(answer: pl.DataFrame) -> pl.DataFrame:
    """With null for each time outside these years."""
    return answer.with_columns(
        _within(answer[name], dtype) for name, dtype in answer.schema.items() if dtype.is_temporal()
    )


def _within(times: pl.Series, dtype: pl.DataType) -> pl.Series:
    if isinstance(dtype, pl.Datetime):
        per_second = PER_SECOND[dtype.time_unit]
        # Nanoseconds in 64 bits don't reach that far.
        first = max(FIRST_S * per_second, -(2**63))
        last = min(END_S * per_second - 1, 2**63 - 1)
    elif dtype == pl.Date:
        first, last = FIRST_S // PER_DAY_S, END_S // PER_DAY_S - 1
    else:
        return times
    counts = times.to_physical()
    fits = (counts >= first) & (counts <= last)
    return times if fits.all() else times.set(~fits, None)
