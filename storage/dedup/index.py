"""The dedup index: which rows of a block have this 64-bit hash?

An open-addressing table with linear probing, vectorised over a batch and compiled with numba. It
holds 12 bytes a slot (hash, row number) and is kept between 53 % and 80 % full, so a key costs 15
to 22.5 bytes. It only ever answers with candidates: `KeySet` confirms every hit on the full key, so
two keys with one hash are both kept and neither is dropped.

Keys come from clients, who may aim at one hash or one slot. So a partition's index hashes by
SipHash under a seed of its own (`KeyHash`); a slot is the hash times a random number of this
process (multiply-shift: Dietzfelbinger et al., 1997); and at most SAME_MAX rows of one hash have
slots: the caller must find the others.

`hash_keys` is stable across processes and versions, since `hash_partitions` routes by it: each
value's bytes are taken eight at a time, little-endian and zero-padded, folded as
h = (h ^ word) * K1; h ^= h >> 32, starting from the byte length times K2, and finished with
the finaliser of MurmurHash3 (Austin Appleby, public domain). Columns are chained in order.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt

from forebay.storage.base.compiled import compiled
from forebay.storage.formats.hashes import I64, U64

_LOAD_MAX = 0.80
_GROWTH = 1.5
_SLOTS_MIN = 64
SAME_MAX = 64
"""Rows of one hash in an index."""
_CROWDED_BYTES = 40
"""What a row in a crowd takes, about."""
_SPREAD = np.uint64(int.from_bytes(os.urandom(8), "little") | 1)


@compiled
def _home(h: Any, spread: Any, capacity: Any) -> Any:
    return np.int64((((h * spread) >> np.uint64(32)) * capacity) >> np.uint64(32))


@compiled
def _find(table: Any, rows: Any, spread: Any, hashes: Any, slots: Any, found: Any) -> int:
    """From each slot (or home, if -1) go to the next entry with that hash; -1 if there is none."""
    capacity = np.uint64(len(table))
    hits = 0
    for i in range(len(hashes)):
        h = hashes[i]
        if slots[i] < 0:
            slot = _home(h, spread, capacity)
        else:
            slot = slots[i] + 1
            if slot == len(table):
                slot = 0
        found[i] = -1
        while table[slot] != 0:
            if table[slot] == h:
                found[i] = rows[slot]
                hits += 1
                break
            slot += 1
            if slot == len(table):
                slot = 0
        slots[i] = slot
    return hits


@compiled
def _insert(table: Any, rows: Any, spread: Any, hashes: Any, row: Any, left_out: Any) -> int:
    """Rows `row`, `row` + 1, …; those whose hash has SAME_MAX rows already are written to
    `left_out` (as indexes into `hashes`). Returns how many."""
    capacity = np.uint64(len(table))
    count = 0
    for i in range(len(hashes)):
        h = hashes[i]
        slot = _home(h, spread, capacity)
        same = 0
        while table[slot] != 0:
            if table[slot] == h:
                same += 1
            slot += 1
            if slot == len(table):
                slot = 0
        if same >= SAME_MAX:
            left_out[count] = i
            count += 1
            continue
        table[slot] = h
        rows[slot] = row + i
    return count


@compiled
def _rehash(old_table: Any, old_rows: Any, spread: Any, table: Any, rows: Any) -> None:
    capacity = np.uint64(len(table))
    for i in range(len(old_table)):
        h = old_table[i]
        if h != 0:
            slot = _home(h, spread, capacity)
            while table[slot] != 0:
                slot += 1
                if slot == len(table):
                    slot = 0
            table[slot] = h
            rows[slot] = old_rows[i]


@compiled
def _find_earlier(hashes: Any, table: Any, found: Any) -> None:
    mask = np.uint64(len(table) - 1)
    for i in range(len(hashes)):
        slot = np.int64((hashes[i] >> np.uint64(32)) & mask)
        found[i] = -1
        while table[slot] != 0:
            row = table[slot] - 1
            if hashes[row] == hashes[i]:
                found[i] = row
                break
            slot = (slot + 1) & np.int64(mask)
        if table[slot] == 0:
            table[slot] = i + 1


def find_earlier(hashes: U64) -> I64:
    """For each row the first row of the batch with the same hash, or -1 if that is itself."""
    found: I64 = np.empty(len(hashes), dtype=np.int64)
    table = np.zeros(1 << (2 * len(hashes) + 1).bit_length(), dtype=np.int32)
    _find_earlier(hashes, table, found)
    return found


class DedupIndex:
    """Hash to row numbers of one block. `crowds` has the rows that got no slot, by their hash, in
    order. Thread safety: one thread at a time."""

    def __init__(self, expected: int = 0) -> None:
        slots = max(_SLOTS_MIN, int(expected / _LOAD_MAX) + 1)
        self._table: U64 = np.zeros(slots, dtype=np.uint64)
        self._rows: npt.NDArray[np.uint32] = np.zeros(slots, dtype=np.uint32)
        self._count = 0
        self._crowded = 0
        self.crowds: dict[int, list[int]] = {}

    def __len__(self) -> int:
        return self._count

    @property
    def nbytes(self) -> int:
        return self._table.nbytes + self._rows.nbytes + self._crowded * _CROWDED_BYTES

    def insert(self, hashes: U64) -> None:
        """Add rows len(self), len(self) + 1, ... with these hashes."""
        self._grow(self._count + len(hashes))
        left_out: I64 = np.empty(len(hashes), dtype=np.int64)
        table, rows = self._table, self._rows
        count = _insert(table, rows, _SPREAD, hashes, self._count, left_out)
        for i in left_out[:count].tolist():
            self.crowds.setdefault(int(hashes[i]), []).append(self._count + i)
        self._crowded += count
        self._count += len(hashes)

    def find(self, hashes: U64, slots: I64) -> tuple[int, I64]:
        """Number of hits, and for each hash a row that has it or -1.

        `slots` starts as -1 and is moved on, so the next call gives the next candidate; after
        SAME_MAX calls there is none.
        """
        found: I64 = np.empty(len(hashes), dtype=np.int64)
        return _find(self._table, self._rows, _SPREAD, hashes, slots, found), found

    def _grow(self, count: int) -> None:
        slots = len(self._table)
        if count <= slots * _LOAD_MAX:
            return
        while count > slots * _LOAD_MAX:
            slots = int(slots * _GROWTH)
        table = np.zeros(slots, dtype=np.uint64)
        rows = np.zeros(slots, dtype=np.uint32)
        _rehash(self._table, self._rows, _SPREAD, table, rows)
        self._table, self._rows = table, rows
