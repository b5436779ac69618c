"""The Bloom filters against sets: it misses nothing, and lets little through."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.storage.base.layout import BlockId
from forebay.storage.dedup.bloom import KEYS_MIN, BloomFilters
from forebay.storage.dedup.keys import KeySet
from forebay.storage.formats.hashes import I64, U64
from tests.partition import CONFIG, Partition, event

WINDOW_MS = 1_000


def hashes(numbers: range | list[int]) -> U64:
    """As good as random, never 0."""
    return np.array([(n + 1) * 0x9E3779B97F4A7C15 % 2**64 for n in numbers], dtype=np.uint64)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["begin", "add", "add", "add", "remove"]),
            st.integers(0, 5),
            st.integers(0, 200),
            st.integers(0, 400),
        ),
        max_size=40,
    )
)
def test_what_was_added_to_a_block_is_always_found_in_it(
    steps: list[tuple[str, int, int, int]],
) -> None:
    bloom, blocks, now_ms = BloomFilters(WINDOW_MS), dict[BlockId, set[int]](), 0
    for sequence, (what, which, low, step_ms) in enumerate(steps):
        now_ms += step_ms
        known = list(blocks)
        if what == "begin" or not known:
            block = BlockId(0, sequence)
            blocks[block] = set()
            bloom.begin(block, now_ms)
        elif what == "add":
            block = known[which % len(known)]
            blocks[block] |= set(range(low, low + 50))
            bloom.add(block, hashes(range(low, low + 50)))
        else:
            block = known[which % len(known)]
            del blocks[block]
            bloom.remove(block)
        masks = bloom.find(hashes(range(250)))
        assert masks.keys() == blocks.keys()
        for block, numbers in blocks.items():
            assert masks[block][sorted(numbers)].all()


def test_a_layer_lets_one_key_in_fifty_through_at_most() -> None:
    bloom, block = BloomFilters(WINDOW_MS), BlockId(0, 1)
    bloom.begin(block, 0)
    bloom.add(block, hashes(range(KEYS_MIN)))
    others = hashes(range(10**6, 10**6 + 100_000))
    assert bloom.find(others)[block].mean() < 0.02


def test_new_keys_are_looked_for_in_few_of_many_live_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that an event costs the same whatever the dedup window; in each of them it were 45."""
    config = replace(CONFIG, block_span_ms=1_000, dedup_window_ms=100_000)
    partition, asked, find = Partition(tmp_path, config).start(), 0, KeySet.find

    def counted(self: KeySet, hashes: U64, keys: pa.RecordBatch, rows: I64) -> I64:
        nonlocal asked
        asked += len(rows)
        return find(self, hashes, keys, rows)

    monkeypatch.setattr(KeySet, "find", counted)
    count = 3_000
    for low in range(0, count, 100):
        partition.append(*(event(n, n, 30 * n) for n in range(low, low + 100)))
    partition.append(*(event(count + n, n, 30 * n) for n in range(100)))
    partition.blocks.publish()
    manifest = partition.manifest()
    partition.files.close()
    assert (len(manifest.hot), manifest.counters.accepted) == (90, count)
    assert 100 <= asked < 3 * count


def test_new_keys_alone_keep_the_cache_within_its_bound(tmp_path: Path) -> None:
    """Though no block is looked into, which is when the least recently used went before."""
    config, cache_bytes = replace(CONFIG, dedup_window_ms=100_000), 400_000
    partition = Partition(tmp_path, config, cache_bytes=cache_bytes).start()
    for low in range(0, 20_000, 500):
        partition.append(*(event(n, n, n // 10) for n in range(low, low + 500)))
        partition.blocks.publish()
    partition.append(event(20_000, 20_000, 2_000))
    found = partition.cache.bytes
    partition.files.close()
    assert 0 < found <= cache_bytes
