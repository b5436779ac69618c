"""The `blocks` step as the engine drives it: when it awakes, and when it publishes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from forebay.operators.blocks import (
    BEHIND,
    BEHIND_PUBLISH_S,
    EPOCH_LOOK_S,
    KEPT_BYTES_MAX,
    KEPT_EVERY_S,
    BlocksStep,
)
from forebay.storage.base.layout import Layout
from forebay.storage.formats.boundary import BoundaryWriter
from forebay.storage.formats.state import read_manifest
from forebay.storage.partition.commits import UNCOMMITTED_SNAPSHOTS_MAX
from forebay.storage.partition.expiry import Waiting
from tests.partition import CONFIG, NAME, SPAN_MS, START_MS, OpenDisk, event, frame


@pytest.fixture
def step(tmp_path: Path) -> Iterator[BlocksStep]:
    disk = OpenDisk()
    yield BlocksStep(
        CONFIG,
        Layout(tmp_path),
        disk,
        publish_interval_s=3600,
        tick_interval_s=3600,
        cache_bytes=1 << 20,
        retention_ms=0,
        batch_late_ms=3_600_000,
    )
    disk.close()


def test_partition_awakes_in_each_of_its_first_epochs_and_then_no_more(step: BlocksStep) -> None:
    """Else a snapshot that a lost run left of a later epoch could outlive this run's."""
    logic = step(None)
    logic.on_batch([frame([event(0, 0, 0)])])
    for _ in range(UNCOMMITTED_SNAPSHOTS_MAX):
        logic.on_notify()
        due = logic.notify_at()
        soon = datetime.now(UTC) + timedelta(seconds=EPOCH_LOOK_S)
        assert due is not None
        assert due <= soon
        logic.snapshot()
    logic.on_notify()
    due = logic.notify_at()
    assert due is None or due > datetime.now(UTC) + timedelta(seconds=60)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds, as the step sees them."""
    now = [1_000.0]
    monkeypatch.setattr("forebay.operators.blocks.time.monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("interval", "waiting", "published_after"),
    [
        (0.2, None, 0.2),
        (0.2, 0, 0.2),
        (0.2, 10, 0.2),
        (0.2, 11, 0.3),
        (0.2, 20, 0.4),
        (0.2, 50, 1.0),
        (0.2, 10**6, 1.0),
        (1.4, 10**6, 1.4),
    ],
)
def test_partition_with_much_before_it_publishes_more_rarely(
    step: BlocksStep,
    clock: list[float],
    interval: float,
    waiting: int | None,
    published_after: float,
) -> None:
    """An event each 0.1 s, and so many offsets waiting at all times."""
    step.publish_interval_s = interval
    assert BEHIND_PUBLISH_S == 1.0
    assert BEHIND == 5
    logic = step(None)
    published = []
    for offset in range(45):
        end = None if waiting is None else offset + 1 + waiting
        logic.on_batch([replace(frame([event(offset, offset, 0)]), end_offset=end)])
        manifest = read_manifest(step.disk, step.layout.manifest(NAME))
        assert manifest is not None
        if manifest.counters.accepted == offset + 1:
            published.append(offset)
        clock[0] += 0.1
    steps = {round(0.1 * (later - sooner), 1) for sooner, later in pairwise(published)}
    assert steps == {published_after}


def test_partition_with_much_before_it_publishes_if_nothing_more_comes(
    step: BlocksStep, clock: list[float]
) -> None:
    step.publish_interval_s = 0.2
    logic = step(None)
    for offset in range(2):
        logic.on_batch([replace(frame([event(offset, offset, 0)]), end_offset=10**6)])
    path = step.layout.manifest(NAME)
    for passed, accepted in ((0.9, 1), (0.2, 2)):
        clock[0] += passed
        assert logic.notify_at() is not None
        logic.on_notify()
        manifest = read_manifest(step.disk, path)
        assert manifest is not None
        assert manifest.counters.accepted == accepted


def test_partition_with_much_before_it_that_does_not_come_awakes_as_others_do(
    step: BlocksStep, clock: list[float]
) -> None:
    """The broker may be away, or what waits be no messages."""
    step.publish_interval_s = 0.2
    logic = step(None)
    logic.on_batch([replace(frame([event(0, 0, 0)]), end_offset=10**6)])
    logic.on_notify()
    due = logic.notify_at()
    assert due is not None
    assert due <= datetime.now(UTC) + timedelta(seconds=0.2)


class SealedMeanwhile(OpenDisk):
    """A seal comes while the partition's first manifest is being published."""

    def replace(self, path: Path, data: bytes, *, durable: bool) -> None:
        super().replace(path, data, durable=durable)
        if path.name == "manifest.json" and not (path.parents[2] / "batch.json").exists():
            with BoundaryWriter(self, Layout(path.parents[2])) as writer:
                writer.seal(START_MS + 1000, [SPAN_MS])


def test_a_seal_that_comes_while_a_partition_begins_is_carried_out_before_its_first_event(
    step: BlocksStep,
) -> None:
    """It waits for the partitions that have published something, so it may not have waited."""
    step.disk = SealedMeanwhile()
    logic = step(None)
    logic.on_batch([frame([event(0, 0, 0)])])
    logic.snapshot()
    logic.on_eof()
    manifest = read_manifest(step.disk, step.layout.manifest(NAME))
    assert manifest is not None
    assert [block.late for block in manifest.hot.values()] == [1]
    assert manifest.counters.after_seal == 1
    step.disk.close()


def test_that_nothing_deletes_what_is_kept_is_said_once_a_day_and_only_of_much(
    step: BlocksStep,
    clock: list[float],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An upload time of 1970 and one of today: all waits for 56 years, for no one."""
    logic, size = step(None), [KEPT_BYTES_MAX]
    monkeypatch.setattr(
        "forebay.storage.partition.blocks.Blocks.waiting",
        lambda self, batch: Waiting(56 * 365 * 86_400_000, size[0]),
    )

    def warnings(*, passed_s: float, retention_ms: int = 0) -> list[str]:
        clock[0] += passed_s
        caplog.clear()
        step.worker.warn(3_600_000, retention_ms, 60.0)
        return [record.getMessage() for record in caplog.records]

    logic.on_batch([frame([event(0, 0, 0)])])
    assert warnings(passed_s=step.tick_interval_s) == []
    size[0] += 5 * 10**9
    assert warnings(passed_s=60, retention_ms=1) == []
    (told,) = warnings(passed_s=60)
    assert told.startswith("15.0 GB are kept, and nothing deletes them")
    assert warnings(passed_s=KEPT_EVERY_S - 1) == []
    assert len(warnings(passed_s=60)) == 1
    with BoundaryWriter(step.disk, step.layout) as writer:
        writer.seal(CONFIG.block_span_ms, {CONFIG.block_span_ms})
    (late,) = warnings(passed_s=60)
    assert late.startswith("the batch layer is late: 15.0 GB of 1 partition")
