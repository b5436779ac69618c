"""SipHash-1-3, compiled: a hash of bytes that no one can aim at without its 128-bit key.

Jean-Philippe Aumasson, Daniel J. Bernstein, "SipHash: a fast short-input PRF" (2012), with one
compression and three finalisation rounds, as Rust and Python use it for their tables.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from forebay.storage.base.compiled import compiled


@compiled
def word_at(data: Any, at: Any) -> Any:
    """The eight bytes from `at` on, little-endian."""
    return (
        np.uint64(data[at])
        | np.uint64(data[at + 1]) << np.uint64(8)
        | np.uint64(data[at + 2]) << np.uint64(16)
        | np.uint64(data[at + 3]) << np.uint64(24)
        | np.uint64(data[at + 4]) << np.uint64(32)
        | np.uint64(data[at + 5]) << np.uint64(40)
        | np.uint64(data[at + 6]) << np.uint64(48)
        | np.uint64(data[at + 7]) << np.uint64(56)
    )


@compiled
def siphash13(k0: Any, k1: Any, data: Any, start: Any, end: Any) -> Any:
    """The hash of the bytes [start, end) of `data` under the key (k0, k1), unsigned."""
    a, b = k0 ^ np.uint64(0x736F6D6570736575), k1 ^ np.uint64(0x646F72616E646F6D)
    c, d = k0 ^ np.uint64(0x6C7967656E657261), k1 ^ np.uint64(0x7465646279746573)
    at = start
    while at + 8 <= end:
        word = word_at(data, at)
        a, b, c, d = _round(a, b, c, d ^ word)
        a ^= word
        at += 8
    word = np.uint64(end - start) << np.uint64(56)
    shift = np.uint64(0)
    while at < end:
        word |= np.uint64(data[at]) << shift
        shift += np.uint64(8)
        at += 1
    a, b, c, d = _round(a, b, c, d ^ word)
    a ^= word
    return _finished(a, b, c, d)


@compiled
def siphash13_word(k0: Any, k1: Any, word: Any) -> Any:
    """The same of the eight bytes of `word`, little-endian."""
    a, b = k0 ^ np.uint64(0x736F6D6570736575), k1 ^ np.uint64(0x646F72616E646F6D)
    c, d = k0 ^ np.uint64(0x6C7967656E657261), k1 ^ np.uint64(0x7465646279746573)
    a, b, c, d = _round(a, b, c, d ^ word)
    a ^= word
    last = np.uint64(8) << np.uint64(56)
    a, b, c, d = _round(a, b, c, d ^ last)
    a ^= last
    return _finished(a, b, c, d)


@compiled
def _finished(a: Any, b: Any, c: Any, d: Any) -> Any:
    c ^= np.uint64(0xFF)
    for _ in range(3):
        a, b, c, d = _round(a, b, c, d)
    return a ^ b ^ c ^ d


@compiled
def _round(a: Any, b: Any, c: Any, d: Any) -> Any:
    a, c = a + b, c + d
    b, d = _turned(b, 13) ^ a, _turned(d, 16) ^ c
    a, c = _turned(a, 32) + d, c + b
    b, d = _turned(b, 17) ^ c, _turned(d, 21) ^ a
    return a, b, _turned(c, 32), d


@compiled
def _turned(word: Any, by: Any) -> Any:
    return (word << np.uint64(by)) | (word >> np.uint64(64 - by))
