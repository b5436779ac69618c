"""The `chunks` step as the engine uses it, beyond what `tests.partition` does with its core."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from forebay.operators import process
from forebay.operators.chunks import ChunksSink
from forebay.storage.base.disk import Disk
from forebay.storage.base.layout import Layout
from forebay.storage.base.times import DAY_MS
from forebay.storage.partition.offer import Offer


@pytest.fixture
def sink(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ChunksSink:
    monkeypatch.setattr(process, "_noted", [])
    return ChunksSink(
        ["p"], ["p"], Layout(tmp_path), Disk(), blocks_per_chunk=2, grace_ms=1000,
        merge_bytes=1 << 26, compacted_ms=DAY_MS,
    )  # fmt: skip


def test_a_partition_that_is_built_again_after_an_offer_goes_on(sink: ChunksSink) -> None:
    """As the engine does where a crash left a newer snapshot of the sink than of the blocks."""
    first = sink.build_part("chunks", "p", None)
    first.write_batch([Offer(1, (), runs={})])
    second = sink.build_part("chunks", "p", None)
    first.close()
    second.write_batch([Offer(1, ())])
    second.close()
    assert process.failure() is None


def test_a_merge_that_fails_is_noted_when_the_partition_is_closed(sink: ChunksSink) -> None:
    """`close` must not raise: the engine would abort the process without a word."""
    part = sink.build_part("chunks", "p", None)
    with suppress(AssertionError):  # if it has failed already
        part.write_batch([Offer(1, ())])
    part.close()
    assert "an offer came before" in str(process.failure())
