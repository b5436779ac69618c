"""Routing: the partition that an event belongs to, and the worker that has its state.

For topics whose producers don't key, frames are divided by a hash of the dedup key: all copies of
an event then meet in one hash partition, whichever source partition each came from. A reject, which
may have no key, is assigned by its offset. The number of partitions is part of their names, because
a key may never move to another partition.

bytewax gives source and sink partitions to workers round robin in name order, and routes keyed
items by SipHash-1-3 (zero key) of the key's UTF-8 bytes and 0xFF, modulo the number of workers. The
key also names the state in the recovery store, so it must not depend on that number. So each
partition's key carries a salt such that its hash equals the partition's number modulo 27,720, the
least common multiple of 1 to 12: right for 1 to 12 workers, and never in need of a change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import siphash24

from forebay.storage.base.compiled import compiled
from forebay.storage.base.layout import PartitionKey
from forebay.storage.formats.frame import Frame
from forebay.storage.formats.hashes import hash_keys
from forebay.storage.formats.schema import OFFSET
from forebay.storage.formats.siphash import siphash13

MODULUS = 27_720
_SEPARATOR = "~"
_ZERO_KEY = bytes(16)
_DIGITS_MAX = 20


@dataclass(frozen=True)
class Place:
    """One of the engine's `processes`, each of which has `threads` workers."""

    process: int
    processes: int
    threads: int = 1

    def has(self, key: str) -> bool:
        """Whether this process has the state of this key."""
        return route(key) % (self.processes * self.threads) // self.threads == self.process


def hash_partitions(count: int) -> list[PartitionKey]:
    return [PartitionKey(f"hash-{number:05d}-of-{count:05d}", number) for number in range(count)]


def repartition(frame: Frame, key: tuple[str, ...], targets: Sequence[PartitionKey]) -> list[Frame]:
    """One frame for each hash partition that gets anything, or for all when the source ends, so
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


@cache
def state_key(partition: PartitionKey) -> str:
    """The key of the partition's state; the same for ever."""
    residue = partition.number % MODULUS
    head = f"{partition.name}{_SEPARATOR}"
    encoded = np.frombuffer(head.encode(), np.uint8)
    text = np.concatenate([encoded, np.zeros(_DIGITS_MAX + 1, np.uint8)])
    key = f"{head}{_first_salt(text, len(encoded), np.uint64(residue))}"
    if route(key) % MODULUS != residue:
        raise AssertionError(f"bug: the state key {key!r} is not that of partition {partition}")
    return key


def partition_name(key: str) -> str:
    """Undo `state_key`."""
    return key.rpartition(_SEPARATOR)[0]


def route(key: str) -> int:
    """The number that bytewax takes modulo the worker count: unsigned, 64 bits."""
    return int(siphash24.siphash13(key.encode() + b"\xff", key=_ZERO_KEY).intdigest()) % 2**64


@compiled
def _first_salt(text: Any, head: Any, residue: Any) -> Any:
    """The first salt that makes the key's hash `residue`; `text` has room for it after `head`.

    What `state_key` would find by asking `route` for each salt, in a twentieth of the time.
    """
    salt, zero = 0, np.uint64(0)
    while True:
        digits = 1
        while salt >= 10**digits:
            digits += 1
        left = salt
        for at in range(head + digits - 1, head - 1, -1):
            text[at] = 48 + left % 10
            left //= 10
        text[head + digits] = 0xFF
        if siphash13(zero, zero, text, 0, head + digits + 1) % np.uint64(MODULUS) == residue:
            return salt
        salt += 1
