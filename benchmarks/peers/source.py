"""The source of all peers: a topic that holds a known number of messages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

BATCH_ROWS = 5_000
EPOCH_S = 1.0
"""How often a peer that can choose makes its work durable: as often as Forebay."""


@dataclass(frozen=True)
class Source:
    bootstrap: str
    topic: str
    messages: int

    def batches(self) -> Iterator[list[bytes]]:
        """All messages, as Forebay's own consumer would fetch them."""
        from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

        consumer = Consumer(
            {
                "bootstrap.servers": self.bootstrap,
                "group.id": "peer",
                "enable.auto.commit": False,
                "queued.min.messages": 200_000,
                "queued.max.messages.kbytes": 65_536,
                "fetch.wait.max.ms": 50,
                "fetch.queue.backoff.ms": 10,
            }
        )
        numbers = consumer.list_topics(self.topic).topics[self.topic].partitions
        consumer.assign([TopicPartition(self.topic, n, OFFSET_BEGINNING) for n in numbers])
        left = self.messages
        while left > 0:
            values = [message.value() or b"" for message in consumer.consume(BATCH_ROWS, 1.0)]
            left -= len(values)
            if values:
                yield values
        consumer.close()
