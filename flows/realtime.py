"""The real-time dataflow: source → decode → blocks → chunks, keyed by partition.

    mkdir -p data/recovery && python -m bytewax.recovery data/recovery 4
    python -m bytewax.run flows.realtime -r data/recovery -s 1 -b 0

`flow` is built from the settings when it is asked for, so that importing this module does nothing.
Step ids and state keys name the state in the recovery store: they never change.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.inputs import FixedPartitionedSource

from flows.settings import Settings, load
from operators.blocks import BlocksStep
from operators.chunks import ChunksSink
from operators.decode import DecodeConfig, Decoder
from operators.files import FilesConfig, FileSource, file_partitions
from operators.kafka import KafkaConfig, KafkaSource, topic_partitions
from operators.messages import Messages
from operators.repartition import hash_partitions, is_hash_partition, repartition
from operators.routing import state_key
from operators.stop import stop_on_signals, stopping
from storage.blocks import BlocksConfig
from storage.errors import BadInput
from storage.files import Files
from storage.frame import Frame
from storage.layout import Layout, PartitionKey


def __getattr__(name: str) -> Dataflow:
    if name == "flow":
        return build(load())
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def build(settings: Settings, files: Files | None = None) -> Dataflow:
    """The dataflow of these settings, over `files` (by default the real ones). Waits for the
    broker, if Kafka is the source and away.

    Raises BadInput if the settings don't fit the source or the data directory; SystemExit if asked
    to stop while waiting.
    """
    stop_on_signals()
    files, layout = files or Files(), Layout(settings.data_dir)
    files.make_directory(layout.root)
    schema = settings.schema_of_events
    source, partitions = _source(settings)
    if stopping():
        raise SystemExit(0)
    owners = hash_partitions(settings.hash_partitions) or partitions
    _require_same_division(layout.partitions(), owners, settings.hash_partitions)
    keys = {owner.name: state_key(owner) for owner in owners}
    decoder = Decoder(DecodeConfig(schema, settings.future_skew, settings.message_bytes_max))

    def decode(items: list[Messages]) -> Iterable[Frame]:
        frames = decoder.decode(items)
        if not settings.hash_partitions:
            return frames
        return [part for frame in frames for part in repartition(frame, schema.key, owners)]

    blocks = BlocksStep(
        BlocksConfig(schema, settings.block_span, settings.dedup_window, settings.grace),
        layout,
        files,
        publish_interval_s=settings.publish_interval / 1000,
        cache_bytes=settings.cache_bytes,
    )
    # A partition that the source no longer has still has blocks to merge.
    known = sorted({*keys, *layout.partitions()})
    chunks = ChunksSink(
        known,
        layout,
        files,
        blocks_per_chunk=settings.blocks_per_chunk,
        grace_ms=settings.grace,
    )
    flow = Dataflow("forebay")
    messages = op.input("messages", flow, source)
    frames = op.flat_map_batch("decode", messages, decode)
    keyed = op.key_on("key", frames, lambda frame: keys[frame.partition])
    offers = op.stateful_batch("blocks", keyed, blocks)
    op.output("chunks", offers, chunks)
    return flow


def _source(
    settings: Settings,
) -> tuple[FixedPartitionedSource[Messages, Any], Sequence[PartitionKey]]:
    if settings.source == "files":
        files = FilesConfig(settings.files.path, settings.batch_rows)
        paths = file_partitions(files)
        return FileSource(files, paths), sorted(paths)
    kafka = kafka_config(settings)
    partitions = topic_partitions(kafka)
    return KafkaSource(kafka, partitions), partitions


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


def _require_same_division(found: list[str], owners: Sequence[PartitionKey], count: int) -> None:
    """Events already stored must be where their copies would go."""
    names = {owner.name for owner in owners}
    strays = [name for name in found if is_hash_partition(name) != bool(count)]
    strays += [name for name in found if count and name not in names]
    if strays:
        raise BadInput(
            f"hash_partitions: this data directory was made with another number than {count}: it"
            f" has partition {strays[0]}"
        )
