"""`forebay generate` to a real Apache Kafka, as a process of its own."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import orjson
import pytest
from confluent_kafka import Consumer, TopicPartition

from tests.broker import Broker

pytestmark = pytest.mark.kafka

ROOT = Path(__file__).resolve().parent.parent


def generate(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "forebay", "generate", "--events", "200", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def a_topic() -> str:
    return f"t{uuid.uuid4().hex[:8]}"


def test_a_topic_that_is_not_there_is_created_and_filled_every_time(broker: Broker) -> None:
    for partitions in (4, 1, 7):
        topic = a_topic()
        run = generate(
            "--bootstrap", broker.address, "--topic", topic, "--partitions", str(partitions)
        )
        out, err = run.communicate(timeout=60)
        assert run.returncode == 0, err
        names = [f"{topic}-{number:05d}" for number in range(partitions)]
        assert list(orjson.loads(out)["partitions"]) == names
        consumer = Consumer({"bootstrap.servers": broker.address, "group.id": "t"})
        places = [TopicPartition(topic, number) for number in range(partitions)]
        there = sum(consumer.get_watermark_offsets(place, 30)[1] for place in places)
        consumer.close()
        assert there == orjson.loads(out)["messages"]


@pytest.mark.long
def test_properties_reach_librdkafka_and_a_broker_that_does_not_answer_is_told_with_the_reason(
    broker: Broker,
) -> None:
    """A plain listener takes no SSL."""
    ssl = ("--property", "security.protocol=SSL")
    run = generate("--bootstrap", broker.address, "--topic", a_topic(), *ssl)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 1
    assert re.search("SSL handshake failed|in state SSL_HANDSHAKE", err)
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--topic", "a/b"), "--topic: expected letters, digits"),
        (("--topic", ".."), "--topic: expected letters, digits"),
        (("--topic", "t", "--partitions", "0"), "partitions: expected 1 to"),
        (("--topic", "t", "--property", "nope"), "--property: expected NAME=VALUE"),
        (("--topic", "t", "--property", "no.such=1"), 'No such configuration property: "no.such"'),
        (("--topic", "t", "--duplicates", "2"), "duplicates: expected 0 to"),
        (("--topic", "t", "--bootstrap", ""), "--bootstrap: expected HOST:PORT"),
        (("--topic", "t", "--bootstrap", "http://x:1"), "--bootstrap: expected HOST:PORT"),
    ],
)
def test_what_can_not_be_is_told_before_a_broker_is_asked(
    arguments: tuple[str, ...], expected: str
) -> None:
    run = generate("--bootstrap", "127.0.0.1:1", *arguments)
    out, err = run.communicate(timeout=60)
    assert (run.returncode, out) == (2, "")
    assert expected in err
    assert "Traceback" not in err


def test_ctrl_c_is_heard_while_a_broker_is_waited_for_and_while_messages_are_sent(
    broker: Broker,
) -> None:
    topic, mute = a_topic(), socket.create_server(("127.0.0.1", 0))
    away = generate("--bootstrap", f"127.0.0.1:{mute.getsockname()[1]}", "--topic", topic)
    slow = generate("--bootstrap", broker.address, "--topic", topic, "--rate", "5")
    deadline = time.monotonic() + 60
    while topic not in broker._topics():
        assert time.monotonic() < deadline
    mute.accept()[0].close()
    for run in (away, slow):
        assert run.poll() is None
        run.send_signal(signal.SIGINT)
        out, err = run.communicate(timeout=9)
        assert (run.returncode, out) == (130, ""), err
        assert err == f"interrupted: topic {topic} has a part of the load, of no known totals\n"
    mute.close()
