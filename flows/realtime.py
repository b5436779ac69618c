"""The real-time dataflow: source → decode → blocks → chunks, keyed by partition.

    mkdir -p data/recovery && python -m bytewax.recovery data/recovery 4
    python -m bytewax.run forebay.flows.realtime -r data/recovery -s 1 -b 0

`flow` is built from the settings when it is asked for, so that importing this module does nothing.
Step ids and state keys name the state in the recovery store: they never change.
"""

import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import BinaryIO

import bytewax.operators as op
from bytewax.dataflow import Dataflow

from forebay.flows.clock import warn_of_steps
from forebay.flows.in_force import decided, note_of
from forebay.flows.open_files import require_open_files
from forebay.flows.recovery import begin, take_data_directory
from forebay.flows.settings import Settings, load
from forebay.flows.sources import open_source
from forebay.operators.blocks import BlocksStep
from forebay.operators.chunks import ChunksSink
from forebay.operators.decode import DecodeConfig, Decoder
from forebay.operators.process import noted, stop_on_signals
from forebay.operators.routing import Place, hash_partitions, repartition, state_key
from forebay.operators.sources.messages import Messages
from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import BadInput
from forebay.storage.base.layout import Layout, PartitionKey, is_hash_partition
from forebay.storage.formats.frame import Frame
from forebay.storage.formats.schema import Schema
from forebay.storage.partition.compaction import span_ms
from forebay.storage.partition.rules import Rules

log = logging.getLogger("forebay.flows")

_locks: list[BinaryIO] = []


def __getattr__(name: str) -> Dataflow:
    if name == "flow":
        settings = load()
        require_open_files(1)
        warn_of_steps()
        # A process of a cluster, whose members may share the data, is given its number.
        place = _place()
        if place is None:
            layout = Layout(settings.data_dir)
            _locks.append(take_data_directory(layout))
            begin(layout)
            if note := note_of(settings):
                log.warning(note)
        return build(settings, place=place)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _place() -> Place | None:
    """The place of this process in a cluster of several, by the engine's command line and
    environment; None if it is the only one."""
    if getattr(sys.modules["__main__"].__spec__, "name", None) != "bytewax.run":
        return None
    from bytewax.run import _parse_args

    given = _parse_args()
    if given.process_id is None:
        return None
    processes = len(given.addresses.split(";"))
    return Place(given.process_id, processes, given.workers_per_process or 1)


def build(
    settings: Settings,
    disk: Disk | None = None,
    restart: Callable[[], None] | None = None,
    place: Place | None = None,
    met: Callable[[], None] = lambda: None,
) -> Dataflow:
    """The dataflow of these settings, over `disk` (by default the real one), for the process at
    this `place` among several, which calls `met` when it has found all others; `restart`, waiting
    and errors as in `open_source`, and BadInput if the settings don't fit the data directory."""
    stop_on_signals()
    disk, layout = disk or Disk(), Layout(settings.data_dir)
    disk.make_directory(layout.root)
    schema = decided(settings, disk)
    source, partitions = open_source(settings, layout, disk, restart)
    owners = hash_partitions(settings.hash_partitions) or partitions
    _require_same_division(layout.partitions(), owners, settings.hash_partitions)
    keys = {owner.name: state_key(owner) for owner in owners}
    decoder = Decoder(
        DecodeConfig(
            schema, settings.future_skew, settings.message_bytes_max, settings.preset.hints
        )
    )

    @noted
    def decode(items: list[Messages]) -> Iterable[Frame]:
        frames = decoder.decode(items)
        if not settings.hash_partitions:
            return frames
        return [part for frame in frames for part in repartition(frame, schema.key, owners)]

    blocks = BlocksStep(
        _rules(settings, schema),
        layout,
        disk,
        publish_interval_s=settings.publish_interval / 1000,
        tick_interval_s=settings.tick_interval / 1000,
        cache_bytes=settings.cache_bytes,
        retention_ms=settings.retention,
        batch_late_ms=settings.batch_late,
        retention_bytes=settings.retention_bytes,
        # An event from a replay may belong to another hash partition than the reject did.
        redecode=None if settings.hash_partitions else decoder.decode_again,
    )
    # A partition that the source no longer has still has blocks to merge.
    names = sorted({*keys, *layout.partitions()})
    chunks = ChunksSink(
        names,
        [name for name in names if place is None or name not in keys or place.has(keys[name])],
        layout,
        disk,
        blocks_per_chunk=settings.blocks_per_chunk,
        grace_ms=settings.grace,
        merge_bytes=settings.merge_memory,
        compacted_ms=span_ms(settings.retention, settings.retention_bytes),
        met=met,
    )
    flow = Dataflow("forebay")
    messages = op.input("messages", flow, source)
    frames = op.flat_map_batch("decode", messages, decode)
    keyed = op.key_on("key", frames, lambda frame: keys[frame.partition])
    offers = op.stateful_batch("blocks", keyed, blocks)
    op.output("chunks", offers, chunks)
    return flow


def _rules(settings: Settings, schema: Schema) -> Rules:
    return Rules(
        schema,
        settings.block_span,
        settings.dedup_window,
        settings.grace,
        settings.conflicts,
        settings.drops_bytes,
        settings.rejects_bytes,
        settings.rejects_retention,
    )


def _require_same_division(found: list[str], owners: Sequence[PartitionKey], count: int) -> None:
    """Events already stored must be in the partition to which their copies would go."""
    names = {owner.name for owner in owners}
    strays = [name for name in found if is_hash_partition(name) != bool(count)]
    strays += [name for name in found if count and name not in names]
    if strays:
        raise BadInput(
            f"hash_partitions: expected the number that {strays[0]!r} of this data directory was"
            f" made with, got {count}"
        )
