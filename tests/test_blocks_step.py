"""The `blocks` step as the engine drives it: when it awakes."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from operators.blocks import EPOCH_LOOK_S, BlocksStep
from storage.commits import UNCOMMITTED_SNAPSHOTS_MAX
from storage.layout import Layout
from tests.partition import CONFIG, OpenFiles, event, frame


@pytest.fixture
def step(tmp_path: Path) -> Iterator[BlocksStep]:
    files = OpenFiles()
    yield BlocksStep(
        CONFIG,
        Layout(tmp_path),
        files,
        publish_interval_s=3600,
        tick_interval_s=3600,
        cache_bytes=1 << 20,
        retention_ms=0,
        batch_late_ms=3_600_000,
    )
    files.close()


def test_partition_awakes_in_each_of_its_first_epochs_and_then_no_more(step: BlocksStep) -> None:
    """Else a snapshot that a lost run left of a later epoch could outlive this run's."""
    logic = step(None)
    logic.on_batch([frame([event(0, 0, 0)])])
    for _ in range(UNCOMMITTED_SNAPSHOTS_MAX):
        logic.on_notify()
        due = logic.notify_at()
        soon = datetime.now(timezone.utc) + timedelta(seconds=EPOCH_LOOK_S)
        assert due is not None
        assert due <= soon
        logic.snapshot()
    logic.on_notify()
    due = logic.notify_at()
    assert due is None or due > datetime.now(timezone.utc) + timedelta(seconds=60)
