"""The real-time dataflow: source → decode → blocks → chunks, keyed by partition.

    mkdir -p data/recovery && python -m bytewax.recovery data/recovery 4
    python -m bytewax.run forebay.flows.realtime -r data/recovery -s 1 -b 0

`flow` is built from the settings when it is asked for, so that importing this module does nothing.
Step ids and state keys name the state in the recovery store: they never change.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.inputs import FixedPartitionedSource

from forebay.flows.recovery import begin, take_data_directory
from forebay.flows.settings import Settings, load
from forebay.operators.blocks import BlocksStep
from forebay.operators.chunks import ChunksSink
from forebay.operators.decode import DecodeConfig, Decoder
from forebay.operators.failure import noted
from forebay.operators.redecode import decode_again
from forebay.operators.repartition import hash_partitions, is_hash_partition, repartition
from forebay.operators.routing import state_key
from forebay.operators.sources.content import head
from forebay.operators.sources.files import FilesConfig, FileSource, file_partitions
from forebay.operators.sources.kafka import KafkaSource
from forebay.operators.sources.messages import Messages
from forebay.operators.sources.topic import (
    Broker,
    Found,
    KafkaConfig,
    partition_key,
    require_same_topic,
)
from forebay.operators.stop import stop_on_signals
from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import BadInput
from forebay.storage.base.layout import Layout, PartitionKey
from forebay.storage.formats.frame import Frame
from forebay.storage.formats.source import (
    Head,
    Source,
    Topic,
    claim_sources,
    claim_topic,
    keep_source,
    read_sources,
    read_topic,
)
from forebay.storage.partition.rules import Rules

_locks: list[BinaryIO] = []

log = logging.getLogger("forebay.kafka")


def __getattr__(name: str) -> Dataflow:
    if name == "flow":
        settings = load()
        if not _one_of_many():
            layout = Layout(settings.data_dir)
            _locks.append(take_data_directory(layout))
            begin(layout)
        return build(settings)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def build(
    settings: Settings, disk: Disk | None = None, restart: Callable[[], None] | None = None
) -> Dataflow:
    """The dataflow of these settings, over `files` (by default the real ones). Waits for the
    broker, if Kafka is the source and away. `restart` asks for a stop and another start of all
    workers, if there is someone to ask.

    Raises BadInput if the settings don't fit the source or the data directory; SystemExit if asked
    to stop while waiting.
    """
    stop_on_signals()
    disk, layout = disk or Disk(), Layout(settings.data_dir)
    disk.make_directory(layout.root)
    schema = settings.schema_of_events
    source, partitions = (
        _files(settings, layout, disk)
        if settings.source == "files"
        else _kafka(settings, layout, disk, restart)
    )
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
        Rules(
            schema,
            settings.block_span,
            settings.dedup_window,
            settings.grace,
            settings.conflicts,
            settings.drops_bytes,
        ),
        layout,
        disk,
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
        disk,
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


Sources = tuple[FixedPartitionedSource[Messages, Any], Sequence[PartitionKey]]
"""A source, and its partitions that are there."""


def _files(settings: Settings, layout: Layout, disk: Disk) -> Sources:
    topics = sorted(path.name for path in layout.topics.glob("[!.]*"))
    if topics:
        raise BadInput(
            f'source: expected "kafka", for this data directory has events of topic {topics[0]},'
            ' got "files"; files need a data directory of their own'
        )
    config = FilesConfig(settings.files.path, settings.batch_rows, layout.root)
    paths = file_partitions(config)
    before, wanted = read_sources(disk, layout), {}
    for key, path in paths.items():
        if key.name not in before:
            content = head(path)
            _warn_of_copy(path, content, before)
            wanted[key.name] = Source(head=Head.of(content))
    known = claim_sources(disk, layout, wanted)
    gone = sorted(set(known) - {key.name for key in paths})
    return FileSource(config, paths, gone), sorted(paths)


def _warn_of_copy(path: Path, content: bytes, known: Mapping[str, Source]) -> None:
    """A file that was renamed, copied or compressed is a partition of its own, and deduplication
    goes on within a partition."""
    same = [name for name, one in known.items() if one.head and one.head.begins(content)]
    if same:
        log.warning(
            "file %s begins as the file of partition %s did: if it is the same one, renamed, copied"
            " or compressed, each of its events is kept once more, unless hash_partitions is set",
            path,
            same[0],
        )


def _kafka(
    settings: Settings, layout: Layout, disk: Disk, restart: Callable[[], None] | None
) -> Sources:
    config, path = kafka_config(settings), layout.topic(settings.kafka.topic)
    kept, known = read_topic(disk, path), read_sources(disk, layout)
    before = sum(name.startswith(f"{config.topic}-") for name in known)
    found = Broker(config).topic(kept.id if kept else None, before)
    if found is None:
        raise SystemExit(0)
    _require_same_source(config.topic, kept, found, known)
    if kept is None:
        # Without ids, version 1 kept nothing of a topic but what it had read of it. A topic that
        # was created while it was waited for had no partitions at the first start.
        count = len(known) or (0 if found.new else found.partitions)
        kept = claim_topic(disk, path, Topic(found.id, count))
        _require_same_source(config.topic, kept, found, known)
    topic = kept

    def claim(partitions: int) -> dict[str, Source]:
        keys = [partition_key(config.topic, number) for number in range(partitions)]
        return claim_sources(disk, layout, {key.name: topic.source(key.number) for key in keys})

    sources = claim(found.partitions)
    source = KafkaSource(
        config,
        found.id,
        {name: one.first_offset for name, one in sources.items()},
        began=lambda name, offset: keep_source(disk, layout, name, Source(offset)),
        grown=_Growth(config.topic, claim, restart),
    )
    # All that are known: a peer may have claimed one that was added after this worker asked.
    return source, [partition_key(config.topic, number) for number in range(len(sources))]


def _require_same_source(
    topic: str, kept: Topic | None, found: Found, known: Mapping[str, Source]
) -> None:
    """Raises BadInput if what was read before is not of this topic."""
    if kept and kept.id and found.id:
        require_same_topic(topic, kept.id, found.id)
    names = {partition_key(topic, number).name for number in range(found.partitions)}
    if gone := sorted(set(known) - names):
        raise BadInput(
            f"topic {topic}: expected partition {gone[0]}, which was read before, got {len(names)}"
            " partitions without it; another topic, or one created anew, needs a data directory of"
            " its own"
        )


class _Growth:
    """What is done when a topic has more partitions: they are known from then on, and read by the
    next start, which is asked for if there is someone to ask. Thread-safe."""

    def __init__(
        self, topic: str, claim: Callable[[int], object], restart: Callable[[], None] | None
    ) -> None:
        self._topic = topic
        self._claim = claim
        self._restart = restart
        self._partitions = 0
        self._lock = threading.Lock()

    def __call__(self, partitions: int) -> None:
        with self._lock:
            if partitions <= self._partitions:
                return
            self._partitions = partitions
            self._claim(partitions)
            log.warning(
                "topic %s has %d partitions now; %s",
                self._topic,
                partitions,
                "all workers start again to read the new ones from their beginning"
                if self._restart
                else "the new ones are read, from their beginning, when this job is started again",
            )
            if self._restart:
                self._restart()


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
