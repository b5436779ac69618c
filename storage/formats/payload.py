"""Payload hashes: have two events of one key the same payload?

The payload is the declared columns without the dedup key, the upload time and the columns declared
volatile (what differs between copies of one event: when it was sent, the copy's own id). A row's
hash is the sum over its columns of hash(column's name, value); null adds nothing. So the order of
columns does not matter, and equal payloads have equal hashes. Never stored: what is on disk is
hashed again when it is needed. Two payloads that differ share a hash once in 2**64 pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from isal.isal_zlib import crc32

from forebay.storage.base.compiled import compiled
from forebay.storage.formats.hashes import K1, K2, U64, fold_bytes

_NO_BITS = np.zeros(0, np.uint8)


@compiled
def _mixed(h: Any) -> Any:
    h ^= h >> np.uint64(32)
    h *= K1
    return h ^ (h >> np.uint64(29))


@compiled
def _is_null(bits: Any, at: Any) -> Any:
    return len(bits) > 0 and not (bits[at >> 3] >> (at & 7)) & 1


@compiled
def _add_bytes(offsets: Any, data: Any, bits: Any, first: Any, seed: Any, out: Any) -> None:
    for i in range(len(out)):
        if _is_null(bits, first + i):
            continue
        at, end = offsets[i], offsets[i + 1]
        h = seed ^ (np.uint64(end - at) * K2)
        out[i] += _mixed(fold_bytes(h, data, at, end))


@compiled
def _add_words(words: Any, bits: Any, first: Any, seed: Any, out: Any) -> None:
    for i in range(len(out)):
        if not _is_null(bits, first + i):
            out[i] += _mixed(_mixed(words[i] ^ seed) + seed)


def hash_payload(columns: pa.RecordBatch) -> U64:
    """One hash a row over all columns given; string, bool, 64-bit numbers and timestamps."""
    out: U64 = np.zeros(columns.num_rows, dtype=np.uint64)
    if not len(out):
        return out
    for name, column in zip(columns.schema.names, columns.columns, strict=True):
        first = np.int64(column.offset)
        validity = column.buffers()[0] if column.null_count else None
        bits = _NO_BITS if validity is None else np.frombuffer(validity, np.uint8)
        seed = np.uint64((crc32(name.encode()) + 1) * int(K2) % 2**64)
        if pa.types.is_string(column.type):
            _, offsets, data = column.buffers()
            bounds = np.frombuffer(offsets, np.int32)[first : first + len(column) + 1]
            text = np.frombuffer(data, np.uint8) if data else _NO_BITS
            _add_bytes(bounds, text, bits, first, seed, out)
        elif pa.types.is_boolean(column.type):
            words = column.fill_null(False).cast(pa.uint8()).to_numpy().astype(np.uint64)
            _add_words(words, bits, first, seed, out)
        else:
            words = np.frombuffer(column.buffers()[1], np.uint64)[first : first + len(column)]
            _add_words(words, bits, first, seed, out)
    return out


@dataclass(frozen=True)
class Payload:
    """The hashes of some rows over the columns `names`."""

    names: tuple[str, ...]
    hashes: U64


@dataclass(frozen=True)
class Probe:
    """The payload of a batch of events, over all payload columns or over fewer.

    Fewer, where it is compared with rows from before a column was declared.
    """

    columns: pa.RecordBatch
    hashes: U64

    @classmethod
    def of(cls, events: pa.RecordBatch, names: Sequence[str]) -> Probe:
        columns = events.select(list(names))
        return cls(columns, hash_payload(columns))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.columns.schema.names)

    def part(self, low: int, high: int) -> Probe:
        """Rows [low, high)."""
        return Probe(self.columns.slice(low, high - low), self.hashes[low:high])

    def over(self, names: tuple[str, ...]) -> U64:
        """The hashes of all rows over `names`, each of them one of the probe's own."""
        return (
            self.hashes if names == self.names else hash_payload(self.columns.select(list(names)))
        )
