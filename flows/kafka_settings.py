"""What the settings say of Kafka, as the source takes it.

Knows nothing of the engine: `forebay config check` asks the broker with it too.
"""

from forebay.flows.settings import Settings
from forebay.operators.sources.topic import KafkaConfig


def kafka_config(settings: Settings) -> KafkaConfig:
    kafka = settings.kafka
    return KafkaConfig(
        bootstrap=kafka.bootstrap,
        topic=kafka.topic,
        group=kafka.group,
        start=kafka.start,
        on_gap=kafka.on_gap,
        librdkafka=kafka.librdkafka,
        batch_rows=settings.batch_rows,
        linger_s=kafka.linger / 1000,
    )
