"""Routing: keys under which a partition's state lands on the worker that reads it.

bytewax gives source and sink partitions to workers round robin in name order, and routes keyed
items by SipHash-1-3 (zero key) of the key's UTF-8 bytes and 0xFF, modulo the number of workers. The
key also names the state in the recovery store, so it may not depend on that number. So each
partition's key carries a salt such that its hash equals the partition's number modulo 27,720, the
least common multiple of 1 to 12: right for 1 to 12 workers, and never in need of change.
"""

from __future__ import annotations

from functools import cache

from siphash24 import siphash13

from storage.layout import PartitionKey

MODULUS = 27_720
_SEPARATOR = "~"
_ZERO_KEY = bytes(16)


@cache
def state_key(partition: PartitionKey) -> str:
    """The key of the partition's state; the same for ever."""
    residue = partition.number % MODULUS
    salt = 0
    while True:
        key = f"{partition.name}{_SEPARATOR}{salt}"
        if route(key) % MODULUS == residue:
            return key
        salt += 1


def partition_name(key: str) -> str:
    """Undo `state_key`."""
    return key.rpartition(_SEPARATOR)[0]


def route(key: str) -> int:
    """The number that bytewax takes modulo the worker count: unsigned, 64 bits."""
    return int(siphash13(key.encode() + b"\xff", key=_ZERO_KEY).intdigest()) % 2**64
