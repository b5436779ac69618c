"""The reference batch layer: a day's events, once each, in an Apache Iceberg table.

Steps, each safe to repeat after a crash:
1. seal up to the end of the day (see `handoff`): what is to be handed over no longer changes;
2. count it, by interval; find what has the dedup key of another, across partitions and of late
   events also against the table, within the memory bound (see `cross_partition`);
3. write it, interval by interval in order of upload time, to files that no table names yet, and
   that no other run writes (see `leftovers`);
4. compare the rows written with those counted, and commit all files at once, with the seal's id
   among the snapshot's properties: a run that finds the id there does not write again (see
   `batch_table`);
5. complete the handoff, which moves the boundary and names the table as it is now.

Memory holds one slice of SLICE_ROWS rows or SLICE_BYTES, or one interval if that has more.
"""

import os
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Literal

import orjson
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from forebay import query
from forebay.flows.batch_table import TIME, EventTable, Landed, attempts
from forebay.flows.cross_partition import Duplicates, duplicates
from forebay.flows.leftovers import RunNote, clean
from forebay.flows.sections import BatchSettings
from forebay.query.iceberg import scan_table
from forebay.storage.base.errors import BadInput, Corruption
from forebay.storage.base.times import DAY_MS, EPOCH, now_ms, time_of, utc_text
from forebay.storage.formats.boundary import Boundary
from forebay.storage.formats.schema import OFFSET, PARTITION, UPLOAD_TIME
from forebay.storage.handoff import Handoff

SLICE_ROWS, FILE_ROWS, ROW_GROUP_ROWS = 1_000_000, 8_000_000, 131_072
SLICE_BYTES, FIRST_ROWS = 512 << 20, 131_072
SORTED_BY = [UPLOAD_TIME, PARTITION, OFFSET]
NUMBER, OFFSETS, ROWS, DUPLICATES, LATE = (
    f"forebay.{name}" for name in ("batch-number", "offsets", "rows", "duplicates", "late")
)
"""Properties of a snapshot."""

Outcome = Literal["written", "taken up", "completed before"]
Progress = Callable[[int, int], None]
"""Told rows done and rows in all."""


@dataclass(frozen=True)
class DayReport:
    """What one run handed over. `outcome`: the rows were written now; taken up, because another run
    of the same seal had added them but not completed; or all was completed before."""

    day: date
    number: int
    rows: int
    duplicates: int
    late: int
    outcome: Outcome


Result = tuple[Mapping[str, str], Outcome]
"""The properties of the snapshot that has a day's rows, and how it came to be."""


def run_day(
    roots: Sequence[Path], config: BatchSettings, day: date, progress: Progress = lambda *_: None
) -> DayReport:
    """Hand over all events up to the end of this day that no batch layer has.

    Raises BadInput if another run is at work, if an earlier day is to go first, or if the day is
    not over; Corruption if the counts differ. In each of these cases no query sees a change.
    """
    with Handoff(roots) as handoff:
        _require_next(handoff.batches, day)
        # Someone else's seal, within the day after, is completed with it.
        open_ms = [b.seal.until_ms for b in handoff.batches if b.seal and not b.complete]
        reach_ms, end_ms = handoff.reach_ms(), max([_day_ms(day) + DAY_MS, *open_ms])
        if reach_ms is None or reach_ms < end_ms:
            reached = "no event yet" if reach_ms is None else f"events up to {utc_text(reach_ms)}"
            raise BadInput(f"batch: expected a day that is over, got {day}, with {reached}")
        batches = handoff.seal(end_ms)
        run = _Run([Path(root) for root in roots], config, batches)
        properties, outcome = run.write(progress)
        # What is handed over is deleted here some time later: a power loss must not take it there.
        os.sync()
        done = handoff.complete(now_ms(), late=True, table=run.metadata)
        number = max(batch.number for batch in done)
        rows, duplicates, late = (int(properties.get(one, 0)) for one in (ROWS, DUPLICATES, LATE))
        return DayReport(day, number, rows, duplicates, late, outcome)


def missing_days(roots: Sequence[Path]) -> list[date]:
    """The days that have ended and are not handed over, oldest first."""
    with Handoff(roots) as handoff:
        reach_ms, covered = handoff.reach_ms(), _covered_ms(handoff.batches)
        begun = _begun(handoff.batches)
    first_ms = min(begun) - DAY_MS if begun else covered
    if first_ms is None:
        view = query.open(*roots).view()
        hot = [part.first_ms for partition in view.partitions for part in partition.hot]
        cold = [part.first_ms for partition in view.partitions for part in partition.chunks]
        first_ms = min([*hot, *cold], default=None)
    if reach_ms is None or first_ms is None:
        return []
    first, end = first_ms // DAY_MS, reach_ms // DAY_MS
    return [(EPOCH + timedelta(days=n)).date() for n in range(first, end)]


class _Run:
    """What is sealed, on its way into the table."""

    def __init__(self, roots: list[Path], config: BatchSettings, batches: list[Boundary]) -> None:
        self._roots = roots
        self._config = config
        self._folder = roots[0] / "batch"
        self._folder.mkdir(exist_ok=True)
        self._notes = self._folder / "runs"
        self._seal = ".".join(batch.seal.id for batch in batches if batch.seal)
        self._number = max(batch.number for batch in batches) + 1
        self._slice_rows = min(FIRST_ROWS, SLICE_ROWS)
        self._was_completed = all(batch.complete for batch in batches)
        self._covered_ms = _covered_ms(batches)
        view = self._store().view()
        names = [partition.state.partition for partition in view.partitions]
        if len(set(names)) < len(names):
            raise BadInput("batch: expected no two nodes to have a partition of the same name")
        self._key = list(view.key)
        spans_ms = (p.state.block_span_ms for p in view.partitions)
        self._span = timedelta(milliseconds=min(spans_ms, default=DAY_MS))
        self._offsets = {
            str(node.root): {p.state.partition: p.state.next_offsets for p in node.partitions}
            for node in view.nodes
        }
        schema = pa.schema(
            [field.with_type(TIME) if pa.types.is_timestamp(field.type) else field
             for field in view.schema]
        )  # fmt: skip
        self._names = schema.names
        self._table = EventTable(config, self._folder, schema, view.table)

    @property
    def metadata(self) -> str:
        """The metadata file of the table as it was last seen."""
        return self._table.table.metadata_location

    def write(self, progress: Progress) -> Result:
        """Have all rows in the table once: written now, or by another run of this seal.

        What was written is added only to the table that it was compared with. If another run has
        changed the table meanwhile, everything is compared and written again.
        """
        landed, head = self._table.landed(self._seal), self._table.head
        own: RunNote | None = None
        if landed is None and self._was_completed:
            return {}, "completed before"
        for _ in attempts():
            if landed is not None:
                break
            if own and head != self._table.head:
                own.drop(self._table.delete)
                own = None
            if own is None:
                (own, properties), head = self._write(progress), self._table.head
            if not own.files:
                own.drop(self._table.delete)
                return properties, "written"
            self._table.append(own.files, self._seal, properties)
            landed = self._table.landed(self._seal)
        if landed is None:
            raise self._table.not_now()
        return self._taken(landed, own)

    def _taken(self, landed: Landed, own: RunNote | None) -> Result:
        """What the table has for this seal, when it is what was counted."""
        self._require(int(landed.properties.get(ROWS, 0)), landed.rows)
        outcome: Outcome = "completed before" if self._was_completed else "taken up"
        if own:
            own.drop(self._table.delete, landed.files)
            outcome = "written" if set(own.files) <= set(landed.files) else outcome
        clean(self._notes, self._named, self._table.delete)
        return landed.properties, outcome

    def _named(self, seal: str) -> Container[str] | None:
        """The files of a seal that has landed. One whose snapshot can't be read is left alone."""
        try:
            landed = self._table.landed(seal)
        except Corruption:
            return None
        return landed.files if landed else None

    def _write(self, progress: Progress) -> tuple[RunNote, dict[str, str]]:
        """Files of what is sealed, and the properties of the snapshot that is to add them; if that
        fails, the files are deleted, because no table names them yet."""
        counts = self._counts()
        total, late = int(counts["rows"].sum()), int(counts["late"].sum())
        progress(0, total)
        work = duplicates(self._folder / "work", self._config.memory)
        with work as found, ExitStack() as failed:
            copies = found.find(self._store().sealed(), self._known(counts), self._key)
            try:
                note = RunNote(self._notes, self._seal)
                failed.callback(note.drop, self._table.delete)
                rows = self._write_files(found, counts, note, lambda done: progress(done, total))
            except OSError as error:
                raise BadInput(
                    f"table {self._config.table}: expected to write its files, got"
                    f" {type(error).__name__}: {error}; nothing was handed over"
                ) from error
            self._require(total - copies, rows)
            failed.pop_all()
        counted = {NUMBER: self._number, ROWS: rows, DUPLICATES: copies, LATE: late}
        properties = {name: str(count) for name, count in counted.items()}
        return note, {OFFSETS: orjson.dumps(self._offsets).decode(), **properties}

    def _store(self) -> query.Store:
        """A new one each time: it keeps what it has read of hot blocks."""
        return query.open(*self._roots)

    def _counts(self) -> pl.DataFrame:
        """Rows of each block span: all, and those of times that were handed over before."""
        covered = self._covered_ms
        late = pl.lit(False) if covered is None else pl.col(UPLOAD_TIME) < time_of(covered)
        return (
            self._store()
            .sealed()
            .group_by(pl.col(UPLOAD_TIME).dt.truncate(self._span).alias("start"))
            .agg(pl.len().cast(pl.Int64).alias("rows"), late.sum().cast(pl.Int64).alias("late"))
            .sort("start")
            .collect()
        )

    def _known(self, counts: pl.DataFrame) -> pl.LazyFrame:
        """What the table has for the times of late events, and beyond the boundary, where only a
        run can have written that was not completed."""
        schema = dict(pl.DataFrame(self._store().view().schema.empty_table()).schema)
        if self._table.head is None:
            return pl.LazyFrame(schema=schema)
        rows = scan_table(self.metadata, schema, self._config.catalog, self._roots)
        known = pl.col(UPLOAD_TIME) >= time_of(self._covered_ms or 0)
        times = counts.filter(pl.col("late") > 0)["start"]
        if not times.is_empty():
            known |= pl.col(UPLOAD_TIME).is_between(min(times), max(times) + self._span)
        return rows.filter(known)

    def _write_files(
        self,
        found: Duplicates,
        counts: pl.DataFrame,
        note: RunNote,
        progress: Callable[[int], None],
    ) -> int:
        """Files of one day each, sorted; the rows in them."""
        day, in_file, rows, done = None, 0, 0, 0
        schema, folder = self._table.schema, f"{self._table.table.location()}/data"
        with ExitStack() as stack:
            writer: pq.ParquetWriter | None = None
            for start, end, expected in self._slices(counts):
                frame, done = self._slice(found, start, end), done + expected
                progress(done)
                if frame.is_empty():
                    continue  # a row group without rows has no statistics to prune by
                table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
                table = table.rename_columns(schema.names).cast(_large(schema))
                # Further rows are assumed to be as large as those of this slice.
                fitting = SLICE_BYTES * len(table) // max(1, table.nbytes)
                self._slice_rows = max(1, min(SLICE_ROWS, fitting))
                if writer is None or day != start.date() or in_file >= FILE_ROWS:
                    stack.close()
                    day, in_file = start.date(), 0
                    name = f"{note.run}-{len(note.files):05d}.parquet"
                    note.add(f"{folder}/upload_time_day={day}/{name}")
                    writer = self._writer(stack, note.files[-1])
                writer.write_table(table, ROW_GROUP_ROWS)
                in_file, rows = in_file + len(frame), rows + len(frame)
        return rows

    def _slices(self, counts: pl.DataFrame) -> Iterator[tuple[datetime, datetime, int]]:
        """Ranges of upload times within a day, of as many rows as a slice may have when they begin
        to be counted, or one interval if that has more."""
        start, end, held = EPOCH, EPOCH, 0
        for at, count in counts.select("start", "rows").iter_rows():
            if held and (held + count > self._slice_rows or at.date() != start.date()):
                yield start, end, held
                held = 0
            start, end, held = start if held else at, at + self._span, held + count
        if held:
            yield start, end, held

    def _writer(self, stack: ExitStack, path: str) -> pq.ParquetWriter:
        """Both it and its file are closed with the stack."""
        out = stack.enter_context(self._table.table.io.new_output(path).create())
        schema = self._table.schema
        order = [(schema.names[self._names.index(name)], "ascending") for name in SORTED_BY]
        columns = pq.SortingColumn.from_ordering(schema, order)
        options = {"compression": "zstd", "sorting_columns": columns, "store_schema": False}
        return stack.enter_context(pq.ParquetWriter(out, _large(schema), **options))

    def _slice(self, found: Duplicates, start: datetime, end: datetime) -> pl.DataFrame:
        inside = (pl.col(UPLOAD_TIME) >= start) & (pl.col(UPLOAD_TIME) < end)
        rows = self._store().sealed().filter(inside).collect()
        rows = rows.join(found.between(start, end), on=[PARTITION, OFFSET], how="anti")
        return rows.select(self._names).sort(SORTED_BY)

    def _require(self, expected: int, found: int) -> None:
        if expected != found:
            raise Corruption(
                f"table {self._config.table}: expected {expected} rows as counted in the real-time"
                f" layer, got {found}; nothing was handed over"
            )


def _large(schema: pa.Schema) -> pa.Schema:
    """With text columns that may exceed 2 GB in total: the same in Parquet."""
    large = {pa.string(): pa.large_string(), pa.binary(): pa.large_binary()}
    return pa.schema([field.with_type(large.get(field.type, field.type)) for field in schema])


def _require_next(batches: list[Boundary], day: date) -> None:
    covered, begun = _covered_ms(batches), _begun(batches)
    if covered is not None and _day_ms(day) > covered:
        first_ms, why = covered, "the first day that is not handed over"
    elif begun and min(begun) < _day_ms(day) + DAY_MS:
        first_ms, why = min(begun) - DAY_MS, "a day that is sealed and not handed over"
    else:
        return
    raise BadInput(
        f"batch: expected {time_of(first_ms):%Y-%m-%d}, {why}, got {day}; --catch-up does all days"
        " in turn"
    )


def _covered_ms(batches: list[Boundary]) -> int | None:
    """The furthest boundary of all nodes."""
    covered = (batch.covered_until_ms for batch in batches)
    return max((ms for ms in covered if ms is not None), default=None)


def _begun(batches: list[Boundary]) -> list[int]:
    """Where the days end that a run has sealed, and perhaps written, but not completed."""
    return [
        batch.seal.until_ms
        for batch in batches
        if batch.seal and batch.seal.until_ms % DAY_MS == 0 and not batch.complete
    ]


def _day_ms(day: date) -> int:
    return (day - EPOCH.date()).days * DAY_MS
