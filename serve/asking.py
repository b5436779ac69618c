"""One HTTP request that asks a question: read, asked, answered.

What always holds: no more of a body is read than a question may have; once the client has left,
nobody works for it; an answer that can't be completed is cut off, so that its client notices.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable
from contextlib import aclosing
from typing import TypeVar
from urllib.parse import quote

import orjson
from starlette.datastructures import Headers, QueryParams
from starlette.types import Receive, Scope, Send
from typing_extensions import override

from forebay.serve.amplitude.endpoints import ARCHIVES
from forebay.serve.config import Config
from forebay.serve.gate import answer_problem
from forebay.serve.metrics import Metrics
from forebay.serve.problems import Problem
from forebay.serve.question import Question
from forebay.serve.routes import (
    ARCHIVE,
    CONTENT_TYPES,
    MISSING,
    SCAN_BYTES_MAX,
    format_of,
)
from forebay.serve.sharing import Answers, Cut, Reply

BODY_S = 30.0
log = logging.getLogger("forebay.serve")
T = TypeVar("T")


class Gone(Exception):
    """The client has left."""


class Asking:
    """An ASGI application that answers one kind of question, `name`."""

    def __init__(self, name: str, answers: Answers, config: Config, metrics: Metrics) -> None:
        self._name = name
        self._answers = answers
        self._config = config
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began, status = time.monotonic(), 499
        try:
            question = await self._question(scope, receive)
            client = Client(receive)
            try:
                anew = _anew(Headers(scope=scope))
                reply = await client.unless_gone(self._answers.ask(question, anew=anew))
                if reply.stream is not None and scope["http_version"] == "1.0":
                    await _closed(reply)
                    raise Problem(505, "expected HTTP/1.1 for an answer of this size, got 1.0")
                status = 304 if reply.same else 200
                await self._send(reply, question.format, scope["method"] == "HEAD", client, send)
            finally:
                client.close()
        except Problem as problem:
            status = problem.status
            await answer_problem(problem, send, scope["path"])
        except Gone:
            log.debug("%s: the client has gone", self._name)
        except Cut as cut:
            # Without an end, the server closes the connection: the client sees that it is cut off.
            self._metrics.cut.inc()
            log.warning("%s: cut off: %s", self._name, cut)
        finally:
            self._metrics.requests.labels(self._name, str(status)).inc()
            self._metrics.seconds.labels(self._name).observe(time.monotonic() - began)

    async def _question(self, scope: Scope, receive: Receive) -> Question:
        headers = Headers(scope=scope)
        query, path = _address(scope)
        kind = format_of(query.pop("format", []), ", ".join(headers.getlist("accept")))
        known, body = _known(headers), None
        if scope["method"] == "POST":
            body = await self._body(headers, receive)
            if query:
                raise Problem(
                    400, f"expected parameters in the body, got {', '.join(query)!r} in the address"
                )
        return Question(self._name, kind, query, body, path, known)

    async def _body(self, headers: Headers, receive: Receive) -> str:
        kind = headers.get("content-type", "").partition(";")[0].strip().casefold()
        if kind and kind != "application/json":
            raise Problem(415, f"Content-Type: expected application/json, got {kind!r}")
        limit = SCAN_BYTES_MAX if self._name == "scan" else self._config.body_bytes
        data = await body_of(receive, limit)
        if data and not kind:
            raise Problem(415, "Content-Type: expected application/json, got none")
        try:
            text = (data or b"{}").decode()
            found = orjson.loads(text)
            if not isinstance(found, dict):
                raise Problem(400, "body: expected a JSON object, got another value")
            orjson.dumps(found)  # fails if nested too deep to be passed on
        except (ValueError, orjson.JSONEncodeError) as error:
            raise Problem(400, f"body: expected JSON, got something else: {error}") from error
        return text

    async def _send(self, reply: Reply, kind: str, bare: bool, client: Client, send: Send) -> None:
        headers = {"content-type": CONTENT_TYPES[kind]}
        if reply.etag is not None:
            headers["etag"] = reply.etag
        if reply.whole is not None and not reply.same:
            headers["content-length"] = str(len(reply.whole))
        if reply.age_s >= 1:
            headers["age"] = str(int(reply.age_s))
        if reply.missing:
            headers[MISSING] = ", ".join(quote(one, safe=":/[]") for one in reply.missing)
        if reply.same:
            del headers["content-type"]
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        status = 304 if reply.same else 200
        await send({"type": "http.response.start", "status": status, "headers": raw})
        if reply.stream is None or bare:
            await _closed(reply)
            body = b"" if bare or reply.whole is None else reply.whole
            self._metrics.sent.inc(len(body))
            await send({"type": "http.response.body", "body": body})
            return
        async with aclosing(reply.stream) as stream:
            while (part := await client.unless_gone(anext(stream, None))) is not None:
                self._metrics.sent.inc(len(part))
                await client.unless_gone(
                    send({"type": "http.response.body", "body": part, "more_body": True})
                )
        await send({"type": "http.response.body", "body": b""})


async def body_of(receive: Receive, limit: int) -> bytes:
    """The body of a request. Raises Problem if it has more than `limit` bytes or takes too long,
    and Gone if the client leaves."""
    data = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Gone
                data += message.get("body", b"")
                more = message.get("more_body", False)
                if len(data) > limit:
                    raise Problem(413, f"body: expected at most {limit:,} bytes, got more")
    except TimeoutError as error:
        raise Problem(408, f"body: expected all of it within {BODY_S:g} s") from error
    return bytes(data)


class AskingAmplitude(Asking):
    """The same for an endpoint of Amplitude's API: parameters are in the address, and answers have
    one form only."""

    @override
    async def _question(self, scope: Scope, receive: Receive) -> Question:
        query, _ = _address(scope)
        kind = ARCHIVE if self._name in ARCHIVES else "json"
        return Question(self._name, kind, query, known=_known(Headers(scope=scope)))


def _address(scope: Scope) -> tuple[dict[str, list[str]], dict[str, str]]:
    """The parameters in the query and in the path. Raises Problem."""
    query: dict[str, list[str]] = {}
    try:
        for name, value in QueryParams(scope["query_string"]).multi_items():
            name.encode(), value.encode()
            query.setdefault(name, []).append(value)
        path = {name: str(value) for name, value in scope["path_params"].items()}
        "".join(path.values()).encode()
    except UnicodeError as error:
        raise Problem(400, f"expected UTF-8 in the address, got {error}") from error
    return query, path


def _known(headers: Headers) -> tuple[str, ...]:
    """The tags of answers that the client has."""
    tags = ",".join(headers.getlist("if-none-match")).split(",")
    return tuple(sorted({one.strip() for one in tags} - {""}))


def _anew(headers: Headers) -> bool:
    """Whether the client wants an answer that is made now (RFC 9111, 5.2.1)."""
    wanted = ",".join(headers.getlist("cache-control")).casefold().split(",")
    return not {"no-cache", "no-store", "max-age=0"}.isdisjoint(one.strip() for one in wanted)


async def _closed(reply: Reply) -> None:
    if reply.stream is not None:
        await reply.stream.aclose()


class Client:
    """The client, watched for leaving."""

    def __init__(self, receive: Receive) -> None:
        self._gone = asyncio.create_task(_left(receive))

    async def unless_gone(self, work: Awaitable[T]) -> T:
        """The result of `work`. If the client leaves first, ends it and raises Gone."""
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait([task, self._gone], return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise Gone
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    def close(self) -> None:
        self._gone.cancel()


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
