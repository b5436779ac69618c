"""Hot blocks as a Polars source: each record batch is read once, a column when first asked for.

A filter that few batches have rows for, such as one user's, is asked of its own columns first; of
the others, these batches alone are decoded, and not kept.

What always holds: a frame has exactly the rows of the extents it was asked for, however much the
logs have grown since; logs are read forward only, from where the last read ended.
Thread safety: any thread; reads of one cache take turns.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, islice
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from forebay.query.frames import PolarsSchema
from forebay.query.partition import Log, Partition
from forebay.query.view import View
from forebay.storage.base.errors import Corruption
from forebay.storage.formats.log import Extent, Span
from forebay.storage.formats.schema import OFFSET, RAW

YIELD_ROWS = 131_072
PIECE_ROWS = 65_536
"""New rows are joined to a piece of fewer rows, so that no look copies a whole column."""
FEW = 8
"""Rows are few if they are in one of so many batches at most."""
ROW = "row of the log"
"""A name that no column has."""
Found = Sequence[tuple[Span, memoryview]]


class _HotLog:
    """One log file: its record batches so far, and the columns that were ever asked for."""

    def __init__(self, log: Log) -> None:
        self._path = log.path
        self.from_raw = log.from_raw
        self._reader = log.open()
        self._found: list[tuple[Span, memoryview]] = []
        self._columns: dict[str, tuple[int, list[pl.Series]]] = {}
        """Per column: its number of batches, and its pieces, which are cut alike in all columns."""
        self._ends: list[int] = []
        """The number of rows up to the end of each batch."""

    def follow(self, extent: Extent) -> None:
        """Read its new batches. Raises MissingFile or Corruption."""
        self._found += self._reader.follow(extent, torn_ok=True)

    def frame(self, extent: Extent, schema: PolarsSchema, where: pl.Expr | None) -> pl.DataFrame:
        """The columns of `schema` for the rows in `extent`, or at least for those that match
        `where`; null where a column is neither in the log nor can be decoded from its raw."""
        self.follow(extent)
        if where is not None:
            tested = {name: schema[name] for name in where.meta.root_names()}
            if tested and schema.keys() - tested.keys() - self._columns.keys():
                rows = self._whole(extent, tested).with_row_index(ROW).filter(where)[ROW]
                if (few := self._few(rows)) is not None:
                    return self._picked(rows, few, schema)
        return self._whole(extent, schema)

    def _whole(self, extent: Extent, schema: PolarsSchema) -> pl.DataFrame:
        """All rows, whose columns are kept."""
        present = self._reader.schema.names if self._reader.schema else []
        self._decode([name for name in {*schema, OFFSET} if name in present], self._reader.decoded)
        self._decode(self.from_raw.lacking(present, schema), self._from_raw)
        known = self._columns.get(OFFSET)
        rows = 0 if known is None else min(extent.rows, sum(map(len, known[1])))
        columns = {
            name: pl.concat(self._columns[name][1]).head(rows)
            for name in schema
            if name in self._columns
        }
        return self._framed(columns, schema, rows)

    def _few(self, rows: pl.Series) -> list[int] | None:
        """The batches that have these rows, if they are few."""
        ends = pl.Series(self._ends, dtype=pl.UInt32)
        found = ends.search_sorted(rows, side="right").unique().sort().to_list()
        return found if FEW * len(found) <= len(self._found) else None

    def _picked(self, rows: pl.Series, few: list[int], schema: PolarsSchema) -> pl.DataFrame:
        """Some rows, which are in a few batches, of which nothing is kept."""
        if not few or self._reader.schema is None:
            return self._framed({}, schema, 0)
        found, present = [self._found[n] for n in few], self._reader.schema.names
        columns: dict[str, pl.Series] = {}
        for names, decoded in (
            ([name for name in schema if name in present], self._reader.decoded),
            (self.from_raw.lacking(present, schema), self._from_raw),
        ):
            if names:
                columns |= pl.DataFrame(pa.Table.from_batches(decoded(found, names))).to_dict()
        edges = [0, *self._ends]
        held = np.concatenate([np.arange(edges[n], edges[n + 1]) for n in few])
        at = np.searchsorted(held, rows.to_numpy())
        return self._framed({n: one.gather(at) for n, one in columns.items()}, schema, len(rows))

    def _framed(
        self, columns: dict[str, pl.Series], schema: PolarsSchema, rows: int
    ) -> pl.DataFrame:
        """These columns as a frame of so many rows. Raises Corruption if one has another type."""
        for name, column in columns.items():
            if column.dtype != schema[name]:
                raise Corruption(
                    f"log {self._path}: {name}: expected {schema[name]}, got {column.dtype}", 0
                )
        nulls = pl.Series([None], dtype=pl.Null).new_from_index(0, rows)
        held = [columns.get(name, nulls).cast(dtype).alias(name) for name, dtype in schema.items()]
        return pl.DataFrame(held, height=rows)

    def _from_raw(self, found: Found, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        for batch in self._reader.decoded(found, [RAW]):
            yield self.from_raw.complete(batch, names).select(list(names))

    def _decode(
        self,
        names: list[str],
        decoded: Callable[[Found, Sequence[str]], Iterator[pa.RecordBatch]],
    ) -> None:
        """Decode the new rows of these columns."""
        behind: dict[int, list[str]] = {}
        for name in names:
            behind.setdefault(self._columns.get(name, (0, None))[0], []).append(name)
        for done, group in behind.items():
            if done == len(self._found):
                continue
            batches = list(decoded(self._found[done:], group))
            if OFFSET in group:
                ends = accumulate((one.num_rows for one in batches), initial=sum(self._ends[-1:]))
                self._ends += islice(ends, 1, None)
            frame = pl.DataFrame(pa.Table.from_batches(batches))
            for series in frame.get_columns():
                _, pieces = self._columns.get(series.name, (0, []))
                self._columns[series.name] = (len(self._found), _joined(pieces, series))


def _joined(pieces: list[pl.Series], more: pl.Series) -> list[pl.Series]:
    """All rows, in pieces of PIECE_ROWS except the last one."""
    if pieces and len(pieces[-1]) < PIECE_ROWS:
        *pieces, last = pieces
        more = pl.concat([last, more])
    more = more.rechunk()
    cuts = range(0, max(1, len(more)), PIECE_ROWS)
    return [*pieces, *(more.slice(at, PIECE_ROWS) for at in cuts)]


class HotCache:
    """Decoded hot logs of one `Store`. Logs that are no longer hot are dropped."""

    def __init__(self) -> None:
        self._logs: dict[Path, _HotLog] = {}
        self._lock = threading.Lock()

    def keep(self, view: View) -> None:
        """Drop all logs that this view does not name."""
        named = {log.path for partition in view.partitions for log in partition.block_logs}
        with self._lock:
            self._logs = {path: log for path, log in self._logs.items() if path in named}

    def frames(
        self,
        partitions: Sequence[Partition],
        schema: PolarsSchema,
        where: pl.Expr | None = None,
    ) -> Iterator[pl.DataFrame]:
        """The hot rows, or at least those that match `where`, in frames large enough to be worth a
        call."""
        held: list[pl.DataFrame] = []
        rows = 0
        for log in (log for partition in partitions for log in partition.block_logs):
            with self._lock:
                held.append(self._log(log).frame(log.extent, schema, where))
            rows += held[-1].height
            if rows >= YIELD_ROWS:
                yield pl.concat(held)
                held, rows = [], 0
        if held:
            yield pl.concat(held)

    def whole(self, log: Log, schema: PolarsSchema) -> pl.DataFrame:
        """The rows of one log."""
        with self._lock:
            return self._log(log).frame(log.extent, schema, None)

    def follow(self, partition: Partition) -> None:
        """Read what is new in the partition's logs. Raises MissingFile or Corruption."""
        for log in partition.block_logs:
            with self._lock:
                self._log(log).follow(log.extent)

    def _log(self, log: Log) -> _HotLog:
        path = log.path
        if path not in self._logs or self._logs[path].from_raw != log.from_raw:
            self._logs[path] = _HotLog(log)
        return self._logs[path]
