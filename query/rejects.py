"""Rejects as a table: the messages that could not become events, as a view has them.

Columns are those of `REJECT_SCHEMA`. A reject that a replay made an event of is in `events` then,
and no longer here; one view has it in exactly one of the two.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl
import pyarrow as pa
from polars.io.plugins import register_io_source

from forebay.query.view import PartitionView
from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import Corruption
from forebay.storage.formats.frame import REJECT_SCHEMA
from forebay.storage.formats.rejects import ALL, RejectFilter, read_rejects


def reject_batches(
    disk: Disk, partitions: Sequence[PartitionView], wanted: RejectFilter
) -> Iterator[pa.RecordBatch]:
    """The rejects meant, partition by partition, in the order in which they came.

    Raises MissingFile if the view is too old, or Corruption.
    """
    for partition in partitions:
        folder = partition.layout.rejects(partition.state.partition)
        yield from read_rejects(disk, folder, partition.state.rejects, wanted)


def reject_faults(disk: Disk, partitions: Sequence[PartitionView]) -> dict[Path, str]:
    """What is wrong with the reject logs, by the folder of each partition that has a damaged
    one."""
    found = {}
    for partition in partitions:
        try:
            for _ in reject_batches(disk, [partition], ALL):
                pass
        except Corruption as error:
            found[partition.folder] = str(error)
    return found


def scan_rejects(
    disk: Disk, partitions: Sequence[PartitionView], wanted: RejectFilter
) -> pl.LazyFrame:
    """The same as a Polars source, which reads when it is collected."""

    def read(
        with_columns: list[str] | None,
        predicate: pl.Expr | None,
        n_rows: int | None,
        batch_size: int | None,
    ) -> Iterator[pl.DataFrame]:
        names = REJECT_SCHEMA.names if with_columns is None else with_columns
        for batch in reject_batches(disk, partitions, wanted):
            frame = pl.DataFrame(batch)
            if n_rows is not None:
                frame = frame.head(n_rows)
                n_rows -= frame.height
            yield (frame if predicate is None else frame.filter(predicate)).select(names)
            if n_rows == 0:
                return

    schema = dict(pl.DataFrame(REJECT_SCHEMA.empty_table()).schema)
    return register_io_source(read, schema=schema, is_pure=True, explain_name="rejects")
