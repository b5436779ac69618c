"""The front: paths, and what answers each. It reads no data and imports no engine."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from forebay.serve.asking import Asking
from forebay.serve.config import Config
from forebay.serve.docs import DOCS_POLICY, docs
from forebay.serve.feed import Feed
from forebay.serve.gate import Gate
from forebay.serve.metrics import MEDIA_TYPE as METRICS_TYPE
from forebay.serve.metrics import Metrics
from forebay.serve.pool import Pool
from forebay.serve.problems import MEDIA_TYPE, Problem
from forebay.serve.question import OPENAPI, Question
from forebay.serve.routes import ASKED, EVENTS, INDEX, REPLAY
from forebay.serve.sharing import Answers
from forebay.serve.static import files
from forebay.serve.tokens import Tokens

PATHS = {**ASKED, "events": EVENTS, "replay": REPLAY, "page": "/", "index": INDEX}
OTHERS = ("/docs", "/openapi.json", "/livez", "/readyz", "/metrics")


def front(config: Config, tokens: Tokens | None, pool: Pool, feed: Feed, metrics: Metrics) -> Gate:
    """The ASGI application of one server."""
    answers = Answers(pool, config, metrics)
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
            asked(REPLAY, "replay", ["POST"]),
            *(asked(path, name, ["GET", "POST"]) for name, path in ASKED.items()),
            Route(EVENTS, feed, methods=["GET"]),
            *(Route(path, answer) for path, answer in plain.items()),
            *(Route(path, file, methods=["GET"]) for path, file in files().items()),
        ],
        exception_handlers={HTTPException: _refused, Problem: _told, 500: _failed},
    )
    app.router.redirect_slashes = False
    return Gate(app, config, tokens)


class _Described:
    """The OpenAPI document, which a worker makes once."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._text: bytes | None = None

    async def text(self) -> bytes:
        if self._text is None:
            self._text = (await self._answers.ask(Question(OPENAPI))).whole
        return self._text or b""


def _json(found: object, status: int = 200, kind: str = "application/json") -> Response:
    return Response(orjson.dumps(found), status, media_type=kind)


async def _told(_: Request, problem: Exception) -> Response:
    assert isinstance(problem, Problem)
    return Response(problem.body, problem.status, problem.headers, MEDIA_TYPE)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    details = {
        404: f"expected a path that there is (see /v1), got {request.url.path!r}",
        405: f"expected one of {(error.headers or {}).get('Allow')}, got {request.method}",
    }
    problem = Problem(error.status_code, details.get(error.status_code, error.detail))
    return Response(problem.body, problem.status, dict(error.headers or {}), MEDIA_TYPE)


async def _failed(request: Request, _: Exception) -> Response:
    return await _told(request, Problem(500, "expected an answer, got an error: see the log"))
