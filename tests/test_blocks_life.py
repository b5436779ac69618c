"""`blocks` and `chunks` of one partition under whatever hypothesis finds: any input, any cuts, any
crash, and readers at any moment, against the oracle.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.storage.formats.hashes import Hash
from tests.life import Life, Step, cut, few_or_many, hashes, produce, sizes
from tests.partition import BIG_CACHE, OpenDisk, Partition, assert_agrees, judge


@contextmanager
def fresh(**changes: object) -> Iterator[Partition]:
    """A partition in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        partition = replace(Partition(Path(folder), files=OpenDisk()), **changes)  # type: ignore[arg-type]
        try:
            yield partition
        finally:
            partition.files.close()


@given(few_or_many, sizes, st.sampled_from([1, 600, BIG_CACHE]), hashes)
def test_blocks_on_disk_agree_with_the_oracle_however_the_input_is_cut(
    many: list[Step], sizes: list[int], cache_bytes: int, hash: Hash | None
) -> None:
    messages = produce(many)
    oracle = judge(messages)
    with fresh(cache_bytes=cache_bytes, hash=hash, blocks_per_chunk=1_000) as partition:
        partition.start()
        for part in cut(messages, sizes):
            partition.append(*part)
            partition.blocks.publish()
        assert_agrees(partition, oracle)
        assert partition.by_block() == oracle.blocks()


@given(few_or_many, sizes, sizes, st.data())
def test_crash_and_replay_with_other_cuts_agree_with_the_oracle(
    many: list[Step], before: list[int], after: list[int], data: st.DataObject
) -> None:
    messages = produce(many)
    committed = data.draw(st.integers(0, len(messages)))
    with fresh(cache_bytes=data.draw(st.sampled_from([1, BIG_CACHE]))) as partition:
        partition.start()
        for part in cut(messages[:committed], before):
            partition.append(*part)
        snapshot = partition.blocks.snapshot()
        for part in cut(messages[committed:], before):
            partition.append(*part)
            partition.merge()
            partition.blocks.publish()
        partition.crash()
        partition.start(snapshot)
        oracle = judge(messages[:committed])
        assert partition.seen() == oracle.places()
        replayed = messages[data.draw(st.integers(0, committed)) :]
        for part in cut(replayed, after):
            partition.append(*part)
            if data.draw(st.booleans()):
                partition.merge()
        partition.blocks.publish()
        assert_agrees(partition, judge(messages))


TestLife = Life.TestCase
TestLife.settings = settings(stateful_step_count=40)
