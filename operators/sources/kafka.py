"""The Kafka source: one consumer per worker thread, feeding all of its topic-partitions.

`Consumer.consume(n)` takes whatever has arrived for any partition; messages of partitions other
than the one that asked wait in their own queues. A partition emits when it has a full batch, or
when its oldest message has lingered, so an idle partition costs one look at an empty queue. A batch
costs a few ms whatever is in it, so messages linger longer where those of many partitions wait.

Offsets live in the snapshot. They are also committed to the consumer group, for lag tools only:
nothing is ever read back from there. Where a partition without a snapshot begins is decided once,
and is durable before anything of it is read. It waits for an unavailable broker, with librdkafka's
own back-off; an offset that the broker no longer has stops the job, or is skipped and counted. No
message is emitted before it is sure to be of the topic that was read from the start (`topic.py`).

A topic can end in offsets that hold no message: markers of transactions, aborted messages. The end
of a partition, which librdkafka reports, is then queued like a message, and moves the next offset.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import chain

import numpy as np
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from confluent_kafka import (
    OFFSET_END,
    TIMESTAMP_LOG_APPEND_TIME,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)
from typing_extensions import override

from forebay.operators.process import PerThread, noted, stopping
from forebay.operators.sources.messages import I64, Messages
from forebay.operators.sources.resting import Resting
from forebay.operators.sources.topic import Broker, KafkaConfig, Watch, partition_key, refused
from forebay.storage.base.errors import ForebayError
from forebay.storage.base.times import now_ms

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
NO_TOPIC = {
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._UNKNOWN_PARTITION,
}
"""Errors that say that the broker is there, and the topic is not."""
CLOSE_S = 1.0
"""How long a consumer may take to close: it waits for a broker that is away."""


class OffsetGone(ForebayError):
    """The broker no longer has the offset at which a partition is to go on."""


@dataclass
class _Queue:
    """What has arrived for one partition and is not yet emitted; `next_offset` comes after it."""

    number: int
    next_offset: int
    pieces: list[Piece] = field(default_factory=list)
    rows: int = 0
    skipped: int = 0

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
        return taken


@dataclass(frozen=True)
class Piece:
    """Messages of one partition that arrived together; none where the partition ends in offsets
    that have none."""

    values: list[bytes]
    offsets: I64
    times_ms: I64
    appended: bool
    """Whether the times are the broker's own, not the producers'."""
    read_s: float
    bytes: int
    next_offset: int

    @classmethod
    def of(cls, messages: Sequence[Message], read_s: float) -> Piece:
        """From messages without errors. Called for each piece: it does no more than necessary."""
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
            int(messages[-1].offset()) + 1,  # type: ignore[arg-type]
        )

    @classmethod
    def end(cls, next_offset: int, read_s: float) -> Piece:
        """The end of a partition."""
        none = np.empty(0, np.int64)
        return cls([], none, none, True, read_s, 0, next_offset)


class _Reader:
    """One consumer and the queues of the partitions it feeds. One worker thread uses it."""

    def __init__(
        self, config: KafkaConfig, id: str | None, partitions: int, grown: Callable[[int], None]
    ) -> None:
        """`partitions` are as many as the topic is known to have; the rest as for KafkaSource."""
        self.config = config
        self._partitions = partitions
        self._grown = grown
        with refused():
            self._consumer = Consumer({**config.consumer(), "error_cb": self._told})
        self.broker = Broker(config)
        self._watch = Watch(self.broker, id)
        self._read_s = 0.0
        self._queues: dict[int, _Queue] = {}
        self._rows = self._bytes = self._waiting = 0
        self._poll_due = 0.0
        self._commit_due = time.monotonic() + COMMIT_EVERY_S
        self.progress: dict[int, int] = {}
        """How far each partition has got, for the consumer group."""
        self._users = 0
        self._told_due = 0.0

    def add(self, number: int, next_offset: int) -> _Queue:
        """Begin to read a partition."""
        queue = self._queues[number] = _Queue(number, next_offset)
        self._consumer.incremental_assign([self._place(number, next_offset)])
        self._users += 1
        return queue

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
        failed = [(error, m) for m in arrived if (error := m.error()) is not None]
        if failed:
            arrived = [message for message in arrived if message.error() is None]
        self._queue(arrived)
        for error, message in failed:
            self._report(error, message)
        if now >= self._commit_due:
            self._commit()

    def take(self, queue: _Queue) -> list[Piece]:
        """The pieces of the partition's next batch; none if it is not time for one, or what has
        arrived may be of another topic."""
        self._watch.look(self._read_s)
        if self._watch.problem:
            self._told(self._watch.problem)
        if self._watch.partitions > self._partitions:
            self._partitions = self._watch.partitions
            self._grown(self._partitions)
        pieces = queue.take(self.config.batch_rows, self.linger_s, self._watch.sure_s)
        self._rows -= sum(len(piece.values) for piece in pieces)
        self._bytes -= sum(piece.bytes for piece in pieces)
        self._waiting -= bool(pieces and not queue.pieces)
        return pieces

    def put(self, number: int, piece: Piece) -> None:
        """Queue what has arrived for a partition."""
        queue = self._queues[number]
        self._waiting += not queue.pieces
        queue.pieces.append(piece)
        queue.rows += len(piece.values)
        queue.next_offset = piece.next_offset
        self._rows += len(piece.values)
        self._bytes += piece.bytes

    @property
    def linger_s(self) -> float:
        """How long a message waits for others: not at all where too many wait already."""
        if 2 * self._rows >= QUEUED_MESSAGES_MAX or 2 * self._bytes >= QUEUED_BYTES_MAX:
            return 0.0
        return max(self.config.linger_s, self._waiting / BATCHES_PER_S)

    def end_offset(self, number: int) -> int | None:
        """The high watermark of the last fetch."""
        _, high = self._consumer.get_watermark_offsets(self._place(number), cached=True)
        return int(high) if high >= 0 else None

    def remove(self) -> None:
        """One partition fewer needs this reader; the last one closes it."""
        self._users -= 1
        if not self._users:
            self._commit()
            closing = threading.Thread(target=self._consumer.close, daemon=True)
            closing.start()
            closing.join(CLOSE_S)

    def _queue(self, arrived: list[Message]) -> None:
        """Sort messages into their partitions' queues, as columns."""
        numbers = np.fromiter(map(Message.partition, arrived), np.int64, len(arrived))
        for number in np.unique(numbers).tolist():
            mine = np.flatnonzero(numbers == number).tolist()
            part = arrived if len(mine) == len(arrived) else [arrived[row] for row in mine]
            self.put(number, Piece.of(part, self._read_s))

    def _report(self, error: KafkaError, message: Message) -> None:
        """An error in place of a message: a lost offset ends the job or is skipped; the rest is
        waited out."""
        queue = self._queues.get(message.partition())  # type: ignore[arg-type]
        at = message.offset()
        if error.code() == KafkaError._PARTITION_EOF:
            if queue is not None and at is not None and at > queue.next_offset:
                self.put(queue.number, Piece.end(at, self._read_s))
        elif error.code() == KafkaError._AUTO_OFFSET_RESET and queue is not None:
            self._close_gap(queue)
        elif error.fatal():
            raise KafkaException(error)
        else:
            self._told(error)

    def _told(self, error: KafkaError) -> None:
        """Report, now and then, that broker or topic is unavailable; librdkafka keeps trying, with
        back-off."""
        now = time.monotonic()
        if now >= self._told_due:
            self._told_due = now + TELL_EVERY_S
            gone = f": topic {self.config.topic}" if error.code() in NO_TOPIC else ""
            told = "kafka %s%s is away; waiting: %s"
            log.warning(told, self.config.bootstrap, gone, error.str())

    def _close_gap(self, queue: _Queue) -> None:
        """Go on where the partition begins now, or raise OffsetGone. Does nothing on a stop."""
        self._watch.wait()
        low = self.broker.offset(queue.number, "earliest")
        high = self.broker.offset(queue.number, "latest")
        if low is None or high is None:
            return
        at = queue.next_offset
        where = f"topic {self.config.topic} partition {queue.number}"
        if at > high:
            raise OffsetGone(
                f"{where}: expected offset {at}, the topic ends at {high}; if it was recreated,"
                " it needs a data directory of its own"
            )
        if at < low and self.config.on_gap != "skip":
            raise OffsetGone(
                f"{where}: expected offset {at}, the broker begins at {low}: {low - at} messages"
                ' are gone; set kafka.on_gap to "skip" to go on and have them counted'
            )
        if at < low:
            gone = low - at
            log.error(
                "%s: skipping %d messages that are gone, offsets %d to %d", where, gone, at, low
            )
            queue.skipped += gone
            self.put(queue.number, Piece.end(low, self._read_s))
        self._consumer.incremental_unassign([self._place(queue.number)])
        self._consumer.incremental_assign([self._place(queue.number, queue.next_offset)])

    def _commit(self) -> None:
        self._commit_due = time.monotonic() + COMMIT_EVERY_S
        if self.progress:
            places = [self._place(number, at) for number, at in self.progress.items()]
            self.progress = {}
            try:
                self._consumer.commit(offsets=places, asynchronous=True)
            except KafkaException as error:
                told = "kafka %s: progress not shown to lag tools: %s"
                log.warning(told, self.config.group, error)

    def _place(self, number: int, at: int = OFFSET_END) -> TopicPartition:
        return TopicPartition(self.config.topic, number, at)


class _KafkaPartition(StatefulSourcePartition[Messages, int | None]):
    """One topic-partition. Its snapshot is the next offset."""

    def __init__(self, name: str, reader: _Reader, queue: _Queue) -> None:
        self._name = name
        self._reader = reader
        self._queue = queue
        self._next_offset = queue.next_offset
        self._awake: datetime | None = None
        self._emitted = time.monotonic()

    @override
    @noted
    def next_batch(self) -> list[Messages]:
        if stopping():
            raise StopIteration
        queue, reader = self._queue, self._reader
        # The messages that follow become sure while this batch waits.
        if queue.rows < reader.config.batch_rows + POLL_MESSAGES:
            reader.poll()
        pieces = reader.take(queue)
        now = time.monotonic()
        if not pieces:
            wait_s = IDLE_SHARE * (reader.linger_s if queue.pieces else now - self._emitted)
            wait_s = min(max(IDLE_POLL_S, wait_s), IDLE_POLL_S_MAX)
            self._awake = datetime.now(UTC) + timedelta(seconds=wait_s)
            return []
        self._awake, self._emitted = None, now
        after_offset, self._next_offset = self._next_offset, pieces[-1].next_offset
        skipped, queue.skipped = queue.skipped, 0
        return [
            Messages(
                source=self._name,
                values=list(chain.from_iterable(piece.values for piece in pieces)),
                offsets=np.concatenate([piece.offsets for piece in pieces]),
                times_ms=np.concatenate([piece.times_ms for piece in pieces]),
                next_offset=self._next_offset,
                skipped=skipped,
                end_offset=self._reader.end_offset(queue.number),
                read_ms=None if all(p.appended for p in pieces) else now_ms(),
                after_offset=after_offset,
            )
        ]

    @override
    def next_awake(self) -> datetime | None:
        return self._awake

    @override
    def snapshot(self) -> int:
        self._reader.progress[self._queue.number] = self._next_offset
        return self._next_offset

    @override
    def close(self) -> None:
        self._reader.remove()


@dataclass
class KafkaSource(FixedPartitionedSource[Messages, int | None]):
    """All partitions of one topic, as they are when the job starts.

    `id` is the topic's, None if the broker has none. `first_offsets` has all partitions, and where
    those without a snapshot begin; None is decided by `start`, and `began` makes it durable.
    `grown` is called, by each worker thread, when the topic has more partitions, with their number.
    """

    config: KafkaConfig
    id: str | None
    first_offsets: Mapping[str, int | None]
    _: KW_ONLY
    began: Callable[[str, int], None]
    grown: Callable[[int], None]

    def __post_init__(self) -> None:
        count = len(self.first_offsets)
        self._numbers = {partition_key(self.config.topic, n).name: n for n in range(count)}
        self._reader = PerThread(lambda: _Reader(self.config, self.id, count, self.grown))

    @override
    def list_parts(self) -> list[str]:
        return sorted(self._numbers)

    @override
    @noted
    def build_part(
        self, step_id: str, for_part: str, resume_state: int | None
    ) -> StatefulSourcePartition[Messages, int | None]:
        number, reader = self._numbers[for_part], self._reader.get()
        at = self.first_offsets[for_part] if resume_state is None else resume_state
        if at is None:
            at = reader.broker.offset(number, self.config.start)
            if at is None:
                return Resting()  # stopped before it was known where it begins
            self.began(for_part, at)
        return _KafkaPartition(for_part, reader, reader.add(number, at))
