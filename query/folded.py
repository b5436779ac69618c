"""Equal rows as one row and a count: what leaves a node if a query needs few columns, such as for
counts by kind. Rows are a multiset, so the answer to any question stays the same.

A question that does not tell times of one interval apart has them rounded down first, so that what
leaves a node are its partial counts by interval. What always holds: memory holds a batch and at
most HELD_BYTES of folded rows; columns whose equal values may differ (floating point, as 0.0 equals
-0.0) or are hardly ever equal (bytes) are not folded, nor is a stream that turns out to have few
equal rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

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
HELD_BYTES = 64 << 20
Granularity = Mapping[str, int]
"""For columns of times: the milliseconds of which only multiples are told apart."""
EXACT: Granularity = {}


def with_times(schema: pa.Schema) -> pa.Schema:
    """The columns of folded rows."""
    return pa.schema([*schema, pa.field(TIMES, pa.int64())])


def can_fold(schema: pa.Schema) -> bool:
    """Whether rows with these columns may be folded."""
    types = [field.type for field in schema]
    other = (pa.types.is_floating, pa.types.is_binary, pa.types.is_large_binary)
    return not any(of(type) for type in types for of in other) and TIMES not in schema.names


def folded(
    batches: Iterator[pa.RecordBatch], schema: pa.Schema, granularity_ms: Granularity = EXACT
) -> Iterator[pa.RecordBatch]:
    """The batches, which have the columns of `schema`, folded."""
    rounded = [pl.col(name).dt.truncate(f"{ms}ms") for name, ms in granularity_ms.items()]
    held, added, worth = pl.DataFrame(), 0, True
    for batch in batches:
        rows = pl.DataFrame(pa.Table.from_batches([batch]))
        found = _added_up(rows.with_columns(*rounded, pl.lit(1, pl.Int64).alias(TIMES)))
        worth = found.height <= WORTH * rows.height or rows.height < JUDGED_ROWS
        held = pl.concat([held, found]) if held.width else found
        added += found.height
        if not worth:
            break
        if added > held.height / 2 + JUDGED_ROWS:
            held, added = _added_up(held), 0
        if held.estimated_size() > HELD_BYTES:
            yield from _sent(held, schema)
            held, added = held.clear(), 0
    if held.height:
        yield from _sent(_added_up(held), schema)
    for batch in batches:
        once = pa.array(np.ones(batch.num_rows, np.int64))
        yield pa.RecordBatch.from_arrays([*batch.columns, once], schema=with_times(schema))


def _added_up(rows: pl.DataFrame) -> pl.DataFrame:
    """Equal rows as one."""
    return rows.group_by(rows.columns[:-1]).agg(pl.col(TIMES).sum())


def _sent(rows: pl.DataFrame, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The rows in batches, none of which stands for more than TIMES_MAX."""
    pieces = (rows[TIMES] + BATCH_ROWS - 1) // BATCH_ROWS
    if (pieces > 1).any():
        rows = rows.with_columns(pl.int_ranges(pieces).alias(_PIECE)).explode(_PIECE)
        left = pl.col(TIMES) - BATCH_ROWS * pl.col(_PIECE)
        rows = rows.with_columns(pl.min_horizontal(left, BATCH_ROWS).alias(TIMES)).drop(_PIECE)
    batch = pl.col(TIMES).cum_sum() // (TIMES_MAX - BATCH_ROWS)
    for _, found in rows.group_by(batch, maintain_order=True):
        yield from exported(found).cast(with_times(schema)).to_batches(max_chunksize=BATCH_ROWS)


_PIECE = "piece of times"


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
