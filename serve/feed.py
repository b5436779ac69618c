"""Events as they arrive, for all clients that follow them, as server-sent events.

One process reads them for all; it is started for the first client, and ends after the last. What
always holds: a client that reads too slowly holds up nobody: events that it has no room for are
skipped, and counted for it; each other event is sent to it once. A client that returns soon, with
the id of the last message it has, continues after that; one that can't is sent a `gap`.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from itertools import count, islice

import orjson
from starlette.datastructures import Headers, QueryParams
from starlette.types import Receive, Scope, Send

from forebay.serve.asking import Client, Gone
from forebay.serve.config import Config
from forebay.serve.gate import answer_problem
from forebay.serve.metrics import Metrics
from forebay.serve.problems import Problem
from forebay.serve.process import Ended, Process
from forebay.serve.wire import LEAVE, PROBLEM, SUBSCRIBE, frame

MODULE = "forebay.serve.tailing"
HELD_BYTES = 4 << 20
"""Events held for a client that has yet to take them."""
SENT_BYTES = 1 << 20
"""Messages kept that were sent to a client, and may not have arrived."""
AWAY_S = 30.0
"""How long a client may be away."""
QUIET_S = 15.0
"""After this long without an event, a comment is sent, to keep the connection open."""
LAST_MAX = 1000
NAMES = ("event", "where", "last")
HEADERS = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]


class _Client:
    """What one client has yet to take, and what it was sent last. Messages are numbered, and a
    message's id is its number with the client's `name`. `problem` is why there will be no more;
    `connection` is its present connection, None while it is away."""

    def __init__(self, asked: bytes = b"") -> None:
        self.asked = asked
        self.name = secrets.token_hex(8)
        self.held: deque[bytes] = deque()
        self.bytes = 0
        self.missed = 0
        self.problem: Problem | None = None
        self.new = asyncio.Event()
        self.connection: object | None = None
        self.away: asyncio.TimerHandle | None = None
        self._sent: deque[bytes] = deque()
        self._sent_bytes = 0
        self._number = 0

    def put(self, rows: int, missed: int, lines: bytes) -> None:
        if self.held and self.bytes + len(lines) > HELD_BYTES:
            missed, lines = missed + rows, b""
        self.missed += missed
        if lines:
            self.held.append(lines)
            self.bytes += len(lines)
        self.new.set()

    def end(self, problem: Problem) -> None:
        self.problem = problem
        self.new.set()

    def taken(self) -> bytes:
        """All that there is now, as server-sent events."""
        parts = []
        while self.held:
            lines = self.held.popleft()
            self.bytes -= len(lines)
            parts += [self._message(b"data: " + line) for line in lines.splitlines()]
        if self.missed:
            parts.append(self._message(b'event: missed\ndata: {"missed":%d}' % self.missed))
            self.missed = 0
        self.new.clear()
        return b"".join(parts)

    def _message(self, said: bytes) -> bytes:
        self._number += 1
        made = b"%b\nid: %b-%d\n\n" % (said, self.name.encode(), self._number)
        self._sent.append(made)
        self._sent_bytes += len(made)
        while self._sent_bytes > SENT_BYTES:
            self._sent_bytes -= len(self._sent.popleft())
        return made

    def since(self, number: int) -> bytes | None:
        """The messages after the one with this number; None if some of them are no longer kept."""
        behind = self._number - number
        if not 0 <= behind <= len(self._sent):
            return None
        return b"".join(islice(self._sent, len(self._sent) - behind, None))


class Feed:
    """An ASGI application for clients that follow events."""

    def __init__(self, config: Config, metrics: Metrics) -> None:
        self._config = config
        self._metrics = metrics
        self._clients: dict[bytes, _Client] = {}
        self._numbers = count()
        self._process: Process | None = None
        self._starting = asyncio.Lock()
        self._reading: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client, status = Client(receive), 200
        try:
            if self._config.nodes:
                raise Problem(
                    501, "events: expected data directories, got other nodes: follow each of them"
                )
            asked, had = _asked(scope), Headers(scope=scope).get("last-event-id", "")
            number, missing = self._back(had, asked)
            mine = self._clients[number]
            connection = mine.connection = object()
            self._count()
            try:
                if missing is None:
                    missing = (
                        b"event: gap\ndata: %b\n\n" % orjson.dumps({"after": had}) if had else b""
                    )
                    await client.unless_gone(self._subscribe(number, asked))
                    await client.unless_gone(mine.new.wait())  # for a problem, or for events
                    if mine.problem is not None:
                        raise mine.problem
                await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
                await self._follow(mine, missing, client, send)
            finally:
                self._leave(number, connection)
        except Problem as problem:
            status = problem.status
            await answer_problem(problem, send, scope["path"])
        except Gone:
            return
        finally:
            client.close()
            self._metrics.requests.labels("events", str(status)).inc()

    def _back(self, had: str, asked: bytes) -> tuple[bytes, bytes | None]:
        """The number of the client that was sent the message with the id `had`, and what came after
        that message. If it is not known, or asks for something else, a new client's number, and
        None. Raises Problem if there are too many clients."""
        name, _, sent = had.partition("-")
        for number, one in self._clients.items():
            if one.name == name and one.asked == asked and one.problem is None and sent.isdecimal():
                missing = one.since(int(sent[:20]))
                if missing is not None:
                    if one.away is not None:
                        one.away.cancel()
                    one.new.set()  # ends its earlier connection
                    return number, missing
        if len(self._clients) >= self._config.streams:
            away = next((n for n, one in self._clients.items() if one.connection is None), None)
            if away is None:
                raise Problem(
                    429,
                    f"expected {self._config.streams} clients at most to follow events, got more",
                    {"Retry-After": "5"},
                )
            self._forget(away)
        number = (next(self._numbers) % 2**32).to_bytes(4, "big")
        self._clients[number] = _Client(asked)
        return number, None

    async def _follow(self, mine: _Client, missing: bytes, client: Client, send: Send) -> None:
        """Send events until the client leaves or has another connection, or there will be no more:
        the stream then ends abruptly, and a browser asks again."""
        connection = mine.connection
        part = b"retry: 1000\n\n" + missing + mine.taken()
        while True:
            await client.unless_gone(
                send({"type": "http.response.body", "body": part, "more_body": True})
            )
            if mine.problem is not None:
                return
            try:
                async with asyncio.timeout(QUIET_S):
                    await client.unless_gone(mine.new.wait())
            except TimeoutError:
                part = b":\n\n"
                continue
            if mine.connection is not connection:
                return
            part = mine.taken()

    async def _subscribe(self, number: bytes, asked: bytes) -> None:
        async with self._starting:
            if self._process is None or self._process.ended:
                try:
                    self._process = await Process.start(MODULE, self._config)
                except Ended as error:
                    raise Problem(502, "expected events, got the end of their process") from error
                self._reading = asyncio.create_task(self._read(self._process))
        self._process.write(frame(SUBSCRIBE, number + asked))

    def _leave(self, number: bytes, connection: object) -> None:
        """Keep new events for a while: the client may return."""
        mine = self._clients.get(number)
        if mine is None or mine.connection is not connection:
            return
        mine.connection = None
        self._count()
        if mine.problem is not None:
            self._forget(number)
        else:
            loop = asyncio.get_running_loop()
            mine.away = loop.call_later(AWAY_S, self._forget, number)

    def _forget(self, number: bytes) -> None:
        mine = self._clients.pop(number)
        if mine.away is not None:
            mine.away.cancel()
        if self._process is not None:
            if self._clients:
                self._process.write(frame(LEAVE, number))
            else:
                self._process.kill("idle")

    def _count(self) -> None:
        here = sum(one.connection is not None for one in self._clients.values())
        self._metrics.streams.set(here)

    async def _read(self, process: Process) -> None:
        """Give each client its events."""
        try:
            while True:
                kind, payload = await process.read()
                client = self._clients.get(payload[:4])
                if client is None:
                    continue
                if kind == PROBLEM:
                    client.end(Problem.decode(payload[4:]))
                else:
                    rows, missed = (int.from_bytes(payload[at : at + 4], "big") for at in (4, 8))
                    client.put(rows, missed, payload[12:])
        except Ended:
            if process is self._process:
                for client in self._clients.values():
                    client.end(Problem(502, "expected events, got the end of their process"))
                self._process = None

    async def close(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
        if self._process is not None:
            await self._process.end("stop")


def _asked(scope: Scope) -> bytes:
    given = QueryParams(scope["query_string"])
    for name in given:
        if name not in NAMES:
            raise Problem(422, f"{name}: expected one of {', '.join(NAMES)}; got an unknown name")
    last = given.getlist("last") or ["0"]
    if len(last) > 1 or not last[0].isascii() or not last[0].isdigit() or int(last[0]) > LAST_MAX:
        raise Problem(422, f"last: expected a number from 0 to {LAST_MAX}, got {', '.join(last)!r}")
    try:
        return orjson.dumps(
            {
                "event": given.getlist("event"),
                "where": given.getlist("where"),
                "last": int(last[0]),
            }
        )
    except (orjson.JSONEncodeError, UnicodeError) as error:
        raise Problem(400, f"expected UTF-8 in the address, got {error}") from error
