"""Where partitions of a real Apache Kafka begin, also those added later, and when lag is zero."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import PERMANENT
from forebay.storage.base.layout import Layout
from forebay.storage.formats.source import Source, Topic, read_sources, read_topic
from tests.broker import Broker
from tests.job import Job, taken
from tests.topic import (
    counts,
    event,
    ids,
    insert_ids,
    kafka_job,
    partition,
    producer,
    send,
    topic_of,
)

pytestmark = pytest.mark.kafka

MakeJob = Callable[..., Job]


def sources(job: Job) -> dict[str, Source]:
    return read_sources(Disk(), Layout(job.data))


def begun(job: Job, process: subprocess.Popen[bytes]) -> None:
    """Wait until it is decided where each partition begins."""
    job.until(
        process,
        lambda _: (
            bool(sources(job))
            and all(one.first_offset is not None for one in sources(job).values())
        ),
    )


def lag(job: Job) -> int:
    return int(job.partitions()["lag"].sum())


# -- latest -------------------------------------------------------------------------------------


def test_latest_is_where_the_first_start_found_the_end_though_it_is_killed_before_any_commit(
    make_job: MakeJob, broker: Broker
) -> None:
    job = kafka_job(make_job, broker, 2)
    job.settings.update(KAFKA__START="latest", EPOCH_INTERVAL="1h", GRACE="1h")
    send(job, [event(n, "before") for n in range(10)])
    process = job.run(2)
    begun(job, process)
    assert sources(job) == {partition(job, 0): Source(10), partition(job, 1): Source(0)}
    job.kill(process)
    send(job, [event(n) for n in range(10)])
    process = job.run()
    job.until(process, lambda found: taken(found) == 10)
    job.kill(process)
    send(job, [event(n) for n in range(10, 15)], 1)
    job.settings["EPOCH_INTERVAL"] = "100ms"
    process = job.run()
    job.until(process, lambda found: taken(found) == 15)
    assert job.stop(process) == 0, job.told()
    assert insert_ids(job) == ids({"i": range(15)})


def test_latest_begins_before_a_transaction_that_is_open_at_the_first_start(
    make_job: MakeJob, broker: Broker
) -> None:
    """Its messages become visible to any reader only after that start."""
    job = kafka_job(make_job, broker, 1)
    job.settings["KAFKA__START"] = "latest"
    send(job, [event(n, "before") for n in range(3)])
    out = transactional(job)
    out.begin_transaction()
    out.produce(topic_of(job), event(0), partition=0)
    assert out.flush(30) == 0
    process = job.run()
    begun(job, process)
    assert sources(job) == {partition(job): Source(3)}
    out.commit_transaction(30)
    job.until(process, lambda found: taken(found) == 1)
    assert job.stop(process) == 0, job.told()
    assert insert_ids(job) == ["i0"]


def test_a_topic_that_is_created_after_the_job_has_started_is_read_from_its_beginning(
    make_job: MakeJob, broker: Broker
) -> None:
    job = kafka_job(make_job, broker, 1)
    job.settings.update(KAFKA__START="latest", KAFKA__TOPIC=f"{topic_of(job)}-later")
    process = job.run(2)
    job.until(process, lambda _: job.told().count("Unknown topic") == 2)
    broker.create_topic(topic_of(job), 2)
    send(job, [event(n) for n in range(10)])
    job.until(process, lambda found: taken(found) == 10)
    assert job.stop(process) == 0, job.told()
    assert insert_ids(job) == ids({"i": range(10)})


def test_what_is_gone_before_the_first_commit_is_a_gap_like_any_other(
    make_job: MakeJob, broker: Broker
) -> None:
    job = kafka_job(make_job, broker, 1)
    job.settings.update(KAFKA__START="latest", EPOCH_INTERVAL="1h", GRACE="1h")
    send(job, [event(n, "before") for n in range(10)])
    process = job.run()
    begun(job, process)
    job.kill(process)
    send(job, [event(n) for n in range(10)])
    broker.delete_records(topic_of(job), 0, 15)
    assert job.ends(job.run()) == PERMANENT
    assert "expected offset 10, the broker begins at 15: 5 messages are gone" in job.told()
    job.settings.update(KAFKA__ON_GAP="skip", EPOCH_INTERVAL="100ms")
    process = job.run()
    found = job.until(process, lambda found: taken(found) == 5)
    assert found["skipped"].sum() == 5
    assert job.stop(process) == 0, job.told()


def test_a_gap_at_the_end_of_a_partition_is_counted_though_nothing_comes_after_it(
    make_job: MakeJob, broker: Broker
) -> None:
    job = kafka_job(make_job, broker, 1)
    job.settings["KAFKA__ON_GAP"] = "skip"
    process = job.run()
    send(job, [event(n) for n in range(10)])
    job.until(process, lambda found: taken(found) == 10)
    assert job.stop(process) == 0, job.told()
    send(job, [event(n) for n in range(10, 20)])
    broker.delete_records(topic_of(job), 0, 20)
    process = job.run()
    found = job.until(process, lambda found: found["next_offset"].to_list() == [20])
    assert (found["skipped"].sum(), lag(job)) == (10, 0)
    assert job.stop(process) == 0, job.told()


# -- partitions that are added ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "workers"),
    [("latest", 1), pytest.param("earliest", 3, marks=pytest.mark.long)],
)
def test_partitions_added_during_a_run_are_read_from_their_beginning_without_a_hand(
    start: str, workers: int, make_job: MakeJob, broker: Broker
) -> None:
    """Of three workers one has no partition at first, and so nothing to notice it by."""
    job = kafka_job(make_job, broker, 2)
    job.settings["KAFKA__START"] = start
    process = job.run(workers)
    begun(job, process)
    send(job, [event(n) for n in range(100)])
    job.until(process, lambda found: taken(found) == 100)
    broker.add_partitions(topic_of(job), 5)
    send(job, [event(n) for n in range(100, 200)], 4)
    send(job, [event(n) for n in range(200, 250)], 0)
    found = job.until(process, lambda found: taken(found) == 250)
    assert job.stop(process) == 0, job.told()
    assert counts(found) == {"accepted": 250, "duplicates": 0, "rejects": 0}
    assert insert_ids(job) == ids({"i": range(250)})
    assert f"topic {topic_of(job)} has 5 partitions now" in job.told()
    assert job._started() == 2
    assert "ERROR" not in job.told()
    assert sources(job)[partition(job, 3)] == Source(0)


def test_a_partition_added_between_runs_begins_at_its_beginning_though_start_is_latest(
    make_job: MakeJob, broker: Broker
) -> None:
    job = kafka_job(make_job, broker, 1)
    job.settings["KAFKA__START"] = "latest"
    process = job.run()
    begun(job, process)
    assert job.stop(process) == 0, job.told()
    broker.add_partitions(topic_of(job), 2)
    send(job, [event(n) for n in range(10)], 1)
    process = job.run()
    job.until(process, lambda found: taken(found) == 10)
    assert job.stop(process) == 0, job.told()
    assert insert_ids(job) == ids({"i": range(10)})


def test_a_job_without_a_supervisor_says_once_that_it_must_be_started_again(
    make_job: MakeJob, broker: Broker
) -> None:
    job = kafka_job(make_job, broker, 2)
    job.settings["KAFKA__START"] = "latest"
    process = job.bytewax("-w", "2")
    begun(job, process)
    broker.add_partitions(topic_of(job), 3)
    send(job, [event(n) for n in range(10)], 2)
    job.until(process, lambda _: partition(job, 2) in sources(job))
    send(job, [event(n) for n in range(10, 20)])
    job.until(process, lambda found: taken(found) == 10)
    assert job.stop(process) == 0, job.told()
    warning = "has 3 partitions now; the new ones are read, from their beginning, when this job is"
    assert job.told().count(warning) == 1
    process = job.bytewax()
    job.until(process, lambda found: taken(found) == 20)
    assert job.stop(process) == 0, job.told()
    assert insert_ids(job) == ids({"i": range(20)})


@pytest.mark.long
@pytest.mark.parametrize(
    "with_id", [True, pytest.param(False, marks=pytest.mark.long)], ids=["id", "no id"]
)
def test_what_version_1_kept_tells_which_partitions_were_there(
    with_id: bool, make_job: MakeJob, broker: Broker
) -> None:
    """The first of two committed nothing; the third came after the last run of version 1."""
    job = kafka_job(make_job, broker, 2)
    job.settings.update(KAFKA__START="latest", EPOCH_INTERVAL="1h", GRACE="1h")  # no snapshot
    layout, topic = Layout(job.data), Layout(job.data).topic(topic_of(job))
    process = job.run()
    begun(job, process)
    job.kill(process)
    kept = read_topic(Disk(), topic)
    assert kept is not None
    assert kept.partitions == 2
    topic.unlink()
    if with_id:
        topic.write_text(str(kept.id))
    for name in sources(job):
        (layout.sources / name).write_bytes(b"")
    broker.add_partitions(topic_of(job), 3)
    send(job, [event(n, "before") for n in range(5)], 0)
    send(job, [event(n) for n in range(5)], 2)
    job.settings["EPOCH_INTERVAL"] = "100ms"
    process = job.run(3)
    begun(job, process)
    send(job, [event(n) for n in range(5, 10)], 0)
    job.until(process, lambda found: taken(found) == 10)
    assert job.stop(process) == 0, job.told()
    found = {name: one.first_offset for name, one in sources(job).items()}
    assert list(found.values()) == [5, 0, 0]
    assert insert_ids(job) == ids({"i": range(10)})
    assert read_topic(Disk(), topic) == Topic(kept.id, None if with_id else 2)


@pytest.mark.long
def test_another_topic_is_refused_and_leaves_no_trace(make_job: MakeJob, broker: Broker) -> None:
    job, other = kafka_job(make_job, broker, 1), kafka_job(make_job, broker, 3)
    topic = topic_of(job)
    process = job.run()
    send(job, [event(n) for n in range(5)])
    job.until(process, lambda found: taken(found) == 5)
    assert job.stop(process) == 0, job.told()
    job.settings["KAFKA__TOPIC"] = topic_of(other)
    assert job.ends(job.run(2)) == PERMANENT
    assert f"topic {topic_of(other)}: expected partition {topic}-00000" in job.told()
    job.settings.update(SOURCE="files", FILES__PATH=str(job.folder))
    assert job.ends(job.run()) == PERMANENT
    assert f"this data directory has events of topic {topic}" in job.told()
    job.settings.update(KAFKA__TOPIC=topic, SOURCE="kafka")
    process = job.run()
    send(job, [event(n) for n in range(5, 10)])
    job.until(process, lambda found: taken(found) == 10)
    assert job.stop(process) == 0, job.told()
    assert insert_ids(job) == ids({"i": range(10)})


# -- lag ----------------------------------------------------------------------------------------


def transactional(job: Job) -> Producer:
    out = producer(job, transactional_id=f"x-{topic_of(job)}")
    out.init_transactions(30)
    return out


def transact(out: Producer, job: Job, numbers: range, *, keep: bool, number: int = 0) -> None:
    out.begin_transaction()
    for one in numbers:
        out.produce(topic_of(job), event(one), partition=number)
    assert out.flush(30) == 0  # else an abort takes them back before they are sent
    (out.commit_transaction if keep else out.abort_transaction)(30)


@pytest.mark.parametrize("hash_partitions", [pytest.param("0", marks=pytest.mark.long), "3"])
def test_lag_of_a_transactional_topic_is_zero_once_all_is_read(
    hash_partitions: str, make_job: MakeJob, broker: Broker
) -> None:
    """Partition 1 has nothing but an aborted transaction."""
    job = kafka_job(make_job, broker, 2)
    job.settings["HASH_PARTITIONS"] = hash_partitions
    out = transactional(job)
    process = job.run()
    begun(job, process)
    transact(out, job, range(3), keep=True)
    transact(out, job, range(3, 6), keep=False)
    transact(out, job, range(6, 8), keep=True)
    transact(out, job, range(8, 10), keep=False, number=1)
    job.until(process, lambda found: taken(found) == 5 and lag(job) == 0)
    if hash_partitions == "0":
        job.until(process, lambda found: found["next_offset"].to_list() == [11, 3])
    assert job.stop(process) == 0, job.told()
    send(job, [event(20)])
    out.begin_transaction()
    out.produce(topic_of(job), event(21), partition=0)
    assert out.flush(30) == 0
    process = job.run()
    job.until(process, lambda found: taken(found) == 6)
    send(job, [event(22)], 1)
    job.until(process, lambda found: taken(found) == 7)
    assert lag(job) > 0, "a transaction is open"
    out.commit_transaction(30)
    job.until(process, lambda found: taken(found) == 8 and lag(job) == 0)
    assert job.stop(process) == 0, job.told()
    assert insert_ids(job) == ids({"i": [*range(3), 6, 7, 20, 21, 22]})
    process = job.run()
    since = time.monotonic()
    job.until(process, lambda _: time.monotonic() - since > 2)
    assert lag(job) == 0
    assert job.stop(process) == 0, job.told()
    consumer = Consumer({"bootstrap.servers": broker.address, "group.id": topic_of(job)})
    places = [TopicPartition(topic_of(job), number) for number in range(2)]
    ends = [consumer.get_watermark_offsets(place, 30)[1] for place in places]
    assert [place.offset for place in consumer.committed(places, 30)] == ends
    consumer.close()
