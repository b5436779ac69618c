"""`forebay serve` while everything goes on: ingest, merges, days handed over, and kills of the job,
of query workers and of the server itself, while clients ask the whole time.

Three days of events and the start of a fourth are sent, with copies among them. Each client asks
one question again and again. What is checked: each answer is exact for a published moment, which is
of each partition all up to some offset, each event once, and for one boundary of all; no later
answer has less, but for a crash and what was handed over; what is no answer is a problem, or broken
off before its end.
"""

from __future__ import annotations

import http.client
import os
import random
import signal
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import orjson
import pytest
from confluent_kafka import Producer

from tests.broker import Broker
from tests.days import HOUR_MS, START_MS, MakeJob, Topic
from tests.job import Job
from tests.serving import COMPLETE, SEAL, Server

pytestmark = [pytest.mark.kafka, pytest.mark.long]

DAYS, PER_HOUR, PARTITIONS, SECONDS = 3, 40, 2, 20.0
HOURS = DAYS * 24 + 6
COPIES, REACH, DISORDER_MS, DAY_MS = 0.1, 200, HOUR_MS // 2, 24 * HOUR_MS
BOUNDARIES = [0, *(START_MS + day * DAY_MS for day in range(1, DAYS + 1))]
TOLD = {429: "ask again", 502: "got the end of the process", 410: "expected files"}
"""What may be said in place of an answer, by status."""
NOT_YET = (
    "expected a time that committed events have reached",
    "start it again",
    "commit the seal",
    "got the end of the process",
)
"""Why a day may not be handed over yet when the job or a worker was killed."""
COUNT = (
    "select _partition as p, count(*) as n, count(distinct id) as ids, max(_offset) as last"
    " from events group by all"
)
EXPORT = "select _partition as p, _offset, id, repeat('x', 1000) as pad from events"
PART_BYTES, PAUSE_S = 65_536, 0.1
SHARED_S = 1.0
"""How much older an answer may be than its `Age` says, in whole seconds."""

Event = tuple[int, str, int]
"""Offset, key and upload time."""
Found = dict[str, tuple[int, Any]]
"""Of each partition: how many events, and what is known of them."""


class Traffic:
    """Sends the days hour by hour. `first` has the events of each partition that are no copies, in
    order; they are there before they are sent."""

    def __init__(self, topic: Topic, broker: Broker) -> None:
        self._names = [f"{topic.name}-{n:05d}" for n in range(PARTITIONS)]
        self.first: dict[str, list[Event]] = {name: [] for name in self._names}
        self.sent: Counter[str] = Counter()
        self.over = threading.Event()
        self._topic = topic.name
        self._rng = random.Random(1)
        self._log: list[tuple[int, int]] = []
        self._producer = Producer({"bootstrap.servers": broker.address, "enable.idempotence": True})

    def send(self) -> None:
        key = 0
        for hour in range(HOURS):
            now_ms = START_MS + hour * HOUR_MS
            for n in range(PER_HOUR):
                if self._rng.random() < COPIES and self._log:
                    self._produce(*self._rng.choice(self._log[-REACH:]), copy=True)
                else:
                    at_ms = now_ms + n * HOUR_MS // PER_HOUR - self._rng.randrange(DISORDER_MS)
                    self._produce(key := key + 1, max(START_MS, at_ms), copy=False)
            assert self._producer.flush(60) == 0
            if self.over.wait(SECONDS / HOURS):
                return

    def _produce(self, key: int, at_ms: int, *, copy: bool) -> None:
        number = key % PARTITIONS
        name = self._names[number]
        if not copy:
            self._log.append((key, at_ms))
            self.first[name].append((self.sent[name], f"{key}", at_ms))
        self.sent[name] += 1
        message = {"id": f"{key}", "at": at_ms, "who": f"u{key % 7}", "kind": "look"}
        self._producer.produce(self._topic, orjson.dumps(message), partition=number)

    def exact(self, found: Found, of: Callable[[list[Event]], Any]) -> list[int]:
        """The boundaries at which this is what the partitions had at a moment; `of` is what is
        known of some events."""
        return [
            boundary_ms
            for boundary_ms in BOUNDARIES
            if all(
                count <= len(kept) and known == of(kept[:count])
                for name, (count, known) in found.items()
                for kept in [[one for one in list(self.first[name]) if one[2] >= boundary_ms]]
            )
        ]


@dataclass
class Scene:
    """The server there is now: `starts` is odd while there is none. `steady` is None after a crash
    of the job until it has read again what it had read, else since when that is so; answers that
    were begun since then only grow."""

    server: Server
    starts: int = 0
    steady: float | None = field(default_factory=time.monotonic)
    over: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def unsteady(self) -> Iterator[None]:
        self.steady = None
        yield
        self.steady = time.monotonic()


class Client(threading.Thread):
    """Asks one question until it is over; `read` makes of an answer what `of` makes of events."""

    def __init__(
        self, scene: Scene, traffic: Traffic, query: str, read: Callable[[bytes], Found],
        of: Callable[[list[Event]], Any],
    ) -> None:  # fmt: skip
        super().__init__(daemon=True)
        self.answers: Counter[str] = Counter()
        self.faults: list[str] = []
        self._scene, self._traffic, self._query = scene, traffic, query
        self._read, self._of = read, of
        self._boundary_ms = 0
        self._had: dict[tuple[float, str], tuple[int, int]] = defaultdict(lambda: (0, 0))

    def run(self) -> None:
        while not self._scene.over.is_set():
            starts, steady, asked_s = self._scene.starts, self._scene.steady, time.monotonic()
            try:
                status, age_s, body = self._ask(self._scene.server)
            except (http.client.HTTPException, OSError) as error:
                self.answers[type(error).__name__] += 1
                cut = isinstance(error, http.client.IncompleteRead)
                if not cut and starts == self._scene.starts and starts % 2 == 0:
                    self.faults.append(repr(error))
                self._scene.over.wait(PAUSE_S)
                continue
            self.answers[f"{status}"] += 1
            if status != 200:
                problem = orjson.loads(body)
                if TOLD.get(status, "no such status") not in problem["detail"]:
                    self.faults.append(f"{problem}")
                continue
            if steady is not None and asked_s - age_s < steady:
                steady = None
            self._judge(self._read(body), steady if steady == self._scene.steady else None)

    def _ask(self, server: Server) -> tuple[int, float, bytes]:
        """The status, how old the answer may be, and all of it, read part by part. Raises what
        http.client does."""
        connection = server.connection()
        try:
            connection.request("GET", self._query)
            got, body = connection.getresponse(), bytearray()
            while part := got.read(PART_BYTES):
                body += part
                self._scene.over.wait(0.005)
            if got.length:  # read by parts, http.client takes the end for that of the answer
                raise http.client.IncompleteRead(bytes(body), got.length)
            return got.status, int(got.headers.get("age", 0)) + SHARED_S, bytes(body)
        finally:
            connection.close()

    def _judge(self, found: Found, steady: float | None) -> None:
        at = [ms for ms in self._traffic.exact(found, self._of) if ms >= self._boundary_ms]
        if not at:
            self.faults.append(f"of no moment since {self._boundary_ms}: {found}"[:2000])
            return
        self._boundary_ms = at[0]
        for name, (count, _) in found.items():
            if steady is not None:
                boundary_ms, before = self._had[steady, name]
                if boundary_ms == at[0] and count < before:
                    self.faults.append(f"{name}: {count} after {before}")
                self._had[steady, name] = at[0], count


def counted(body: bytes) -> Found:
    return {one["p"]: (one["n"], (one["ids"], one["last"])) for one in orjson.loads(body)}


def of_count(events: list[Event]) -> Any:
    return len(events), max((offset for offset, _, _ in events), default=None)


def exported(body: bytes) -> Found:
    found: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for line in body.splitlines():
        row = orjson.loads(line)
        assert len(row["pad"]) == 1000
        found[row["p"]].append((row["_offset"], row["id"]))
    return {name: (len(rows), sorted(rows)) for name, rows in found.items()}


def of_export(events: list[Event]) -> Any:
    return [(offset, key) for offset, key, _ in events]


def segmented(body: bytes) -> Found:
    days: dict[str, Counter[str]] = defaultdict(Counter)
    for row in orjson.loads(body)["over_time"]:
        days[row["group"]][row["bucket"][:10]] += int(row["value"])
    return {name: (found.total(), +found) for name, found in days.items()}


def of_segments(events: list[Event]) -> Any:
    return Counter(f"2024-05-0{(at_ms - START_MS) // DAY_MS + 1}" for _, _, at_ms in events)


def hand_over(job: Job, process: Any, scene: Scene, day: str, path: str) -> None:
    """Have a day sealed or completed over HTTP, once the job has come so far."""

    def done(_: object) -> bool:
        late = {"late": True} if path == COMPLETE else {}
        reply = scene.server.ask(path, body={"through": day, **late})
        said = reply.body.decode()
        assert reply.status == 200 or any(one in said for one in NOT_YET), said
        return reply.status == 200

    job.until(process, done)


def read(found: Any) -> int:
    return int(found["next_offset"].sum())


def test_each_answer_is_exact_for_a_moment_whatever_is_killed_and_handed_over(
    broker: Broker, make_job: MakeJob
) -> None:
    columns = [{"name": one, "path": one} for one in ("id", "who", "kind")]
    columns.append({"name": "at", "path": "at", "type": "time"})
    topic = Topic(
        broker, make_job, COLUMNS=orjson.dumps(columns).decode(), BLOCKS_PER_CHUNK="2",
        PUBLISH_INTERVAL="50ms", BATCH_ROWS="50", GRACE="5s",
        ROLES__USER="who", ROLES__EVENT="kind", ROLES__TIME="at",
    )  # fmt: skip
    job, traffic = topic.job, Traffic(topic, broker)
    sender = threading.Thread(target=traffic.send, daemon=True)
    process = job.run()
    sender.start()
    job.until(process, lambda found: len(found) == PARTITIONS)
    scene = Scene(Server(job.data, "--workers", "2"))

    def kill_job(workers: int) -> None:
        nonlocal process
        with scene.unsteady():
            job.kill(process)
            had, runs = read(job.partitions()), job.runs()
            process = job.run(workers)
            job.until(
                process,
                lambda _: (
                    all(run > runs[name] for name, run in job.runs().items())
                    and read(job.partitions()) >= had
                ),
            )

    def until(share: float) -> None:
        total = HOURS * PER_HOUR
        job.until(process, lambda found: read(found) >= share * total)

    period = {"period": "2024-05-01/2024-05-06", "measure": "totals", "by": "_partition"}
    asked: list[tuple[str, dict[str, str], Callable[..., Found], Callable[..., Any]]] = [
        ("sql", {"text": COUNT}, counted, of_count),
        ("sql", {"text": EXPORT, "format": "ndjson"}, exported, of_export),
        ("segmentation", {"events": "look", **period}, segmented, of_segments),
    ]
    clients = [
        Client(scene, traffic, f"/v1/{name}?{urlencode(query)}", read_as, of)
        for name, query, read_as, of in asked
    ]
    try:
        for client in clients:
            client.start()
        until(0.2)
        kill_job(1)
        until(0.4)
        assert all(job.partitions()["chunks"])
        hand_over(job, process, scene, "2024-05-02", SEAL)
        for pid in scene.server.children:
            os.kill(pid, signal.SIGKILL)
        hand_over(job, process, scene, "2024-05-02", COMPLETE)
        until(0.6)
        scene.starts += 1
        scene.server.stop(signal.SIGKILL)
        scene.server.close()
        scene.server = Server(job.data, "--workers", "2")
        scene.starts += 1
        kill_job(2)
        until(0.8)
        hand_over(job, process, scene, "2024-05-03", COMPLETE)
        sender.join()
        job.until(process, lambda found: read(found) == traffic.sent.total())
        hand_over(job, process, scene, "2024-05-04", COMPLETE)
        scene.over.set()
        for client in clients:
            client.join()
        final = counted(scene.server.sql(COUNT).body)
        left = {n: [one for one in e if one[2] >= BOUNDARIES[-1]] for n, e in traffic.first.items()}
        assert final == {name: (len(events), of_count(events)) for name, events in left.items()}
        assert job.stop(process) == 0, job.told()
    finally:
        scene.over.set()
        traffic.over.set()
        scene.server.close()
    print([dict(client.answers) for client in clients])
    assert [fault for client in clients for fault in client.faults] == []
    assert all(client.answers["200"] > 5 for client in clients)
