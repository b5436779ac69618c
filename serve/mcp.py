"""MCP over HTTP: one path, at which a request is a POST and its answer is JSON.

What always holds: the protocol is loaded for the first request, and off the loop, so that a server
without such requests does not pay for it; when a client leaves, the work for it ends.
"""

from __future__ import annotations

import asyncio
import time
from importlib.util import find_spec
from typing import TYPE_CHECKING

from starlette.types import Message, Receive, Scope, Send

from forebay.serve.asking import Client, Gone, body_of
from forebay.serve.config import Config
from forebay.serve.gate import answer_problem
from forebay.serve.metrics import Metrics
from forebay.serve.problems import Problem
from forebay.serve.sharing import Answers

if TYPE_CHECKING:
    from mcp.server.streamable_http_manager import StreamableHTTPSessionManager


class Mcp:
    """An ASGI application for language models."""

    def __init__(self, answers: Answers, config: Config, metrics: Metrics) -> None:
        self._answers = answers
        self._config = config
        self._metrics = metrics
        self._manager: asyncio.Future[StreamableHTTPSessionManager] | None = None
        self._running: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began, status = time.monotonic(), 499

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            body = await body_of(receive, self._config.body_bytes)
            client = Client(receive)
            try:
                manager = await client.unless_gone(self._started())
                given = _Given(body)
                await client.unless_gone(manager.handle_request(scope, given, sent))
            finally:
                client.close()
        except Problem as problem:
            await answer_problem(problem, sent, scope["path"])
        except Gone:
            status = 499
        finally:
            self._metrics.requests.labels("mcp", str(status)).inc()
            self._metrics.seconds.labels("mcp").observe(time.monotonic() - began)

    async def _started(self) -> StreamableHTTPSessionManager:
        if self._manager is None:
            if find_spec("mcp") is None:
                raise Problem(
                    501, "mcp: expected the extra mcp, got none: pip install 'forebay[mcp]'"
                )
            self._manager = asyncio.get_running_loop().create_future()
            self._running = asyncio.create_task(self._run(self._manager))
        return await asyncio.shield(self._manager)

    async def _run(self, found: asyncio.Future[StreamableHTTPSessionManager]) -> None:
        """Hold the manager open until the server ends."""
        try:
            manager = await asyncio.to_thread(_made, self._answers, self._config.body_bytes)
            async with manager.run():
                found.set_result(manager)
                await asyncio.get_running_loop().create_future()
        except Exception as error:
            if found.done():
                raise
            self._manager = None
            found.set_exception(error)

    async def close(self) -> None:
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)


def _made(answers: Answers, body_bytes: int) -> StreamableHTTPSessionManager:
    from forebay.serve.protocol import manager_of  # takes a while to load

    return manager_of(answers, body_bytes)


class _Given:
    """A body that was already read, and nothing after it."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body

    async def __call__(self) -> Message:
        if self._body is None:
            await asyncio.get_running_loop().create_future()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}
