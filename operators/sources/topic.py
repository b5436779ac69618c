"""The topic: how to reach it, which partitions it has, and whether it is still the same topic.

A topic deleted and recreated has the old name and other messages at the old offsets. It has a new
id, and no id is ever used twice. So what was read before a question was sent is of the known topic
if the answer is the known id. `Watch` asks while the reader goes on, which holds back what it has
read until the answer: one question at a time, and none while nothing waits, except one every few
seconds, so that an idle job notices as well. Each answer also has the number of partitions.

Everything here that waits for a broker stops waiting when the job is asked to stop.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeVar

from confluent_kafka import (
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, OffsetSpec, TopicDescription

from forebay.operators.process import stopping, wait
from forebay.storage.base.errors import BadInput
from forebay.storage.base.layout import PartitionKey

log = logging.getLogger("forebay.kafka")

T = TypeVar("T")
End = Literal["earliest", "latest"]

METADATA_TIMEOUT_S = 10.0
RETRY_S, RETRY_S_MAX = 0.5, 5.0
LOOK_S = 1.0
"""How long an answer is waited for before it is said why there is none."""
TELL_EVERY_S = 30.0
ASK_EVERY_S, ASK_EVERY_S_IDLE = 0.025, 5.0
"""An answer costs 0.25 ms of CPU: one percent of a busy worker, and less delay than lingering."""
NO_ID = "AAAAAAAAAAAAAAAAAAAAAA"
"""What a broker that knows no topic ids (Kafka before 2.8) gives as one."""


@dataclass(frozen=True)
class KafkaConfig:
    """`librdkafka` is passed through as it is; `start` and `on_gap` as in the settings."""

    bootstrap: str
    topic: str
    group: str = "forebay"
    start: End = "earliest"
    on_gap: str = "stop"
    librdkafka: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    batch_rows: int = 5000
    linger_s: float = 0.05

    def consumer(self) -> dict[str, Any]:
        return {
            "bootstrap.servers": self.bootstrap,
            "group.id": self.group,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",
            "enable.partition.eof": True,
            "queued.min.messages": 200_000,
            "queued.max.messages.kbytes": 65_536,
            "fetch.wait.max.ms": 50,
            "fetch.queue.backoff.ms": 10,
            "reconnect.backoff.ms": 200,
            "reconnect.backoff.max.ms": 5000,
            "log_level": 2,
            "logger": log,
            **self.librdkafka,
        }

    @property
    def isolation(self) -> IsolationLevel:
        """Where `latest` is: with messages of open transactions, or before the first of them."""
        uncommitted = self.librdkafka.get("isolation.level") == "read_uncommitted"
        return IsolationLevel.READ_UNCOMMITTED if uncommitted else IsolationLevel.READ_COMMITTED


def partition_key(topic: str, number: int) -> PartitionKey:
    """Zero-padded, so that names sort in partition order."""
    return PartitionKey(f"{topic}-{number:05d}", number)


class Broker:
    """Questions about one topic. A client is kept as long as its answers are awaited, since they
    end with it. An unavailable broker is reported once for each reason, and then now and then."""

    def __init__(self, config: KafkaConfig) -> None:
        """Raises BadInput if librdkafka refuses a property."""
        self.config = config
        self._trouble: KafkaError | None = None
        self._absent = False
        self._told: tuple[int, float] = (0, -math.inf)
        own: dict[str, Any] = {
            "bootstrap.servers": config.bootstrap,
            "reconnect.backoff.max.ms": 1000,
            "log_level": 2,
            "logger": log,
            "error_cb": self._failed,
        }
        with refused():
            self._client = AdminClient({**own, **config.librdkafka})

    def describe(self) -> Future[TopicDescription]:
        """An answer, or a KafkaException, within METADATA_TIMEOUT_S."""
        self._client.poll(0)  # else its reports of an unavailable broker pile up
        topic = self.config.topic
        asked = self._client.describe_topics(
            TopicCollection([topic]), request_timeout=METADATA_TIMEOUT_S
        )
        return asked[topic]

    def topic(self, known: str | None, partitions_min: int) -> FoundTopic | None:
        """The topic as it is now; waits for the broker, for the topic, and, if it is the `known`
        one, for its known partitions, since a broker may be behind. None if asked to stop.
        """
        while (answer := self._answer(self.describe)) is not None:
            id = None if str(answer.topic_id) == NO_ID else str(answer.topic_id)
            count = len(answer.partitions)
            if count >= max(1, partitions_min) or (count and (id is None or id != known)):
                return FoundTopic(id, count, self._absent)
            self._tell(0, f"it has {count} partitions, expected {max(1, partitions_min)}")
            if wait(RETRY_S_MAX):
                break
        return None

    def offset(self, number: int, end: End) -> int | None:
        """Where a partition begins or ends now; waits for the broker. None if asked to stop."""
        place = TopicPartition(self.config.topic, number)
        ask = partial(
            self._client.list_offsets,
            {place: getattr(OffsetSpec, end)()},
            isolation_level=self.config.isolation,
            request_timeout=METADATA_TIMEOUT_S,
        )
        answer = self._answer(lambda: ask()[place])
        return None if answer is None else int(answer.offset)

    def ends(self, numbers: Iterable[int], wait_s: float) -> dict[int, int]:
        """Where these partitions end now, as far as the broker says so in time."""
        self._client.poll(0)
        latest = OffsetSpec.latest()  # type: ignore[no-untyped-call]
        asked = self._client.list_offsets(
            {TopicPartition(self.config.topic, number): latest for number in numbers},
            isolation_level=self.config.isolation,
            request_timeout=wait_s,
        )
        found = {}
        for place, answer in asked.items():
            with suppress(KafkaException, TimeoutError):
                found[place.partition] = int(answer.result(2 * wait_s).offset)
        return found

    def _answer(self, ask: Callable[[], Future[T]]) -> T | None:
        """The first answer; asks again, with back-off, until there is one. None if asked to stop.
        Raises BadInput if no topic can have that name."""
        delay_s = RETRY_S
        while not stopping():
            self._trouble = None
            answer = ask()
            while not answer.done() and not wait(LOOK_S, answer):
                self._client.poll(0)
                if self._trouble:
                    self._tell(self._trouble.code(), self._trouble.str())
            if not answer.done():
                break
            try:
                return answer.result()
            except KafkaException as error:
                problem: KafkaError = error.args[0]
                if problem.code() == KafkaError.TOPIC_EXCEPTION:
                    raise BadInput(
                        "kafka.topic: expected letters, digits, . _ -, at most 249 of them, got"
                        f" {self.config.topic!r}"
                    ) from error
                self._absent |= problem.code() == KafkaError.UNKNOWN_TOPIC_OR_PART
                if not self._trouble:
                    self._tell(problem.code(), problem.str())
            if wait(delay_s):
                break
            delay_s = min(delay_s * 2, RETRY_S_MAX)
        return None

    def _tell(self, code: int, problem: str) -> None:
        last, told_s = self._told
        if code != last or time.monotonic() - told_s > TELL_EVERY_S:
            self._told = code, time.monotonic()
            where = self.config.topic, self.config.bootstrap
            log.warning("waiting for topic %s at %s: %s", *where, problem)

    def _failed(self, error: KafkaError) -> None:
        """Why the broker can't be reached; a question that timed out does not say."""
        if error.code() != KafkaError._ALL_BROKERS_DOWN:
            self._trouble = error


@contextmanager
def refused() -> Iterator[None]:
    """A property that librdkafka refuses is BadInput."""
    try:
        yield
    except KafkaException as error:
        raise BadInput(
            f"kafka.librdkafka: expected its properties, got: {error.args[0].str()}"
        ) from error


@dataclass(frozen=True)
class FoundTopic:
    """A topic as a broker knows it; `id` is None if the broker has no ids (Kafka before 2.8).
    `new`: there was none when it was first asked for."""

    id: str | None
    partitions: int
    new: bool


def require_same_topic(topic: str, known: str, found: str) -> None:
    """Offsets mean nothing in another topic of the same name. Raises BadInput if it is another."""
    if found != known:
        raise BadInput(
            f"topic {topic}: expected the topic read before, id {known}, got a recreated one,"
            f" id {found}; it needs a data directory of its own"
        )


class Watch:
    """Asks whether the topic still has its id, and how many partitions. `sure_s` is the moment, by
    the monotonic clock, before which everything read is of that topic; always, if there are no
    ids."""

    def __init__(self, broker: Broker, id: str | None) -> None:
        self._id = id
        self._broker = broker
        self._answer: Future[TopicDescription] | None = None
        self._asked_s = -math.inf
        self.sure_s = -math.inf if id else math.inf
        self.partitions = 0
        """As of the last answer."""
        self.problem: KafkaError | None = None
        """Why there is no answer just now."""

    def look(self, read_s: float) -> None:
        """Take in an answer, if there is one, and ask again if `read_s`, the moment of the last
        read, came after it. Never waits. Raises BadInput if the topic is another."""
        if self._answer is not None and self._answer.done():
            self._take(self._answer)
            self._answer = None
        every_s = ASK_EVERY_S if self.sure_s < read_s else ASK_EVERY_S_IDLE
        if self._answer is None and time.monotonic() - self._asked_s >= every_s:
            self._ask()

    def wait(self) -> None:
        """Ask, and wait for the answer, or for a stop. Raises BadInput if the topic is another."""
        answer = self._ask()
        while not answer.done() and not wait(METADATA_TIMEOUT_S, answer):
            pass
        self.look(-math.inf)

    def _ask(self) -> Future[TopicDescription]:
        self._asked_s = time.monotonic()
        self._answer = self._broker.describe()
        return self._answer

    def _take(self, answer: Future[TopicDescription]) -> None:
        try:
            found = answer.result()
        except KafkaException as error:
            self.problem = error.args[0]
            return
        if self._id:
            require_same_topic(self._broker.config.topic, self._id, str(found.topic_id))
            self.sure_s = self._asked_s
        self.partitions, self.problem = len(found.partitions), None
