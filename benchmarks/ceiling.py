"""The ceiling: consume and decode as Forebay does, and throw the result away. A process of its own.

Nothing in it makes reference cycles, so it does without Python's cycle collector.

python -m benchmarks.ceiling BOOTSTRAP TOPIC MESSAGES SCHEMA
"""

from __future__ import annotations

import gc
import sys

from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

from flows.settings import Settings
from operators.decode import DecodeConfig, Decoder
from operators.kafka import POLL_MESSAGES, Piece
from operators.messages import Messages
from operators.topic import KafkaConfig, topic_partitions


def main(bootstrap: str, topic: str, messages: int, schema: str) -> int:
    gc.disable()
    settings = Settings(event_schema=schema)
    config = KafkaConfig(bootstrap=bootstrap, topic=topic, group="ceiling")
    decoder = Decoder(
        DecodeConfig(
            settings.schema_of_events, settings.future_skew, int(settings.message_bytes_max)
        )
    )
    consumer = Consumer(config.consumer())
    partitions = [key.number for key in topic_partitions(config)]
    consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in partitions])
    left, events = messages, 0
    while left > 0:
        arrived = consumer.consume(POLL_MESSAGES, 1.0)
        if not arrived:
            continue
        piece = Piece.of(arrived, 0.0)
        item = Messages(topic, piece.values, piece.offsets, piece.times_ms, next_offset=0)
        events += sum(frame.events.num_rows for frame in decoder.decode([item]))
        left -= len(arrived)
    consumer.close()
    print(f"{events} events")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]))
