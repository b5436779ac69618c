"""The Kafka source's queues, without a broker: when a partition emits what has arrived."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from forebay.operators.sources.kafka import (
    BATCHES_PER_S,
    QUEUED_BYTES_MAX,
    QUEUED_MESSAGES_MAX,
    Piece,
    _Queue,
    _Reader,
)
from forebay.operators.sources.topic import KafkaConfig

LINGER_S = 30.0


@pytest.fixture
def reader() -> Iterator[_Reader]:
    """One whose messages are sure to be of the right topic."""
    config = KafkaConfig("127.0.0.1:1", "topic", linger_s=LINGER_S, batch_rows=100)
    made = _Reader(config, None, 3, lambda _: None)
    yield made
    made._consumer.close()


def piece(first: int, rows: int, read_s: float) -> Piece:
    offsets = np.arange(first, first + rows, dtype=np.int64)
    return Piece([b"{}"] * rows, offsets, offsets, True, read_s, 2 * rows, first + rows)


def test_messages_linger_longer_where_those_of_many_partitions_wait(reader: _Reader) -> None:
    enough = round(LINGER_S * BATCHES_PER_S)
    for number in range(enough + 2):
        reader._queues[number] = _Queue(number, 0)
    now = time.monotonic()
    for number in range(enough):
        reader.put(number, piece(0, 1, now))
        reader.put(number, piece(1, 1, now))
    assert reader.linger_s == LINGER_S
    reader.put(enough, piece(0, 1, now))
    assert reader.linger_s == (enough + 1) / BATCHES_PER_S
    reader.put(enough + 1, piece(0, 100, now))
    assert len(reader.take(reader._queues[enough + 1])) == 1
    assert reader.linger_s == (enough + 1) / BATCHES_PER_S


def test_a_batch_is_full_or_has_lingered_and_totals_are_those_of_the_queues(
    reader: _Reader,
) -> None:
    full, young, old = (reader.add(number, 0) for number in range(3))
    now = time.monotonic()
    for first in (0, 60, 120):
        reader.put(0, piece(first, 60, now))
    reader.put(1, piece(0, 99, now))
    reader.put(2, piece(7, 1, now - LINGER_S))
    assert [one.offsets[0] for one in reader.take(full)] == [0, 60]
    assert reader.take(full) == []
    assert reader.take(young) == []
    assert [one.offsets[0] for one in reader.take(old)] == [7]
    assert (reader._rows, reader._bytes) == (60 + 99, 2 * (60 + 99))
    assert (full.next_offset, old.next_offset) == (180, 8)


@pytest.mark.parametrize(
    "crowd", [(QUEUED_MESSAGES_MAX // 2, 2), (1, QUEUED_BYTES_MAX // 2)], ids=["rows", "bytes"]
)
def test_nothing_lingers_where_much_is_queued(reader: _Reader, crowd: tuple[int, int]) -> None:
    quiet, _ = reader.add(0, 0), reader.add(1, 0)
    now = time.monotonic()
    reader.put(0, piece(0, 1, now))
    assert reader.take(quiet) == []
    rows, size = crowd
    reader.put(1, replace(piece(0, rows, now), bytes=size * rows))
    assert [one.offsets[0] for one in reader.take(quiet)] == [0]


def test_the_end_of_a_partition_is_queued_behind_its_messages_and_moves_the_next_offset(
    reader: _Reader,
) -> None:
    queue = reader.add(0, 0)
    old = time.monotonic() - LINGER_S
    reader.put(0, piece(0, 2, old))
    reader.put(0, Piece.end(5, old))
    assert queue.next_offset == 5
    pieces = reader.take(queue)
    assert [one.next_offset for one in pieces] == [2, 5]
    assert (reader._rows, reader._bytes, reader._waiting, queue.pieces) == (0, 0, 0, [])
