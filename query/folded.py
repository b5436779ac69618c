"""Rows that are equal, as one row and how often it came: what leaves a node where a query needs few
columns, such as for counts of a kind. Rows are a multiset, so any question has the same answer.

What always holds: memory holds a batch; columns whose equal values may differ (floating point, for
0.0 is -0.0) or are hardly ever equal (bytes) are not folded, nor is what turns out to have few
equal rows.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl
import pyarrow as pa

from forebay.query.frames import exported

TIMES = "times"
"""Of the last column: how often the row came."""
JUDGED_ROWS, WORTH = 1000, 0.5
"""A batch of so many rows tells whether it is worth it: if no more than this share is left."""
BATCH_ROWS, TIMES_MAX = 65_536, 1 << 20
"""Of a batch that is unfolded: its rows, and how many a folded one may stand for."""


def with_times(schema: pa.Schema) -> pa.Schema:
    """The columns of folded rows."""
    return pa.schema([*schema, pa.field(TIMES, pa.int64())])


def can_fold(schema: pa.Schema) -> bool:
    """Whether rows with these columns may be folded."""
    types = [field.type for field in schema]
    other = (pa.types.is_floating, pa.types.is_binary, pa.types.is_large_binary)
    return not any(of(type) for type in types for of in other) and TIMES not in schema.names


def folded(batches: Iterator[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The batches, which have the columns of `schema`, each folded by itself."""
    worth, answered = True, with_times(schema)
    for batch in batches:
        if worth:
            rows = pl.DataFrame(pa.Table.from_batches([batch]))
            found = rows.group_by(schema.names).agg(pl.len().cast(pl.Int64).alias(TIMES))
            worth = found.height <= WORTH * rows.height or rows.height < JUDGED_ROWS
            yield from exported(found).cast(answered).to_batches()
        else:
            once = pa.array(np.ones(batch.num_rows, np.int64))
            yield pa.RecordBatch.from_arrays([*batch.columns, once], schema=answered)


def unfolded(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """The rows again. Raises ValueError where they can't have been folded so."""
    times = batch.column(batch.num_columns - 1)
    rows = batch.select(batch.schema.names[:-1])
    counts = times.to_numpy(zero_copy_only=False)
    if times.null_count or (len(counts) and not 1 <= counts.min() <= counts.sum() <= TIMES_MAX):
        raise ValueError("expected rows with how often each came, got others")
    if (counts == 1).all():
        yield rows
        return
    places = np.repeat(np.arange(len(counts)), counts)
    for first in range(0, len(places), BATCH_ROWS):
        yield rows.take(pa.array(places[first : first + BATCH_ROWS]))
