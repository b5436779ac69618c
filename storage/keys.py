"""Key sets: exact membership of dedup keys in one block or chunk, within bounded memory.

A `KeySet` has a `DedupIndex` of hashes and, where memory allows, the keys themselves as Arrow
batches. A hit of the index is always confirmed on the full key. What memory does not allow is read
back from where the keys are stored for good (a `KeySource`), so bounds cost time, never exactness.

`KeyCache` is the one bound for all key sets of a worker: over the limit it lets go of the least
recently used keys and indexes. Rows not yet in a log (pending) are never let go.
Thread safety: a cache and its key sets belong to one worker thread.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from storage.index import I64, U64, DedupIndex, find_earlier, hash_keys

Hash = Callable[[Sequence[pa.Array]], U64]
Mask = npt.NDArray[np.bool_]


class KeySource(Protocol):
    """Where keys can be read back from, in row order, in batches that can be found again."""

    def batches(self) -> Iterator[tuple[Hashable, pa.RecordBatch]]:
        """Every batch of key columns with its place."""

    def read(self, place: Any) -> pa.RecordBatch:
        """The batch at one place."""


class KeyCache:
    """Bounds what key sets hold. Sizes in bytes."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.bytes = 0
        self._entries: OrderedDict[tuple[KeySet, int], int] = OrderedDict()

    def hold(self, keys: KeySet, part: int, size: int) -> None:
        """Note that part `part` of `keys` (a batch, or INDEX) was just used and has `size`."""
        self.bytes += size - self._entries.pop((keys, part), 0)
        self._entries[keys, part] = size

    def trim(self) -> None:
        """Let go of the least recently used until the bound holds. No key set may be in use."""
        while self.bytes > self.bytes_max and len(self._entries) > 1:
            (owner, old), freed = self._entries.popitem(last=False)
            self.bytes -= freed
            owner.release(old)

    def forget(self, keys: KeySet, part: int) -> None:
        self.bytes -= self._entries.pop((keys, part), 0)


INDEX = -1


class KeySet:
    """The dedup keys of one block or of one interval of a chunk."""

    def __init__(self, source: KeySource, cache: KeyCache, hash_keys: Hash = hash_keys) -> None:
        self._hash = hash_keys
        self._source = source
        self._cache = cache
        self._index: DedupIndex | None = None
        self._starts: list[int] = []
        self._places: list[Hashable] = []
        self._keys: list[pa.RecordBatch | None] = []
        self._settled = 0
        self._pending: list[pa.RecordBatch] = []
        self._pending_hashes: list[U64] = []

    @classmethod
    def empty(cls, source: KeySource, cache: KeyCache, hash_keys: Hash = hash_keys) -> KeySet:
        """A key set that is known to hold nothing yet, so that nothing is read."""
        keys = cls(source, cache, hash_keys)
        keys._index = DedupIndex()
        return keys

    def add(self, keys: pa.RecordBatch, hashes: U64) -> None:
        """Append rows that are not in the log yet."""
        self._pending.append(keys)
        self._pending_hashes.append(hashes)
        if self._index is not None:
            self._index.insert(hashes)

    def settle(self, place: Hashable) -> None:
        """All pending rows are now one batch of the source, at `place`."""
        batch = pa.concat_batches(self._pending)
        self._pending, self._pending_hashes = [], []
        if self._index is not None:
            self._append(place, batch)
            self._cache.hold(self, INDEX, self._index.nbytes)

    def contains(self, hashes: U64, keys: pa.RecordBatch) -> Mask:
        """For each row of `keys`, whether this set has the same key."""
        index = self._load()
        result: Mask = np.zeros(len(hashes), dtype=bool)
        slots: I64 = np.full(len(hashes), -1, dtype=np.int64)
        todo = np.arange(len(hashes))
        while len(todo):
            hits, rows = index.find(hashes[todo], slots)
            if not hits:
                break
            hit = rows >= 0
            todo, slots, rows = todo[hit], slots[hit], rows[hit]
            same = self._same(rows, keys.take(pa.array(todo)))
            result[todo[same]] = True
            todo, slots = todo[~same], slots[~same]
        self._cache.trim()
        return result

    def release(self, part: int) -> None:
        """Let go of a batch of keys or of the whole index; it is read back when needed."""
        if part == INDEX:
            for ordinal in range(len(self._keys)):
                self._cache.forget(self, ordinal)
            self._index = None
            self._starts, self._places, self._keys, self._settled = [], [], [], 0
        else:
            self._keys[part] = None

    def close(self) -> None:
        """Give all memory back."""
        self._cache.forget(self, INDEX)
        self.release(INDEX)

    def _load(self) -> DedupIndex:
        if self._index is None:
            index = self._index = DedupIndex()
            for place, batch in self._source.batches():
                index.insert(self._hash(batch.columns))
                self._append(place, batch)
            for hashes in self._pending_hashes:
                index.insert(hashes)
        self._cache.hold(self, INDEX, self._index.nbytes)
        return self._index

    def _append(self, place: Hashable, batch: pa.RecordBatch) -> None:
        self._starts.append(self._settled)
        self._places.append(place)
        self._keys.append(batch)
        self._settled += batch.num_rows
        self._cache.hold(self, len(self._keys) - 1, batch.nbytes)

    def _same(self, rows: I64, probes: pa.RecordBatch) -> Mask:
        """Whether the stored key at each row equals the probe beside it."""
        pending_starts = self._settled + np.cumsum([0, *(b.num_rows for b in self._pending)])
        starts = np.concatenate((np.array(self._starts, dtype=np.int64), pending_starts[:-1]))
        owners = np.searchsorted(starts, rows, side="right") - 1
        order = np.argsort(owners, kind="stable")
        owners, rows = owners[order], rows[order]
        bounds = np.flatnonzero(np.diff(owners, prepend=-1, append=-1))
        stored = [
            self._batch(int(owners[low])).take(pa.array(rows[low:high] - starts[owners[low]]))
            for low, high in pairwise(bounds)
        ]
        same = equal_rows(pa.concat_batches(stored), probes.take(pa.array(order)))
        result: Mask = np.empty(len(rows), dtype=bool)
        result[order] = same
        return result

    def _batch(self, ordinal: int) -> pa.RecordBatch:
        if ordinal >= len(self._keys):
            return self._pending[ordinal - len(self._keys)]
        batch = self._keys[ordinal]
        if batch is None:
            batch = self._keys[ordinal] = self._source.read(self._places[ordinal])
        self._cache.hold(self, ordinal, batch.nbytes)
        return batch


def equal_rows(left: pa.RecordBatch, right: pa.RecordBatch) -> Mask:
    """Row by row equality of two batches of the same columns, without nulls."""
    result: Mask = np.ones(left.num_rows, dtype=bool)
    for mine, theirs in zip(left.columns, right.columns, strict=True):
        result &= pc.equal(mine, theirs).to_numpy(zero_copy_only=False)
    return result


def first_rows(hashes: U64, keys: pa.RecordBatch) -> Mask:
    """For each row, whether no earlier row of the batch has the same key."""
    earlier = find_earlier(hashes)
    again = np.flatnonzero(earlier >= 0)
    result: Mask = np.ones(len(hashes), dtype=bool)
    if len(again):
        same = equal_rows(keys.take(pa.array(again)), keys.take(pa.array(earlier[again])))
        if not same.all():
            return _first_rows_one_by_one(keys)
        result[again] = False
    return result


def _first_rows_one_by_one(keys: pa.RecordBatch) -> Mask:
    """The same by a plain set: for the rare batch in which two keys share a hash."""
    seen: set[tuple[object, ...]] = set()
    result: Mask = np.zeros(keys.num_rows, dtype=bool)
    for row, key in enumerate(zip(*(column.to_pylist() for column in keys.columns), strict=True)):
        result[row] = key not in seen
        seen.add(key)
    return result
