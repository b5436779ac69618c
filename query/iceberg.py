"""The batch layer's Iceberg table, as the columns of events.

The table is read by its metadata file, not through its catalog: a handoff names one, so boundary
and table change together, and what is written to the table later is not seen. Needs the extra
`batch`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

import polars as pl

from storage.errors import BadInput, Corruption
from storage.schema import UPLOAD_TIME

# Else Polars warns, at each collect, of a faster planner that is not installed.
os.environ.setdefault("POLARS_ICEBERG_PLANNER", "pyiceberg")
FILE_IO = "pyiceberg.io.pyarrow.PyArrowFileIO"


def scan_table(
    metadata: str,
    schema: Mapping[str, pl.DataType],
    properties: Mapping[str, str],
    roots: Sequence[Path],
    until: datetime | None = None,
) -> pl.LazyFrame:
    """The events (before `until`) of the table that the metadata file describes; `properties` are
    those of its file system.

    Its own columns come first, with the types of `schema` where that has them: Iceberg knows no
    times in ms or s. Columns that only `schema` has are null. The files on this host that the table
    names must be below one of the `roots`, or below `warehouse` in the properties: Corruption if
    not. What properties the table itself has is not asked: they could name code to run.
    """
    try:
        from pyiceberg.catalog.noop import NoopCatalog
        from pyiceberg.io import load_file_io
        from pyiceberg.serializers import FromInputFile
        from pyiceberg.table import StaticTable
    except ImportError as error:
        raise BadInput("layers: expected pyiceberg to be installed: forebay[batch]") from error
    within = [root.resolve() for root in roots]
    within += [_local(place).resolve() for place in (properties.get("warehouse"),) if place]
    _require_within(metadata, within)
    io = load_file_io({**properties, "py-io-impl": FILE_IO}, metadata)
    described = FromInputFile.table_metadata(io.new_input(metadata))
    _require_within(described.location, within)
    table = StaticTable(("events", metadata), described, metadata, io, NoopCatalog("events"))
    for task in table.scan().plan_files():
        _require_within(task.file.file_path, within)
    rows = pl.scan_iceberg(table)
    if until is not None:
        rows = rows.filter(pl.col(UPLOAD_TIME) < until)
    own = rows.collect_schema()
    return rows.with_columns(
        pl.lit(None, dtype).alias(name) if name not in own else pl.col(name).cast(dtype)
        for name, dtype in schema.items()
        if own.get(name) != dtype
    )


def _require_within(location: str, within: Sequence[Path]) -> None:
    """Raise Corruption if it is a file of this host that is elsewhere."""
    if "://" in location and not location.startswith("file://"):
        return
    path = _local(location).resolve()
    if not any(path.is_relative_to(root) for root in within):
        raise Corruption(
            f"table {location}: expected a file below {', '.join(map(str, within))}, or below"
            " batch.catalog.warehouse"
        )


def _local(location: str) -> Path:
    return Path(location.removeprefix("file://"))
