"""The life of a partition, as hypothesis makes it up: messages, cuts, crashes and readers."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from forebay.storage.formats.hashes import Hash
from forebay.storage.formats.state import PartitionState
from forebay.storage.partition import compaction
from forebay.storage.partition.compaction import CHUNKS_MIN
from tests.oracle import Oracle, Place
from tests.partition import (
    BIG_CACHE,
    GRACE_MS,
    NAME,
    SPAN_MS,
    WINDOW_MS,
    Message,
    Partition,
    assert_agrees,
    event,
    judge,
    one_hash,
)


@dataclass(frozen=True)
class Step:
    """What the next message is; times count from the largest so far."""

    source: int
    key: int | None
    after_ms: int
    gap: int


steps = st.builds(
    Step,
    source=st.integers(0, 2),
    key=st.one_of(*[st.integers(0, 7)] * 6, st.none()),
    after_ms=st.one_of(
        st.integers(-20, 40), st.integers(-3 * WINDOW_MS, 0), st.integers(0, 2 * WINDOW_MS)
    ),
    gap=st.sampled_from([0, 0, 0, 1, 5]),
)


@dataclass
class Producer:
    """Makes messages of steps: offsets rise in each source, with gaps."""

    newest_ms: int = 2_000
    ends: tuple[int, ...] = (0, 0, 0)

    def message(self, step: Step) -> Message:
        offset = self.ends[step.source] + step.gap
        self.ends = tuple(
            offset + 1 if source == step.source else end for source, end in enumerate(self.ends)
        )
        upload_ms = self.newest_ms + step.after_ms
        if step.key is None:
            return Message((f"s{step.source}", offset), None)
        self.newest_ms = max(self.newest_ms, upload_ms)
        return event(offset, step.key, upload_ms, f"s{step.source}")


def produce(many: Sequence[Step]) -> list[Message]:
    producer = Producer()
    return [producer.message(step) for step in many]


def cut(messages: Sequence[Message], sizes: Sequence[int]) -> Iterator[Sequence[Message]]:
    low, turn = 0, 0
    while low < len(messages):
        size = sizes[turn % len(sizes)]
        yield messages[low : low + size]
        low, turn = low + size, turn + 1


few_or_many = st.one_of(
    st.lists(steps, min_size=1, max_size=8), st.lists(steps, min_size=40, max_size=120)
)
sizes = st.lists(st.integers(1, 30), min_size=1, max_size=5)
hashes: st.SearchStrategy[Hash | None] = st.sampled_from([None, one_hash])


@dataclass(frozen=True)
class Commit:
    """What a crash goes back to: the state of `blocks`, and where each source goes on."""

    snapshot: bytes | None
    oracle: Oracle
    positions: dict[str, int]


@dataclass(frozen=True)
class View:
    """A reader between its reading of the manifest and of the rest."""

    manifest: PartitionState
    places: list[Place]
    opened_ms: int


class Life(RuleBasedStateMachine):
    """One partition's life. At each moment a reader sees, each once, the events that the oracle had
    accepted when the manifest was last published, and none that it never accepted; an event taken
    in since then is seen early if its block is already in a chunk.

    A commit comes at least once in a grace period, as `grace_ms` demands of the configuration.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.producer = Producer()
        self.logs: dict[str, list[Message]] = {"s0": [], "s1": [], "s2": []}
        self.commit = Commit(None, Oracle(SPAN_MS, WINDOW_MS), dict.fromkeys(self.logs, 0))
        self.uncommitted: Commit | None = None
        self.orphan: Commit | None = None
        self.view: View | None = None

    @initialize(
        cache=st.sampled_from([1, 600, BIG_CACHE]),
        per_chunk=st.integers(1, 3),
        compacted=st.sampled_from([2, 4]),
        hash=hashes,
    )
    def begin(self, cache: int, per_chunk: int, compacted: int, hash: Hash | None) -> None:
        compaction.CHUNKS_MIN = compacted
        self.partition = Partition(
            Path(self.folder.name), cache_bytes=cache, blocks_per_chunk=per_chunk, hash=hash
        )
        self._start(self.commit)

    def _start(self, commit: Commit) -> None:
        self.oracle = copy.deepcopy(commit.oracle)
        self.positions = dict(commit.positions)
        self.partition.start(commit.snapshot)
        self.published = self.oracle.places()
        assert self.partition.seen() == self.published

    @rule(many=st.lists(steps, min_size=1, max_size=12), left=st.integers(0, 4))
    def produce_and_take_in(self, many: list[Step], left: int) -> None:
        for step in many:
            self.logs[f"s{step.source}"].append(self.producer.message(step))
        self.take_in(many[0].source, left)

    @rule(source=st.integers(0, 2), left=st.integers(0, 4))
    def take_in(self, source: int, left: int) -> None:
        name = f"s{source}"
        end = max(self.positions[name], len(self.logs[name]) - left)
        messages = self.logs[name][self.positions[name] : end]
        self.positions[name] = end
        self.partition.append(*messages)
        judge(messages, self.oracle)

    @rule()
    def publish(self) -> None:
        self.partition.blocks.publish()
        self.published = self.oracle.places()
        assert_agrees(self.partition, self.oracle)

    @precondition(lambda self: not self.uncommitted)
    @rule()
    def snapshot(self) -> None:
        """Taken, but the engine has not committed it yet; the sink has withdrawn what it must."""
        self.partition.merge()
        self.orphan = None
        snapshot = self.partition.blocks.snapshot()
        self.uncommitted = Commit(snapshot, copy.deepcopy(self.oracle), dict(self.positions))

    @precondition(lambda self: self.uncommitted)
    @rule()
    def commit_snapshot(self) -> None:
        assert self.uncommitted
        self.commit, self.uncommitted = self.uncommitted, None

    @rule()
    def merge(self) -> None:
        self.partition.merge()

    @rule(after_ms=st.integers(1, GRACE_MS - 1))
    def commit_and_tidy(self, after_ms: int) -> None:
        if not self.uncommitted:
            self.snapshot()
        self.commit_snapshot()
        self.partition.tidy(after_ms)

    @rule(stale=st.booleans(), torn=st.booleans())
    def crash_and_resume(self, stale: bool, torn: bool) -> None:
        """`stale`: the engine may give `blocks` a newer snapshot than the one it committed, which
        the run before the last had taken. `torn`: what was never synced is lost."""
        self.partition.crash()
        if torn:
            self._lose_unsynced()
        if stale and self.orphan:
            self.commit = replace(self.orphan, positions=self.commit.positions)
        self.orphan, self.uncommitted, self.view = self.uncommitted or self.orphan, None, None
        self._start(self.commit)

    def _lose_unsynced(self) -> None:
        synced: dict[str, int] = {}
        for commit in (self.commit, self.uncommitted, self.orphan):
            if commit and commit.snapshot:
                for block in PartitionState.decode(commit.snapshot, "snapshot").blocks:
                    synced.update({extent.file: extent.bytes for extent in block.extents})
        for log in self.partition.layout.hot(NAME).glob("*.arrows"):
            log.write_bytes(log.read_bytes()[: synced.get(log.name, 0)])

    @precondition(lambda self: self.view is None)
    @rule()
    def open_view(self) -> None:
        now_ms = self.partition.now_ms
        self.view = View(self.partition.manifest(), self.published, now_ms)

    @precondition(lambda self: self.view)
    @rule()
    def read_view(self) -> None:
        """A reader that is done within the grace period sees the state at which it began."""
        assert self.view
        if self.partition.now_ms - self.view.opened_ms < GRACE_MS:
            self._assert_seen(self.view.places, self.view.manifest)
        self.view = None

    @invariant()
    def reader_sees_each_published_event_once(self) -> None:
        self._assert_seen(self.published, self.partition.manifest())

    def _assert_seen(self, published: list[Place], manifest: PartitionState) -> None:
        seen = self.partition.seen(manifest)
        assert len(set(seen)) == len(seen)
        assert set(published) <= set(seen) <= set(self.oracle.places())

    def teardown(self) -> None:
        try:
            if hasattr(self, "partition"):
                for source in range(3):
                    self.take_in(source, 0)
                self.partition.merge()
                self.publish()
        finally:
            compaction.CHUNKS_MIN = CHUNKS_MIN
            self.partition.files.close()
            self.folder.cleanup()
