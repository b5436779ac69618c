"""The group as seen by host 0, to which the others connect: who is there, what each has said, and
when all have."""

from __future__ import annotations

import logging
import math
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from pydantic import TypeAdapter, ValidationError
from typing_extensions import override

from forebay.flows.group import SAY_S, Group, Kind, Said, Waiting, meeting_places, reason_of
from forebay.flows.handshake import Handshake, Known
from forebay.flows.hosts import Hosts
from forebay.flows.link import Heard, Link, Listener, reach
from forebay.storage.base.errors import BadInput
from forebay.storage.base.layout import Layout
from forebay.storage.base.text import plain

HANDSHAKE, KNOWN = TypeAdapter(Handshake), TypeAdapter(Known)

log = logging.getLogger("forebay.hosts")


class Coordinator(Group):
    """The group on host 0, to which the others connect."""

    def __init__(
        self, hosts: Hosts, greeting: Callable[[], Handshake], hear: Callable[[Heard], None]
    ) -> None:
        """`greeting` is called again each time."""
        self.processes = hosts.processes
        self._hosts, self._greeting, self._hear = hosts, greeting, hear
        self._listener: Listener | None = None
        self._members: dict[int, Link] = {}
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
        self._waiting, self._due_s = Waiting(), time.monotonic() + SAY_S
        for heard in self._early:
            self._hear(heard)
        self._early = []

    @override
    def addresses(self) -> list[str]:
        return meeting_places(self._hosts)

    @override
    def due_s(self) -> float:
        return math.inf if self._apart or self._together else self._due_s

    @override
    def remind(self) -> None:
        self._due_s = time.monotonic() + SAY_S
        missing = [n for n in range(1, len(self._hosts.addresses)) if n not in self._members]
        what = ", ".join(map(self._hosts.named, missing))
        self._waiting.say(what)
        for link in self._members.values():
            link.send("wait", reason=what)
        for number in missing:
            # Another host 0: the order of the hosts is not the same there.
            reach(self._hosts.addresses[number], self._hear)

    @override
    def hear(self, heard: Heard) -> Said | None:
        link, message = heard.link, heard.message
        if link is None:
            return None
        if heard.reached:
            self._probe(link)
            return None
        number = next((n for n, one in self._members.items() if one is link), None)
        if link in self._probes:
            self._hear_of_probe(link, message)
            return None
        if number is None:
            return self._arrive(heard) if message else None
        if message is None:
            return self._lost(number, heard.reason)
        return self._hear_of_member(number, link, message)

    def _probe(self, link: Link) -> None:
        """Ask who is in the place of a host that has not connected."""
        if self._apart or self._together or link.ended:
            link.close()
        else:
            self._probes.append(link)
            link.send("handshake", handshake=asdict(self._own))

    def _hear_of_probe(self, link: Link, message: Mapping[str, Any] | None) -> None:
        if message is None:
            self._probes.remove(link)
        elif message["word"] == "refused":
            raise BadInput(reason_of(message))

    def _arrive(self, heard: Heard) -> Said | None:
        """Handle what someone says who is not yet a member."""
        link, message = heard.link, heard.message
        assert link is not None
        assert message is not None
        if self._apart:
            early = (one for one in self._early if one.link and not one.link.ended)
            self._early = [*(one for one in early if one.link is not link), heard]
            return None
        try:
            other = HANDSHAKE.validate_python(message.get("handshake"))
        except ValidationError:
            self._refuse(link, "expected a host of this job, got something else")
            return None
        reason = self._own.misfit(other)
        if not 0 < other.number < len(self._hosts.addresses):
            reason = reason or f"host: expected another number than that of {self._hosts.named(0)}"
        if reason:
            self._refuse(link, reason)
            return None
        if there := self._members.get(other.number):
            link.send("wait", reason=f"host {other.number} to leave, which is at {there.peer}")
            link.take_leave()
            return None
        self._members[other.number] = link
        self._jobs[other.number] = other.job
        if len(self._members) + 1 < len(self._hosts.addresses):
            return None
        # None has begun where they differ.
        same = all(self._jobs[number] == self._own.job for number in self._members)
        job = (same and self._own.job) or uuid.uuid4().hex
        self._together = True
        self._tell("start", job=job)
        return Said(Kind.TOGETHER, job=job)

    def _refuse(self, link: Link, reason: str) -> None:
        log.error("refused %s: %s", link.peer, plain(reason))
        link.send("refused", reason=reason)
        link.take_leave()

    def _hear_of_member(self, number: int, link: Link, message: Mapping[str, Any]) -> Said | None:
        word = message["word"]
        if word == "parted":
            del self._members[number]
            link.close()
            if self._together:
                kind = Kind.REFUSED if message.get("permanent") is True else Kind.LOST
                return Said(kind, reason=f"{self._hosts.named(number)}: {reason_of(message)}")
        elif word == "built" and self._together:
            try:
                return self._have_built(number, KNOWN.validate_python(message.get("known")))
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
        del self._members[number]
        if not self._together:
            log.warning("%s has gone: %s", self._hosts.named(number), reason)
            return None
        return Said(Kind.LOST, reason=f"{self._hosts.named(number)} has gone: {reason}")

    def _tell(self, word: str, *, but: int | None = None, **more: object) -> None:
        for number, link in self._members.items():
            if number != but:
                link.send(word, **more)

    @override
    def part(self, reason: str | None, *, permanent: bool = False) -> None:
        if self._apart:
            return
        members, self._members = self._members, {}
        self._apart = True
        for link in members.values():
            if reason:
                link.send("parted", reason=reason, permanent=permanent)
        for link in members.values():
            link.finish()
        for link in self._probes:
            link.close()

    @override
    def close(self) -> None:
        self.part("its supervisor has ended")
        if self._listener:
            self._listener.close()
            self._listener = None
