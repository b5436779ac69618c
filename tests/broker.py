"""A real Apache Kafka broker on this machine, for tests, benchmarks and `make kafka`.

`BrokerProcess` runs one, `Broker` is one that runs elsewhere, as the tests share it. One JVM is
broker and controller at once (KRaft), listens on 127.0.0.1 only and keeps all that it has under one
directory. Its jars come from Maven by `tests/kafka/pom.xml`, once for each content
of that file, into `build/kafka/lib`.

Invariants: `address` is fixed from the first moment, so a broker that was stopped or killed comes
back at the same place with the same data. What returns without an error has happened: after
`start` the broker answers, after `create_topic` each partition has a leader. A broker does not
outlive the process that started it (where `setpriv` exists: Linux), nor the end of its `with`.

`python -m tests.broker [--port 9092]` runs one in the foreground until SIGINT or SIGTERM.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import fcntl
import hashlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic, OffsetSpec

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "kafka"
POM = Path(__file__).resolve().parent / "kafka" / "pom.xml"

JAVA_AT_LEAST = 17
START_SECONDS = 60.0
STOP_SECONDS = 20.0
ANSWER_SECONDS = 30.0
PAUSE_S = 0.02
# Below every system's range of ports for outgoing connections. Inside that range a client that
# keeps trying to reach a stopped broker can be given the broker's own port, connect to itself and
# so keep the broker from coming back.
PORTS = range(20_000, 32_000)
TAIL_BYTES = 4_000
JVM = ("-Xmx512m", "-XX:+UseSerialGC", "-Dlog4j2.level=WARN", "-Djava.awt.headless=true")
# Compiles quickly rather than well: a start takes two thirds of the CPU.
BRIEF = ("-XX:TieredStopAtLevel=1",)
NO_SETTINGS: Mapping[str, str] = MappingProxyType({})


class BrokerError(Exception):
    """The broker, or what it is made from, did not do what was asked of it."""


def _java() -> str:
    home = os.environ.get("JAVA_HOME")
    return str(Path(home) / "bin" / "java") if home else "java"


def _java_version() -> int | None:
    """The major version of the Java that would be used; None if there is none."""
    try:
        told = subprocess.run([_java(), "-version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    found = re.search(r'version "(\d+)', told.stderr)
    return int(found.group(1)) if found else None


def _stamp() -> str:
    return hashlib.sha256(POM.read_bytes()).hexdigest()


def _have_jars(lib: Path) -> bool:
    stamp = lib / "stamp"
    return stamp.is_file() and stamp.read_text().strip() == _stamp()


def missing() -> str | None:
    """One line naming what a broker needs and this machine lacks; None if nothing."""
    version = _java_version()
    if version is None or version < JAVA_AT_LEAST:
        came = "none" if version is None else str(version)
        return (
            f"kafka: expected Java {JAVA_AT_LEAST} or newer on PATH or in JAVA_HOME, found {came}"
        )
    if not _have_jars(BUILD / "lib") and shutil.which("mvn") is None:
        return "kafka: expected Maven (mvn) on PATH to get the broker's jars, found none"
    return None


def jars() -> Path:
    """The folder with the broker's jars; filled by Maven if the pom changed since the last time."""
    lib = BUILD / "lib"
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lib.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _have_jars(lib):
            return lib
        shutil.rmtree(lib, ignore_errors=True)
        goal = ["dependency:copy-dependencies", f"-DoutputDirectory={lib}"]
        done = subprocess.run(
            ["mvn", "-B", "-q", "-f", str(POM), *goal],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode != 0:
            tail = done.stdout[-TAIL_BYTES:]
            raise BrokerError(
                f"expected Maven to copy the jars, it ended {done.returncode}:\n{tail}"
            )
        (lib / "stamp").write_text(_stamp() + "\n")
    return lib


def _free_port(taken: Iterable[int] = ()) -> int:
    """A port of PORTS on which nothing listens now."""
    for port in random.SystemRandom().sample(PORTS, 200):
        if port in taken:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Java does
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
    raise BrokerError(f"expected a free port of {PORTS.start}..{PORTS.stop - 1}, found none")


def _cluster_id() -> str:
    """A random id in Kafka's spelling: 22 characters, the first of them no '-'."""
    while True:
        text = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        if not text.startswith("-"):
            return text


class Broker:
    """A broker at an address, whoever runs it, and its topics."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._client: AdminClient | None = None

    def create_topic(self, name: str, partitions: int, **config: str) -> None:
        """Create a topic; in a setting's name `_` may stand for `.`: retention_ms="1000"."""
        settings = {key.replace("_", "."): value for key, value in config.items()}
        topic = NewTopic(name, num_partitions=partitions, replication_factor=1, config=settings)
        self._finish(self._admin().create_topics([topic]), f"topic {name} created")
        self._wait_for_partitions(name, partitions)

    def delete_topic(self, name: str) -> None:
        """Delete a topic and return when no metadata names it."""
        self._finish(self._admin().delete_topics([name]), f"topic {name} deleted")
        self._wait(lambda: name not in self._topics(), ANSWER_SECONDS, f"topic {name} gone")

    def add_partitions(self, name: str, total: int) -> None:
        """Grow a topic to `total` partitions."""
        grown = self._admin().create_partitions([NewPartitions(name, total)])
        self._finish(grown, f"topic {name} grown to {total} partitions")
        self._wait_for_partitions(name, total)

    def delete_records(self, name: str, partition: int, before_offset: int) -> None:
        """Delete a partition's records below `before_offset`, as retention would."""
        upto = TopicPartition(name, partition, before_offset)
        self._finish(self._admin().delete_records([upto]), f"records of {name} deleted")

    def _admin(self) -> AdminClient:
        if self._client is None:
            # Quiet: while the broker starts, each refused connection would be a line on stderr.
            backoff = {"reconnect.backoff.ms": 20, "reconnect.backoff.max.ms": 100}
            self._client = AdminClient(
                {"bootstrap.servers": self.address, "log_level": 0, **backoff}
            )
        return self._client

    def _topics(self) -> Mapping[str, Any]:
        topics: Mapping[str, Any] = self._admin().list_topics(timeout=ANSWER_SECONDS).topics
        return topics

    def _wait_for_partitions(self, name: str, total: int) -> None:
        def led() -> bool:
            topic = self._topics().get(name)
            if topic is None or topic.error is not None:
                return False
            found = topic.partitions.values()
            led = len(found) == total and all(p.error is None and p.leader >= 0 for p in found)
            return led and self._have_ends(name, total)

        self._wait(led, ANSWER_SECONDS, f"{total} partitions of {name} with leaders")

    def _have_ends(self, name: str, total: int) -> bool:
        """Whether the leaders know that they are."""
        latest = OffsetSpec.latest()  # type: ignore[no-untyped-call]
        asked = self._admin().list_offsets(
            {TopicPartition(name, number): latest for number in range(total)}
        )
        try:
            return all(one.result(ANSWER_SECONDS).offset >= 0 for one in asked.values())
        except KafkaException:
            return False

    def _finish(self, futures: Mapping[Any, Future[Any]], expected: str) -> None:
        for future in futures.values():
            try:
                future.result(ANSWER_SECONDS)
            except (KafkaException, TimeoutError) as error:
                raise BrokerError(f"expected {expected}, got {error!r}") from error

    def _wait(self, reached: Callable[[], bool], seconds: float, expected: str) -> None:
        """Return when `reached` says so."""
        deadline = time.monotonic() + seconds
        while not reached():
            self._pause(expected)
            if time.monotonic() > deadline:
                came = f"nothing in {seconds:g} s"
                raise BrokerError(f"expected {expected}, got {came}:\n{self.tail()}")

    def _pause(self, expected: str) -> None:
        """Between two looks."""
        time.sleep(PAUSE_S)

    def tail(self) -> str:
        """The end of what it printed, as far as that is known here."""
        return ""


class BrokerProcess(Broker):
    """A real Kafka broker, a child of this process, in its own directory.

    `brief` is for one that lives for minutes, under little load. `lan` is an address of this
    machine at which it listens too, on `lan_address`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        port: int | None = None,
        settings: Mapping[str, str] = NO_SETTINGS,
        brief: bool = False,
        lan: str | None = None,
    ) -> None:
        self.directory = directory.resolve()
        self._jvm = (*JVM, *BRIEF) if brief else JVM
        self.port = _free_port() if port is None else port
        super().__init__(f"127.0.0.1:{self.port}")
        self.log = self.directory / "broker.log"
        self._controller = _free_port({self.port})
        self.lan_address = f"{lan}:{_free_port({self.port, self._controller})}"
        if lan:
            settings = {**settings, **self._also_at(self.lan_address)}
        self._settings = dict(settings)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> BrokerProcess:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """The JVM's process id while it runs."""
        running = self._process is not None and self._process.poll() is None
        return self._process.pid if running and self._process is not None else None

    def start(self) -> None:
        """Start the JVM and return when it answers; the data of an earlier start is kept."""
        if self.pid is not None:
            raise BrokerError(f"expected a stopped broker, it runs as process {self.pid}")
        lib = jars()
        self.directory.mkdir(parents=True, exist_ok=True)
        config = self.directory / "server.properties"
        config.write_text("".join(f"{k}={v}\n" for k, v in self._properties().items()))
        if not (self.directory / "data" / "meta.properties").exists():
            self._format(lib, config)
        command = [_java(), *self._jvm, "-cp", f"{lib}/*", "kafka.Kafka", str(config)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._leash(), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._wait(self._answers, START_SECONDS, f"an answer from {self.address}")
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """Ask the JVM to end, and end it if it does not in time. Nothing if it does not run."""
        self._client = None
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def kill(self) -> None:
        """End the JVM at once, as a crash would. Nothing if it does not run."""
        self._client = None
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        self._process = None

    def _also_at(self, address: str) -> dict[str, str]:
        listeners = f"PLAINTEXT://{self.address},LAN://{address}"
        return {
            "listeners": f"{listeners},CONTROLLER://127.0.0.1:{self._controller}",
            "advertised.listeners": listeners,
            "inter.broker.listener.name": "PLAINTEXT",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,LAN:PLAINTEXT,"
            "CONTROLLER:PLAINTEXT",
        }

    def _properties(self) -> dict[str, str]:
        own = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@127.0.0.1:{self._controller}",
            "listeners": f"PLAINTEXT://{self.address},CONTROLLER://127.0.0.1:{self._controller}",
            "advertised.listeners": f"PLAINTEXT://{self.address}",
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "log.dirs": str(self.directory / "data"),
            "auto.create.topics.enable": "false",
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "1",
            "group.initial.rebalance.delay.ms": "0",
            "log.cleaner.dedupe.buffer.size": str(8 << 20),  # of a small heap
            "log.cleaner.backoff.ms": "200",
        }
        return {**own, **self._settings}

    def _format(self, lib: Path, config: Path) -> None:
        tool = [*BRIEF, "-cp", f"{lib}/*", "kafka.tools.StorageTool", "format"]
        done = subprocess.run(
            [_java(), *JVM, *tool, "-t", _cluster_id(), "-c", str(config)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode != 0:
            tail = done.stdout[-TAIL_BYTES:]
            raise BrokerError(
                f"expected the storage to be formatted, got {done.returncode}:\n{tail}"
            )

    def _leash(self) -> list[str]:
        """A prefix of the command by which the kernel ends the JVM together with this process.

        The kernel ties it to the thread that starts the JVM, so it is only used in the main one.
        """
        tool = shutil.which("setpriv")
        if tool is None or threading.current_thread() is not threading.main_thread():
            return []
        return [tool, "--pdeathsig", "KILL", "--"]

    def _answers(self) -> bool:
        try:
            return len(self._admin().list_topics(timeout=1.0).brokers) == 1
        except KafkaException:
            return False

    def _pause(self, expected: str) -> None:
        """A wait on the JVM, whose end is an error."""
        if self._process is None:
            raise BrokerError(f"expected {expected}, but the broker was not started")
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(PAUSE_S)
            raise BrokerError(f"expected {expected}, the broker ended {code}:\n{self.tail()}")

    def tail(self) -> str:
        """The end of what the JVM printed."""
        if not self.log.exists():
            return ""
        return self.log.read_bytes()[-TAIL_BYTES:].decode(errors="replace")


def produce(broker: Broker, topic: str, partition: int, messages: list[bytes]) -> None:
    """Send messages to one partition, and wait until all are acknowledged."""
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": broker.address, "linger.ms": 20})
    for message in messages:
        producer.produce(topic, message, partition=partition)
        producer.poll(0)
    assert producer.flush(60) == 0


def main(arguments: list[str] | None = None) -> int:
    """Run one broker until SIGINT or SIGTERM; the one line on stdout is its address."""
    parser = argparse.ArgumentParser(prog="python -m tests.broker", description=main.__doc__)
    parser.add_argument("--port", type=int, default=None, help="default: a free one")
    parser.add_argument("--directory", type=Path, default=BUILD / "data", help="kept between runs")
    options = parser.parse_args(arguments)
    lack = missing()
    if lack is not None:
        parser.exit(1, lack + "\n")
    asked = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: asked.set())
    with BrokerProcess(options.directory, port=options.port) as broker:
        print(broker.address, flush=True)
        while not asked.wait(0.5):
            if broker.pid is None:
                parser.exit(1, f"expected a running broker, it ended:\n{broker.tail()}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
