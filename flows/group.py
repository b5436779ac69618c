"""The supervisors of a job's hosts, who run it together: one run of all, or none.

1. Host 0 listens (`coordinator`), the others connect to it (`member`); each says who it is and what
   its settings are (`handshake`). One that does not fit is refused with a reason; one that does
   waits for all others.
2. When all are there, all start their workers; when all workers have built the dataflow, and all
   know the same partitions, all let them begin.
3. A stop of one host is a stop of all. When all have ended, all are done. If one fails, or is no
   longer heard from, the run is over for all, and they gather again.

A host that waits reports for whom, after SAY_S and then every SAY_EVERY_S, and goes on waiting.
Everything here except the links is used from the supervisor's main thread; what is heard on a link
reaches it by `hear`, in order with its other events.
"""

from __future__ import annotations

import logging
import math
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from typing_extensions import override

from forebay.flows.hosts import Hosts
from forebay.flows.link import Heard, listening
from forebay.storage.base.layout import Layout
from forebay.storage.base.text import plain, shortened

SAY_S, SAY_EVERY_S = 5.0, 30.0
REASON_CHARS_MAX = 1000

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
    """`code`: the exit code with which all are done. `reason`: why the run is over. `job`: the id
    of the job that the data of all hosts belongs to."""

    kind: Kind
    code: int = 0
    reason: str = ""
    job: str = ""


class Group(ABC):
    """The other hosts, as this one's supervisor sees them. Not thread-safe."""

    processes: tuple[int, ...]
    """The engine's numbers of this host's workers."""

    @abstractmethod
    def meet(self) -> Said | None:
        """Begin to gather; `hear` says when all are there. Raises OSError if others can't connect
        here."""

    @abstractmethod
    def addresses(self) -> list[str]:
        """The addresses at which all workers of this run meet, in the order of the engine's
        numbers. Raises OSError if they can't."""

    @abstractmethod
    def due_s(self) -> float:
        """When `remind` is to be called, by the monotonic clock."""

    @abstractmethod
    def remind(self) -> None:
        """Report for whom this host waits, and try again to reach them."""

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
        """The run is over here: for this reason, unless all are done. Stop gathering."""

    @abstractmethod
    def close(self) -> None:
        """Release all ports."""


class Alone(Group):
    """The group of a job on one host: no one else has to be asked."""

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


class Waiting:
    """Reports for whom this host waits: not at once, and not all the time, but each new reason."""

    def __init__(self) -> None:
        self._next_s = time.monotonic() + SAY_S
        self._last = ""

    def say(self, what: str) -> None:
        now_s = time.monotonic()
        if now_s >= self._next_s or (self._last and what != self._last):
            log.warning("waiting for %s", what)
            self._last, self._next_s = what, now_s + SAY_EVERY_S


def meeting_places(hosts: Hosts) -> list[str]:
    """Where all workers meet. Raises OSError if a port of this host's is taken."""
    for process in hosts.processes:
        listening(hosts.workers_addresses[process]).close()
    return [str(address) for address in hosts.workers_addresses]


def reason_of(message: Mapping[str, Any]) -> str:
    """The reason that another host gives, in a line."""
    return plain(shortened(str(message.get("reason")), REASON_CHARS_MAX))
