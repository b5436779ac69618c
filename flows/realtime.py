"""The real-time dataflow: source → decode → blocks → chunks, keyed by partition.

    mkdir -p data/recovery && python -m bytewax.recovery data/recovery 4
    python -m bytewax.run flows.realtime -r data/recovery -s 1 -b 0

`flow` is built from the settings when it is asked for, so that importing this module does nothing.
Step ids and state keys name the state in the recovery store: they never change.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.inputs import FixedPartitionedSource

from flows.recovery import take_data_directory
from flows.settings import Settings, load
from operators.blocks import BlocksStep
from operators.chunks import ChunksSink
from operators.decode import DecodeConfig, Decoder
from operators.failure import noted
from operators.files import FilesConfig, FileSource, file_partitions
from operators.kafka import KafkaSource
from operators.messages import Messages
from operators.repartition import hash_partitions, is_hash_partition, repartition
from operators.replay import decode_again
from operators.routing import state_key
from operators.stop import stop_on_signals, stopping
from operators.topic import KafkaConfig, require_same_topic, topic_id, topic_partitions
from storage.blocks import BlocksConfig
from storage.errors import BadInput
from storage.files import Files
from storage.frame import Frame
from storage.layout import Layout, PartitionKey

_locks: list[BinaryIO] = []


def __getattr__(name: str) -> Dataflow:
    if name == "flow":
        settings = load()
        if not _one_of_many():
            _locks.append(take_data_directory(Layout(settings.data_dir)))
        return build(settings)
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
    files.make_directory(layout.sources)
    known = {path.name for path in layout.sources.iterdir()}
    source, partitions = _source(settings, layout, known)
    if stopping():
        raise SystemExit(0)
    for partition in partitions:
        files.touch(layout.sources / partition.name)
    owners = hash_partitions(settings.hash_partitions) or partitions
    _require_same_division(layout.partitions(), owners, settings.hash_partitions)
    keys = {owner.name: state_key(owner) for owner in owners}
    decoder = Decoder(DecodeConfig(schema, settings.future_skew, settings.message_bytes_max))

    @noted
    def decode(items: list[Messages]) -> Iterable[Frame]:
        frames = decoder.decode(items)
        if not settings.hash_partitions:
            return frames
        return [part for frame in frames for part in repartition(frame, schema.key, owners)]

    blocks = BlocksStep(
        BlocksConfig(
            schema,
            settings.block_span,
            settings.dedup_window,
            settings.grace,
            settings.conflicts,
            settings.drops_bytes,
        ),
        layout,
        files,
        publish_interval_s=settings.publish_interval / 1000,
        tick_interval_s=settings.tick_interval / 1000,
        cache_bytes=settings.cache_bytes,
        retention_ms=settings.retention,
        batch_late_ms=settings.batch_late,
        # What passes a replay may belong to another hash partition than the reject did.
        redecode=None if settings.hash_partitions else partial(decode_again, decoder),
    )
    # A partition that the source no longer has still has blocks to merge.
    to_merge = sorted({*keys, *layout.partitions()})
    chunks = ChunksSink(
        to_merge,
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


def _one_of_many() -> bool:
    """Whether this process was started as one of a cluster, whose members share the data."""
    return "BYTEWAX_PROCESS_ID" in os.environ or any(
        argument in ("-i", "--process-id") for argument in sys.argv
    )


def _source(
    settings: Settings, layout: Layout, known: set[str]
) -> tuple[FixedPartitionedSource[Messages, Any], Sequence[PartitionKey]]:
    """The source, and its partitions that are there; `known` are all that ever were."""
    if settings.source == "files":
        files = FilesConfig(settings.files.path, settings.batch_rows, layout.root)
        paths = file_partitions(files)
        gone = sorted(known - {key.name for key in paths})
        return FileSource(files, paths, gone), sorted(paths)
    kafka = kafka_config(settings)
    partitions = topic_partitions(kafka)
    gone = sorted(known - {key.name for key in partitions})
    id = topic_id(kafka) if partitions else None
    if id is not None:
        _keep_topic(layout.topic(kafka.topic), id)
    return KafkaSource(kafka, partitions, gone, id), partitions


def _keep_topic(path: Path, id: str) -> None:
    """Keep the topic's id for the next start. Raises BadInput if another one was kept before."""
    files = Files()
    if path.is_file():
        require_same_topic(path.name, files.read(path).decode(), id)
    else:
        files.make_directory(path.parent)
        files.replace(path, id.encode(), durable=True)


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
