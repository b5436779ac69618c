"""Hashes of dedup keys, as hash files, drop logs and routing have them: 64 bits, never 0, stable.

Keys come from clients, who may aim at one hash. So a partition's keys are hashed by SipHash under a
seed of its own (`KeyHash`).

`hash_keys` is stable across processes and versions, since `hash_partitions` routes by it: each
value's bytes are taken eight at a time, little-endian and zero-padded, folded as
h = (h ^ word) * K1; h ^= h >> 32, starting from the byte length times K2, and finished with
the finaliser of MurmurHash3 (Austin Appleby, public domain). Columns are chained in order.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from forebay.storage.base.compiled import compiled
from forebay.storage.formats.siphash import siphash13, siphash13_word, word_at

U64 = npt.NDArray[np.uint64]


I64 = npt.NDArray[np.int64]
Hash = Callable[[Sequence[pa.Array]], U64]
"""One hash a row over key columns of equal length."""


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
        word = word_at(data, at)
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
def _seeded_bytes(k0: Any, k1: Any, offsets: Any, data: Any, out: Any) -> None:
    for i in range(len(out)):
        out[i] = siphash13(k0 ^ out[i], k1, data, offsets[i], offsets[i + 1])


@compiled
def _seeded_words(k0: Any, k1: Any, words: Any, out: Any) -> None:
    for i in range(len(out)):
        out[i] = siphash13_word(k0 ^ out[i], k1, words[i])


def hash_keys(columns: Sequence[pa.Array]) -> U64:
    """One 64-bit hash a row, never 0, over key columns of equal length and without nulls."""
    out: U64 = np.zeros(len(columns[0]), dtype=np.uint64)
    for column in columns:
        if pa.types.is_string(column.type):
            _hash_bytes(*_text(column), out)
        else:
            _hash_words(_words(column), out)
    out[out == 0] = 1
    return out


@dataclass(frozen=True)
class KeyHash:
    """The hash by which a partition's keys are indexed: as `hash_keys`, but under a secret `seed`
    of 32 hex digits, by SipHash-1-3, each column's hash mixed into the key for the next. Without a
    seed it is `hash_keys`. Stable: hash files and drop logs have it."""

    seed: str = ""

    def __call__(self, columns: Sequence[pa.Array]) -> U64:
        if not self.seed:
            return hash_keys(columns)
        out: U64 = np.zeros(len(columns[0]), dtype=np.uint64)
        k0, k1 = np.uint64(int(self.seed[:16], 16)), np.uint64(int(self.seed[16:], 16))
        for column in columns:
            if pa.types.is_string(column.type):
                _seeded_bytes(k0, k1, *_text(column), out)
            else:
                _seeded_words(k0, k1, _words(column), out)
        out[out == 0] = 1
        return out

    @classmethod
    def random(cls) -> KeyHash:
        return cls(os.urandom(16).hex())


def _text(column: pa.Array) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    """Offsets and bytes of a string column."""
    _, offsets, data = column.buffers()
    bounds = np.frombuffer(offsets, dtype=np.int32)
    text = np.frombuffer(data, dtype=np.uint8) if data else np.zeros(0, np.uint8)
    return bounds[column.offset : column.offset + len(column) + 1], text


def _words(column: pa.Array) -> U64:
    """The values of any other key column as 64 bits each."""
    values = column.cast(pa.int64()) if pa.types.is_boolean(column.type) else column
    words: U64 = values.to_numpy(zero_copy_only=False).view(np.uint64)
    return words
