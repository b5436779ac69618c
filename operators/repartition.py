"""Repartition: divide frames by a hash of the dedup key, for topics whose producers don't key.

All copies of an event then meet in one hash partition, whichever source partition each came by.
A reject, which may have no key, goes by its offset. The count is part of the names, for a key may
never move to another partition.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from forebay.storage.base.layout import PartitionKey
from forebay.storage.formats.frame import Frame
from forebay.storage.formats.hashes import hash_keys
from forebay.storage.formats.schema import OFFSET


def hash_partitions(count: int) -> list[PartitionKey]:
    return [PartitionKey(f"hash-{number:05d}-of-{count:05d}", number) for number in range(count)]


def is_hash_partition(name: str) -> bool:
    return re.fullmatch(r"hash-\d{5}-of-\d{5}", name) is not None


def repartition(frame: Frame, key: tuple[str, ...], targets: Sequence[PartitionKey]) -> list[Frame]:
    """One frame for each hash partition that gets anything, or for all where the source ends, so
    that none goes on as if more were waiting; counters go with the first."""
    ended = frame.end_offset is not None and frame.next_offset >= frame.end_offset
    owners = (hash_keys(frame.events.select(list(key)).columns) % np.uint64(len(targets))).astype(
        np.int64
    )
    reject_owners = frame.rejects.column(OFFSET).to_numpy() % len(targets)
    frames: list[Frame] = []
    for number, target in enumerate(targets):
        events = np.flatnonzero(owners == number)
        rejects = np.flatnonzero(reject_owners == number)
        if ended or len(events) or len(rejects):
            part = replace(
                frame,
                partition=target.name,
                events=frame.events.take(pa.array(events)),
                rejects=frame.rejects.take(pa.array(rejects)),
            )
            frames.append(replace(part, nulled=0, skipped=0) if frames else part)
    return frames
