"""The source of all peers: a topic that holds a known number of messages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

EPOCH_S = 1.0
"""How often a peer that can choose makes its work durable: as often as Forebay."""
EPOCH_ROWS = 100_000
"""The same for one that counts messages: about what comes in a second at Forebay's rate."""
FETCH_ROWS = 5_000


@dataclass(frozen=True)
class Source:
    bootstrap: str
    topic: str
    messages: int

    def epochs(self) -> Iterator[list[bytes]]:
        """All messages, EPOCH_ROWS or more at a time, fetched as Forebay's own consumer would."""
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
        values: list[bytes] = []
        while left > 0:
            arrived = [message.value() or b"" for message in consumer.consume(FETCH_ROWS, 1.0)]
            values += arrived
            left -= len(arrived)
            if len(values) >= EPOCH_ROWS or not left:
                yield values
                values = []
        consumer.close()
