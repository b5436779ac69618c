"""Trouble with a real Apache Kafka: brokers that die, producers that repeat themselves, topics that
are made anew, grow or are compacted, and messages as large as the broker takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import orjson
import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

import forebay
from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import PERMANENT
from forebay.storage.base.layout import Layout
from forebay.storage.formats.log import read_log
from forebay.storage.formats.state import read_manifest
from tests.broker import Broker, BrokerProcess
from tests.job import Job, taken
from tests.topic import counts, event, ids, insert_ids, kafka_job, producer, send, topic_of

pytestmark = pytest.mark.kafka

MakeJob = Callable[..., Job]
MESSAGE_BYTES_MAX = 1_048_588
"""Kafka's default of `message.max.bytes`: a record batch with its overhead."""


def rejects(job: Job) -> list[tuple[int, str, bytes]]:
    """Offset, reason and message of every reject."""
    layout, files = Layout(job.data), Disk()
    found = []
    for name in layout.partitions():
        state = read_manifest(files, layout.manifest(name))
        for extent in state.rejects if state else []:
            for batch in read_log(files, layout.rejects(name), extent):
                found += [(r["_offset"], r["reason"], r["message"]) for r in batch.to_pylist()]
    return sorted(found)


# -- the broker ---------------------------------------------------------------------------------


@pytest.mark.long
def test_a_job_waits_for_a_broker_that_is_killed_before_and_during_ingest_and_loses_nothing(
    make_job: MakeJob, tmp_path: Path, broker: Broker
) -> None:
    """Its log is flushed with each message, for what it acknowledged must be there after a kill."""
    events = [event(number) for number in range(20_000)]
    with BrokerProcess(tmp_path / "broker", brief=True) as own:
        job = kafka_job(make_job, own, 2)
        send(job, events[:8_000])
        own.kill()
        process = job.run()
        job.until(process, lambda _: "waiting for topic" in job.told())
        own.start()
        job.until(process, lambda found: taken(found) > 2_000)
        own.kill()
        job.until(process, lambda _: "is away; waiting" in job.told())
        assert process.poll() is None
        own.start()
        send(job, events[8_000:16_000], 1)
        send(job, events[16_000:])
        found = job.until(process, lambda found: taken(found) >= 20_000)
        assert job.stop(process) == 0, job.told()
    assert counts(found) == {"accepted": 20_000, "duplicates": 0, "rejects": 0}
    assert insert_ids(job) == ids({"i": range(20_000)})


def test_offsets_that_a_consumer_group_has_are_not_believed(
    make_job: MakeJob, broker: Broker
) -> None:
    """All was read and published, and nothing committed, when the job is killed: a build that lets
    the consumer keep the place in the topic loses it, else this would prove nothing. That build has
    moved the group to the end of the topic, which is nothing to a sound one."""
    job = kafka_job(make_job, broker, 1)
    job.settings.update(EPOCH_INTERVAL="1h", GRACE="1h")
    process = job.start("-m", "tests.trusting")
    send(job, [event(n) for n in range(100)])
    job.until(process, lambda found: taken(found) == 100)
    job.kill(process)
    process = job.start("-m", "tests.trusting")
    send(job, [event(100)])
    job.until(process, lambda _: "i100" in insert_ids(job))
    job.kill(process)
    assert insert_ids(job) == ["i100"]
    sound = make_job(**job.settings)
    process = sound.run()
    sound.until(process, lambda found: taken(found) == 101)
    sound.kill(process)
    assert insert_ids(sound) == ids({"i": range(101)})


# -- producers ----------------------------------------------------------------------------------


def test_a_producer_that_sends_whole_batches_again_doubles_nothing(
    make_job: MakeJob, broker: Broker
) -> None:
    """As one without idempotence does when an acknowledgement is lost: in order, whole, late."""
    job = kafka_job(make_job, broker, 1)
    process = job.run()
    batches = [[event(n) for n in range(low, low + 500)] for low in range(0, 5_000, 500)]
    for number, batch in enumerate(batches):
        send(job, batch)
        if number % 2:
            send(job, batches[number - 1])
            send(job, batch)
    found = job.until(process, lambda found: taken(found) == 10_000)
    assert job.stop(process) == 0, job.told()
    assert counts(found) == {"accepted": 5_000, "duplicates": 5_000, "rejects": 0}
    assert insert_ids(job) == ids({"i": range(5_000)})


def test_messages_of_every_compression_and_the_largest_size_come_through_whole(
    make_job: MakeJob, broker: Broker
) -> None:
    job = kafka_job(make_job, broker, 1)
    job.settings["MESSAGE_BYTES_MAX"] = "2MiB"
    overhead = len(event(0)) + 200
    large = event(99, padding=MESSAGE_BYTES_MAX - overhead)
    process = job.run()
    for number, codec in enumerate(("none", "gzip", "snappy", "lz4", "zstd")):
        send(job, [event(number)], compression_type=codec)
    send(job, [large], message_max_bytes=4 << 20)
    job.until(process, lambda found: taken(found) == 6)
    assert job.stop(process) == 0, job.told()
    assert insert_ids(job) == sorted([*ids({"i": range(5)}), "i99"])
    kept = forebay.open(job.data).sql("select raw from events where insert_id = 'i99'").item()
    assert kept.encode() == large


def test_a_message_above_the_jobs_own_limit_is_a_reject_and_kept_whole(
    make_job: MakeJob, broker: Broker
) -> None:
    job = kafka_job(make_job, broker, 1)
    job.settings["MESSAGE_BYTES_MAX"] = "1000"
    large = event(1, padding=900_000)
    process = job.run()
    send(job, [event(0), large, event(2)])
    job.until(process, lambda found: taken(found) == 3)
    assert job.stop(process) == 0, job.told()
    assert insert_ids(job) == ["i0", "i2"]
    assert rejects(job) == [(1, "too large", large)]


# -- topics -------------------------------------------------------------------------------------


ANEW = [
    pytest.param(
        again,
        running,
        id=f"{length}, {'during a run' if running else 'between runs'}",
        marks=() if (again, running) in ((10, False), (25, True)) else pytest.mark.long,
    )
    for running in (False, True)
    for again, length in ((3, "shorter"), (10, "as long"), (25, "longer"))
]


@pytest.mark.parametrize(("again", "running"), ANEW)
def test_a_topic_made_anew_stops_the_job_and_none_of_its_messages_is_taken_for_another(
    again: int, running: bool, make_job: MakeJob, broker: Broker
) -> None:
    """The offset to go on from means nothing in the new topic, be it there or not."""
    job = kafka_job(make_job, broker, 1)
    process = job.run()
    send(job, [event(n, "old") for n in range(10)])
    job.until(process, lambda found: taken(found) == 10)
    if not running:
        assert job.stop(process) == 0, job.told()
    broker.delete_topic(topic_of(job))
    broker.create_topic(topic_of(job), 1)
    send(job, [event(n, "new") for n in range(again)])
    if not running:
        process = job.run()
    job.until(
        process, lambda found: process.poll() is not None or taken(found) > 10 or quiet(job, again)
    )
    silent = process.poll() is None
    if silent:
        job.stop(process)
    assert insert_ids(job) == ids({"old": range(10)}), "read from the new topic, not from its start"
    assert not silent, f"goes on without a word:\n{job.told()}"
    assert process.returncode == PERMANENT
    assert "recreated" in job.told()


_quiet_since: dict[Path, float] = {}


def quiet(job: Job, again: int) -> bool:
    """Whether the job has had ten seconds since it was first asked about."""
    return time.monotonic() - _quiet_since.setdefault(job.folder, time.monotonic()) > 10


def stored_offsets(job: Job) -> list[int]:
    """What the broker still has of partition 0, as any consumer sees it."""
    topic, server = topic_of(job), job.settings["KAFKA__BOOTSTRAP"]
    own = {"group.id": "t", "enable.partition.eof": True, "auto.offset.reset": "earliest"}
    consumer = Consumer({"bootstrap.servers": server, **own})
    consumer.assign([TopicPartition(topic, 0, OFFSET_BEGINNING)])
    found: list[int] = []
    while True:
        message = consumer.poll(10)
        if message is None or message.error() is not None:
            consumer.close()
            return found
        found.append(message.offset() or 0)


def test_tombstones_and_gaps_of_a_compacted_topic_are_read_on(
    make_job: MakeJob, broker: Broker
) -> None:
    """Of each key only the last message is left; a null value and an empty one are rejects."""
    job = kafka_job(
        make_job,
        broker,
        1,
        cleanup_policy="compact",
        segment_ms="100",
        min_cleanable_dirty_ratio="0.001",
        delete_retention_ms="3600000",
    )
    send(job, [(b"k%d" % (n % 5), event(n)) for n in range(50)])
    send(job, [(b"gone", event(50)), (b"gone", None), (b"empty", b"")])
    deadline, last = time.monotonic() + 60, 52
    while len(stored_offsets(job)) > last - 52 + 7:  # the newest segment is never compacted
        assert time.monotonic() < deadline, stored_offsets(job)
        time.sleep(0.2)  # a segment is closed by a message that comes later than this
        last += 1
        send(job, [(b"roll%d" % last, event(last))])
    kept = stored_offsets(job)
    assert kept[:7] == [*range(45, 50), 51, 52]
    process = job.run()
    job.until(process, lambda found: taken(found) == len(kept))
    assert job.stop(process) == 0, job.told()
    assert insert_ids(job) == ids({"i": [n for n in kept if n not in (51, 52)]})
    assert rejects(job) == [(51, "empty", b""), (52, "empty", b"")]


def test_aborted_transactions_are_not_read_and_their_markers_are_gaps(
    make_job: MakeJob, broker: Broker
) -> None:
    job = kafka_job(make_job, broker, 1)
    out = producer(job, transactional_id=f"x-{topic_of(job)}")
    out.init_transactions(30)
    for low, keep in ((0, True), (10, False), (20, True)):
        out.begin_transaction()
        for number in range(low, low + 10):
            out.produce(topic_of(job), event(number), partition=0)
        (out.commit_transaction if keep else out.abort_transaction)(30)
    process = job.run()
    job.until(process, lambda found: taken(found) >= 20)
    assert job.stop(process) == 0, job.told()
    process = job.run()
    send(job, [event(30)])
    found = job.until(process, lambda found: "i30" in insert_ids(job))
    assert job.stop(process) == 0, job.told()
    assert insert_ids(job) == ids({"i": [*range(10), *range(20, 31)]})
    assert counts(found)["rejects"] == 0


def test_a_topic_deleted_during_a_run_is_told(make_job: MakeJob, broker: Broker) -> None:
    job = kafka_job(make_job, broker, 1)
    soon = dict.fromkeys(("topic.metadata.propagation.max.ms", "metadata.max.age.ms"), 2_000)
    soon["topic.metadata.refresh.interval.ms"] = 1_000
    job.settings["KAFKA__LIBRDKAFKA"] = orjson.dumps(soon).decode()
    process = job.run()
    send(job, [event(n) for n in range(10)])
    job.until(process, lambda found: taken(found) == 10)
    broker.delete_topic(topic_of(job))
    job.until(process, lambda _: f"topic {topic_of(job)} is away; waiting" in job.told())
    assert insert_ids(job) == ids({"i": range(10)})


# -- stops and settings -------------------------------------------------------------------------

STOP_S = 30.0
"""Enough for any machine; librdkafka's timeouts are longer."""


@pytest.mark.parametrize(
    ("when", "how"),
    list(product(("before the start", "during the run"), ("run", "bytewax"))),
)
@pytest.mark.long
def test_a_stop_while_the_broker_is_away_takes_a_moment(
    when: str, how: str, make_job: MakeJob, tmp_path: Path, broker: Broker
) -> None:
    with BrokerProcess(tmp_path / "broker", brief=True) as own:
        job = kafka_job(make_job, own, 2)
        send(job, [event(n) for n in range(10)])
        if when == "before the start":
            own.kill()
        process = getattr(job, how)()
        if when == "during the run":
            job.until(process, lambda found: taken(found) == 10)
            own.kill()
            job.until(process, lambda _: "is away; waiting" in job.told())
        else:
            job.until(process, lambda _: "waiting for topic" in job.told())
            assert "Connection refused" in job.told()
        assert job.stop(process, STOP_S) == 0, job.told()
        own.start()
        process = job.run()
        job.until(process, lambda found: taken(found) == 10)
        assert job.stop(process) == 0, job.told()
    assert insert_ids(job) == ids({"i": range(10)})


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("KAFKA__TOPIC", "a/b", "kafka.topic: expected a topic's name"),
        ("KAFKA__LIBRDKAFKA", '{"no.such": 1}', 'No such configuration property: "no.such"'),
        ("KAFKA__LIBRDKAFKA", '{"fetch.wait.max.ms": "soon"}', "kafka.librdkafka: expected"),
    ],
)
def test_what_no_broker_could_take_ends_the_job_and_is_told_in_a_line(
    name: str, value: str, told: str, make_job: MakeJob, broker: Broker
) -> None:
    job = kafka_job(make_job, broker, 1)
    job.settings[name] = value
    assert job.ends(job.run()) == PERMANENT
    assert told in job.told()
    assert "Traceback" not in job.told()


def test_a_broker_that_refuses_the_login_is_told_without_the_password(
    make_job: MakeJob, broker: Broker
) -> None:
    job = kafka_job(make_job, broker, 1)
    job.settings["KAFKA__LIBRDKAFKA"] = orjson.dumps(
        {
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": "PLAIN",
            "sasl.username": "someone",
            "sasl.password": "hunter2-very-secret",
        }
    ).decode()
    process = job.run()
    job.until(process, lambda _: "waiting for topic" in job.told())
    job.stop(process)
    assert "hunter2" not in job.log.read_text()
