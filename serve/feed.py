"""Events as they come, for all clients that follow them, as server-sent events.

One process reads them for all; it is started for the first client, and ends after the last. What
always holds: a client that reads too slowly holds up nobody: what it has no room for is left out,
and counted for it; each other event is sent to it once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from itertools import count

import orjson
from starlette.datastructures import QueryParams
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
"""Of events that a client has yet to take."""
QUIET_S = 15.0
"""After so long without an event a comment is sent, so that what lies between keeps the line."""
LAST_MAX = 1000
NAMES = ("event", "where", "last")
HEADERS = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]


class _Client:
    """What one client has yet to take. `problem` is why there will be no more."""

    def __init__(self) -> None:
        self.held: deque[bytes] = deque()
        self.bytes = 0
        self.missed = 0
        self.problem: Problem | None = None
        self.new = asyncio.Event()

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
        """What there is now, as server-sent events."""
        parts = []
        while self.held:
            lines = self.held.popleft()
            self.bytes -= len(lines)
            parts += [b"data: " + line + b"\n\n" for line in lines.splitlines()]
        if self.missed:
            parts.append(b'event: missed\ndata: {"missed":%d}\n\n' % self.missed)
            self.missed = 0
        self.new.clear()
        return b"".join(parts)


class Feed:
    """An ASGI application for those who follow events."""

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
            asked = _asked(scope)
            if len(self._clients) >= self._config.streams:
                raise Problem(
                    429,
                    f"expected {self._config.streams} clients at most that follow events, got more",
                    {"Retry-After": "5"},
                )
            number = (next(self._numbers) % 2**32).to_bytes(4, "big")
            mine = self._clients[number] = _Client()
            self._metrics.streams.set(len(self._clients))
            try:
                await client.unless_gone(self._subscribe(number, asked))
                await client.unless_gone(mine.new.wait())  # a problem, or what there is
                if mine.problem is not None:
                    raise mine.problem
                await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
                await self._follow(mine, client, send)
            finally:
                self._leave(number)
        except Problem as problem:
            status = problem.status
            await answer_problem(problem, send, scope["path"])
        except Gone:
            return
        finally:
            client.close()
            self._metrics.requests.labels("events", str(status)).inc()

    async def _follow(self, mine: _Client, client: Client, send: Send) -> None:
        """Send what comes until the client leaves, or there will be no more: the stream then ends
        without its end, and a browser asks again."""
        part = b"retry: 1000\n\n" + mine.taken()
        while True:
            await client.unless_gone(
                send({"type": "http.response.body", "body": part, "more_body": True})
            )
            if mine.problem is not None:
                return
            try:
                async with asyncio.timeout(QUIET_S):
                    await client.unless_gone(mine.new.wait())
                part = mine.taken()
            except TimeoutError:
                part = b":\n\n"

    async def _subscribe(self, number: bytes, asked: bytes) -> None:
        async with self._starting:
            if self._process is None or self._process.ended:
                try:
                    self._process = await Process.start(MODULE, self._config)
                except Ended as error:
                    raise Problem(502, "expected events, got the end of their process") from error
                self._reading = asyncio.create_task(self._read(self._process))
        self._process.write(frame(SUBSCRIBE, number + asked))

    def _leave(self, number: bytes) -> None:
        del self._clients[number]
        self._metrics.streams.set(len(self._clients))
        if self._process is not None:
            if self._clients:
                self._process.write(frame(LEAVE, number))
            else:
                self._process.kill("idle")

    async def _read(self, process: Process) -> None:
        """Give each client what is its own."""
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
