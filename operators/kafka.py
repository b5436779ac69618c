"""The Kafka source: one consumer a worker thread, feeding all of its topic-partitions.

`Consumer.consume(n)` takes whatever has arrived for any partition; what belongs to another than the
one that asked waits in that one's queue. A partition emits when it has a full batch, or when its
oldest message has lingered, so an idle partition costs one look at an empty queue. A batch costs a
few ms whatever is in it, so messages linger longer where those of many partitions wait.

Offsets live in the snapshot. They are also committed to the consumer group, for lag tools only:
nothing is ever read back from there. A broker that is away is waited for, with librdkafka's own
back-off; an offset that the broker no longer has stops the job, or is skipped and counted. No
message is emitted before it is sure to be of the topic that was read from the start (`topic.py`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from itertools import chain

import numpy as np
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_END,
    TIMESTAMP_LOG_APPEND_TIME,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)
from typing_extensions import override

from operators.failure import noted
from operators.messages import I64, Messages
from operators.stop import stopping
from operators.thread import PerThread
from operators.topic import METADATA_TIMEOUT_S, KafkaConfig, Watch
from storage.errors import BadInput, ForebayError
from storage.layout import PartitionKey

log = logging.getLogger("forebay.kafka")

POLL_MESSAGES = 5_000
QUEUED_MESSAGES_MAX, QUEUED_BYTES_MAX = 100_000, 128 << 20
BATCHES_PER_S = 100
"""Of all partitions of a worker, unless they are full: where messages of more partitions wait, they
linger longer."""
BATCH_BYTES_MAX = 16 << 20
IDLE_POLL_S, IDLE_POLL_S_MAX, IDLE_SHARE = 0.005, 0.05, 0.1
"""How long a partition with no batch is left alone: a tenth of the time that messages linger, or of
that for which it has been empty; within bounds."""
COMMIT_EVERY_S = 5.0
TELL_EVERY_S = 10.0


class OffsetGone(ForebayError):
    """The broker no longer has the offset at which a partition is to go on."""


@dataclass
class _Queue:
    """What has arrived for one partition and was not emitted yet. `next_offset` is None until
    something has arrived."""

    number: int
    next_offset: int | None
    pieces: list[Piece] = field(default_factory=list)
    rows: int = 0
    bytes: int = 0
    skipped: int = 0

    def add(self, piece: Piece) -> None:
        self.pieces.append(piece)
        self.rows += len(piece.values)
        self.bytes += piece.bytes
        self.next_offset = int(piece.offsets[-1]) + 1

    def take(self, rows: int, linger_s: float, sure_s: float) -> list[Piece]:
        """The pieces of a batch, if there is one: full, or old enough. Only what was read before
        `sure_s` is looked at."""
        count = took_rows = took_bytes = 0
        for piece in self.pieces:
            if piece.read_s >= sure_s or took_rows >= rows or took_bytes >= BATCH_BYTES_MAX:
                break
            count, took_rows = count + 1, took_rows + len(piece.values)
            took_bytes += piece.bytes
        full = took_rows >= rows or took_bytes >= BATCH_BYTES_MAX
        if not count or not (full or time.monotonic() - self.pieces[0].read_s >= linger_s):
            return []
        taken, self.pieces = self.pieces[:count], self.pieces[count:]
        self.rows -= took_rows
        self.bytes -= took_bytes
        return taken


@dataclass(frozen=True)
class Piece:
    """Messages of one partition that arrived together."""

    values: list[bytes]
    offsets: I64
    times_ms: I64
    appended: bool
    """Whether the times are the broker's own, not the producers'."""
    read_s: float
    bytes: int

    @classmethod
    def of(cls, messages: Sequence[Message], read_s: float) -> Piece:
        """From messages without errors. Called for each: no more than it takes."""
        count = len(messages)
        stamps = np.fromiter(
            chain.from_iterable(map(Message.timestamp, messages)), np.int64, 2 * count
        ).reshape(count, 2)
        values = [value or b"" for value in map(Message.value, messages)]
        return cls(
            values,
            np.fromiter(map(Message.offset, messages), np.int64, count),
            stamps[:, 1],
            bool((stamps[:, 0] == TIMESTAMP_LOG_APPEND_TIME).all()),
            read_s,
            sum(map(len, values)),
        )


class _Reader:
    """One consumer and the queues of the partitions it feeds. One worker thread uses it."""

    def __init__(self, config: KafkaConfig, id: str | None) -> None:
        self._config = config
        self._consumer = Consumer({**config.consumer(), "error_cb": self._told})
        self._watch = Watch(config, id)
        self._read_s = 0.0
        self._queues: dict[int, _Queue] = {}
        self._rows = self._bytes = self._waiting = 0
        self._poll_due = 0.0
        self._commit_due = time.monotonic() + COMMIT_EVERY_S
        self._progress: dict[int, int] = {}
        self._users = 0
        self._told_due = 0.0

    def add(self, number: int, next_offset: int | None) -> _Queue:
        """Begin to read a partition; at `start` if there is no offset to go on from."""
        queue = self._queues[number] = _Queue(number, next_offset)
        if next_offset is None and self._config.start == "latest":
            # A number from the start: what comes later may not be passed over by a restart.
            queue.next_offset = self._end(number)
        at = OFFSET_BEGINNING if queue.next_offset is None else queue.next_offset
        self._assign(number, at)
        self._users += 1
        return queue

    def _end(self, number: int) -> int:
        """Where the partition ends now; waits for the broker."""
        while True:
            try:
                _, high = self._consumer.get_watermark_offsets(
                    self._place(number), timeout=METADATA_TIMEOUT_S
                )
                return int(high)
            except KafkaException as error:
                self._told(error.args[0])

    def poll(self) -> None:
        """Take in what has arrived, unless enough is queued or nothing had arrived just now."""
        now = time.monotonic()
        if now < self._poll_due:
            return
        if self._rows >= QUEUED_MESSAGES_MAX or self._bytes >= QUEUED_BYTES_MAX:
            return
        arrived = self._consumer.consume(POLL_MESSAGES, 0)
        if arrived:
            self._read_s = time.monotonic()
        if len(arrived) < POLL_MESSAGES // 4:
            self._poll_due = now + IDLE_POLL_S
        failed = [message for message in arrived if message.error() is not None]
        if failed:
            arrived = [message for message in arrived if message.error() is None]
        self._queue(arrived)
        for message in failed:
            self._report(message)
        if now >= self._commit_due:
            self._commit()

    def take(self, queue: _Queue) -> list[Piece]:
        """The pieces of the partition's next batch; none if it is not time for one, or what has
        arrived may be of another topic."""
        self._watch.look(self._read_s)
        if self._watch.problem:
            self._told(self._watch.problem)
        pieces = queue.take(self._config.batch_rows, self.linger_s, self._watch.sure_s)
        self._rows -= sum(len(piece.values) for piece in pieces)
        self._bytes -= sum(piece.bytes for piece in pieces)
        self._waiting -= bool(pieces and not queue.pieces)
        return pieces

    def put(self, number: int, piece: Piece) -> None:
        """What has arrived for a partition."""
        queue = self._queues[number]
        self._waiting += not queue.pieces
        queue.add(piece)
        self._rows += len(piece.values)
        self._bytes += piece.bytes

    @property
    def linger_s(self) -> float:
        """How long a message waits for others: not at all where too many wait already."""
        if 2 * self._rows >= QUEUED_MESSAGES_MAX or 2 * self._bytes >= QUEUED_BYTES_MAX:
            return 0.0
        return max(self._config.linger_s, self._waiting / BATCHES_PER_S)

    def end_offset(self, number: int) -> int | None:
        """The high watermark of the last fetch."""
        _, high = self._consumer.get_watermark_offsets(self._place(number), cached=True)
        return int(high) if high >= 0 else None

    def progressed(self, number: int, next_offset: int) -> None:
        """Note how far a partition has got, for the consumer group."""
        self._progress[number] = next_offset

    def remove(self) -> None:
        """One partition less needs this reader; the last one closes it."""
        self._users -= 1
        if not self._users:
            self._commit()
            self._consumer.close()

    def _queue(self, arrived: list[Message]) -> None:
        """Sort messages into their partitions' queues, columns apart."""
        numbers = np.fromiter(map(Message.partition, arrived), np.int64, len(arrived))
        for number in np.unique(numbers).tolist():
            mine = np.flatnonzero(numbers == number).tolist()
            part = arrived if len(mine) == len(arrived) else [arrived[row] for row in mine]
            self.put(number, Piece.of(part, self._read_s))

    def _report(self, message: Message) -> None:
        """An error in place of a message: a lost offset ends the job or is skipped; the rest is
        waited out."""
        error, number = message.error(), message.partition()
        if error is None:
            raise AssertionError("bug: a message without an error was reported")
        if error.code() == KafkaError._AUTO_OFFSET_RESET and number in self._queues:
            self._close_gap(self._queues[number])
        elif error.fatal():
            raise KafkaException(error)
        else:
            self._told(error)

    def _told(self, error: KafkaError) -> None:
        """Say that the broker is away, now and then; librdkafka goes on trying, with back-off."""
        now = time.monotonic()
        if now >= self._told_due:
            self._told_due = now + TELL_EVERY_S
            log.warning("kafka %s is away; waiting: %s", self._config.bootstrap, error.str())

    def _close_gap(self, queue: _Queue) -> None:
        self._watch.wait()
        low, high = self._consumer.get_watermark_offsets(
            self._place(queue.number), timeout=METADATA_TIMEOUT_S
        )
        at = queue.next_offset
        where = f"topic {self._config.topic} partition {queue.number}"
        if at is None or at > high:
            raise OffsetGone(
                f"{where}: expected offset {at}, the topic ends at {high}; if it was created anew,"
                " it needs a data directory of its own"
            )
        if self._config.on_gap != "skip":
            raise OffsetGone(
                f"{where}: expected offset {at}, the broker begins at {low}: {low - at} messages"
                ' are gone; set kafka.on_gap to "skip" to go on and have them counted'
            )
        log.error(
            "%s: skipping %d messages that are gone, offsets %d to %d", where, low - at, at, low
        )
        queue.skipped += low - at
        queue.next_offset = low
        self._consumer.incremental_unassign([self._place(queue.number)])
        self._assign(queue.number, low)

    def _commit(self) -> None:
        self._commit_due = time.monotonic() + COMMIT_EVERY_S
        if self._progress:
            places = [self._place(number, at) for number, at in self._progress.items()]
            self._progress = {}
            try:
                self._consumer.commit(offsets=places, asynchronous=True)
            except KafkaException as error:
                log.warning(
                    "kafka %s: progress not shown to lag tools: %s", self._config.group, error
                )

    def _assign(self, number: int, at: int) -> None:
        self._consumer.incremental_assign([self._place(number, at)])

    def _place(self, number: int, at: int = OFFSET_END) -> TopicPartition:
        return TopicPartition(self._config.topic, number, at)


class _KafkaPartition(StatefulSourcePartition[Messages, int | None]):
    """One topic-partition. Its snapshot is the next offset, None before the first message."""

    def __init__(
        self, name: str, number: int, reader: _Reader, config: KafkaConfig, resume: int | None
    ) -> None:
        self._name = name
        self._batch_rows = config.batch_rows
        self._reader = reader
        self._queue = reader.add(number, resume)
        self._next_offset = self._queue.next_offset
        self._awake: datetime | None = None
        self._emitted = time.monotonic()

    @override
    @noted
    def next_batch(self) -> list[Messages]:
        if stopping():
            raise StopIteration
        queue, reader = self._queue, self._reader
        if queue.rows < self._batch_rows + POLL_MESSAGES:  # the next ones become sure meanwhile
            reader.poll()
        pieces = reader.take(queue)
        now = time.monotonic()
        if not pieces:
            wait_s = IDLE_SHARE * (reader.linger_s if queue.pieces else now - self._emitted)
            wait_s = min(max(IDLE_POLL_S, wait_s), IDLE_POLL_S_MAX)
            self._awake = datetime.now(timezone.utc) + timedelta(seconds=wait_s)
            return []
        self._awake, self._emitted = None, now
        offsets = np.concatenate([piece.offsets for piece in pieces])
        self._next_offset = int(offsets[-1]) + 1
        skipped, queue.skipped = queue.skipped, 0
        return [
            Messages(
                source=self._name,
                values=list(chain.from_iterable(piece.values for piece in pieces)),
                offsets=offsets,
                times_ms=np.concatenate([piece.times_ms for piece in pieces]),
                next_offset=self._next_offset,
                skipped=skipped,
                end_offset=self._reader.end_offset(queue.number),
                read_ms=None if all(p.appended for p in pieces) else time.time_ns() // 1_000_000,
            )
        ]

    @override
    def next_awake(self) -> datetime | None:
        return self._awake

    @override
    def snapshot(self) -> int | None:
        if self._next_offset is not None:
            self._reader.progressed(self._queue.number, self._next_offset)
        return self._next_offset

    @override
    def close(self) -> None:
        self._reader.remove()


class KafkaSource(FixedPartitionedSource[Messages, int | None]):
    """All partitions of one topic, as they are when the job starts."""

    def __init__(
        self,
        config: KafkaConfig,
        partitions: Sequence[PartitionKey],
        gone: Sequence[str] = (),
        id: str | None = None,
    ) -> None:
        """`gone` are partitions read before that the topic no longer has; `id` is the topic's, if
        the broker says."""
        self._config = config
        self._gone = gone
        self._numbers = {key.name: key.number for key in partitions}
        self._reader = PerThread(lambda: _Reader(config, id))

    @override
    def list_parts(self) -> list[str]:
        return sorted({*self._numbers, *self._gone})

    @override
    @noted
    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> _KafkaPartition:
        if for_part not in self._numbers:
            raise BadInput(
                f"topic {self._config.topic}: expected partition {for_part}, which was read before,"
                " got none; another topic, or one created anew, needs a data directory of its own"
            )
        number = self._numbers[for_part]
        return _KafkaPartition(for_part, number, self._reader.get(), self._config, resume_state)
