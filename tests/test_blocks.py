"""`storage.partition.blocks` and `storage.partition.chunks` against the oracle, on real files.

First the promises one by one, then whatever hypothesis finds: batches, cuts, duplicates, late
events, several sources, crashes, stale snapshots, merges and readers that read slowly.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from forebay.storage.base.errors import BadInput, Corruption, MissingFile
from forebay.storage.base.layout import incarnation_of
from forebay.storage.base.times import DAY_MS
from forebay.storage.formats.columns import arrow_schema
from forebay.storage.formats.frame import Frame
from forebay.storage.formats.schema import Column
from tests.partition import (
    BIG_CACHE,
    CONFIG,
    GRACE_MS,
    NAME,
    SCHEMA,
    SPAN_MS,
    START_MS,
    WINDOW_MS,
    Message,
    Partition,
    assert_agrees,
    counts,
    event,
    frame,
    judge,
)

HOUR_MS = 3_600_000


# -- the rules ----------------------------------------------------------------------------------


def test_stall_then_redelivery_drops_every_duplicate(partition: Partition) -> None:
    partition.start()
    partition.append(*(event(n, n, n) for n in range(50)))
    partition.tidy(HOUR_MS)
    partition.append(*(event(50 + n, n, n) for n in range(50)))
    assert counts(partition) == (50, 50)


def test_retry_with_a_new_upload_time_within_the_window_is_a_duplicate(
    partition: Partition,
) -> None:
    partition.start()
    partition.append(event(0, 1, 0), event(1, 1, WINDOW_MS - 1))
    assert counts(partition) == (1, 1)


def test_same_key_with_a_new_upload_time_after_the_window_is_accepted(
    partition: Partition,
) -> None:
    partition.start()
    partition.append(event(0, 1, 0), event(1, 1, WINDOW_MS))
    assert counts(partition) == (2, 0)


@pytest.mark.parametrize("merged", [False, True], ids=["evicted", "merged"])
@pytest.mark.parametrize("restarted", [False, True], ids=["same run", "next run"])
@pytest.mark.parametrize("forgotten", [False, True], ids=["listed", "forgotten"])
@pytest.mark.parametrize("cache_bytes", [1, BIG_CACHE])
def test_redelivery_of_an_hour_ago_with_the_same_upload_time_is_dropped(
    partition: Partition, merged: bool, restarted: bool, forgotten: bool, cache_bytes: int
) -> None:
    partition.cache_bytes = cache_bytes
    partition.start()
    old = [event(n, n, n * 10) for n in range(30)]
    partition.append(*old, event(30, 99, HOUR_MS))
    if merged:
        partition.merge()
        assert len(partition.catalog().chunks) == 1
    if forgotten:
        partition.tidy(0)
        partition.tidy(GRACE_MS)
        partition.tidy(GRACE_MS)
    if restarted:
        snapshot = partition.blocks.snapshot()
        partition.crash()
        partition.start(snapshot)
    partition.append(*(event(31 + n, n, n * 10) for n in range(30)))
    assert counts(partition) == (31, 30)


def test_late_and_new_event_goes_into_a_backfill_block_of_its_day(partition: Partition) -> None:
    partition.start()
    partition.append(event(0, 1, 0), event(1, 2, HOUR_MS), event(2, 3, 1))
    partition.blocks.publish()
    day_ms = START_MS - START_MS % DAY_MS
    assert partition.by_block()[START_MS, False] == [[("s0", 0)]]
    assert partition.by_block()[day_ms, True] == [[("s0", 2)]]
    assert partition.manifest().counters.late == 1


def test_update_keeps_a_block_in_the_cache_for_another_window(partition: Partition) -> None:
    partition.start()
    partition.append(event(0, 1, 0))
    partition.append(event(1, 2, WINDOW_MS - 1), event(2, 3, 1))
    partition.append(event(3, 4, 2 * WINDOW_MS - 2), event(4, 1, 2 * WINDOW_MS - 2))
    assert counts(partition) == (4, 1)


def test_offsets_below_the_next_one_are_ignored(partition: Partition) -> None:
    partition.start()
    partition.append(*(event(n, n, n) for n in range(10)))
    partition.append(*(event(n, 100 + n, n) for n in range(5, 12)))
    assert counts(partition) == (12, 0)


def test_sources_have_offsets_of_their_own(partition: Partition) -> None:
    partition.start()
    partition.append(event(5, 1, 0, "s0"), event(0, 2, 0, "s1"), event(1, 1, 0, "s1"))
    assert counts(partition) == (2, 1)
    assert partition.manifest().next_offsets == {"s0": 6, "s1": 2}


# -- restarts -----------------------------------------------------------------------------------


def test_uncommitted_evictions_in_a_chunk_are_withdrawn_and_taken_in_again(
    partition: Partition,
) -> None:
    partition.start()
    messages = [event(n, n, n * 150) for n in range(10)]
    partition.append(*messages[:2])
    snapshot = partition.blocks.snapshot()
    partition.append(*messages[2:])
    partition.merge()
    withdrawn = partition.catalog().chunks
    assert withdrawn
    partition.crash()
    partition.start(snapshot)
    assert partition.seen() == [("s0", 0), ("s0", 1)]
    partition.merge()
    assert not partition.catalog().chunks
    assert all((partition.layout.chunks(NAME) / chunk.file).exists() for chunk in withdrawn)
    for message in messages:
        partition.append(message)
    partition.merge()
    partition.blocks.publish()
    assert_agrees(partition, judge(messages))
    partition.tidy(GRACE_MS)
    assert not any((partition.layout.chunks(NAME) / chunk.file).exists() for chunk in withdrawn)
    assert_agrees(partition, judge(messages))


def test_chunk_of_a_lost_run_stays_withdrawn_though_the_next_run_died_before_withdrawing_it(
    partition: Partition,
) -> None:
    """The lost run took source s1 in first, the next one s0: same evictions, other events."""
    mine, theirs = event(0, 1, 0, "s0"), event(0, 1, 1, "s1")
    ends = [event(1, 2, HOUR_MS, "s0"), event(2, 3, 2 * HOUR_MS, "s0")]
    partition.start()
    snapshot = partition.blocks.snapshot()
    partition.append(theirs, mine, *ends)
    partition.merge()
    assert len(partition.catalog().chunks) == 1
    partition.crash()
    partition.start(snapshot)
    partition.append(mine, theirs, *ends)
    snapshot = partition.blocks.snapshot()
    partition.crash()
    partition.start(snapshot)
    partition.merge()
    partition.blocks.publish()
    assert_agrees(partition, judge([mine, theirs, *ends]))


def test_chunk_of_a_run_that_the_resumed_state_knows_nothing_of_is_withdrawn(
    partition: Partition,
) -> None:
    """The engine may give `blocks` the newer, never committed snapshot of the run before the last:
    what the last run made of evictions of the same numbers does not count."""
    mine, theirs = event(0, 1, 0, "s0"), event(0, 1, 1, "s1")
    ends = [event(1, 2, HOUR_MS, "s0"), event(2, 3, 2 * HOUR_MS, "s0")]
    partition.start()
    first = partition.blocks.snapshot()
    partition.append(mine, theirs, *ends)
    orphan = partition.blocks.snapshot()
    partition.crash()
    partition.start(first)
    partition.merge()
    partition.append(theirs, mine, *ends)
    partition.merge()
    assert len(partition.catalog().chunks) == 1
    partition.crash()
    partition.start(orphan)
    partition.merge()
    partition.append(theirs, mine, *ends)
    partition.blocks.publish()
    assert_agrees(partition, judge([mine, theirs, *ends]))


def test_missing_log_is_missing_file(partition: Partition) -> None:
    snapshot = _some_log(partition)
    for log in partition.layout.hot(NAME).glob("*.arrows"):
        log.unlink()
    with pytest.raises(MissingFile, match=r"\.arrows, which is not on this host"):
        partition.start(snapshot)


def test_shortened_log_is_corruption(partition: Partition) -> None:
    snapshot = _some_log(partition)
    (log,) = partition.layout.hot(NAME).glob("*.arrows")
    log.write_bytes(log.read_bytes()[:-1])
    with pytest.raises(Corruption, match=rf"log .*{log.name}: expected \d+ bytes, got \d+"):
        partition.start(snapshot)


@pytest.mark.parametrize(
    ("kept", "error"),
    [(None, MissingFile), (-1, Corruption)],
    ids=["missing", "shortened"],
)
def test_reject_log_that_is_not_whole_is_told(
    partition: Partition, kept: int | None, error: type[Exception]
) -> None:
    partition.start()
    partition.append(Message(("s0", 0), None))
    snapshot = partition.blocks.snapshot()
    partition.crash()
    (log,) = partition.layout.rejects(NAME).glob("*.arrows")
    if kept is None:
        log.unlink()
    else:
        log.write_bytes(log.read_bytes()[:kept])
    with pytest.raises(error, match=re.escape(str(log))):
        partition.start(snapshot)


def test_log_longer_than_committed_is_fine(partition: Partition) -> None:
    snapshot = _some_log(partition)
    (log,) = partition.layout.hot(NAME).glob("*.arrows")
    log.write_bytes(log.read_bytes() + b"never committed")
    partition.start(snapshot)
    partition.append(event(1, 1, 0))
    assert counts(partition) == (1, 1)


def test_lost_recovery_store_is_missing_file(partition: Partition) -> None:
    partition.start()
    for n in range(5):
        partition.append(event(n, n, n))
        partition.blocks.snapshot()
        partition.blocks.publish()
    partition.crash()
    with pytest.raises(MissingFile, match="recovery"):
        partition.start(None)


def test_crash_before_the_first_commit_begins_anew(partition: Partition) -> None:
    partition.start()
    messages = [event(n, n, n * 150) for n in range(10)]
    partition.append(*messages)
    partition.blocks.snapshot()
    partition.blocks.publish()
    partition.merge()
    partition.crash()
    partition.start(None)
    partition.append(*messages)
    partition.merge()
    partition.blocks.publish()
    assert_agrees(partition, judge(messages))


def test_changed_key_is_bad_input(partition: Partition) -> None:
    snapshot = _some_log(partition)
    partition.config = replace(CONFIG, schema=replace(SCHEMA, key=("id",)))
    with pytest.raises(BadInput, match="dedup_key"):
        partition.start(snapshot)


def test_a_partition_without_any_event_goes_on_under_another_key_columns_and_span(
    partition: Partition,
) -> None:
    """A first guess of the schema that makes all messages rejects must not last for ever."""
    partition.start()
    partition.append(Message(("s0", 0), None), Message(("s0", 1), None))
    snapshot = partition.blocks.snapshot()
    partition.crash()
    columns = (Column("part", ("part",)), Column("id", ("id",)))
    other = replace(SCHEMA, columns=columns, key=("part",))
    partition.config = replace(CONFIG, schema=other, block_span_ms=2 * SPAN_MS)
    partition.start(snapshot)
    partition.blocks.publish()
    manifest = partition.manifest()
    assert (manifest.key, manifest.block_span_ms) == (("part",), 2 * SPAN_MS)
    assert manifest.schema["part"] == "string"
    assert "odd_real" not in manifest.schema
    assert manifest.paths == {"part": (("part",),), "id": (("id",),)}
    assert (manifest.counters.rejects, manifest.next_offsets) == (2, {"s0": 2})


def test_changed_block_span_is_bad_input(partition: Partition) -> None:
    snapshot = _some_log(partition)
    partition.config = replace(CONFIG, block_span_ms=SPAN_MS + 1)
    with pytest.raises(BadInput, match="block_span"):
        partition.start(snapshot)


def test_changed_column_type_is_bad_input(partition: Partition) -> None:
    snapshot = _some_log(partition)
    columns = (Column("id", ("id",)), Column("part", ("part",), "float"))
    partition.config = replace(CONFIG, schema=replace(SCHEMA, columns=columns))
    with pytest.raises(BadInput, match="column 'part'"):
        partition.start(snapshot)


def test_column_added_later_is_null_for_old_rows_in_the_chunk(partition: Partition) -> None:
    snapshot = _some_log(partition)
    columns = (*SCHEMA.columns, Column("extra", ("extra",), "float"))
    partition.config = replace(CONFIG, schema=replace(SCHEMA, columns=columns))
    partition.blocks_per_chunk = 1
    partition.start(snapshot)
    later = partition.config.schema
    taken = _frame_with(event(1, 2, 1), arrow_schema(later).names.index("extra"), 0.5, partition)
    partition.take(taken)
    partition.append(event(2, 3, HOUR_MS))
    partition.merge()
    (chunk,) = partition.catalog().chunks
    table = pq.ParquetFile(partition.layout.chunks(NAME) / chunk.file).read()
    assert table.schema.names == arrow_schema(later).names
    assert table["extra"].to_pylist() == [None, 0.5]
    assert chunk.schema == partition.manifest().schema


def _frame_with(message: Message, column: int, value: object, partition: Partition) -> Frame:
    taken = frame([message], partition.config.schema)
    field = taken.events.schema.field(column)
    events = taken.events.set_column(column, field, pa.array([value], field.type))
    return replace(taken, events=events)


def _some_log(partition: Partition) -> bytes:
    """A crash after a commit of one event; the snapshot."""
    partition.start()
    partition.append(event(0, 1, 0))
    snapshot = partition.blocks.snapshot()
    partition.crash()
    return snapshot


# -- grace --------------------------------------------------------------------------------------


def test_covered_block_is_listed_for_a_grace_period_and_its_files_go_one_later(
    partition: Partition,
) -> None:
    partition.start()
    partition.append(*(event(n, n, n * 150) for n in range(4)))
    partition.append(event(4, 4, HOUR_MS))
    hot = partition.layout.hot(NAME)
    made = _made(hot)
    assert {Path(name).suffix for name in made} == {".arrows", ".hashes"}
    partition.merge()
    _commit(partition)
    covered = partition.catalog().covered
    assert len(covered) == 4

    def listed() -> bool:
        partition.blocks.publish()
        return covered <= {block.id for block in partition.manifest().blocks}

    def there() -> bool:
        return made <= _made(hot)

    partition.tidy(0)
    partition.tidy(GRACE_MS - 1)
    assert (listed(), there()) == (True, True)
    partition.tidy(1)
    assert (listed(), there()) == (False, True)
    partition.tidy(GRACE_MS - 1)
    assert there()
    partition.tidy(1)
    assert not made & _made(hot)
    assert_agrees(
        partition, judge([*(event(n, n, n * 150) for n in range(4)), event(4, 4, HOUR_MS)])
    )


def test_covered_block_whose_eviction_may_not_be_committed_is_never_forgotten(
    partition: Partition,
) -> None:
    partition.start()
    partition.append(*(event(n, n, n * 150) for n in range(4)))
    snapshot = partition.blocks.snapshot()
    partition.append(event(4, 4, HOUR_MS))
    partition.merge()
    assert len(partition.catalog().covered) == 4
    for _ in range(3):
        partition.tidy(GRACE_MS)
    partition.crash()
    partition.start(snapshot).merge()
    assert partition.seen() == [("s0", n) for n in range(4)]


def _made(folder: Path) -> set[str]:
    """Files of logs and what is beside them."""
    return {path.name for path in folder.iterdir() if incarnation_of(path.name)}


def _commit(partition: Partition) -> None:
    """So many snapshots that the first of them is surely stored."""
    for _ in range(3):
        partition.blocks.snapshot()


def test_block_that_no_chunk_covers_is_never_forgotten(partition: Partition) -> None:
    partition.blocks_per_chunk = 100
    partition.start()
    messages = [event(n, n, n * HOUR_MS) for n in range(5)]
    partition.append(*messages)
    for _ in range(5):
        partition.tidy(GRACE_MS)
    partition.blocks.publish()
    assert_agrees(partition, judge(messages))


def test_logs_that_no_one_committed_are_deleted_after_the_grace_period(
    partition: Partition,
) -> None:
    partition.start()
    snapshot = partition.blocks.snapshot()
    partition.append(event(0, 1, 0))
    partition.blocks.flush()
    partition.crash()
    partition.start(snapshot)
    hot = partition.layout.hot(NAME)
    partition.tidy(GRACE_MS - 1)
    assert len(_made(hot)) == 2
    partition.tidy(1)
    assert not _made(hot)
