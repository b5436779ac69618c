"""Commits: which of the last snapshots can be relied on, whatever crashes.

A snapshot is stored some time after it was taken, and the engine does not tell when. It opens an
epoch only when the one before it is done, so of the snapshots taken, UNCOMMITTED_SNAPSHOTS_MAX at
most can be lost; the one before those is *sure*. A lost run may leave those two in the store. For a
partition that this run does not snapshot in the same epochs, a later resume would load what the
lost run left, beside sources that are further on. So a partition is snapshotted in each of its
first epochs (`settled`), whether anything arrives for it or not.
"""

from __future__ import annotations

from dataclasses import dataclass

from forebay.storage.base.layout import BlockId
from forebay.storage.formats.state import PartitionState

UNCOMMITTED_SNAPSHOTS_MAX = 2


@dataclass(frozen=True)
class Commit:
    """What one snapshot says."""

    snapshots: int
    evictions: int
    seal: int
    stream_time_ms: int | None
    evicted: frozenset[BlockId]

    @classmethod
    def of(cls, state: PartitionState) -> Commit:
        return cls(
            state.snapshots,
            state.evictions,
            state.seal.number if state.seal else 0,
            state.stream_time_ms,
            frozenset(state.evicted),
        )


class Commits:
    """Of one run of a partition. Begins with the state that it resumes from, which is sure."""

    def __init__(self, state: PartitionState) -> None:
        self._last: tuple[Commit, ...] = (Commit.of(state),)

    def add(self, state: PartitionState) -> None:
        """A snapshot of `state` is being taken."""
        self._last = (*self._last, Commit.of(state))[-UNCOMMITTED_SNAPSHOTS_MAX - 1 :]

    @property
    def settled(self) -> bool:
        """Whether this run has written over all that a lost one may have left in the store."""
        return len(self._last) > UNCOMMITTED_SNAPSHOTS_MAX

    @property
    def sure(self) -> Commit:
        """The newest that no crash can undo."""
        return self._last[0]

    def evicted(self, state: PartitionState) -> frozenset[BlockId]:
        """The evicted blocks of the present state, and of all that a restart could resume from."""
        return Commit.of(state).evicted.union(*(commit.evicted for commit in self._last))
