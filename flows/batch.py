"""The reference batch layer: a day's events, once each, in an Apache Iceberg table.

Steps, each safe to repeat after a crash:
1. seal up to the end of the day (see `handoff`): what is to be handed over never changes any more;
2. count it, by interval; find what has the dedup key of another, across partitions and of late
   events also against the table: DuckDB, within the memory bound, on disk beyond it;
3. write it, interval by interval in order of upload time, to files that no table names yet; their
   names come from the seal, so a run that is repeated writes them again;
4. compare the rows written with those counted, and commit all files at once, with the seal's id
   among the snapshot's properties: a run that finds it there does not write again;
5. complete the handoff, which moves the boundary and names the table as it is now.

Memory holds one slice of SLICE_ROWS rows, or one interval if that has more.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import duckdb
import orjson
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.catalog import load_catalog
from pyiceberg.exceptions import NoSuchTableError
from pyiceberg.table import Table
from pyiceberg.transforms import DayTransform

import query
from flows.handoff import Handoff
from query.iceberg import scan_table
from query.store import stream
from storage.batch import Batch
from storage.errors import BadInput, Corruption
from storage.schema import OFFSET, PARTITION, UPLOAD_TIME

DAY_MS = 86_400_000
SLICE_ROWS, FILE_ROWS, ROW_GROUP_ROWS = 1_000_000, 8_000_000, 131_072
SORTED_BY = [UPLOAD_TIME, PARTITION, OFFSET]
SEAL, NUMBER, OFFSETS, ROWS, DUPLICATES, LATE = (
    f"forebay.{name}" for name in ("seal", "batch-number", "offsets", "rows", "duplicates", "late")
)
"""Properties of a snapshot."""
TIME = pa.timestamp("us", tz="UTC")
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)

Progress = Callable[[int, int], None]
"""Told rows done and rows in all."""


@dataclass(frozen=True)
class BatchConfig:
    """`table` is NAMESPACE.NAME in the catalog of these pyiceberg properties; without any, a SQLite
    catalog and a warehouse in the first data directory. `memory_bytes` bounds DuckDB's share."""

    table: str
    catalog: dict[str, str]
    memory_bytes: int


@dataclass(frozen=True)
class DayReport:
    """What one run handed over. `again`: the rows had been written by a run that was killed."""

    day: date
    number: int
    rows: int
    duplicates: int
    late: int
    again: bool


def run_day(
    roots: Sequence[Path], config: BatchConfig, day: date, progress: Progress = lambda *_: None
) -> DayReport:
    """Hand over all events up to the end of this day that no batch layer has.

    Raises BadInput if another run is at work, if an earlier day is to go first, or if the day is
    not over; Corruption if the counts differ. In each of these cases no query sees a change.
    """
    with Handoff(roots) as handoff:
        _require_next(handoff.batches, day)
        # A seal of someone else's, within the day after, is completed with it.
        open_ms = [b.seal.until_ms for b in handoff.batches if b.seal and not b.complete]
        batches = handoff.seal(max([_day_ms(day) + DAY_MS, *open_ms]))
        run = _Run([Path(root) for root in roots], config, batches)
        report = run.write(day, progress)
        done = handoff.complete(_now_ms(), late=True, table=run.table.metadata_location)
        return replace(report, number=max(batch.number for batch in done))


def missing_days(roots: Sequence[Path]) -> list[date]:
    """The days that are over and not handed over, oldest first."""
    with Handoff(roots) as handoff:
        reach_ms, covered = handoff.reach_ms(), [b.covered_until_ms for b in handoff.batches]
        begun = _begun(handoff.batches)
    known = [ms for ms in covered if ms is not None]
    first_ms = min(begun) - DAY_MS if begun else max(known) if known else _first_ms(roots)
    if reach_ms is None or first_ms is None:
        return []
    first, end = first_ms // DAY_MS, reach_ms // DAY_MS
    return [(_EPOCH + timedelta(days=n)).date() for n in range(first, end)]


class _Run:
    """What is sealed, on its way into the table."""

    def __init__(self, roots: list[Path], config: BatchConfig, batches: list[Batch]) -> None:
        self._roots = roots
        self._config = config
        self._folder = roots[0] / "batch"
        self._folder.mkdir(exist_ok=True)
        self._seal = ".".join(batch.seal.id for batch in batches if batch.seal)
        self._number = max(batch.number for batch in batches) + 1
        self._was_completed = all(batch.complete for batch in batches)
        self._covered = [b.covered_until_ms for b in batches if b.covered_until_ms is not None]
        view = self._store().view()
        names = [partition.state.partition for partition in view.partitions]
        if len(set(names)) < len(names):
            raise BadInput("batch: expected no two nodes to have a partition of the same name")
        self._key = list(view.key)
        self._spans_ms = {p.state.block_span_ms for p in view.partitions}
        self._offsets = {
            str(node.root): {p.state.partition: p.state.next_offsets for p in node.partitions}
            for node in view.nodes
        }
        self._schema = pa.schema(
            [field.with_type(TIME) if pa.types.is_timestamp(field.type) else field
             for field in view.schema]
        )  # fmt: skip
        self.table = self._open_table()

    def write(self, day: date, progress: Progress) -> DayReport:
        """Have all rows in the table: written now, or by a run that was killed after that."""
        done = next((s for s in self.table.snapshots() if _property(s, SEAL) == self._seal), None)
        if done is not None:
            rows, duplicates, late = (
                int(_property(done, p) or 0) for p in (ROWS, DUPLICATES, LATE)
            )
            self._require(rows, int(_property(done, "added-records") or 0))
            return DayReport(day, self._number, rows, duplicates, late, True)
        if self._was_completed:
            return DayReport(day, self._number, 0, 0, 0, True)
        counts = self._counts()
        total, late = int(counts["rows"].sum()), int(counts["late"].sum())
        progress(0, total)
        with self._workplace() as work:
            self._find_duplicates(work, counts)
            duplicates = int(work.sql("select count(*) from duplicates").fetchall()[0][0])
            paths, rows = self._write_files(work, counts, lambda n: progress(n, total))
        self._require(total - duplicates, rows)
        self._commit(paths, {ROWS: rows, DUPLICATES: duplicates, LATE: late})
        snapshot = self.table.current_snapshot()
        if paths:
            self._require(rows, int((snapshot and _property(snapshot, "added-records")) or 0))
        return DayReport(day, self._number, rows, duplicates, late, False)

    def _store(self) -> query.Store:
        """A new one each time: it keeps what it has read of hot blocks."""
        return query.open(*self._roots)

    def _counts(self) -> pl.DataFrame:
        """Rows of each block span: all, and those of times that were handed over before."""
        span = f"{min(self._spans_ms, default=DAY_MS)}ms"
        covered = max(self._covered, default=None)
        late = pl.lit(False) if covered is None else pl.col(UPLOAD_TIME) < _time(covered)
        return (
            self._store()
            .sealed()
            .group_by(pl.col(UPLOAD_TIME).dt.truncate(span).alias("start"))
            .agg(pl.len().cast(pl.Int64).alias("rows"), late.sum().cast(pl.Int64).alias("late"))
            .sort("start")
            .collect()
        )

    @contextmanager
    def _workplace(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A database of this run's own; what a run that was killed left of its own is deleted."""
        folder = self._folder / "work"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        with duckdb.connect(str(folder / "work.duckdb")) as work:
            work.execute(f"set memory_limit = '{self._config.memory_bytes}B'")
            work.execute(f"set temp_directory = '{folder / 'spilled'}'")
            work.execute("set preserve_insertion_order = false; set timezone = 'UTC'")
            yield work
        shutil.rmtree(folder)

    def _find_duplicates(self, work: duckdb.DuckDBPyConnection, counts: pl.DataFrame) -> None:
        """Fill `duplicates` with the place of each row that is not the first with its key."""
        columns = [*SORTED_BY, *self._key]
        sealed = stream(self._store().sealed().select(columns))
        known = stream(self._known(counts).select(columns))
        key = ", ".join(f'"{name}"' for name in self._key)
        work.register("sealed", sealed)
        work.register("known", known)
        work.execute(
            f"create table duplicates as"
            f" select {UPLOAD_TIME}, {PARTITION}, {OFFSET} from ("
            f"  select *, row_number() over (partition by {key}"
            f"   order by fresh, {UPLOAD_TIME}, {PARTITION}, {OFFSET}) as place"
            f"  from (select *, false as fresh from known union all by name"
            f"        select *, true as fresh from sealed))"
            f" where place > 1 and fresh order by {UPLOAD_TIME}"
        )

    def _known(self, counts: pl.DataFrame) -> pl.LazyFrame:
        """What the table has for the times of late events, and beyond the boundary, where only a
        run can have written that was not completed."""
        schema = dict(pl.DataFrame(self._store().view().schema.empty_table()).schema)
        if self.table.current_snapshot() is None:
            return pl.LazyFrame(schema=schema)
        metadata = self.table.metadata_location
        rows = scan_table(metadata, schema, self._config.catalog, self._roots)
        known = pl.col(UPLOAD_TIME) >= _time(max(self._covered, default=0))
        times = counts.filter(pl.col("late") > 0)["start"]
        if not times.is_empty():
            end = max(times) + timedelta(milliseconds=min(self._spans_ms))
            known |= pl.col(UPLOAD_TIME).is_between(min(times), end)
        return rows.filter(known)

    def _write_files(
        self, work: duckdb.DuckDBPyConnection, counts: pl.DataFrame, progress: Callable[[int], None]
    ) -> tuple[list[str], int]:
        """Files of one day each, sorted; their paths and the rows in them."""
        writer: pq.ParquetWriter | None = None
        paths: list[str] = []
        day, in_file, rows, done = None, 0, 0, 0
        columns = pq.SortingColumn.from_ordering(
            self._schema, [(name, "ascending") for name in SORTED_BY]
        )
        try:
            for start, end, expected in _slices(counts, self._spans_ms):
                frame, done = self._slice(work, start, end), done + expected
                progress(done)
                if frame.is_empty():
                    continue  # a row group without rows has no statistics to prune by
                if writer is None or day != start.date() or in_file >= FILE_ROWS:
                    if writer is not None:
                        writer.close()
                    day, in_file = start.date(), 0
                    paths.append(self._path(day, len(paths)))
                    out = self.table.io.new_output(paths[-1]).create(overwrite=True)
                    writer = pq.ParquetWriter(
                        out, self._schema, compression="zstd", sorting_columns=columns
                    )
                table = frame.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(self._schema)
                writer.write_table(table, ROW_GROUP_ROWS)
                in_file, rows = in_file + len(frame), rows + len(frame)
        finally:
            if writer is not None:
                writer.close()
        return paths, rows

    def _slice(
        self, work: duckdb.DuckDBPyConnection, start: datetime, end: datetime
    ) -> pl.DataFrame:
        inside = (pl.col(UPLOAD_TIME) >= start) & (pl.col(UPLOAD_TIME) < end)
        rows = self._store().sealed().filter(inside).collect()
        gone = work.sql(
            f"select {PARTITION}, {OFFSET} from duplicates"
            f" where {UPLOAD_TIME} >= ? and {UPLOAD_TIME} < ?",
            params=[start, end],
        )
        dropped = pl.DataFrame(gone.to_arrow_table())
        rows = rows.join(dropped, on=[PARTITION, OFFSET], how="anti")
        return rows.select(self._schema.names).sort(SORTED_BY)

    def _path(self, day: date, number: int) -> str:
        folder = f"{self.table.location()}/data/upload_time_day={day}"
        return f"{folder}/{self._seal}-{number:05d}.parquet"

    def _require(self, expected: int, found: int) -> None:
        if expected != found:
            raise Corruption(
                f"table {self._config.table}: expected {expected} rows as counted in the real-time"
                f" layer, got {found}; nothing was handed over"
            )

    def _commit(self, paths: list[str], counted: dict[str, int]) -> None:
        if not paths:
            return
        with self.table.transaction() as transaction:
            transaction.add_files(
                paths,
                snapshot_properties={
                    SEAL: self._seal,
                    NUMBER: str(self._number),
                    OFFSETS: orjson.dumps(self._offsets).decode(),
                    **{name: str(count) for name, count in counted.items()},
                },
            )

    def _open_table(self) -> Table:
        """The table, made if there is none, with all columns that events have by now."""
        folder = self._folder.resolve()
        own = {
            "type": "sql",
            "uri": f"sqlite:///{folder / 'catalog.db'}",
            "warehouse": f"file://{folder / 'warehouse'}",
        }
        catalog = load_catalog("forebay", **(self._config.catalog or own))
        try:
            table = catalog.load_table(self._config.table)
        except NoSuchTableError:
            namespace, _, _ = self._config.table.rpartition(".")
            catalog.create_namespace_if_not_exists(namespace)
            table = catalog.create_table(self._config.table, schema=self._schema)
        if table.spec().is_unpartitioned():
            with table.update_spec() as spec:
                spec.add_field(UPLOAD_TIME, DayTransform(), "upload_time_day")
        with table.update_schema() as change:
            change.union_by_name(self._schema)
        return table


def _slices(counts: pl.DataFrame, spans_ms: set[int]) -> Iterator[tuple[datetime, datetime, int]]:
    """Ranges of upload times within a day, of at most SLICE_ROWS rows where spans allow it."""
    span = timedelta(milliseconds=min(spans_ms, default=DAY_MS))
    start, end, held = _EPOCH, _EPOCH, 0
    for row in counts.iter_rows(named=True):
        at = row["start"]
        if held and (held + row["rows"] > SLICE_ROWS or at.date() != start.date()):
            yield start, end, held
            held = 0
        start, end, held = start if held else at, at + span, held + row["rows"]
    if held:
        yield start, end, held


def _require_next(batches: list[Batch], day: date) -> None:
    covered = [b.covered_until_ms for b in batches if b.covered_until_ms is not None]
    if covered and _day_ms(day) > max(covered):
        raise BadInput(
            f"batch: expected {_time(max(covered)):%Y-%m-%d}, the first day that is not handed"
            f" over, got {day}; --catch-up does all days in turn"
        )
    if any(until_ms < _day_ms(day) + DAY_MS for until_ms in _begun(batches)):
        raise BadInput(
            f"batch: expected {_time(min(_begun(batches)) - DAY_MS):%Y-%m-%d}, a day that is sealed"
            f" and not handed over, got {day}; --catch-up does all days in turn"
        )


def _begun(batches: list[Batch]) -> list[int]:
    """Where the days end that a run has sealed, and perhaps written, but not completed."""
    return [
        batch.seal.until_ms
        for batch in batches
        if batch.seal and batch.seal.until_ms % DAY_MS == 0 and not batch.complete
    ]


def _first_ms(roots: Sequence[Path]) -> int | None:
    """The earliest upload time that the nodes have."""
    view = query.open(*roots).view()
    firsts = [part.first_ms for p in view.partitions for part in p.hot]
    firsts += [part.first_ms for p in view.partitions for part in p.chunks]
    return min(firsts, default=None)


def _property(snapshot: Any, name: str) -> str | None:
    return snapshot.summary.get(name) if snapshot.summary else None


def _day_ms(day: date) -> int:
    return (day - _EPOCH.date()).days * DAY_MS


def _time(ms: int) -> datetime:
    return _EPOCH + timedelta(milliseconds=ms)


def _now_ms() -> int:
    return round(datetime.now(timezone.utc).timestamp() * 1000)
