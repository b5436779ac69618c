"""The front: paths, and the handler of each. It decodes no data and imports no engine."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from forebay.serve.amplitude.endpoints import ENDPOINTS, PREFIX, not_served
from forebay.serve.asking import Asking, AskingAmplitude
from forebay.serve.config import Config
from forebay.serve.docs import DOCS_POLICY, docs
from forebay.serve.feed import Feed
from forebay.serve.files import Files
from forebay.serve.gate import Gate, told
from forebay.serve.mcp import Mcp
from forebay.serve.metrics import MEDIA_TYPE as METRICS_TYPE
from forebay.serve.metrics import Metrics
from forebay.serve.pool import Pool
from forebay.serve.problems import Problem
from forebay.serve.question import OPENAPI, Question
from forebay.serve.routes import (
    ASKED,
    EVENTS,
    FILE,
    FILES,
    INDEX,
    MCP,
    OFFER,
    ORDERED,
    SCAN,
)
from forebay.serve.sharing import Answers
from forebay.serve.static import files as page_files
from forebay.serve.tokens import Tokens

PATHS = {
    **ASKED, **ORDERED, "events": EVENTS, "files": FILES, "file": FILE, "mcp": MCP,
    "page": "/", "index": INDEX,
    **ENDPOINTS,
}  # fmt: skip
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
OTHERS = ("/docs", "/openapi.json", "/livez", "/readyz", "/metrics")


def front(
    config: Config, tokens: Tokens | None, pool: Pool, answers: Answers, feed: Feed, files: Files,
    mcp: Mcp, metrics: Metrics,
) -> Gate:  # fmt: skip
    """The ASGI application of one server."""
    described = _Described(answers)

    async def live(_: Request) -> Response:
        return PlainTextResponse("live\n")

    async def ready(_: Request) -> Response:
        if pool.ready:
            return PlainTextResponse("ready\n")
        raise Problem(503, "expected a worker that is ready, got none")

    async def counted(_: Request) -> Response:
        return Response(metrics.text(), media_type=METRICS_TYPE)

    async def index(_: Request) -> Response:
        return _json({"paths": {**PATHS, **{one[1:]: one for one in OTHERS}}})

    async def openapi(_: Request) -> Response:
        return Response(await described.text(), media_type="application/json")

    async def documented(_: Request) -> Response:
        made = docs(orjson.loads(await described.text()))
        return HTMLResponse(made, headers={"content-security-policy": DOCS_POLICY})

    def asked(path: str, name: str, methods: list[str]) -> Route:
        return Route(path, Asking(name, answers, config, metrics), methods=methods)

    def amplitude(path: str, name: str) -> Route:
        return Route(path, AskingAmplitude(name, answers, config, metrics), methods=["GET"])

    async def beyond(request: Request) -> Response:
        raise not_served(request.url.path, request.method)

    plain: dict[str, Callable[[Request], Awaitable[Response]]] = {
        INDEX: index,
        "/livez": live,
        "/readyz": ready,
        "/metrics": counted,
        "/openapi.json": openapi,
        "/docs": documented,
    }
    app = Starlette(
        routes=[
            *(asked(path, name, ["POST"]) for name, path in ORDERED.items()),
            asked(OFFER, "offer", ["GET"]),
            asked(SCAN, "scan", ["POST"]),
            *(asked(path, name, ["GET", "POST"]) for name, path in ASKED.items()),
            Route(EVENTS, feed, methods=["GET"]),
            Route(FILES, _Raw(files.lists), methods=["GET"]),
            Route(FILE, _Raw(files.file), methods=["GET"]),
            Route(MCP, mcp, methods=["POST"]),
            *(amplitude(path, name) for name, path in ENDPOINTS.items()),
            Route(f"{PREFIX}{{rest:path}}", beyond, methods=METHODS),
            *(Route(path, answer) for path, answer in plain.items()),
            *(Route(path, file, methods=["GET"]) for path, file in page_files().items()),
        ],
        exception_handlers={HTTPException: _refused, Problem: _told, 500: _failed},
    )
    app.router.redirect_slashes = False
    return Gate(app, config, tokens)


@dataclass(frozen=True)
class _Raw:
    """A function that is an ASGI application; a route would treat it as something else."""

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


class _Described:
    """The OpenAPI document, made once by a worker."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._text: bytes | None = None

    async def text(self) -> bytes:
        if self._text is None:
            self._text = (await self._answers.ask(Question(OPENAPI))).whole
        return self._text or b""


def _json(found: object, status: int = 200, kind: str = "application/json") -> Response:
    return Response(orjson.dumps(found), status, media_type=kind)


async def _told(request: Request, problem: Exception) -> Response:
    assert isinstance(problem, Problem)
    status, headers, body = told(problem, request.url.path)
    return Response(body, status, headers)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    details = {
        404: f"expected a path that there is (see /v1), got {request.url.path!r}",
        405: f"expected one of {(error.headers or {}).get('Allow')}, got {request.method}",
    }
    detail = details.get(error.status_code, error.detail)
    return await _told(request, Problem(error.status_code, detail, dict(error.headers or {})))


async def _failed(request: Request, _: Exception) -> Response:
    return await _told(request, Problem(500, "expected an answer, got an error: see the log"))
