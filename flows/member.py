"""The group as seen by any host other than 0: a link to host 0, reopened when it ends."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from typing_extensions import override

from forebay.flows.group import Group, Kind, Said, Waiting, meeting_places, reason_of
from forebay.flows.handshake import Handshake, Known
from forebay.flows.hosts import Hosts
from forebay.flows.link import Heard, Link, reach
from forebay.storage.base.errors import BadInput
from forebay.storage.base.layout import Layout
from forebay.storage.base.text import plain

RETRY_S = 0.5


class Member(Group):
    """The group on any other host."""

    def __init__(
        self, hosts: Hosts, greeting: Callable[[], Handshake], hear: Callable[[Heard], None]
    ) -> None:
        self.processes = hosts.processes
        self._hosts, self._greeting, self._hear = hosts, greeting, hear
        self._link: Link | None = None
        self._apart, self._together = True, False

    @override
    def meet(self) -> None:
        self._apart = self._together = False
        self._waiting = Waiting()
        self._reach()

    def _reach(self) -> None:
        self._due_s = math.inf
        reach(self._hosts.addresses[0], self._hear)

    @override
    def addresses(self) -> list[str]:
        return meeting_places(self._hosts)

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
                link.send("handshake", handshake=asdict(self._greeting()))
                if link.ended:  # that was heard before the link was
                    return self._lost("the connection was closed")
            return None
        if link is not self._link or self._apart:
            return None
        if message is None:
            return self._lost(heard.reason)
        return self._hear_of_host_0(message)

    def _hear_of_host_0(self, message: Mapping[str, Any]) -> Said | None:
        match message["word"]:
            case "refused":
                raise BadInput(reason_of(message))
            case "wait":
                self._waiting.say(reason_of(message))
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
                return self._lost(reason_of(message), kind)
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
