"""Units, the users (or users with a value) that questions look at one by one: numbered, and their
events in order of time.

Numbers come from a table of 64-bit hashes under a seed of this process, and are confirmed on the
values: two values never have one number.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import polars as pl

from forebay.storage.base.compiled import compiled
from forebay.storage.formats.hashes import I64

_SEED = int.from_bytes(os.urandom(8), "little")


@compiled
def _codes(hashes: Any, table: Any, codes: Any, firsts: Any) -> int:
    """Number the hashes in order of their first row, which `firsts` has; how many there are."""
    mask, count = np.uint64(len(table) - 1), 0
    for i in range(len(hashes)):
        slot = np.int64(hashes[i] & mask)
        while table[slot] != 0 and hashes[firsts[table[slot] - 1]] != hashes[i]:
            slot = (slot + 1) & np.int64(mask)
        if table[slot] == 0:
            firsts[count] = i
            count += 1
            table[slot] = count
        codes[i] = table[slot] - 1
    return count


@compiled
def order(codes: I64, times: I64, count: int) -> I64:
    """The rows by code (below `count`), then time; as they came where both are the same.

    Counting sort, then Shell sort (Knuth's gaps) in each unit, whose events mostly are in order."""
    ends = np.zeros(count + 1, dtype=np.int64)
    for i in range(len(codes)):
        ends[codes[i] + 1] += 1
    ends = np.cumsum(ends)
    rows = np.empty(len(codes), dtype=np.int64)
    at = ends[:-1].copy()
    for i in range(len(codes)):
        rows[at[codes[i]]] = i
        at[codes[i]] += 1
    for unit in range(count):
        low, high = ends[unit], ends[unit + 1]
        gap = 1
        while 9 * gap < high - low:
            gap = 3 * gap + 1
        while gap:
            for i in range(low + gap, high):
                row, j = rows[i], i
                while j >= low + gap:
                    other = rows[j - gap]
                    if times[other] < times[row] or (times[other] == times[row] and other < row):
                        break
                    rows[j] = other
                    j -= gap
                rows[j] = row
            gap //= 3
    return rows


def number(units: pl.DataFrame) -> tuple[I64, int]:
    """A number from 0 for each row, the same for the same values, and how many there are."""
    hashes = units.hash_rows(seed=_SEED).to_numpy()
    table = np.zeros(1 << (2 * len(hashes) + 1).bit_length(), dtype=np.int32)
    codes, firsts = np.empty(len(hashes), np.int64), np.empty(len(hashes), np.int64)
    count = _codes(hashes, table, codes, firsts)
    if units.equals(units[firsts[codes]]):
        return codes, count
    ranks = units.select(pl.struct(pl.all()).rank("dense")).to_series().to_numpy()
    return ranks.astype(np.int64) - 1, int(ranks.max())  # two values have one hash


def ordered(units: pl.DataFrame, times: I64) -> tuple[I64, I64]:
    """The rows by unit, which is a distinct row of `units`, and then time (as they came at one
    time); and the numbers of their units."""
    codes, count = number(units)
    rows = order(codes, times, count)
    return rows, codes[rows]
