"""Opens the source that the settings name: what was read before must be of it, and what is new in
it is known from then on, in `DATA/sources` and `DATA/topics`.
"""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bytewax.inputs import FixedPartitionedSource

from forebay.flows.settings import Settings
from forebay.operators.sources.content import head
from forebay.operators.sources.folder import FilesConfig, file_key, file_partitions
from forebay.operators.sources.input_files import FileSource
from forebay.operators.sources.kafka import KafkaSource
from forebay.operators.sources.messages import Messages
from forebay.operators.sources.topic import Broker, FoundTopic, partition_key, require_same_topic
from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import BadInput
from forebay.storage.base.layout import Layout, PartitionKey
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

log = logging.getLogger("forebay.kafka")

Opened = tuple[FixedPartitionedSource[Messages, Any], Sequence[PartitionKey]]
"""A source, and its partitions, those that were read before and are gone too."""


def open_source(
    settings: Settings, layout: Layout, disk: Disk, restart: Callable[[], None] | None
) -> Opened:
    """The source of these settings. Waits for an unavailable Kafka broker. `restart` asks for a
    restart of all workers, if there is someone to ask.

    Raises BadInput if the settings don't fit the source or what was read before; SystemExit if
    asked to stop while waiting.
    """
    if settings.source == "files":
        return _files(settings, layout, disk)
    return _kafka(settings, layout, disk, restart)


def _files(settings: Settings, layout: Layout, disk: Disk) -> Opened:
    topics = sorted(path.name for path in layout.topics.glob("[!.]*"))
    if topics:
        raise BadInput(
            f'source: expected "kafka", for this data directory has events of topic {topics[0]},'
            ' got "files"; files need a data directory of their own'
        )
    config = FilesConfig(
        settings.files.path, settings.batch_rows, layout.root, settings.message_bytes_max
    )
    paths = file_partitions(config)
    before, wanted = read_sources(disk, layout), {}
    for key, path in paths.items():
        if key.name not in before:
            content = head(path)
            wanted[key.name] = Source(head=Head.of(content))
            # Deduplication goes on within a partition, and each file is one.
            same = [name for name, one in before.items() if one.head and one.head.begins(content)]
            if same:
                log.warning(
                    "file %s begins as the file of partition %s did: if it is the same one,"
                    " renamed, copied or compressed, each of its events is kept once more, unless"
                    " hash_partitions is set",
                    path,
                    same[0],
                )
    known = claim_sources(disk, layout, wanted)
    gone = {file_key(name) for name in known} - {*paths}
    return FileSource(config, paths, sorted(key.name for key in gone)), sorted({*paths, *gone})


def _kafka(
    settings: Settings, layout: Layout, disk: Disk, restart: Callable[[], None] | None
) -> Opened:
    config, path = settings.kafka_config, layout.topic(settings.kafka.topic)
    kept, known = read_topic(disk, path), read_sources(disk, layout)
    before = sum(name.startswith(f"{config.topic}-") for name in known)
    found = Broker(config).topic(kept.id if kept else None, before)
    if found is None:
        raise SystemExit(0)
    _require_same_source(config.topic, kept, found, known)
    if kept is None:
        # Without ids, version 1 kept of a topic only what it had read of it. A topic that
        # was created while the job waited for it had no partitions at the first start.
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
        grown=_growth(config.topic, claim, restart),
    )
    # All known ones: a peer may have claimed one that was added after this worker asked.
    return source, [partition_key(config.topic, number) for number in range(len(sources))]


def _require_same_source(
    topic: str, kept: Topic | None, found: FoundTopic, known: Mapping[str, Source]
) -> None:
    """Raises BadInput if what was read before is not of this topic."""
    if kept and kept.id and found.id:
        require_same_topic(topic, kept.id, found.id)
    names = {partition_key(topic, number).name for number in range(found.partitions)}
    if gone := sorted(set(known) - names):
        raise BadInput(
            f"topic {topic}: expected partition {gone[0]}, which was read before, got {len(names)}"
            " partitions without it; another topic, or a recreated one, needs a data directory of"
            " its own"
        )


def _growth(
    topic: str, claim: Callable[[int], object], restart: Callable[[], None] | None
) -> Callable[[int], None]:
    """What is done when a topic has more partitions: they are known from then on, and read after
    the next restart, which is requested if there is someone to ask. Thread-safe."""
    lock, known = threading.Lock(), 0

    def grown(partitions: int) -> None:
        nonlocal known
        with lock:
            if partitions <= known:
                return
            known = partitions
            claim(partitions)
            log.warning(
                "topic %s has %d partitions now; %s",
                topic,
                partitions,
                "all workers restart to read the new ones from their beginning"
                if restart
                else "the new ones are read, from their beginning, when this job is started again",
            )
            if restart:
                restart()

    return grown
