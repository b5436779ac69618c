"""The real job over a real Apache Kafka: killed, rescaled, and told Druid's two failure stories.

After each story the events that a query finds, and every counter, are those of the oracle.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

import forebay
from forebay.cli.load import LoadSpec
from forebay.storage.base.disk import name_at
from forebay.storage.base.errors import PERMANENT
from forebay.storage.base.layout import Layout
from tests.broker import Broker
from tests.job import Generated, Job, assert_exact, children, generated, taken

pytestmark = pytest.mark.kafka

MakeJob = Callable[..., Job]
START_MS = time.time_ns() // 1_000_000 - 3_600_000
"""Uploads are of the last hour, for the broker's own clock judges what is too far ahead."""
SPEC = LoadSpec(
    events=60_000,
    partitions=4,
    seed=11,
    start_ms=START_MS,
    span_ms=45 * 60_000,
    late=0.002,
    broken=0.01,
    duplicates=0.05,
)


@pytest.fixture(scope="module")
def load() -> Generated:
    """`events` stands for a topic's name, see `_named`."""
    return generated(SPEC, "events-{:05d}", time.time_ns() // 1_000_000)


@pytest.fixture
def job(broker: Broker, make_job: MakeJob) -> Job:
    """A job on a topic of its own, with small batches, epochs and chunks so that much happens."""
    topic = f"t{uuid.uuid4().hex[:8]}"
    broker.create_topic(topic, SPEC.partitions)
    return make_job(
        SOURCE="kafka",
        KAFKA__BOOTSTRAP=broker.address,
        KAFKA__TOPIC=topic,
        KAFKA__GROUP=topic,
        BATCH_ROWS="500",
        BLOCKS_PER_CHUNK="2",
        EPOCH_INTERVAL="100ms",
    )


def test_produce_ingest_query_restart(job: Job, load: Generated) -> None:
    load = _named(load, job)
    process = job.run()
    _produce(job, load)
    job.until(process, lambda found: taken(found) == load.count)
    assert_exact(job, load)
    assert job.stop(process) == 0, job.told()
    process = job.run()
    job.until(process, lambda _: set(job.runs().values()) == {2})
    assert job.stop(process) == 0, job.told()
    assert_exact(job, load)


@pytest.mark.long
def test_every_way_of_rescaling_and_killing_loses_and_doubles_nothing(
    job: Job, load: Generated
) -> None:
    load = _named(load, job)
    _produce(job, load)
    rng = random.Random(5)
    for workers, kill in ((1, True), (2, True), (2, False), (1, True), (1, False)):
        process = job.run(workers)
        goal = min(taken(job.partitions()) + rng.randrange(1, load.count // 4), load.count)
        job.until(process, lambda found, goal=goal: taken(found) >= goal)  # type: ignore[misc]
        if kill:
            job.kill(process)
        else:
            assert job.stop(process) == 0, job.told()
    process = job.run(2)
    job.until(process, lambda found: taken(found) == load.count)
    assert job.stop(process) == 0, job.told()
    assert_exact(job, load)


@pytest.mark.long
def test_sigkill_in_the_middle_of_a_chunk_write(job: Job, load: Generated) -> None:
    load = _named(load, job)
    _produce(job, load)
    chunks = job.data / "chunks"
    for _ in range(3):
        process = job.run()
        known = set(chunks.rglob("*.parquet"))
        # A chunk is under its temporary name while it is written.
        job.until(
            process,
            lambda found, known=known: _writing(chunks, known) or taken(found) == load.count,  # type: ignore[misc]
        )
        job.kill(process)
    process = job.run()
    job.until(process, lambda found: taken(found) == load.count)
    assert job.stop(process) == 0, job.told()
    assert_exact(job, load)


@pytest.mark.long
def test_crash_between_persist_and_offset_commit_doubles_nothing(job: Job, load: Generated) -> None:
    """Everything is in the logs and published, and no epoch has committed it."""
    load = _named(load, job)
    _produce(job, load)
    job.settings.update(EPOCH_INTERVAL="1h", GRACE="1h")
    process = job.run()
    job.until(process, lambda found: taken(found) == load.count)
    job.kill(process)
    assert_exact(job, load)
    job.settings["EPOCH_INTERVAL"] = "100ms"
    process = job.run()
    job.until(process, lambda _: set(job.runs().values()) == {2})
    job.until(process, lambda found: taken(found) == load.count)
    assert job.stop(process) == 0, job.told()
    assert_exact(job, load)


def test_silence_longer_than_the_window_then_redelivery_drops_every_duplicate(
    job: Job, load: Generated
) -> None:
    """The bus is silent for far longer than the dedup window of 1 s, then sends all again."""
    job.settings.update(DEDUP_WINDOW="1s", BLOCK_SPAN="1s")
    topic = job.settings["KAFKA__TOPIC"]
    now_ms = time.time_ns() // 1_000_000
    first = [_event(number, now_ms - 500 + number) for number in range(500)]
    process = job.run()
    _send(job, {f"{topic}-00000": first})
    job.until(process, lambda found: taken(found) == 500)
    silent_until = time.monotonic() + 3
    job.until(process, lambda _: time.monotonic() > silent_until)
    _send(job, {f"{topic}-00000": first})
    found = job.until(process, lambda found: taken(found) == 1000)
    assert job.stop(process) == 0, job.told()
    assert (found["accepted"].sum(), found["duplicates"].sum()) == (500, 500)
    assert forebay.open(job.data).sql("select count(*) from events").item() == 500


def test_lost_offsets_stop_the_job_unless_they_are_to_be_skipped_and_counted(
    job: Job, load: Generated, broker: Broker
) -> None:
    topic = job.settings["KAFKA__TOPIC"]
    now_ms = time.time_ns() // 1_000_000
    messages = [_event(number, now_ms - 60_000 + number) for number in range(300)]
    process = job.run()
    _send(job, {f"{topic}-00001": messages[:100]})
    job.until(process, lambda found: taken(found) == 100)
    assert job.stop(process) == 0, job.told()
    _send(job, {f"{topic}-00001": messages[100:]})
    broker.delete_records(topic, 1, 180)
    assert job.ends(job.run()) == PERMANENT
    assert "expected offset 100, the broker begins at 180: 80 messages are gone" in job.told()
    job.settings["KAFKA__ON_GAP"] = "skip"
    process = job.run()
    found = job.until(process, lambda found: taken(found) == 220)
    assert found["skipped"].sum() == 80
    assert "skipping 80 messages that are gone, offsets 100 to 180" in job.told()
    assert job.stop(process) == 0, job.told()


def test_progress_is_shown_to_lag_tools(job: Job, load: Generated) -> None:
    load = _named(load, job)
    _produce(job, load)
    process = job.run()
    job.until(process, lambda found: taken(found) == load.count)
    assert job.stop(process) == 0, job.told()
    topic, group = job.settings["KAFKA__TOPIC"], job.settings["KAFKA__GROUP"]
    consumer = Consumer({"bootstrap.servers": job.settings["KAFKA__BOOTSTRAP"], "group.id": group})
    places = [TopicPartition(topic, number) for number in range(SPEC.partitions)]
    committed = {f"{topic}-{p.partition:05d}": p.offset for p in consumer.committed(places, 30)}
    consumer.close()
    assert committed == {name: len(messages) for name, messages in load.messages.items()}


@pytest.mark.long
def test_one_worker_reads_and_keeps_each_partition(job: Job, load: Generated) -> None:
    """Each partition's lock is held by the worker that reads the partition: none is sent on."""
    load = _named(load, job)
    _produce(job, load)
    process = job.run(2)
    job.until(process, lambda found: taken(found) == load.count)
    workers = children(process.pid)
    held = {
        name: [n for n, pid in enumerate(workers) if _holds(pid, Layout(job.data), name)]
        for name in load.messages
    }
    assert held == {name: [number % 2] for number, name in enumerate(sorted(load.messages))}
    assert job.stop(process) == 0, job.told()


def _holds(pid: int, layout: Layout, partition: str) -> bool:
    links = [link for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()]
    (lock,) = [link for link in links if link.readlink() == layout.writers]
    at = name_at(partition)
    return f" {at} {at}\n" in Path(f"/proc/{pid}/fdinfo/{lock.name}").read_text()


def _named(load: Generated, job: Job) -> Generated:
    """The load as the job's topic names its partitions."""
    topic = job.settings["KAFKA__TOPIC"]
    oracles = {}
    for name, oracle in load.oracles.items():
        blocks = [*oracle.closed, *oracle.live.values()]
        mine = name.replace("events", topic)
        for block in blocks:
            block.events = [(mine, offset) for _, offset in block.events]
        oracles[mine] = replace(oracle)
    messages = {name.replace("events", topic): part for name, part in load.messages.items()}
    return Generated(messages, oracles)


def _produce(job: Job, load: Generated) -> None:
    _send(job, load.messages)


def _send(job: Job, messages: Mapping[str, list[bytes]]) -> None:
    producer = Producer(
        {
            "bootstrap.servers": job.settings["KAFKA__BOOTSTRAP"],
            "enable.idempotence": True,
            "queue.buffering.max.messages": 1_000_000,
        }
    )
    for name, part in messages.items():
        topic, _, number = name.rpartition("-")
        for message in part:
            producer.produce(topic, message, partition=int(number))
    assert producer.flush(60) == 0


def _event(number: int, upload_ms: int) -> bytes:
    moment = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(upload_ms // 1000))
    event = {
        "device_id": f"d{number % 10}",
        "$insert_id": f"i{number}",
        "event_type": "click",
        "server_upload_time": f"{moment}.{upload_ms % 1000:03d}",
    }
    return orjson.dumps(event)


def _writing(chunks: Path, known: set[Path]) -> bool:
    """Whether a chunk is being written, or has just been."""
    return any(chunks.rglob("*.tmp")) or bool(set(chunks.rglob("*.parquet")) - known)
