"""A job on a topic of its own, what is sent there, and what a query then finds."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence

import orjson
import polars as pl
from confluent_kafka import Producer

import forebay
from tests.broker import Broker
from tests.job import NOW_MS, Job

MakeJob = Callable[..., Job]
Keyed = tuple[bytes | None, bytes | None]
"""A key and a value."""


def kafka_job(make_job: MakeJob, broker: Broker, partitions: int, **config: str) -> Job:
    """A job on a topic of its own."""
    topic = f"t{uuid.uuid4().hex[:8]}"
    broker.create_topic(topic, partitions, **config)
    return make_job(
        SOURCE="kafka",
        KAFKA__BOOTSTRAP=broker.address,
        KAFKA__TOPIC=topic,
        KAFKA__GROUP=topic,
        BATCH_ROWS="500",
        EPOCH_INTERVAL="100ms",
    )


def topic_of(job: Job) -> str:
    return job.settings["KAFKA__TOPIC"]


def partition(job: Job, number: int = 0) -> str:
    return f"{topic_of(job)}-{number:05d}"


def event(number: int, name: str = "i", padding: int = 0) -> bytes:
    moment = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(NOW_MS // 1000 - 600))
    return orjson.dumps(
        {
            "device_id": f"d{number % 10}",
            "$insert_id": f"{name}{number}",
            "event_type": "click",
            "server_upload_time": f"{moment}.{number % 1000:03d}",
            "padding": "x" * padding,
        }
    )


def producer(job: Job, **settings: str | int | bool) -> Producer:
    dotted = {key.replace("_", "."): value for key, value in settings.items()}
    return Producer({"bootstrap.servers": job.settings["KAFKA__BOOTSTRAP"], **dotted})


def send(
    job: Job, values: Sequence[bytes | Keyed], number: int = 0, **settings: str | int | bool
) -> None:
    """Produce values, or keys and values, to one partition, and wait until they are there."""
    out = producer(job, **settings)
    failed: list[object] = []

    def told(error: object, _: object) -> None:
        if error is not None:
            failed.append(error)

    for one in values:
        key, value = one if isinstance(one, tuple) else (None, one)
        out.produce(topic_of(job), value, key=key, partition=number, on_delivery=told)
        out.poll(0)
    assert out.flush(60) == 0
    assert not failed


def insert_ids(job: Job) -> list[str]:
    """Those of every event that a query finds, in order."""
    found = forebay.open(job.data).scan().select("insert_id").collect().rows()
    return sorted(id for (id,) in found)


def ids(names: Mapping[str, Iterable[int]]) -> list[str]:
    return sorted(f"{name}{number}" for name, numbers in names.items() for number in numbers)


def counts(found: pl.DataFrame) -> dict[str, int]:
    return {name: int(found[name].sum()) for name in ("accepted", "duplicates", "rejects")}
