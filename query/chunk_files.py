"""The chunk files that count: what another engine may read in place of a query of ours."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from forebay.query.view import PartitionView
from forebay.storage.base.times import time_of

SCHEMA: dict[str, pl.DataType] = {
    "node": pl.String(),
    "partition": pl.String(),
    "path": pl.String(),
    "rows": pl.Int64(),
    "bytes": pl.Int64(),
    "first_upload_time": pl.Datetime("ms", "UTC"),
    "last_upload_time": pl.Datetime("ms", "UTC"),
    "from_time": pl.Datetime("ms", "UTC"),
    "before_time": pl.Datetime("ms", "UTC"),
}


def chunk_files(
    partitions: Sequence[PartitionView], from_ms: int | None, before_ms: int | None
) -> pl.DataFrame:
    """One row a chunk of a view. Of a chunk with rows on both sides of a bound, only those count
    whose upload time is at or after `from_time`, or before `before_time`; null where all do."""
    rows = []
    for partition in partitions:
        for path, chunk in zip(partition.chunk_paths, partition.chunks, strict=True):
            cut_below = from_ms is not None and chunk.first_ms < from_ms
            cut_above = before_ms is not None and chunk.last_ms >= before_ms
            rows.append(
                {
                    "node": str(partition.layout.root),
                    "partition": partition.state.partition,
                    "path": str(path.absolute()),
                    "rows": chunk.rows,
                    "bytes": chunk.checksum.bytes,
                    "first_upload_time": time_of(chunk.first_ms),
                    "last_upload_time": time_of(chunk.last_ms),
                    "from_time": time_of(from_ms or 0) if cut_below else None,
                    "before_time": time_of(before_ms or 0) if cut_above else None,
                }
            )
    return pl.DataFrame(rows, schema=SCHEMA).sort("node", "partition", "first_upload_time", "path")
