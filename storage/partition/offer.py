"""The offer: what `blocks` tells `chunks`, in order, on the stream between the two."""

from __future__ import annotations

from dataclasses import dataclass

from forebay.storage.base.layout import BlockId
from forebay.storage.formats.schema import Column
from forebay.storage.formats.state import BlockState
from forebay.storage.partition.expiry import Expiry


@dataclass(frozen=True)
class Tick:
    """Asks `chunks` to delete what may go.

    `listed` are all evicted blocks of any state that a restart could resume from.
    """

    retention: Expiry
    listed: frozenset[BlockId]


@dataclass(frozen=True)
class Offer:
    """Evicted blocks to merge, and now and then a tick to delete by. The first offer of a run
    carries the committed `runs` (see `PartitionState`): chunks of evictions that were never
    committed are to be withdrawn; and the columns ever `declared`, for older blocks that lack one.
    `committed` is the last eviction that no crash can undo."""

    incarnation: int
    blocks: tuple[BlockState, ...]
    committed: int = 0
    runs: dict[str, int] | None = None
    tick: Tick | None = None
    declared: tuple[Column, ...] = ()
