"""The supervisors of a job's hosts, who run it together: one run of all, or none.

1. Host 0 listens, the others connect to it; each says who it is and what it is set to (`Hello`).
   One that does not fit is refused with a reason; one that does waits for all others.
2. When all are there, all start their workers; when all workers have built the dataflow, and all
   know the same partitions, all let them go.
3. A stop of one host is a stop of all. When all have ended, all are done. Where one fails, or is
   not heard of any more, the run is over for all, and they gather again.

Who waits says for whom, after SAY_S and then every SAY_EVERY_S, and goes on waiting. Everything
here but the links is of the supervisor's main thread; what is heard on a link comes to it by
`hear`, in the order of its other events.
"""

from __future__ import annotations

import hashlib
import logging
import math
import socket
import sys
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from enum import Enum, auto
from importlib.metadata import version
from typing import Any

from pydantic import TypeAdapter, ValidationError
from typing_extensions import override

from forebay.flows.hosts import Hosts
from forebay.flows.link import Heard, Link, Listener, listening, reach
from forebay.flows.settings import Settings
from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import BadInput
from forebay.storage.base.layout import Layout
from forebay.storage.base.text import plain, shortened
from forebay.storage.formats.host import read_host
from forebay.storage.formats.source import read_sources, read_topic

SAY_S, SAY_EVERY_S = 5.0, 30.0
RETRY_S = 0.5
NAMES_CHARS_MAX = 1 << 20
"""Of partitions, in a message; of more only their number is told."""
REASON_CHARS_MAX = 1000
OF_A_HOST = frozenset(
    ("data_dir", "files", "batch", "cache_bytes", "merge_memory", "retention_bytes",
     "rejects_bytes", "drops_bytes", "batch_late", "tick_interval"),
)  # fmt: skip
"""Settings that may differ between hosts. (Of files, what is found there is compared.)"""
KAFKA_OF_A_HOST = frozenset(("bootstrap", "group", "librdkafka"))
"""The same, of Kafka: how it is reached. (The topic's id is compared.)"""

log = logging.getLogger("forebay.hosts")


class Kind(Enum):
    """What is to be done now."""

    TOGETHER = auto()
    """All are there: the workers can start."""
    GO = auto()
    """All have built the dataflow: it can begin."""
    STOP = auto()
    DONE = auto()
    """All have ended well."""
    LOST = auto()
    """The run is over for all."""
    REFUSED = auto()
    """So is the job: a restart would meet the same."""


@dataclass(frozen=True)
class Said:
    """`code`: with which exit code all are done. `reason`: why the run is over. `job`: that of the
    data of all hosts."""

    kind: Kind
    code: int = 0
    reason: str = ""
    job: str = ""


@dataclass(frozen=True)
class Hello:
    """Who a host is, and all that must be the same on all hosts, as JSON."""

    versions: str
    hosts: str
    number: int
    workers: int
    settings: dict[str, Any]
    job: str | None
    begun: bool

    def misfit(self, other: Hello) -> str | None:
        """Why `other` does not fit to this, host 0; None if it does."""
        who = f"on host {other.number}"
        for name in ("hosts", "versions", "workers"):
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours != theirs:
                return f"{name}: expected {ours}, as host 0 has, got {theirs} {who}"
        for name in sorted({*self.settings, *other.settings}):
            ours, theirs = self.settings.get(name), other.settings.get(name)
            if ours != theirs:
                return f"{name}: expected {ours!r}, as host 0 has, got {theirs!r} {who}"
        if self.job != other.job and (self.begun or other.begun):
            ours, theirs = (
                f"that of job {one.job}" if one.begun else "new ones" for one in (self, other)
            )
            return (
                f"data_dir: expected data directories that were begun together, got {ours} on"
                f" host 0, {theirs} {who}; restore what was lost, or move all of them away to"
                " start anew"
            )
        return None


_HELLO: TypeAdapter[Hello] = TypeAdapter(Hello)


def shared(settings: Settings) -> dict[str, Any]:
    """Those that must be the same on all hosts, by name, as JSON."""
    found = settings.model_dump(mode="json", by_alias=True, exclude={*OF_A_HOST, "kafka"})
    if settings.source == "kafka":
        kafka = settings.kafka.model_dump(mode="json", exclude=set(KAFKA_OF_A_HOST))
        found |= {f"kafka.{name}": one for name, one in kafka.items()}
    return found


def hello(hosts: Hosts, settings: Mapping[str, Any], layout: Layout) -> Hello:
    """What this host says."""
    kept = read_host(Disk(), layout)
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return Hello(
        versions=f"bytewax {version('bytewax')}, Python {python}",
        hosts=str(hosts),
        number=hosts.number,
        workers=hosts.workers,
        settings=dict(settings),
        job=kept.job if kept else None,
        begun=bool(kept and kept.begun),
    )


@dataclass(frozen=True)
class Known:
    """What a host's workers know of the source, when they have built the dataflow."""

    topics: dict[str, str | None]
    count: int
    digest: str
    names: list[str] | None

    @classmethod
    def of(cls, layout: Layout) -> Known:
        disk = Disk()
        kept = {path.name: read_topic(disk, path) for path in layout.topics.glob("[!.]*")}
        names = sorted(read_sources(disk, layout))
        text = "\n".join(names)
        return cls(
            {name: topic.id for name, topic in kept.items() if topic},
            len(names),
            hashlib.sha256(text.encode()).hexdigest(),
            names if len(text) < NAMES_CHARS_MAX else None,
        )

    def misfit(self, other: Known, number: int) -> str | None:
        """Why what host `number` knows is not what host 0 does."""
        for topic in sorted({*self.topics} | {*other.topics}):
            ours, theirs = self.topics.get(topic), other.topics.get(topic)
            if ours != theirs:
                return (
                    f"kafka.bootstrap: expected the same topic {topic} on all hosts, got the id"
                    f" {ours} on host 0, {theirs} on host {number}"
                )
        if self.digest == other.digest:
            return None
        came = f"{self.count} on host 0, {other.count} on host {number}"
        if self.names is not None and other.names is not None:
            first = min({*self.names} ^ {*other.names})
            where = 0 if first in self.names else number
            came += f"; {first} is known on host {where} only"
        return f"source: expected the same partitions (files) on all hosts, got {came}"


_KNOWN: TypeAdapter[Known] = TypeAdapter(Known)


class Company(ABC):
    """The other hosts, as this one's supervisor sees them. Not thread-safe."""

    processes: tuple[int, ...]
    """The engine's numbers of this host's workers."""

    @abstractmethod
    def meet(self) -> Said | None:
        """Begin to gather; `hear` says when all are there. Raises OSError if others can't be met
        here."""

    @abstractmethod
    def addresses(self) -> list[str]:
        """Where all workers of this run meet, in the order of the engine's numbers. Raises OSError
        if that can't be."""

    @abstractmethod
    def due_s(self) -> float:
        """When `remind` is to be called, by the monotonic clock."""

    @abstractmethod
    def remind(self) -> None:
        """Say for whom is waited, and try again to reach them."""

    @abstractmethod
    def hear(self, heard: Heard) -> Said | None:
        """Take in what was heard on a link. Raises BadInput if this host does not fit."""

    @abstractmethod
    def built(self, layout: Layout) -> Said | None:
        """This host's workers have built the dataflow."""

    @abstractmethod
    def ended(self, code: int) -> Said | None:
        """This host's workers have ended well."""

    @abstractmethod
    def stop(self) -> None:
        """This host's workers are being stopped."""

    @abstractmethod
    def part(self, reason: str | None, *, permanent: bool = False) -> None:
        """The run is over here: for this reason, unless all are done. Gather no more."""

    @abstractmethod
    def close(self) -> None:
        """Let all ports go."""


class Alone(Company):
    """Of a job on one host: no one else has to be asked."""

    def __init__(self, workers: int) -> None:
        self.processes = tuple(range(workers))

    @override
    def meet(self) -> Said:
        return Said(Kind.TOGETHER)

    @override
    def addresses(self) -> list[str]:
        with ExitStack() as stack:
            sockets = [stack.enter_context(socket.socket()) for _ in self.processes]
            for one in sockets:
                one.bind(("127.0.0.1", 0))
            return [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]

    @override
    def built(self, layout: Layout) -> Said:
        return Said(Kind.GO)

    @override
    def ended(self, code: int) -> Said:
        return Said(Kind.DONE, code)

    @override
    def due_s(self) -> float:
        return math.inf

    @override
    def remind(self) -> None:
        pass

    @override
    def hear(self, heard: Heard) -> None:
        pass

    @override
    def stop(self) -> None:
        pass

    @override
    def part(self, reason: str | None, *, permanent: bool = False) -> None:
        pass

    @override
    def close(self) -> None:
        pass


def company_of(
    hosts: Hosts, settings: Mapping[str, Any], layout: Layout, hear: Callable[[Heard], None]
) -> Company:
    """Of the host of these `hosts`, whose `shared` settings and data directory these are; what is
    heard goes to `hear`, on any thread."""
    side = Guest if hosts.number else Convener
    return side(hosts, lambda: hello(hosts, settings, layout), hear)


class _Waiting:
    """Says for whom is waited: not at once, and not all the time, but each new reason."""

    def __init__(self) -> None:
        self._next_s = time.monotonic() + SAY_S
        self._last = ""

    def say(self, what: str) -> None:
        now_s = time.monotonic()
        if now_s >= self._next_s or (self._last and what != self._last):
            log.warning("waiting for %s", what)
            self._last, self._next_s = what, now_s + SAY_EVERY_S


class Convener(Company):
    """Of host 0, whom the others meet."""

    def __init__(
        self, hosts: Hosts, greeting: Callable[[], Hello], hear: Callable[[Heard], None]
    ) -> None:
        """`greeting` is asked for anew each time."""
        self.processes = hosts.processes
        self._hosts, self._greeting, self._hear = hosts, greeting, hear
        self._listener: Listener | None = None
        self._guests: dict[int, Link] = {}
        self._early: list[Heard] = []
        self._probes: list[Link] = []
        self._apart, self._together = True, False
        self._forget()

    def _forget(self) -> None:
        self._known: dict[int, Known] = {}
        self._codes: dict[int, int] = {}
        self._jobs: dict[int, str | None] = {}

    @override
    def meet(self) -> None:
        self._own = self._greeting()
        self._listener = self._listener or Listener(self._hosts.addresses[0], self._hear)
        self._apart = self._together = False
        self._forget()
        self._waiting, self._due_s = _Waiting(), time.monotonic() + SAY_S
        for heard in self._early:
            self._hear(heard)
        self._early = []

    @override
    def addresses(self) -> list[str]:
        return _addresses(self._hosts)

    @override
    def due_s(self) -> float:
        return math.inf if self._apart or self._together else self._due_s

    @override
    def remind(self) -> None:
        self._due_s = time.monotonic() + SAY_S
        missing = [n for n in range(1, len(self._hosts.addresses)) if n not in self._guests]
        what = ", ".join(map(self._hosts.named, missing))
        self._waiting.say(what)
        for link in self._guests.values():
            link.send("wait", reason=what)
        for number in missing:
            # Another host 0, where the order of the hosts is not the same.
            reach(self._hosts.addresses[number], self._hear)

    @override
    def hear(self, heard: Heard) -> Said | None:
        link, message = heard.link, heard.message
        if link is None:
            return None
        if heard.reached:
            self._probe(link)
            return None
        number = next((n for n, one in self._guests.items() if one is link), None)
        if link in self._probes:
            self._hear_of_probe(link, message)
            return None
        if number is None:
            return self._arrive(heard) if message else None
        if message is None:
            return self._lost(number, heard.reason)
        return self._hear_of_guest(number, link, message)

    def _probe(self, link: Link) -> None:
        """Ask who has the place of a host that has not come."""
        if self._apart or self._together:
            link.close()
        else:
            self._probes.append(link)
            link.send("hello", hello=asdict(self._own))

    def _hear_of_probe(self, link: Link, message: Mapping[str, Any] | None) -> None:
        if message is None:
            self._probes.remove(link)
        elif message["word"] == "refused":
            raise BadInput(_reason(message))

    def _arrive(self, heard: Heard) -> Said | None:
        """Someone who is no guest yet says something."""
        link, message = heard.link, heard.message
        assert link is not None
        assert message is not None
        if self._apart:
            self._early = [one for one in self._early if one.link and not one.link.ended]
            self._early.append(heard)
            return None
        try:
            other = _HELLO.validate_python(message.get("hello"))
        except ValidationError:
            self._refuse(link, "expected a host of this job, got something else")
            return None
        reason = self._own.misfit(other)
        if not 0 < other.number < len(self._hosts.addresses):
            reason = reason or f"host: expected another number than that of {self._hosts.named(0)}"
        if reason:
            self._refuse(link, reason)
            return None
        if there := self._guests.get(other.number):
            link.send("wait", reason=f"host {other.number} to leave, which is at {there.peer}")
            link.take_leave()
            return None
        self._guests[other.number] = link
        self._jobs[other.number] = other.job
        if len(self._guests) + 1 < len(self._hosts.addresses):
            return None
        # None has begun where they differ.
        same = all(self._jobs[number] == self._own.job for number in self._guests)
        job = (same and self._own.job) or uuid.uuid4().hex
        self._together = True
        self._tell("start", job=job)
        return Said(Kind.TOGETHER, job=job)

    def _refuse(self, link: Link, reason: str) -> None:
        log.error("refused %s: %s", link.peer, plain(reason))
        link.send("refused", reason=reason)
        link.take_leave()

    def _hear_of_guest(self, number: int, link: Link, message: Mapping[str, Any]) -> Said | None:
        word = message["word"]
        if word == "parted":
            del self._guests[number]
            link.close()
            if self._together:
                kind = Kind.REFUSED if message.get("permanent") is True else Kind.LOST
                return Said(kind, reason=f"{self._hosts.named(number)}: {_reason(message)}")
        elif word == "built" and self._together:
            try:
                return self._have_built(number, _KNOWN.validate_python(message.get("known")))
            except ValidationError:
                return Said(Kind.LOST, reason=f"{self._hosts.named(number)}: no list of partitions")
        elif word == "stop" and self._together:
            self._tell("stop", but=number)
            return Said(Kind.STOP)
        elif word == "ended" and self._together and isinstance(message.get("code"), int):
            return self._have_ended(number, message["code"])
        return None

    @override
    def built(self, layout: Layout) -> Said | None:
        return self._have_built(0, Known.of(layout))

    def _have_built(self, number: int, known: Known) -> Said | None:
        self._known[number] = known
        if len(self._known) < len(self._hosts.addresses):
            return None
        for other in range(1, len(self._hosts.addresses)):
            if reason := self._known[0].misfit(self._known[other], other):
                return Said(Kind.LOST, reason=reason)
        self._tell("go")
        return Said(Kind.GO)

    @override
    def stop(self) -> None:
        self._tell("stop")

    @override
    def ended(self, code: int) -> Said | None:
        return self._have_ended(0, code)

    def _have_ended(self, number: int, code: int) -> Said | None:
        self._codes[number] = code
        if len(self._codes) < len(self._hosts.addresses):
            return None
        code = max(self._codes.values())
        self._tell("done", code=code)
        return Said(Kind.DONE, code)

    def _lost(self, number: int, reason: str) -> Said | None:
        del self._guests[number]
        if not self._together:
            log.warning("%s has gone: %s", self._hosts.named(number), reason)
            return None
        return Said(Kind.LOST, reason=f"{self._hosts.named(number)} has gone: {reason}")

    def _tell(self, word: str, *, but: int | None = None, **more: object) -> None:
        for number, link in self._guests.items():
            if number != but:
                link.send(word, **more)

    @override
    def part(self, reason: str | None, *, permanent: bool = False) -> None:
        if self._apart:
            return
        guests, self._guests = self._guests, {}
        self._apart = True
        for link in guests.values():
            if reason:
                link.send("parted", reason=reason, permanent=permanent)
        for link in guests.values():
            link.finish()
        for link in self._probes:
            link.close()

    @override
    def close(self) -> None:
        self.part("its supervisor has ended")
        if self._listener:
            self._listener.close()
            self._listener = None


class Guest(Company):
    """Of any other host."""

    def __init__(
        self, hosts: Hosts, greeting: Callable[[], Hello], hear: Callable[[Heard], None]
    ) -> None:
        self.processes = hosts.processes
        self._hosts, self._greeting, self._hear = hosts, greeting, hear
        self._link: Link | None = None
        self._apart, self._together = True, False

    @override
    def meet(self) -> None:
        self._apart = self._together = False
        self._waiting = _Waiting()
        self._reach()

    def _reach(self) -> None:
        self._due_s = math.inf
        reach(self._hosts.addresses[0], self._hear)

    @override
    def addresses(self) -> list[str]:
        return _addresses(self._hosts)

    @override
    def due_s(self) -> float:
        return math.inf if self._apart or self._together else self._due_s

    @override
    def remind(self) -> None:
        self._reach()

    @override
    def hear(self, heard: Heard) -> Said | None:
        link, message = heard.link, heard.message
        if link is not None and heard.reached:
            if self._apart or self._link:
                link.close()
            else:
                self._link = link
                link.send("hello", hello=asdict(self._greeting()))
            return None
        if link is not self._link or self._apart:
            return None
        if message is None:
            return self._lost(heard.reason)
        return self._hear_of_host_0(message)

    def _hear_of_host_0(self, message: Mapping[str, Any]) -> Said | None:
        match message["word"]:
            case "refused":
                raise BadInput(_reason(message))
            case "wait":
                self._waiting.say(_reason(message))
            case "start" if isinstance(message.get("job"), str):
                self._together = True
                return Said(Kind.TOGETHER, job=message["job"])
            case "go":
                return Said(Kind.GO)
            case "stop":
                return Said(Kind.STOP)
            case "done" if isinstance(message.get("code"), int):
                return Said(Kind.DONE, message["code"])
            case "parted":
                kind = Kind.REFUSED if message.get("permanent") is True else Kind.LOST
                return self._lost(_reason(message), kind)
        return None

    def _lost(self, reason: str, kind: Kind = Kind.LOST) -> Said | None:
        who = self._hosts.named(0)
        if self._link:
            self._link.close()
        self._link = None
        if not self._together:
            self._waiting.say(f"{who}: {plain(reason)}")
            self._due_s = time.monotonic() + RETRY_S
            return None
        return Said(kind, reason=f"{who}: {plain(reason)}")

    def _say(self, word: str, **more: object) -> None:
        if self._link:
            self._link.send(word, **more)

    @override
    def built(self, layout: Layout) -> Said | None:
        self._say("built", known=asdict(Known.of(layout)))
        return None

    @override
    def stop(self) -> None:
        self._say("stop")

    @override
    def ended(self, code: int) -> Said | None:
        self._say("ended", code=code)
        return None

    @override
    def part(self, reason: str | None, *, permanent: bool = False) -> None:
        self._apart = True
        link, self._link = self._link, None
        if link:
            if reason:
                link.send("parted", reason=reason, permanent=permanent)
            link.finish()

    @override
    def close(self) -> None:
        self.part("its supervisor has ended")


def _addresses(hosts: Hosts) -> list[str]:
    """Where all workers meet. Raises OSError if a port of this host's is taken."""
    for process in hosts.processes:
        listening(hosts.workers_addresses[process]).close()
    return [str(address) for address in hosts.workers_addresses]


def _reason(message: Mapping[str, Any]) -> str:
    return plain(shortened(str(message.get("reason")), REASON_CHARS_MAX))
