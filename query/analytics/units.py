"""Units (users, or users with a value) that questions look at one by one: numbered, with their
events in order of time.

Numbers come from a table of 64-bit hashes, seeded per process, and are checked against the values:
two values never share a number.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import polars as pl

from forebay.storage.base.compiled import compiled
from forebay.storage.formats.hashes import I64

SLOTS = 1 << 17
"""Size of the first table that is tried."""
DENSE = 4
"""Rows are counted in an array if it has at most this many cells per row."""
_SEED = int.from_bytes(os.urandom(8), "little")


@compiled
def _codes(hashes: Any, keys: Any, codes: Any, firsts: Any) -> int:
    """Number the hashes in order of their first row, set in `firsts`; return how many there are, or
    -1 if `firsts` is full. `keys`, a table twice as long, has hashes and their numbers from 1."""
    mask, count = np.uint64(len(keys) - 1), 0
    for i in range(len(hashes)):
        slot = np.int64(hashes[i] & mask)
        while keys[slot, 1] != 0 and keys[slot, 0] != hashes[i]:
            slot = (slot + 1) & np.int64(mask)
        if keys[slot, 1] == 0:
            if count == len(firsts):
                return -1
            firsts[count] = i
            count += 1
            keys[slot, 0] = hashes[i]
            keys[slot, 1] = count
        codes[i] = np.int64(keys[slot, 1]) - 1
    return count


@compiled
def place(values: Any, low: int, high: int, value: int) -> int:
    """The first index from `low` to `high` of an ascending value that is not below `value`.
    (numpy's search takes seconds to compile.)"""
    while low < high:
        middle = (low + high) // 2
        if values[middle] < value:
            low = middle + 1
        else:
            high = middle
    return low


@compiled
def order(codes: I64, times: I64, count: int) -> I64:
    """The rows by code (below `count`), then time; in input order where both are equal.

    Counting sort, then Shell sort (Knuth's gaps) in each unit: its events mostly are in order."""
    ends = np.zeros(count + 1, dtype=np.int64)
    for i in range(len(codes)):
        ends[codes[i] + 1] += 1
    for code in range(count):
        ends[code + 1] += ends[code]
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


def number(units: pl.DataFrame) -> tuple[I64, I64]:
    """A number from 0 for each row, the same for the same values; and the first row of each."""
    hashes = units.hash_rows(seed=_SEED).to_numpy()
    codes, slots, count = np.empty(len(hashes), np.int64), SLOTS, -1
    while count < 0:  # a table that fits the caches is worth some retries
        firsts = np.empty(slots // 2, np.int64)
        count = _codes(hashes, np.zeros((slots, 2), np.uint64), codes, firsts)
        slots *= 8
    firsts = firsts[:count].copy()
    if units.equals(units[firsts][codes]):
        return codes, firsts
    ranks = units.select(pl.struct(pl.all()).rank("dense")).to_series().to_numpy()
    _, firsts = np.unique(ranks, return_index=True)
    return ranks.astype(np.int64) - 1, firsts  # two values share a hash


def ordered(units: pl.DataFrame, times: I64) -> tuple[I64, I64]:
    """The rows by unit (a distinct row of `units`), then time (in input order if equal); and the
    numbers of their units."""
    codes, firsts = number(units)
    rows = order(codes, times, len(firsts))
    return rows, codes[rows]


def tallied(rows: pl.DataFrame, buckets: int) -> pl.DataFrame:
    """How many `events` each `user` (a number now) has in each `group` and `bucket` that has any;
    all buckets are below `buckets`."""
    users, firsts = number(rows.select("user"))
    groups, named = np.zeros(rows.height, np.int64), np.zeros(1, np.int64)
    if rows["group"].null_count() < rows.height:
        groups, named = number(rows.select("group"))
    shape = len(named), buckets, max(1, len(firsts))
    if np.prod(shape, dtype=float) > DENSE * rows.height:
        coded = rows.with_columns(user=pl.Series(users))
        return coded.group_by("user", "group", "bucket").agg(events=pl.len())
    cells = (groups * buckets + rows["bucket"].to_numpy()) * shape[2] + users
    counts = np.bincount(cells, minlength=1)
    found = np.flatnonzero(counts)
    group, bucket, user = np.unravel_index(found, shape)
    return pl.DataFrame(
        {
            "user": user, "group": rows["group"][named[group]],
            "bucket": bucket.astype(np.int32), "events": counts[found],
        }
    )  # fmt: skip
