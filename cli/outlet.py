"""Where `forebay generate` sends a load: files, or a Kafka topic.

What always holds: when an outlet's context is left without an error, everything is written or
acknowledged; nothing of an earlier run is overwritten. Requests to a broker are short and have a
time limit, so that Ctrl-C is noticed within a second.
"""

import gzip
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import click
import zstandard
from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from forebay.storage.base.text import count_text

PARTITIONS = 4
SUFFIXES = {"none": "", "gzip": ".gz", "zstd": ".zst"}
ASK_S = 1.0
BROKER_TIMEOUT_S = 10.0
DELIVERY_TIMEOUT_S = 60.0
_BROKER = re.compile(r"\s*(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.%]+\])(?::\d{1,5})?\s*\Z")
_DEVICE = re.compile(rb'\{"\$insert_id":"[^"]{36}","device_id":"([^"]{36})"')
_TOPIC = re.compile(r"(?!\.\.?\Z)[A-Za-z0-9._-]{1,249}\Z")


@dataclass(frozen=True)
class Outlet:
    """Where a slice goes, and the names of its partitions there."""

    names: list[str]
    send: Callable[[list[list[bytes]]], None]


@contextmanager
def files(directory: Path, partitions: int, compress: str) -> Iterator[Outlet]:
    """One file per partition; all are complete when the context is left."""
    directory.mkdir(parents=True, exist_ok=True)
    if found := sorted(path.name for path in directory.glob("part-*")):
        raise click.ClickException(f"{directory}: expected no part-* files, got {found[0]}")
    names = [f"part-{number:05d}" for number in range(partitions)]
    paths = [directory / f"{name}.ndjson{SUFFIXES[compress]}" for name in names]
    with ExitStack() as stack:
        plain = [stack.enter_context(path.open("xb")) for path in paths]
        outs = [stack.enter_context(_compressed(file, compress)) for file in plain]

        def send(parts: list[list[bytes]]) -> None:
            for out, messages in zip(outs, parts, strict=True):
                if messages:
                    out.write(b"\n".join(messages) + b"\n")
                    if compress == "none":
                        out.flush()

        yield Outlet(names, send)


def _compressed(file: BinaryIO, compress: str) -> BinaryIO:
    if compress == "gzip":
        # No name and no time in the header, so that the same load gives the same file.
        return cast(BinaryIO, gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0))
    if compress == "zstd":
        return cast(BinaryIO, zstandard.ZstdCompressor().stream_writer(file, closefd=False))
    return file


@contextmanager
def topic_of(
    bootstrap: str,
    topic: str,
    partitions: int | None,
    compress: str,
    properties: Mapping[str, str],
) -> Iterator[Outlet]:
    """A topic, created with so many partitions if it does not exist; all messages are acknowledged
    when the context is left. `properties` are librdkafka's, for producer and admin clients."""
    if not all(_BROKER.match(one) for one in bootstrap.split(",")):
        raise click.UsageError(
            f"--bootstrap: expected HOST:PORT, separated by commas, got {bootstrap!r}"
        )
    if not _TOPIC.match(topic):
        raise click.UsageError(
            f"--topic: expected letters, digits, . _ -, at most 249 of them, got {topic!r}"
        )
    to = _Topic(bootstrap, topic, compress, properties)
    count = to.partitions() or to.create(partitions or PARTITIONS)
    if partitions not in (None, count):
        raise to.error(f"{count_text(partitions, 'partition')}, got {count}")
    try:
        yield Outlet([f"{topic}-{number:05d}" for number in range(count)], to.send)
        to.flush()
    except KeyboardInterrupt:
        to.producer.purge()
        raise


class _Topic:
    """The clients, kept while their answers are awaited: the answers end with them."""

    def __init__(
        self, bootstrap: str, topic: str, compress: str, properties: Mapping[str, str]
    ) -> None:
        self._bootstrap = bootstrap
        self._name = topic
        self._trouble = ""
        self._failures: list[str] = []
        common: dict[str, Any] = {
            **properties,
            "bootstrap.servers": bootstrap,
            "log_level": 2,
            "error_cb": self._failed,
        }
        try:
            self._admin = AdminClient(common)
            self.producer = Producer(
                {
                    **common,
                    "enable.idempotence": True,
                    "compression.type": compress,
                    "linger.ms": 20,
                    "queue.buffering.max.messages": 200_000,
                    "queue.buffering.max.kbytes": 128 * 1024,
                    "message.timeout.ms": int(1000 * DELIVERY_TIMEOUT_S),
                    "delivery.report.only.error": True,
                    "on_delivery": lambda error, _: self._failures.append(str(error)),
                }
            )
        except KafkaException as error:
            raise click.UsageError(
                f"--property: expected a property of librdkafka, got: {error.args[0].str()}"
            ) from error

    def error(self, expected: str) -> click.ClickException:
        return click.ClickException(f"topic {self._name!r}: expected {expected}")

    def partitions(self) -> int:
        """The topic's number of partitions, 0 if it does not exist. All topics are listed: asking
        for one by name might create it."""
        deadline = time.monotonic() + BROKER_TIMEOUT_S
        while True:
            try:
                found = self.producer.list_topics(timeout=ASK_S).topics.get(self._name)
                return len(found.partitions) if found else 0
            except KafkaException as error:
                self.producer.poll(0)
                if time.monotonic() > deadline:
                    raise click.ClickException(
                        f"expected a broker at {self._bootstrap} within {BROKER_TIMEOUT_S:.0f} s,"
                        f" got: {self._trouble or error.args[0].str()}"
                    ) from error

    def create(self, partitions: int) -> int:
        """Create the topic, wait until the producer sees it; return its number of partitions."""
        created = self._admin.create_topics([NewTopic(self._name, partitions)])[self._name]
        deadline = time.monotonic() + BROKER_TIMEOUT_S
        try:
            created.result(BROKER_TIMEOUT_S)
        except (KafkaException, TimeoutError) as error:
            got = error.args[0].str() if isinstance(error, KafkaException) else "no answer"
            raise self.error(f"to create it with {partitions} partitions, got: {got}") from error
        while (count := self.partitions()) < partitions and time.monotonic() < deadline:
            time.sleep(ASK_S / 20)
        return count

    def send(self, parts: list[list[bytes]]) -> None:
        for number, messages in enumerate(parts):
            for message in messages:
                while True:
                    try:
                        self.producer.produce(self._name, message, device_of(message), number)
                        break
                    except BufferError:  # failed messages make room as well
                        self.producer.poll(0.1)
            self.producer.poll(0)
            self._check()

    def flush(self) -> None:
        """Wait until every message is acknowledged, or raise why one is not. Within twice the
        delivery timeout, each has succeeded or failed."""
        deadline = time.monotonic() + 2 * DELIVERY_TIMEOUT_S
        while self.producer.flush(ASK_S) and time.monotonic() < deadline:
            self._check()
        self._check()

    def _check(self) -> None:
        if self._failures:
            self.producer.purge()
            raise self.error(f"every message to be acknowledged, got: {self._failures[0]}")

    def _failed(self, error: KafkaError) -> None:
        """Why the broker can't be reached; a request that timed out does not say."""
        if error.code() != KafkaError._ALL_BROKERS_DOWN:
            self._trouble = error.str()


def device_of(message: bytes) -> bytes | None:
    """The device id of a load's message; None if the message is too broken to have one."""
    found = _DEVICE.match(message)
    return found[1] if found else None
