"""Ranges: the rows of a group, cut by their order into pieces that fit in memory.

A *range* is what lies between two places in the order by (upload_time, _partition, _offset). A
group that is small enough is one. Of any other the order of all rows is sampled first, which tells
where to cut it. What follows depends on how rows lie in the input:

- In the order of arrival, a range needs few parts of the input, hardly any of them twice: each
  range reads them again.
- Shuffled, each range would need all parts. So all are read once more, and the rows of each range
  are put together in a temporary file, the *spill*: an external sort by distribution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc as ipc
from isal.isal_zlib import crc32

from forebay.storage.base.disk import Disk, naming
from forebay.storage.base.errors import Corruption
from forebay.storage.formats.schema import OFFSET, PARTITION, UPLOAD_TIME

SORTED_BY = (UPLOAD_TIME, PARTITION, OFFSET)
POOL = pa.default_memory_pool()
"""Where that lies which is read to be merged. jemalloc, where there is one, gives back within about
a second what is not used any more; what others keep to themselves is as much again."""
if "jemalloc" in pa.supported_memory_backends():
    POOL = pa.jemalloc_memory_pool()
    pa.jemalloc_set_decay_ms(1000)
SAMPLES = 128
"""Rows of a part of the input that are sampled: so exact are the sizes of ranges."""
READS_MAX = 3
"""The input is read again for its ranges if that reads no row more often on average; to write rows
to the spill and to read them there costs about two such reads."""
SPILL_SUFFIX = ".spill"

Again = Callable[[], pa.RecordBatch]
"""Reads a part of some rows again, with all its columns."""
Rows = Callable[[Sequence[str] | None], Iterator[tuple[Again, pa.RecordBatch]]]
"""Rows of one file: reads them part by part, with the columns asked for (None: all that it has)."""
Place = tuple[int, str, int]
"""Of a row in order: upload time in ms, partition and offset."""
Bounds = tuple[Place | None, Place | None]
"""Of a range: the place at which it begins, and the one before which it ends."""


@dataclass(frozen=True)
class Group:
    """Rows whose upload times don't overlap those of any other group. `rows` is how many there are,
    `row_bytes` the mean size of a row (see `RowBytes`)."""

    inputs: Sequence[Rows]
    rows: int
    row_bytes: int

    @property
    def bytes(self) -> int:
        return self.rows * self.row_bytes


class Spill:
    """Rows on their way to their ranges, in a file of its own beside `target`, which is made when
    the first are added and removed at the end. Raises OSError if that can't be written or read, and
    Corruption if it does not give back what was written."""

    def __init__(self, disk: Disk, target: Path) -> None:
        self._disk = disk
        self._path = target.with_name(f"{target.name}{SPILL_SUFFIX}")
        self._file: BinaryIO | None = None
        self._slices: list[list[tuple[int, int, int]]] = []
        self._bytes = 0

    def __enter__(self) -> Spill:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self._clear()

    def distributed(
        self, batches: Iterator[pa.RecordBatch], bounds: Sequence[Bounds]
    ) -> Iterator[list[pa.RecordBatch]]:
        """The rows of these batches, range by range."""
        with naming(self._path):
            self._slices = [[] for _ in bounds]
            self._file = self._disk.write(self._path)
            for batch in batches:
                for slices, (low, high) in zip(self._slices, bounds, strict=True):
                    inside = _between(batch, low, high)
                    if inside.num_rows:
                        slices.append(self._add(inside))
            self._file.flush()
        for slices in self._slices:
            if slices:
                yield [self._read(*found) for found in slices]
        self._clear()

    def _add(self, batch: pa.RecordBatch) -> tuple[int, int, int]:
        """Where it is in the file: its start, its end and its CRC-32."""
        sink = pa.BufferOutputStream()
        with ipc.new_stream(sink, batch.schema, options=_SPILLED) as stream:
            stream.write_batch(batch)
        data = sink.getvalue()
        if self._file is None:
            raise AssertionError("bug: a spill without a file")
        self._file.write(data)
        start, self._bytes = self._bytes, self._bytes + data.size
        return start, self._bytes, crc32(data)

    def _read(self, start: int, end: int, crc: int) -> pa.RecordBatch:
        with naming(self._path):
            data = self._disk.read(self._path, start, end)
        if crc32(data) != crc:
            raise Corruption(
                f"spill {self._path}: checksum of bytes {start}..{end} does not match", start
            )
        return ipc.open_stream(pa.py_buffer(data), memory_pool=POOL).read_next_batch()

    def _clear(self) -> None:
        if self._file is not None:
            self._file.close()
            self._disk.remove(self._path)
        self._file, self._bytes = None, 0


_SPILLED = ipc.IpcWriteOptions(compression="lz4", use_threads=False)


@dataclass(frozen=True)
class _InputPart:
    """A part of the input: what reads it again, how many rows it has, and the first and last of
    them in order."""

    again: Again
    rows: int
    first: Place
    last: Place

    def is_in(self, bounds: Bounds) -> bool:
        """Whether any of its rows may be."""
        low, high = bounds
        return (low is None or self.last >= low) and (high is None or self.first < high)


def ranges(group: Group, bytes_max: int, spill: Spill) -> Iterator[list[pa.RecordBatch]]:
    """The rows of a group, range by range, each in any order."""
    if group.bytes <= bytes_max:
        yield [batch for rows in group.inputs for _, batch in rows(None)]
        return
    parts, samples = _sampled(group)
    cuts = _cuts(parts, samples, max(1, bytes_max // group.row_bytes))
    bounds = list(pairwise([None, *cuts, None]))
    wanted = [[part for part in parts if part.is_in(one)] for one in bounds]
    if _rows(part for found in wanted for part in found) > READS_MAX * _rows(parts):
        yield from spill.distributed((part.again() for part in parts), bounds)
    else:
        yield from _read_again(bounds, wanted, bytes_max)


def _rows(parts: Iterable[_InputPart]) -> int:
    return sum(part.rows for part in parts)


def _read_again(
    bounds: Sequence[Bounds], wanted: Sequence[Sequence[_InputPart]], bytes_max: int
) -> Iterator[list[pa.RecordBatch]]:
    """Range by range what is in the parts wanted for it. A part that the next range wants too is
    kept, if there is room."""
    kept: dict[Again, pa.RecordBatch] = {}
    for (low, high), parts in zip(bounds, wanted, strict=True):
        found, before, kept = [], kept, {}
        for part in parts:
            batch = before.pop(part.again, None) or part.again()
            begun = low is not None and part.first < low
            ends = high is None or part.last < high
            if not ends and _bytes(kept) + batch.nbytes <= bytes_max // 2:
                kept[part.again] = batch
            found.append(_between(batch, low, high) if begun or not ends else batch)
            del batch
        if found:
            yield found


def _bytes(batches: dict[Again, pa.RecordBatch]) -> int:
    return sum(batch.nbytes for batch in batches.values())


def _cuts(
    parts: Sequence[_InputPart], samples: list[tuple[Place, int]], rows_max: int
) -> list[Place]:
    """Where to cut the order of all rows, so that a range has about `rows_max` rows at most; where
    a part begins, if that leaves the range half of them, because the part is then not cut."""
    starts, cuts = {part.first for part in parts}, []
    rows, begun = 0, (0, 0)
    for number, (place, weight) in enumerate(samples):
        if place in starts and rows:
            begun = number, rows
        if rows + weight > rows_max and rows:
            number, before = begun if begun[1] * 2 >= rows_max else (number, rows)
            cuts.append(samples[number][0])
            rows, begun = rows - before, (0, 0)
        rows += weight
    return cuts


def _sampled(group: Group) -> tuple[list[_InputPart], list[tuple[Place, int]]]:
    """The parts of a group; and some of its rows, in order, each with how many it stands for. The
    first row of each part is among them."""
    parts, samples = [], []
    for rows in group.inputs:
        for again, batch in rows(SORTED_BY):
            times = _times(batch)
            ends = [
                _places(batch, np.flatnonzero(times == end)) for end in (times.min(), times.max())
            ]
            parts.append(_InputPart(again, batch.num_rows, min(ends[0]), max(ends[1])))
            step = -(-len(times) // SAMPLES)
            some = _places(batch, np.arange(step // 2, len(times), step))
            samples += [(parts[-1].first, 0), *((place, step) for place in some)]
    return parts, sorted(samples)


def _times(batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
    """Upload times in ms."""
    return np.asarray(batch.column(UPLOAD_TIME).cast(pa.int64()))


def _places(batch: pa.RecordBatch, rows: npt.NDArray[np.int64]) -> list[Place]:
    times, partitions, offsets = (batch.column(name).take(pa.array(rows)) for name in SORTED_BY)
    return list(
        zip(
            times.cast(pa.int64()).to_pylist(),
            partitions.to_pylist(),
            offsets.to_pylist(),
            strict=True,
        )
    )


def _between(batch: pa.RecordBatch, low: Place | None, high: Place | None) -> pa.RecordBatch:
    """A copy of the rows at or after the one, and before the other."""
    times, inside = _times(batch), np.ones(batch.num_rows, dtype=bool)
    for bound, wanted in ((low, False), (high, True)):
        if bound is not None:
            before = times < bound[0]
            same = np.flatnonzero(times == bound[0])
            before[same] = [place < bound for place in _places(batch, same)]
            inside &= before == wanted
    return pc.filter(batch, pa.array(inside), memory_pool=POOL)
