"""Routing, by computation and in the engine itself: the worker that reads a partition has its state
and its sink."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from bytewax import operators as op
from bytewax.dataflow import Dataflow
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.operators import StatefulBatchLogic
from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition
from bytewax.testing import TestingSink, TestingSource, cluster_main
from typing_extensions import override

from forebay.operators.process import PerThread
from forebay.operators.routing import (
    MODULUS,
    hash_partitions,
    partition_name,
    repartition,
    route,
    state_key,
)
from forebay.storage.base.layout import PartitionKey
from tests.partition import event, frame

ROOT = Path(__file__).parent.parent
KEYS = ["", "é", "a~b", *(str(number) for number in range(40))]
"""Keys that nobody chose, to pin `route` alone."""


def partitions(count: int) -> list[PartitionKey]:
    return [PartitionKey(f"events-{number:05d}", number) for number in range(count)]


# -- by computation -----------------------------------------------------------------------------


@pytest.mark.parametrize("workers", range(1, 13))
def test_state_is_on_the_worker_that_reads_the_partition(workers: int) -> None:
    many = partitions(24)
    assert [key.name for key in many] == sorted(key.name for key in many)
    for index, key in enumerate(many):
        assert route(state_key(key)) % workers == index % workers


@pytest.mark.parametrize("workers", range(1, 13))
def test_hash_partitions_are_spread_evenly(workers: int) -> None:
    many = hash_partitions(12)
    owners = [route(state_key(key)) % workers for key in many]
    assert owners == [index % workers for index in range(12)]


def test_state_key_is_the_same_for_ever() -> None:
    """These keys name state in recovery stores; a change would orphan it."""
    assert [state_key(key) for key in partitions(3)] == STATE_KEYS
    assert [route(key) % MODULUS for key in STATE_KEYS] == [0, 1, 2]
    assert all(0 <= route(key) < 2**64 for key in KEYS)


STATE_KEYS = ["events-00000~82518", "events-00001~46109", "events-00002~3938"]


@pytest.mark.parametrize("size", range(1, 10))
def test_state_key_has_the_first_salt_that_routes_it_there(size: int) -> None:
    """By asking for each, whatever room the name leaves in the last word that is hashed."""
    salt, residue = 0, size * 1001
    while route(f"{'n' * size}~{salt}") % MODULUS != residue:
        salt += 1
    assert state_key(PartitionKey("n" * size, residue)) == f"{'n' * size}~{salt}"


@pytest.mark.parametrize("name", ["events-00000", "a.b=c_d", "hash-00001-of-00012"])
def test_partition_name_undoes_state_key(name: str) -> None:
    assert partition_name(state_key(PartitionKey(name, 5))) == name


# -- in the engine ------------------------------------------------------------------------------

Seen = dict[str, dict[str, int]]
"""Of each kind (source, state, sink): each partition or key, and the thread it was met on."""


class _Partition(StatefulSourcePartition[tuple[str, str], None]):
    """Sends what it was given, as pairs of state key and partition."""

    def __init__(self, items: list[tuple[str, str]]) -> None:
        self._items = items

    @override
    def next_batch(self) -> list[tuple[str, str]]:
        if not self._items:
            raise StopIteration
        items, self._items = self._items, []
        return items

    @override
    def snapshot(self) -> None:
        return None


class _Source(FixedPartitionedSource[tuple[str, str], None]):
    def __init__(self, items: dict[str, list[tuple[str, str]]], seen: Seen) -> None:
        self._items = items
        self._seen = seen

    @override
    def list_parts(self) -> list[str]:
        return list(self._items)

    @override
    def build_part(self, step_id: str, for_part: str, resume_state: None) -> _Partition:
        self._seen["source"][for_part] = threading.get_ident()
        return _Partition(self._items[for_part])


class _State(StatefulBatchLogic[str, str, None]):
    def __init__(self, seen: Seen) -> None:
        self._seen = seen

    @override
    def on_batch(self, values: list[str]) -> tuple[list[str], bool]:
        self._seen["state"].update(dict.fromkeys(values, threading.get_ident()))
        return values, StatefulBatchLogic.RETAIN

    @override
    def snapshot(self) -> None:
        return None


class _SinkPartition(StatefulSinkPartition[str, None]):
    @override
    def write_batch(self, values: list[str]) -> None:
        pass

    @override
    def snapshot(self) -> None:
        return None


class _Sink(FixedPartitionedSink[str, None]):
    def __init__(self, parts: list[str], seen: Seen) -> None:
        self._parts = parts
        self._seen = seen

    @override
    def list_parts(self) -> list[str]:
        return self._parts

    @override
    def part_fn(self, item_key: str) -> int:
        name = partition_name(item_key)
        return self._parts.index(name) if name in self._parts else 0

    @override
    def build_part(self, step_id: str, for_part: str, resume_state: None) -> _SinkPartition:
        self._seen["sink"][for_part] = threading.get_ident()
        return _SinkPartition()


def run_cluster(workers: int) -> Seen:
    """One run of the engine, its workers threads of this process."""
    keys = {key.name: state_key(key) for key in partitions(2 * workers)}
    items = {name: [(key, name)] for name, key in keys.items()}
    items["events-00000"] = [*items["events-00000"], *((key, f"key {key}") for key in KEYS)]
    seen: Seen = {"source": {}, "state": {}, "sink": {}}
    flow = Dataflow("routing")
    stream = op.input("in", flow, _Source(items, seen))
    kept = op.stateful_batch("state", stream, lambda resume_state: _State(seen))
    op.output("out", kept, _Sink(sorted(keys), seen))
    cluster_main(flow, [], 0, worker_count_per_proc=workers)
    return seen


@pytest.mark.few(1)
@pytest.mark.parametrize("workers", [2, 3, 4])
def test_engine_agrees(workers: int) -> None:
    """In a process of its own, for the engine never gives its threads back."""
    program = (
        "import json\nfrom tests.test_routing import run_cluster\n"
        f"print(json.dumps(run_cluster({workers})))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, timeout=60
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-2_000:]
    seen: Seen = json.loads(done.stdout)
    names = [key.name for key in partitions(2 * workers)]
    threads = [seen["source"][name] for name in names]
    assert len(set(threads)) == workers
    assert threads == threads[:workers] * 2
    assert [seen["state"][name] for name in names] == threads
    assert [seen["sink"][name] for name in names] == threads
    for key in KEYS:
        assert seen["state"][f"key {key}"] == threads[route(key) % workers]


def test_what_a_worker_thread_has_made_is_found_by_its_later_steps() -> None:
    """However often the engine lets Python's lock go in between."""
    made: list[int] = []
    threads: set[int] = set()

    def make() -> int:
        made.append(threading.get_ident())
        return made[-1]

    shared = PerThread(make)

    def ask(item: int) -> int:
        threads.add(threading.get_ident())
        assert shared.get() == threading.get_ident()
        return item

    flow = Dataflow("shared")
    items = op.input("items", flow, TestingSource(range(100), batch_size=1))
    op.output("out", op.map("ask", op.redistribute("spread", items), ask), TestingSink([]))
    cluster_main(flow, [], 0, worker_count_per_proc=2)
    assert sorted(made) == sorted(threads)


def test_where_a_source_ends_all_hash_partitions_know_how_far_it_is_and_one_has_its_counters() -> (
    None
):
    events = frame([event(7, 0, 0)])
    targets = hash_partitions(4)
    more = repartition(replace(events, end_offset=9, nulled=2, skipped=3), ("id", "part"), targets)
    ended = repartition(replace(events, end_offset=8, nulled=2, skipped=3), ("id", "part"), targets)
    assert len(more) == 1
    assert [part.partition for part in ended] == [target.name for target in targets]
    assert {part.next_offset for part in ended} == {8}
    assert sum(part.events.num_rows for part in ended) == 1
    assert sum(part.nulled for part in ended) == 2
    assert sum(part.skipped for part in ended) == 3
