"""The topic: a real broker, and topics in it that hold a load before anything is measured."""

from __future__ import annotations

import gzip
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from confluent_kafka import Producer

from benchmarks.github import github
from benchmarks.measure import ROOT, Failed
from tests.broker import Broker, BrokerProcess, missing

SAMPLE = ROOT / "tests" / "data" / "github-events-2021-07-21.ndjson.gz"
PARTITIONS = 4


@dataclass(frozen=True)
class Topic:
    """A topic whose messages are all there. `unique`: how many events an exact reader keeps."""

    bootstrap: str
    name: str
    messages: int
    unique: int
    bytes: int

    @property
    def settings(self) -> dict[str, str]:
        """The settings by which a job reads it."""
        own = {"kafka__bootstrap": self.bootstrap, "kafka__topic": self.name}
        return {"source": "kafka", **own}


@contextmanager
def broker(folder: Path) -> Iterator[Broker]:
    """A broker with nothing in it; its data is gone afterwards."""
    if lack := missing():
        raise Failed(lack)
    shutil.rmtree(folder, ignore_errors=True)
    try:
        # Long enough that no flush, cleaner or deletion happens during a measurement.
        settings = {"log.retention.ms": "-1", "log.segment.bytes": str(1 << 30)}
        with BrokerProcess(folder, settings=settings) as running:
            yield running
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def generate_command(events: int, *options: str) -> list[str]:
    return [sys.executable, "-m", "forebay", "generate", "--events", str(events), *options]


def generate(events: int, *options: str) -> dict[str, Any]:
    """`forebay generate`, and the totals that it prints."""
    command = generate_command(events, *options)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if done.returncode:
        raise Failed(f"generate ended with {done.returncode}: {done.stderr.decode()}")
    totals: dict[str, Any] = orjson.loads(done.stdout)
    return totals


def generated(
    running: Broker, name: str, events: int, *options: str, partitions: int = PARTITIONS
) -> Topic:
    """A topic with a load of `forebay generate`; `options` are of that command."""
    running.create_topic(name, partitions)
    totals = generate(events, "--bootstrap", running.address, "--topic", name, *options)
    return Topic(running.address, name, totals["messages"], totals["accepted"], totals["bytes"])


def github_events(running: Broker, name: str, events: int, folder: Path) -> Topic:
    """A topic with an hour of GitHub events of about 3 kB, the sample repeated under new ids."""
    running.create_topic(name, PARTITIONS)
    sample = folder / "github.ndjson"
    sample.write_bytes(gzip.decompress(SAMPLE.read_bytes()))
    copies = -(-events // sample.read_bytes().count(b"\n"))
    producer = Producer({"bootstrap.servers": running.address, "linger.ms": 20})
    sent = size = 0
    for message in github(sample, copies, seed=0, copy_span_s=max(1, 3_600 // copies)):
        if sent == events:
            break
        while True:
            try:
                producer.produce(name, message, partition=sent % PARTITIONS)
            except BufferError:
                producer.poll(0.1)
            else:
                break
        sent, size = sent + 1, size + len(message)
    if left := producer.flush(60):
        raise Failed(f"topic {name}: {left} messages were not acknowledged")
    return Topic(running.address, name, sent, sent, size)
