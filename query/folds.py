"""Folds: what blocks and chunks add up to for questions that count, kept for who asks again.

A fold has the distinct rows of the columns that a question needs, and of how many events each is.
A chunk never changes, and of a block's log only the end is new: so a dashboard pays for its second
question, and then for what has come since.

What always holds: the folds of a view stand for each of its events once, as long as the question
tells no more apart than its `Alike` does. Memory holds KEPT_BYTES of folds, or little more; rows
that are hardly ever alike are not folded.
Thread safety: any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import polars as pl

from forebay.query.analytics.granularity import Alike
from forebay.query.analytics.groups import ALIKE
from forebay.query.cold import scan_cold
from forebay.query.frames import PolarsSchema
from forebay.query.hot import HotCache
from forebay.query.partition import ChunkFile, Log, Partition, VerifiedChunks
from forebay.query.view import View

QUESTIONS = 256
"""So many kinds of questions are remembered."""
T = TypeVar("T", pl.DataFrame, pl.LazyFrame)
KEPT_BYTES = 64 << 20
JUDGED_ROWS, WORTH, FEW_ROWS = 65_536, 1 / 16, 256
"""The first rows of a chunk or log decide whether it is folded: at most this share may be left, or
few rows."""
STEP_ROWS = 8_192
"""A log is folded once it has so many more rows; one that was not worth it, once it has twice as
many."""


@dataclass(frozen=True)
class _Fold:
    """Of the first `rows` rows; no `frame` if to fold them does not pay."""

    rows: int
    frame: pl.DataFrame | None

    @property
    def bytes(self) -> int:
        return 0 if self.frame is None else int(self.frame.estimated_size())


class Folds:
    """The folds of one `Store`. Those of files that a view does not name are dropped."""

    def __init__(self, chunks: VerifiedChunks, hot: HotCache) -> None:
        self._chunks, self._hot = chunks, hot
        self._kept: dict[tuple[Path, Hashable], _Fold] = {}
        """Last used last."""
        self._spans: dict[tuple[Path, Hashable], tuple[int, int] | None] = {}
        self._asked: dict[Hashable, None] = {}
        """Last asked last."""
        self._bytes = 0
        self._lock = threading.Lock()

    def keep(self, view: View) -> None:
        """Drop all that this view does not name."""
        if self._kept or self._spans:
            named = {file.path for file in view.chunk_files}
            named |= {log.path for one in view.partitions for log in one.block_logs}
            with self._lock:
                self._spans = {key: one for key, one in self._spans.items() if key[0] in named}
                for key in [key for key in self._kept if key[0] not in named]:
                    self._bytes -= self._kept.pop(key).bytes

    def asked_again(self, question: Hashable) -> bool:
        """Whether such a question was asked before: to fold takes longer than to answer once."""
        with self._lock:
            again = question in self._asked
            self._asked.pop(question, None)
            self._asked[question] = None
            while len(self._asked) > QUESTIONS:
                self._asked.pop(next(iter(self._asked)))
            return again

    def frames(
        self, partitions: Sequence[Partition], columns: PolarsSchema, alike: Alike
    ) -> Iterator[pl.LazyFrame]:
        """Rows of these columns that stand for the events of these partitions, at least for those
        of the times that the question is about."""
        for one in partitions:
            files = (file for file in one.chunk_files if self._may_have(file, alike))
            found = [self._of_chunk(file, columns, alike) for file in files]
            found += [rows for log in one.block_logs for rows in self._of_log(log, columns, alike)]
            yield from (rows for rows in found if isinstance(rows, pl.LazyFrame))
            if here := [rows for rows in found if isinstance(rows, pl.DataFrame)]:
                yield pl.concat(here).lazy()

    def _may_have(self, file: ChunkFile, alike: Alike) -> bool:
        """Whether a chunk may have events of the times that the question is about."""
        key = file.path, (_version(file), alike.time)
        known = self._spans  # which `keep` replaces
        if key not in known:
            known[key] = file.span_ms(alike.time)
        span = known[key]
        return span is None or (span[0] < alike.end_ms and span[1] >= alike.first_ms)

    def _of_chunk(
        self, file: ChunkFile, columns: PolarsSchema, alike: Alike
    ) -> pl.DataFrame | pl.LazyFrame:
        """The fold of a chunk, or its rows."""
        declared = file.from_raw if file.lacking else None
        key = file.path, (_version(file), declared, tuple(columns.items()), alike.rounding)
        fold = self._known(key)
        if fold is not None and fold.frame is not None:
            return fold.frame
        [rows] = scan_cold([file], columns, self._chunks)
        if fold is None:
            judged = folded(rows.head(JUDGED_ROWS), columns, alike).select(pl.len()).collect()
            if _pays(judged.item(), min(file.chunk.rows, JUDGED_ROWS)):
                found = folded(rows, columns, alike).collect(engine="streaming")
                self._keep(key, _Fold(file.chunk.rows, found))
                return found
            self._keep(key, _Fold(file.chunk.rows, None))
        return _single(rows)

    def _of_log(self, log: Log, columns: PolarsSchema, alike: Alike) -> list[pl.DataFrame]:
        """The fold of a block's log, and the rows that are not folded yet."""
        key = log.path, (log.from_raw, tuple(columns.items()), alike.rounding)
        rows, fold = self._hot.whole(log, columns), self._known(key)
        if fold is None or fold.rows > rows.height:  # of a newer view
            fold = _Fold(0, None)
        if rows.height - fold.rows >= max(STEP_ROWS, fold.rows if fold.frame is None else 0):
            more = folded(rows[fold.rows :].lazy(), columns, alike).collect()
            if fold.frame is not None:
                both = pl.concat([fold.frame, more])
                more = both.group_by(list(columns)).agg(pl.col(ALIKE).sum())
            pays = _pays(more.height, rows.height)
            fold = _Fold(rows.height, more if pays else None)
            self._keep(key, fold)
        if fold.frame is None:
            return [_single(rows)]
        return [fold.frame, _single(rows[fold.rows :])]

    def _known(self, key: tuple[Path, Hashable]) -> _Fold | None:
        with self._lock:
            fold = self._kept.pop(key, None)
            if fold is not None:
                self._kept[key] = fold
            return fold

    def _keep(self, key: tuple[Path, Hashable], fold: _Fold) -> None:
        with self._lock:
            before = self._kept.pop(key, None)
            self._bytes += fold.bytes - (before.bytes if before else 0)
            self._kept[key] = fold
            while self._bytes > KEPT_BYTES and len(self._kept) > 1:
                self._bytes -= self._kept.pop(next(iter(self._kept))).bytes


def _version(file: ChunkFile) -> int:
    """What another file of the same name has not, if the data directory was recreated."""
    return file.chunk.checksum.crc


def _pays(folded: int, rows: int) -> bool:
    """Whether so many rows of a fold are few, for so many that were folded."""
    return folded <= max(FEW_ROWS, WORTH * rows)


def folded(rows: pl.LazyFrame, columns: PolarsSchema, alike: Alike) -> pl.LazyFrame:
    """The distinct rows of these columns, with their number in ALIKE."""
    wanted = {name: pl.col(name) for name in columns}
    if alike.time in columns:
        wanted[alike.time] = pl.col(alike.time).dt.truncate(f"{alike.granularity_ms}ms")
    if alike.masked in columns:
        something = pl.lit(0).cast(columns[alike.masked])
        wanted[alike.masked] = pl.when(pl.col(alike.masked).is_not_null()).then(something)
    number = pl.len().cast(pl.Int64).alias(ALIKE)
    return rows.select(**wanted).group_by(list(columns)).agg(number)


def _single(rows: T) -> T:
    """Rows that stand for themselves."""
    return rows.with_columns(pl.lit(1, pl.Int64).alias(ALIKE))
