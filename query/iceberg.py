"""The batch layer's Iceberg table, with the columns of events.

The table is read by its metadata file, not through its catalog: a handoff names that file, so
boundary and table change together, and later writes to the table are not seen. Needs the extra
`batch`.

Iceberg reserves the name `_partition`, so the table's column is `source_partition`; in tables made
before that, and if a declared column has that name, it is `_partition`. Here it is `_partition`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlparse

import polars as pl

from forebay.query.frames import PolarsSchema, scan_frames, with_decoded
from forebay.storage.base.errors import BadInput, Corruption, ForebayError, MissingFile
from forebay.storage.base.times import EPOCH
from forebay.storage.decoding.from_raw import NONE_DECLARED, FromRaw
from forebay.storage.formats.schema import OFFSET, PARTITION, RAW, UPLOAD_TIME

if TYPE_CHECKING:
    from pyiceberg.manifest import DataFile
    from pyiceberg.table import StaticTable

# Otherwise Polars warns at each collect that a faster planner is not installed.
os.environ.setdefault("POLARS_ICEBERG_PLANNER", "pyiceberg")
FILE_IO = "pyiceberg.io.pyarrow.PyArrowFileIO"
SOURCE_PARTITION = "source_partition"
END = datetime.max.replace(tzinfo=UTC)


def can_read_tables() -> bool:
    """Whether the extra `batch` is installed."""
    return find_spec("pyiceberg") is not None


def scan_table(
    metadata: str,
    schema: Mapping[str, pl.DataType],
    properties: Mapping[str, str],
    roots: Sequence[Path],
    until: datetime | None = None,
    from_raw: FromRaw = NONE_DECLARED,
) -> pl.LazyFrame:
    """The events (before `until`) of the table that the metadata file describes; `properties` are
    those of its file system.

    Its own columns come first, with the types of `schema` if it has them: Iceberg has no times in
    ms or s. What the table or a data file lacks is null, unless it can be decoded `from_raw` and
    raw is kept. Only files below one of the `roots`, or below `warehouse` in the properties, are
    opened: anything else raises Corruption, as does whatever can't be read. The table's own
    properties are ignored, as they could name code to run. Raises MissingFile if the metadata file
    does not exist.
    """
    if not can_read_tables():
        raise BadInput("layers: expected pyiceberg to be installed: forebay[batch]")
    within = [str(root) for root in roots]
    within += [properties["warehouse"]] if properties.get("warehouse") else []
    try:
        table, files = _table(metadata, properties, within)
        lacking = _lacking(table, files, from_raw.names)
    except ForebayError:
        raise
    except FileNotFoundError as error:
        raise MissingFile(
            f"table {metadata}: {error}; a batch run of the last day names the table as it is now"
        ) from error
    except Exception as error:  # whatever Avro and JSON readers raise on unknown bytes
        raise Corruption(f"table {metadata}: can't be read: {error!r}", 0) from error
    rows = pl.scan_iceberg(table)
    if until is not None:
        rows = rows.filter(pl.col(UPLOAD_TIME) < until)
    if PARTITION not in rows.collect_schema():
        rows = rows.rename({SOURCE_PARTITION: PARTITION}, strict=False)
    own = rows.collect_schema()
    rows = rows.with_columns(
        pl.lit(None, dtype).alias(name) if name not in own else pl.col(name).cast(dtype)
        for name, dtype in schema.items()
        if own.get(name) != dtype
    )
    if not lacking:
        return rows
    read = partial(_completed, rows, from_raw, lacking)
    return scan_frames(read, dict(rows.collect_schema()), "batch layer's table")


def _lacking(
    table: StaticTable, files: Iterable[DataFile], names: Iterable[str]
) -> dict[str, datetime]:
    """The columns among `names` that a data file with `raw` lacks, each with the last such time."""
    from pyiceberg.conversions import from_bytes
    from pyiceberg.types import TimestamptzType

    ids = {field.name: field.field_id for field in table.schema().fields}
    last: dict[str, datetime] = {}
    for file in files if RAW in ids else ():
        # Another writer may not have counted values: then no column is known to be in its files.
        present = file.value_counts or {ids[RAW]: 0}
        if ids[RAW] not in present:
            continue
        until = END
        if bound := (file.upper_bounds or {}).get(ids[UPLOAD_TIME]):
            until = EPOCH + timedelta(microseconds=int(from_bytes(TimestamptzType(), bound)))
        for name in names:
            if ids.get(name) not in present:
                last[name] = max(until, last.get(name, until))
    return last


def _completed(
    rows: pl.LazyFrame,
    from_raw: FromRaw,
    lacking: Mapping[str, datetime],
    used: PolarsSchema,
    predicate: pl.Expr | None,
) -> Iterator[pl.LazyFrame]:
    """The rows, with the used columns that files lack: rows older than the last file without one of
    these come separately, as their raw is read. Files left out by a predicate are not read."""
    if predicate is not None and lacking.keys().isdisjoint(predicate.meta.root_names()):
        rows = rows.filter(predicate)
    added = {name: dtype for name, dtype in used.items() if name in lacking}
    names = list(used) or [OFFSET]
    if added:
        older = pl.col(UPLOAD_TIME) <= max(lacking[name] for name in added)
        completed = with_decoded(rows.filter(older), from_raw, added, where_null=True)
        yield completed.select(names)
        rows = rows.filter(~older)
    yield rows.select(names)


def _table(
    metadata: str, properties: Mapping[str, str], within: Sequence[str]
) -> tuple[StaticTable, list[DataFile]]:
    """The table and its data files, after all locations that it names were checked, each before it
    is opened."""
    from pyiceberg.catalog.noop import NoopCatalog
    from pyiceberg.io import load_file_io
    from pyiceberg.serializers import FromInputFile
    from pyiceberg.table import StaticTable

    _require_within(metadata, within)
    io = load_file_io({**properties, "py-io-impl": FILE_IO}, metadata)
    described = FromInputFile.table_metadata(io.new_input(metadata))
    _require_within(described.location, within)
    table = StaticTable(("events", metadata), described, metadata, io, NoopCatalog("events"))
    snapshot = table.current_snapshot()
    if snapshot is not None:
        _require_within(snapshot.manifest_list, within)
        for manifest in snapshot.manifests(io):
            _require_within(manifest.manifest_path, within)
    tasks = list(table.scan().plan_files())
    for task in tasks:
        for file in (task.file, *task.delete_files):
            _require_within(file.file_path, within)
    return table, [task.file for task in tasks]


def _require_within(location: str, within: Sequence[str]) -> None:
    """Raise Corruption unless it is below a folder of this host, or below a remote location, that
    is among `within`."""
    if not any(_is_below(location, place) for place in within):
        raise Corruption(
            f"table {location}: expected a file below {', '.join(within)}, or below"
            " batch.catalog.warehouse",
            0,
        )


def _is_below(location: str, place: str) -> bool:
    path, folder = _local(location), _local(place)
    if path is None or folder is None:
        return path is folder and f"{location}/".startswith(f"{place.rstrip('/')}/")
    return path.resolve().is_relative_to(folder.resolve())


def _local(location: str) -> Path | None:
    """The path on this host, None if it is elsewhere. URIs are parsed as pyiceberg does; one that
    readers might parse differently counts as elsewhere."""
    uri = urlparse(location)
    if not uri.scheme:
        return Path(location)
    path = f"{uri.netloc}{uri.path}"
    clear = uri.scheme == "file" and location.endswith(path) and unquote(path) == path
    return Path(path) if clear else None
