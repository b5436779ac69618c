"""The batch layer's Iceberg table, as the columns of events.

The table is read by its metadata file, not through its catalog: a handoff names one, so boundary
and table change together, and what is written to the table later is not seen. Needs the extra
`batch`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import datetime

import polars as pl

from storage.errors import BadInput
from storage.schema import UPLOAD_TIME

# Else Polars warns, at each collect, of a faster planner that is not installed.
os.environ.setdefault("POLARS_ICEBERG_PLANNER", "pyiceberg")


def scan_table(
    metadata: str,
    schema: Mapping[str, pl.DataType],
    properties: Mapping[str, str],
    until: datetime | None = None,
) -> pl.LazyFrame:
    """The events (before `until`) of the table that the metadata file describes; `properties` are
    those of its file system.

    Its own columns come first, with the types of `schema` where that has them: Iceberg knows no
    times in ms or s. Columns that only `schema` has are null.
    """
    try:
        from pyiceberg.table import StaticTable
    except ImportError as error:
        raise BadInput("layers: expected pyiceberg to be installed: forebay[batch]") from error
    table = StaticTable.from_metadata(metadata, dict(properties))
    rows = pl.scan_iceberg(table)
    if until is not None:
        rows = rows.filter(pl.col(UPLOAD_TIME) < until)
    own = rows.collect_schema()
    return rows.with_columns(
        pl.lit(None, dtype).alias(name) if name not in own else pl.col(name).cast(dtype)
        for name, dtype in schema.items()
        if own.get(name) != dtype
    )
