"""Bloom filters: in which live blocks may a key with this hash be?

One lookup in a layer replaces a lookup in the index of each of its blocks, so an event costs about
the same whatever the number of live blocks. A layer is a blocked Bloom filter: a key sets three
bits of one 64-bit word, of which there is one for each WORD_KEYS keys that the layer is made for.
(Felix Putze, Peter Sanders, Johannes Singler, "Cache-, Hash- and Space-Efficient Bloom Filters",
2007.) With more keys than that, false positives become more frequent.

What always holds: the mask of a block has every row whose hash was added to the block. A block
belongs to one layer, the newest when it was opened; a layer takes blocks for a quarter of the dedup
window, or until it is full, and goes with the last of them. Takes 2 to 8 bytes a key.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from forebay.storage.base.compiled import compiled
from forebay.storage.base.layout import BlockId
from forebay.storage.formats.columns import Mask
from forebay.storage.formats.hashes import U64

WORD_KEYS = 4
KEYS_MIN, KEYS_MAX = 1 << 14, 1 << 24
LAYERS = 4


@compiled
def _bits(h: Any) -> Any:
    one = np.uint64(1)
    low = np.uint64(63)
    first, second = (h >> np.uint64(58)) & low, (h >> np.uint64(52)) & low
    return (one << first) | (one << second) | (one << ((h >> np.uint64(46)) & low))


@compiled
def _add(words: Any, hashes: Any) -> None:
    mask = np.uint64(len(words) - 1)
    for i in range(len(hashes)):
        words[hashes[i] & mask] |= _bits(hashes[i])


@compiled
def _look(words: Any, hashes: Any, found: Any) -> None:
    mask = np.uint64(len(words) - 1)
    for i in range(len(hashes)):
        bits = _bits(hashes[i])
        if words[hashes[i] & mask] & bits == bits:
            found[i] = True


@dataclass
class _Layer:
    words: U64
    since_ms: int
    keys: int = 0
    blocks: set[BlockId] = field(default_factory=set)

    @property
    def full(self) -> bool:
        return self.keys >= WORD_KEYS * len(self.words)


class BloomFilters:
    """Thread safety: one thread at a time."""

    def __init__(self, window_ms: int) -> None:
        self._span_ms = max(1, window_ms // LAYERS)
        self._layers: list[_Layer] = []

    def begin(self, block: BlockId, stream_ms: int) -> None:
        """The block is open, and empty."""
        layer = self._layers[-1] if self._layers else None
        if layer is None or layer.full or stream_ms - layer.since_ms >= self._span_ms:
            most = max((layer.keys for layer in self._layers), default=0)
            keys = min(max(2 * most, KEYS_MIN), KEYS_MAX)
            words = 1 << (keys // WORD_KEYS - 1).bit_length()
            layer = _Layer(np.zeros(words, dtype=np.uint64), stream_ms)
            self._layers.append(layer)
        layer.blocks.add(block)

    def add(self, block: BlockId, hashes: U64) -> None:
        """Keys with these hashes are in the block from now on; nothing if it was never begun."""
        for layer in self._layers:
            if block in layer.blocks:
                _add(layer.words, hashes)
                layer.keys += len(hashes)

    def find(self, hashes: U64) -> dict[BlockId, Mask]:
        """For each block that was begun, which of the hashes may belong to keys in it."""
        masks: dict[BlockId, Mask] = {}
        for layer in self._layers:
            found: Mask = np.zeros(len(hashes), dtype=bool)
            _look(layer.words, hashes, found)
            masks |= dict.fromkeys(layer.blocks, found)
        return masks

    def remove(self, block: BlockId) -> None:
        for layer in self._layers:
            layer.blocks.discard(block)
        self._layers = [layer for layer in self._layers if layer.blocks]
