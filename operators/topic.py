"""The topic: how to reach it, which partitions it has, and whether it is still the one it was.

A topic deleted and made anew has the old name and other messages at the old offsets. Its id tells
the two apart, and no id ever comes back. So what was read before a question was sent is of the
known topic if the answer is the known id. `Watch` asks beside the reader, which holds back what it
has read until then: one question at a time, none while nothing waits, but for one every few
seconds, so that an idle job notices as well.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient, TopicDescription

from operators.stop import stopping
from storage.errors import BadInput
from storage.layout import PartitionKey

log = logging.getLogger("forebay.kafka")

METADATA_TIMEOUT_S = 10.0
RETRY_S_MAX = 30.0
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
    start: str = "earliest"
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
            "enable.partition.eof": False,
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

    def admin(self) -> AdminClient:
        """A client that says nothing of a broker that is away: whoever asks it does."""
        own: dict[str, Any] = {
            "bootstrap.servers": self.bootstrap,
            "reconnect.backoff.max.ms": 1000,
            "log_level": 2,
            "logger": log,
            "error_cb": lambda _: None,
        }
        return AdminClient({**own, **self.librdkafka})


def partition_key(topic: str, number: int) -> PartitionKey:
    """Zero-padded, so that names sort in partition order."""
    return PartitionKey(f"{topic}-{number:05d}", number)


def topic_partitions(config: KafkaConfig) -> list[PartitionKey]:
    """The partitions that the topic has now; waits for the broker, and for the topic, to be."""
    client = config.admin()
    delay_s = 0.5
    while not stopping():
        try:
            topics = client.list_topics(config.topic, timeout=METADATA_TIMEOUT_S).topics
            found = topics[config.topic]
            if found.error is None and found.partitions:
                return [partition_key(config.topic, number) for number in sorted(found.partitions)]
            problem = str(found.error or "no partitions yet")
        except KafkaException as error:
            problem = str(error.args[0])
        log.warning(
            "waiting for topic %s at %s: %s; next try in %.1f s",
            config.topic,
            config.bootstrap,
            problem,
            delay_s,
        )
        time.sleep(delay_s)
        delay_s = min(delay_s * 2, RETRY_S_MAX)
    return []


def topic_id(config: KafkaConfig) -> str | None:
    """What tells the topic from another of its name; None if the broker does not say."""
    client = config.admin()  # its answers end with it
    try:
        id = str(_describe(client, config.topic).result().topic_id)
    except KafkaException as error:
        log.warning("kafka %s: the topic's id is not known: %s", config.bootstrap, error)
        return None
    return None if id == NO_ID else id


def require_same_topic(topic: str, known: str, found: str) -> None:
    """Offsets mean nothing in another topic of the same name. Raises BadInput if it is one."""
    if found != known:
        raise BadInput(
            f"topic {topic}: expected the topic read before, id {known}, got one created anew,"
            f" id {found}; it needs a data directory of its own"
        )


class Watch:
    """Asks whether the topic still has its id. `sure_s` is the moment, of the monotonic clock,
    before which all that was read is of that topic; without an id there is nothing to ask."""

    def __init__(self, config: KafkaConfig, id: str | None) -> None:
        self._config = config
        self._id = id
        self._client = config.admin()
        self._answer: Future[TopicDescription] | None = None
        self._asked_s = -math.inf
        self.sure_s = -math.inf if id else math.inf
        self.problem: KafkaError | None = None
        """Why there is no answer just now."""

    def look(self, read_s: float) -> None:
        """Take in an answer, if there is one, and ask anew if `read_s`, the moment of the last
        read, came after it. Never waits. Raises BadInput if the topic is another."""
        if self._answer is not None and self._answer.done():
            self._take(self._answer)
            self._answer = None
        every_s = ASK_EVERY_S if self.sure_s < read_s else ASK_EVERY_S_IDLE
        now = time.monotonic()
        if self._id and self._answer is None and now - self._asked_s >= every_s:
            self._asked_s = now
            self._answer = _describe(self._client, self._config.topic)

    def wait(self) -> None:
        """Ask, and wait for the answer. Raises BadInput if the topic is another."""
        if self._id:
            self._asked_s = time.monotonic()
            self._answer = None
            self._take(_describe(self._client, self._config.topic))

    def _take(self, answer: Future[TopicDescription]) -> None:
        try:
            found = str(answer.result().topic_id)
        except KafkaException as error:
            self.problem = error.args[0]
            return
        if self._id:
            require_same_topic(self._config.topic, self._id, found)
        self.sure_s, self.problem = self._asked_s, None


def _describe(client: AdminClient, topic: str) -> Future[TopicDescription]:
    """An answer, or a KafkaException, within METADATA_TIMEOUT_S."""
    wanted = TopicCollection([topic])
    answer: Future[TopicDescription] = client.describe_topics(
        wanted, request_timeout=METADATA_TIMEOUT_S
    )[topic]
    return answer
