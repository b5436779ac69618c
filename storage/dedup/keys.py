"""Key sets: exact membership of dedup keys in one block or chunk, within bounded memory.

A `KeySet` has a `DedupIndex` of hashes and, where memory allows, the keys themselves as Arrow
batches. A hit of the index is always confirmed on the full key; where more keys than an index takes
share a hash, a plain dict of keys decides. Keys for which there is no room in memory are read back
from where they are stored for good (a `KeySource`), so bounds cost time, never exactness. The
hashes of the rows' payloads (see `payload`) are kept beside the keys, if they are compared.

`KeyCache` is the one bound for all key sets of a worker: over the limit it releases the least
recently used keys and indexes. Rows not yet in a log (pending) are never released.
Thread safety: a cache and its key sets belong to one worker thread, except `KeySet.fetch`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from forebay.storage.dedup.index import DedupIndex, find_earlier
from forebay.storage.formats.columns import Mask, equal_rows
from forebay.storage.formats.hashes import I64, U64
from forebay.storage.formats.payload import Payload, Probe

Key = tuple[object, ...]


@dataclass(frozen=True)
class Stored:
    """A batch of keys as it is read back. `keys` are None if they are to be read only when
    needed."""

    place: Any
    hashes: U64
    keys: pa.RecordBatch | None = None


class KeySource(Protocol):
    """Where keys can be read back from, in row order, in batches that can be found again."""

    def batches(self) -> Iterator[Stored]:
        """Every batch."""

    def read(self, place: Any) -> pa.RecordBatch:
        """The batch at one place."""

    def payload(self, place: Any) -> Payload:
        """The payload of that batch's rows, over those of its columns that are stored there."""


class KeyCache:
    """Bounds what key sets hold. Sizes in bytes.

    Keys are released before indexes: they are needed only where an index has a hit, an index for
    every event, and rebuilding one takes all hashes of the block, or its whole log.
    """

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.bytes = 0
        self._keys: OrderedDict[tuple[KeySet, int], int] = OrderedDict()
        self._indexes: OrderedDict[tuple[KeySet, int], int] = OrderedDict()

    def hold(self, keys: KeySet, part: int, size: int) -> None:
        """Note that part `part` of `keys` (a batch, or INDEX) was just used and has `size`."""
        self.forget(keys, part)
        self._of(part)[keys, part] = size
        self.bytes += size

    @property
    def has_room(self) -> bool:
        """Whether another index would fit, if it is as large as the largest."""
        sizes = self._indexes.values()
        return sum(sizes) + max(sizes, default=0) <= self.bytes_max

    def trim(self) -> None:
        """Release the least recently used until the bound holds. No key set may be in use."""
        for entries, kept in ((self._keys, 0), (self._indexes, 1)):
            while self.bytes > self.bytes_max and len(entries) > kept:
                (owner, old), freed = entries.popitem(last=False)
                self.bytes -= freed
                owner.release(old)

    def forget(self, keys: KeySet, part: int) -> None:
        self.bytes -= self._of(part).pop((keys, part), 0)

    def _of(self, part: int) -> OrderedDict[tuple[KeySet, int], int]:
        return self._indexes if part == INDEX else self._keys


INDEX = -1
KNOWN_KEY_BYTES = 400
"""What a key takes as a Python value in a dict, about, besides its text."""
_NONE: U64 = np.zeros(0, dtype=np.uint64)


@dataclass
class _Crowd:
    """Keys of one hash, beyond those in the index: the first `done` of its crowd's rows."""

    rows: dict[Key, int] = field(default_factory=dict)
    done: int = 0
    bytes: int = 0


@dataclass
class _Part:
    """Rows that follow one another: pending, or a batch of the source, at `place`, from which keys
    and payload are read back where they are None. `hashes` are those of pending rows."""

    rows: int
    keys: pa.RecordBatch | None
    payload: Payload | None
    place: Hashable = None
    hashes: U64 = field(default_factory=lambda: _NONE)


class KeySet:
    """The dedup keys of one block or of one interval of a chunk."""

    def __init__(self, source: KeySource, cache: KeyCache) -> None:
        self._source = source
        self._cache = cache
        self._index: DedupIndex | None = None
        self._settled: list[_Part] = []
        self._pending: list[_Part] = []
        self._crowds: dict[int, _Crowd] = {}

    @classmethod
    def empty(cls, source: KeySource, cache: KeyCache) -> KeySet:
        """A key set that is known to hold nothing yet, so that nothing is read."""
        keys = cls(source, cache)
        keys._index = DedupIndex()
        return keys

    def add(self, keys: pa.RecordBatch, hashes: U64, payload: Payload | None = None) -> None:
        """Append rows that are not in the log yet."""
        self._pending.append(_Part(len(hashes), keys, payload, hashes=hashes))
        if self._index is not None:
            self._index.insert(hashes)

    def settle(self, place: Hashable) -> U64:
        """All pending rows are now one batch of the source, at `place`. Returns their hashes."""
        parts, self._pending = self._pending, []
        hashes = np.concatenate([part.hashes for part in parts])
        if self._index is not None:
            keys = pa.concat_batches([part.keys for part in parts])
            payload = _joined([part.payload for part in parts])
            self._append(_Part(len(hashes), keys, payload, place))
            self._hold_index()
        return hashes

    def find(self, hashes: U64, keys: pa.RecordBatch, asked: I64) -> I64:
        """For each of the rows `asked` of `keys`, with its hash in `hashes`: the row of this set
        that has the same key, or -1."""
        index = self._ready()
        result: I64 = np.full(len(hashes), -1, dtype=np.int64)
        slots: I64 = np.full(len(hashes), -1, dtype=np.int64)
        todo = np.arange(len(hashes))
        while len(todo):
            hits, rows = index.find(hashes[todo], slots)
            if not hits:
                break
            hit = rows >= 0
            todo, slots, rows = todo[hit], slots[hit], rows[hit]
            same = self._same(rows, keys.take(pa.array(asked[todo])))
            result[todo[same]] = rows[same]
            todo, slots = todo[~same], slots[~same]
        if index.crowds:
            self._find_in_crowds(index.crowds, hashes, keys.take(pa.array(asked)), result)
        self._cache.trim()
        return result

    def _find_in_crowds(
        self, crowds: dict[int, list[int]], hashes: U64, keys: pa.RecordBatch, result: I64
    ) -> None:
        """Complete the `result` of `find` for keys with a hash that many others have."""
        among = np.isin(hashes, np.fromiter(crowds, np.uint64, len(crowds)))
        todo = np.flatnonzero(among & (result < 0))
        for at, key in zip(todo.tolist(), key_tuples(keys.take(pa.array(todo))), strict=True):
            hash = int(hashes[at])
            result[at] = self._crowd(hash, crowds[hash]).get(key, -1)

    def _crowd(self, hash: int, rows: list[int]) -> dict[Key, int]:
        """The keys of these rows, all of one hash."""
        crowd = self._crowds.setdefault(hash, _Crowd())
        if new := rows[crowd.done :]:
            for owner, at, local in self._by_owner(np.array(new, dtype=np.int64)):
                keys = self._batch(owner).take(pa.array(local))
                crowd.rows.update(zip(key_tuples(keys), (new[i] for i in at.tolist()), strict=True))
                crowd.bytes += keys.nbytes + len(local) * KNOWN_KEY_BYTES
            crowd.done = len(rows)
            self._hold_index()
        return crowd.rows

    def differs(self, rows: I64, probe: Probe, probed: I64) -> Mask:
        """For each of this set's `rows`, whether its payload differs from that of the row of
        `probe` that `probed` has beside it. Rows are those that `find` has just returned."""
        self._ready()
        result: Mask = np.zeros(len(rows), dtype=bool)
        for owner, at, local in self._by_owner(rows):
            stored = self._payload(owner)
            result[at] = stored.hashes[local] != probe.over(stored.names)[probed[at]]
        self._cache.trim()
        return result

    def release(self, part: int) -> None:
        """Release a batch of keys or the whole index; it is read back when needed."""
        if part == INDEX:
            for ordinal in range(len(self._settled)):
                self._cache.forget(self, ordinal)
            self._index, self._settled, self._crowds = None, [], {}
        else:
            self._settled[part].keys = self._settled[part].payload = None

    def close(self) -> None:
        """Give all memory back."""
        self._cache.forget(self, INDEX)
        self.release(INDEX)

    @property
    def loaded(self) -> bool:
        """Whether keys would be found without reading."""
        return self._index is not None

    def fetch(self) -> tuple[DedupIndex, list[Stored]]:
        """Read what is in the source, and index it with what is pending. A separate thread may do
        this, if no one else uses this set meanwhile."""
        batches = list(self._source.batches())
        pending = (part.hashes for part in self._pending)
        hashes = [_NONE, *(batch.hashes for batch in batches), *pending]
        rows = np.concatenate(hashes)
        index = DedupIndex(len(rows))
        index.insert(rows)
        return index, batches

    def load(self, index: DedupIndex, batches: Iterable[Stored]) -> None:
        """Take in what was fetched."""
        self._index = index
        for batch in batches:
            self._append(_Part(len(batch.hashes), batch.keys, None, batch.place))
        self._hold_index()

    def _ready(self) -> DedupIndex:
        if self._index is None:
            index, batches = self.fetch()
            self.load(index, batches)
            return index
        self._hold_index()
        return self._index

    def _hold_index(self) -> None:
        if self._index is not None:
            crowds = sum(crowd.bytes for crowd in self._crowds.values())
            self._cache.hold(self, INDEX, self._index.nbytes + crowds)

    def _append(self, part: _Part) -> None:
        self._settled.append(part)
        self._hold(len(self._settled) - 1)

    def _hold(self, ordinal: int) -> None:
        part = self._settled[ordinal]
        size = part.keys.nbytes if part.keys is not None else 0
        size += part.payload.hashes.nbytes if part.payload is not None else 0
        if size:
            self._cache.hold(self, ordinal, size)

    def _by_owner(self, rows: I64) -> Iterator[tuple[int, I64, I64]]:
        """For each batch that has any of `rows`: its ordinal, where in `rows` its rows are, and
        which rows of the batch they are."""
        parts = (*self._settled, *self._pending)
        starts = np.cumsum([0, *(part.rows for part in parts)], dtype=np.int64)[:-1]
        owners = np.searchsorted(starts, rows, side="right") - 1
        order = np.argsort(owners, kind="stable")
        owners = owners[order]
        bounds = np.flatnonzero(np.diff(owners, prepend=-1, append=-1))
        for low, high in pairwise(bounds):
            owner, at = int(owners[low]), order[low:high]
            yield owner, at, rows[at] - starts[owner]

    def _same(self, rows: I64, probes: pa.RecordBatch) -> Mask:
        """Whether the stored key at each row equals the probe beside it."""
        stored, places = [], []
        for owner, at, local in self._by_owner(rows):
            stored.append(self._batch(owner).take(pa.array(local)))
            places.append(at)
        order = np.concatenate(places)
        same = equal_rows(pa.concat_batches(stored), probes.take(pa.array(order)))
        result: Mask = np.empty(len(rows), dtype=bool)
        result[order] = same
        return result

    def _batch(self, ordinal: int) -> pa.RecordBatch:
        if ordinal >= len(self._settled):
            return self._pending[ordinal - len(self._settled)].keys
        part = self._settled[ordinal]
        if part.keys is None:
            part.keys = self._source.read(part.place)
        self._hold(ordinal)
        return part.keys

    def _payload(self, ordinal: int) -> Payload:
        if ordinal >= len(self._settled):
            payload = self._pending[ordinal - len(self._settled)].payload
            if payload is None:
                raise AssertionError("bug: payloads are compared and were not given")
            return payload
        part = self._settled[ordinal]
        if part.payload is None:
            part.payload = self._source.payload(part.place)
        self._hold(ordinal)
        return part.payload


def _joined(payloads: Sequence[Payload | None]) -> Payload | None:
    """The payloads of one batch after the other, all over the same columns; None if not known."""
    known = [payload for payload in payloads if payload is not None]
    if len(known) < len(payloads) or not known:
        return None
    return Payload(known[0].names, np.concatenate([payload.hashes for payload in known]))


def key_tuples(keys: pa.RecordBatch) -> list[Key]:
    """The keys as Python values; times as numbers, because any 64 bits are a number."""
    columns = [
        column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column
        for column in keys.columns
    ]
    return list(zip(*(column.to_pylist() for column in columns), strict=True))


def earlier_rows(hashes: U64, keys: pa.RecordBatch, rows: I64) -> I64:
    """For each of `rows` of `keys`, with its hash in `hashes`: which earlier one of `rows` is the
    first to have the same key (as an index into `rows`), or -1."""
    earlier = find_earlier(hashes)
    again = np.flatnonzero(earlier >= 0)
    if len(again):
        mine, theirs = rows[again], rows[earlier[again]]
        same = equal_rows(keys.take(pa.array(mine)), keys.take(pa.array(theirs)))
        if not same.all():
            return _earlier_one_by_one(keys.take(pa.array(rows)))
    return earlier


def _earlier_one_by_one(keys: pa.RecordBatch) -> I64:
    """The same by a plain table: for the rare batch in which two keys share a hash."""
    seen: dict[Key, int] = {}
    result: I64 = np.full(keys.num_rows, -1, dtype=np.int64)
    for row, key in enumerate(key_tuples(keys)):
        first = seen.setdefault(key, row)
        if first != row:
            result[row] = first
    return result
