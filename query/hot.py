"""Hot blocks as a Polars source: each record batch is read once, a column when first asked for.

What always holds: a frame has exactly the rows of the extents it was asked for, however much the
logs have grown since; logs are read forward only, from where the last read ended.
Thread safety: any thread; reads of one cache take turns.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import polars as pl
import pyarrow as pa

from forebay.query.partition import Log, Partition
from forebay.query.view import View
from forebay.storage.base.errors import Corruption
from forebay.storage.formats.log import Extent, Span
from forebay.storage.formats.schema import OFFSET, RAW

YIELD_ROWS = 131_072
PIECE_ROWS = 65_536
"""New rows are joined to a piece of fewer rows, so that no look copies a whole column."""
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

    def follow(self, extent: Extent) -> None:
        """Read its new batches. Raises MissingFile or Corruption."""
        self._found += self._reader.follow(extent, torn_ok=True)

    def frame(self, extent: Extent, schema: dict[str, pl.DataType]) -> pl.DataFrame:
        """The columns of `schema` for the rows in `extent`; null where a column is neither in the
        log nor can be decoded from its raw."""
        self.follow(extent)
        present = self._reader.schema.names if self._reader.schema else []
        self._decode([name for name in {*schema, OFFSET} if name in present], self._reader.decoded)
        self._decode(self.from_raw.lacking(present, schema), self._from_raw)
        for name in schema.keys() & self._columns.keys():
            if (dtype := self._columns[name][1][0].dtype) != schema[name]:
                raise Corruption(
                    f"log {self._path}: {name}: expected {schema[name]}, got {dtype}", 0
                )
        known = self._columns.get(OFFSET)
        rows = 0 if known is None else min(extent.rows, sum(map(len, known[1])))
        columns = [
            pl.concat(self._columns[name][1]).head(rows)
            if name in self._columns
            else pl.Series(name, [None], dtype).new_from_index(0, rows)
            for name, dtype in schema.items()
        ]
        return pl.DataFrame(columns, height=rows)

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
            frame = pl.DataFrame(pa.Table.from_batches(decoded(self._found[done:], group)))
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
        self, partitions: Sequence[Partition], schema: dict[str, pl.DataType]
    ) -> Iterator[pl.DataFrame]:
        """The hot rows, in frames large enough to be worth a call."""
        held: list[pl.DataFrame] = []
        rows = 0
        for log in (log for partition in partitions for log in partition.block_logs):
            with self._lock:
                held.append(self._log(log).frame(log.extent, schema))
            rows += held[-1].height
            if rows >= YIELD_ROWS:
                yield pl.concat(held)
                held, rows = [], 0
        if held:
            yield pl.concat(held)

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
