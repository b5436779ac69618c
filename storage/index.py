"""The dedup index: which rows of a block have this 64-bit hash?

An open-addressing table with linear probing, vectorised over a batch and compiled with numba. It
holds 12 bytes a slot (hash, row number) and is kept between 53 % and 80 % full, so a key costs 15
to 22.5 bytes. It only ever answers with candidates: `KeySet` confirms every hit on the full key, so
two keys with one hash are both kept and neither is dropped.

Hashes are stable across processes and versions, since `hash_partitions` routes by them:
each value's bytes are taken eight at a time, little-endian and zero-padded, folded as
h = (h ^ word) * K1; h ^= h >> 32, starting from the byte length times K2, and finished with
the finaliser of MurmurHash3 (Austin Appleby, public domain). Columns are chained in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from storage.compiled import compiled

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]

_LOAD_MAX = 0.80
_GROWTH = 1.5
_SLOTS_MIN = 64
K1 = np.uint64(0x9E3779B97F4A7C15)
K2 = np.uint64(0xC2B2AE3D27D4EB4F)


@compiled
def _finish(h: Any) -> Any:
    h ^= h >> np.uint64(33)
    h *= np.uint64(0xFF51AFD7ED558CCD)
    h ^= h >> np.uint64(33)
    h *= np.uint64(0xC4CEB9FE1A85EC53)
    return h ^ (h >> np.uint64(33))


@compiled
def fold_bytes(h: Any, data: Any, at: Any, end: Any) -> Any:
    """`h` with the bytes [at, end) folded in, the last word not yet multiplied."""
    while at + 8 <= end:
        word = (
            np.uint64(data[at])
            | np.uint64(data[at + 1]) << np.uint64(8)
            | np.uint64(data[at + 2]) << np.uint64(16)
            | np.uint64(data[at + 3]) << np.uint64(24)
            | np.uint64(data[at + 4]) << np.uint64(32)
            | np.uint64(data[at + 5]) << np.uint64(40)
            | np.uint64(data[at + 6]) << np.uint64(48)
            | np.uint64(data[at + 7]) << np.uint64(56)
        )
        h = (h ^ word) * K1
        h ^= h >> np.uint64(32)
        at += 8
    word = np.uint64(0)
    shift = np.uint64(0)
    while at < end:
        word |= np.uint64(data[at]) << shift
        shift += np.uint64(8)
        at += 1
    return h ^ word


@compiled
def _hash_bytes(offsets: Any, data: Any, out: Any) -> None:
    for i in range(len(out)):
        start, end = offsets[i], offsets[i + 1]
        h = out[i] ^ (np.uint64(end - start) * K2)
        out[i] = _finish(fold_bytes(h, data, start, end) * K1)


@compiled
def _hash_words(words: Any, out: Any) -> None:
    for i in range(len(out)):
        out[i] = _finish((out[i] ^ words[i]) * K1)


@compiled
def _find(table: Any, rows: Any, hashes: Any, slots: Any, found: Any) -> int:
    """From each slot (or home, if -1) go to the next entry with that hash; -1 if there is none."""
    capacity = np.uint64(len(table))
    hits = 0
    for i in range(len(hashes)):
        h = hashes[i]
        if slots[i] < 0:
            slot = np.int64(((h >> np.uint64(32)) * capacity) >> np.uint64(32))
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
def _insert(table: Any, rows: Any, hashes: Any, row: Any) -> None:
    capacity = np.uint64(len(table))
    for i in range(len(hashes)):
        h = hashes[i]
        slot = np.int64(((h >> np.uint64(32)) * capacity) >> np.uint64(32))
        while table[slot] != 0:
            slot += 1
            if slot == len(table):
                slot = 0
        table[slot] = h
        rows[slot] = row + i


@compiled
def _rehash(old_table: Any, old_rows: Any, table: Any, rows: Any) -> None:
    capacity = np.uint64(len(table))
    for i in range(len(old_table)):
        h = old_table[i]
        if h != 0:
            slot = np.int64(((h >> np.uint64(32)) * capacity) >> np.uint64(32))
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


def hash_keys(columns: Sequence[pa.Array]) -> U64:
    """One 64-bit hash a row, never 0, over key columns of equal length and without nulls."""
    out: U64 = np.zeros(len(columns[0]), dtype=np.uint64)
    for column in columns:
        if pa.types.is_string(column.type):
            _, offsets, data = column.buffers()
            bounds = np.frombuffer(offsets, dtype=np.int32)[
                column.offset : column.offset + len(column) + 1
            ]
            payload = np.frombuffer(data, dtype=np.uint8) if data else np.zeros(0, np.uint8)
            _hash_bytes(bounds, payload, out)
        else:
            values = column.cast(pa.int64()) if pa.types.is_boolean(column.type) else column
            _hash_words(values.to_numpy(zero_copy_only=False).view(np.uint64), out)
    out[out == 0] = 1
    return out


class DedupIndex:
    """Hash to row numbers of one block. Thread safety: one thread at a time."""

    def __init__(self, expected: int = 0) -> None:
        slots = max(_SLOTS_MIN, int(expected / _LOAD_MAX) + 1)
        self._table: U64 = np.zeros(slots, dtype=np.uint64)
        self._rows: npt.NDArray[np.uint32] = np.zeros(slots, dtype=np.uint32)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def nbytes(self) -> int:
        return self._table.nbytes + self._rows.nbytes

    def insert(self, hashes: U64) -> None:
        """Add rows len(self), len(self) + 1, ... with these hashes."""
        self._grow(self._count + len(hashes))
        _insert(self._table, self._rows, hashes, self._count)
        self._count += len(hashes)

    def find(self, hashes: U64, slots: I64) -> tuple[int, I64]:
        """Number of hits, and for each hash a row that has it or -1.

        `slots` starts as -1 and is moved on, so the next call gives the next candidate.
        """
        found: I64 = np.empty(len(hashes), dtype=np.int64)
        return _find(self._table, self._rows, hashes, slots, found), found

    def _grow(self, count: int) -> None:
        slots = len(self._table)
        if count <= slots * _LOAD_MAX:
            return
        while count > slots * _LOAD_MAX:
            slots = int(slots * _GROWTH)
        table = np.zeros(slots, dtype=np.uint64)
        rows = np.zeros(slots, dtype=np.uint32)
        _rehash(self._table, self._rows, table, rows)
        self._table, self._rows = table, rows
