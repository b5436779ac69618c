"""Equal rows as one row and a count: what leaves a node if a query needs few columns, such as for
counts by kind. Rows are a multiset, so the answer to any question stays the same.

What always holds: memory holds one batch; columns whose equal values may differ (floating point, as
0.0 equals -0.0) or are hardly ever equal (bytes) are not folded, nor is a stream that turns out to
have few equal rows.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl
import pyarrow as pa

from forebay.query.frames import exported

TIMES = "times"
"""Name of the last column: how often the row occurred."""
JUDGED_ROWS, WORTH = 1000, 0.5
"""A batch of this many rows decides whether folding pays: at most this share may be left."""
BATCH_ROWS, TIMES_MAX = 65_536, 1 << 20
"""Limits of unfolding: rows of a batch, and how many rows a folded batch may stand for."""


def with_times(schema: pa.Schema) -> pa.Schema:
    """The columns of folded rows."""
    return pa.schema([*schema, pa.field(TIMES, pa.int64())])


def can_fold(schema: pa.Schema) -> bool:
    """Whether rows with these columns may be folded."""
    types = [field.type for field in schema]
    other = (pa.types.is_floating, pa.types.is_binary, pa.types.is_large_binary)
    return not any(of(type) for type in types for of in other) and TIMES not in schema.names


def folded(batches: Iterator[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The batches, which have the columns of `schema`, each folded separately."""
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
    """The original rows. Raises ValueError if they can't have been folded like this."""
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
