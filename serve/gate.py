"""The gate: which requests get to a question at all, and what every answer says to browsers.

What always holds: a request is for a host by a name that is allowed, so that no page of another
site can reach a server on loopback by a name that it has made to lead there; it comes from no page
of another site; where there are tokens, it has one.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from forebay.serve.config import Config
from forebay.serve.problems import MEDIA_TYPE, Problem
from forebay.serve.routes import INDEX, REPLAY
from forebay.serve.tokens import Tokens

OPEN = ("/", INDEX, "/livez", "/readyz", "/docs", "/openapi.json")
OPEN_BELOW = "/page/"
"""What says nothing of the data, and needs no token."""
ADMIN = (REPLAY,)
POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
SAID = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "private, no-cache",
    "vary": "Accept, Authorization",
}
"""Headers of each answer that has no other value for them."""
_BEARER = re.compile(r"bearer +([\x21-\x7e]+) *\Z", re.IGNORECASE)
_HOST = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^:\[\]/@\s]+)(?::\d{1,5})?\Z")


class Gate:
    """Middleware of ASGI. `tokens` is None where none is needed."""

    def __init__(self, app: ASGIApp, config: Config, tokens: Tokens | None) -> None:
        self._app = app
        self._names = config.names
        self._tokens = tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def said(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SAID.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            self.check(Headers(scope=scope), scope["path"])
        except Problem as problem:
            await answer_problem(problem, said)
            return
        await self._app(scope, receive, said)

    def check(self, headers: Headers, path: str) -> None:
        """Raise Problem unless the request may pass."""
        hosts = headers.getlist("host")
        found = _HOST.match(hosts[0]) if len(hosts) == 1 else None
        if found is None or found[1].strip("[]").rstrip(".").casefold() not in self._names:
            names = ", ".join(sorted(self._names))
            came = ", ".join(hosts) or "none"
            raise Problem(421, f"Host: expected one of {names}, got {came!r}")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.casefold() != hosts[0].casefold():
            raise Problem(403, f"Origin: expected none or this server's, got {origin!r}")
        if path.startswith("/v1/") and headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            raise Problem(403, "expected a request of no site or this one, got another site's")
        if self._tokens is not None and path not in OPEN and not path.startswith(OPEN_BELOW):
            self._let_in(self._tokens, headers.getlist("authorization"), path)

    def _let_in(self, tokens: Tokens, given: list[str], path: str) -> None:
        token = _BEARER.match(given[0]) if len(given) == 1 else None
        scope = None if token is None else tokens.scope_of(token[1])
        if scope is None:
            came = "none" if not given else "another"
            raise Problem(
                401,
                f"Authorization: expected Bearer and a token of this server, got {came}",
                {"WWW-Authenticate": 'Bearer realm="forebay"'},
            )
        if path in ADMIN and scope != "admin":
            raise Problem(403, f"token: expected one of scope admin, got scope {scope}")


async def answer_problem(problem: Problem, send: Send) -> None:
    body = problem.body
    headers = {
        "content-type": MEDIA_TYPE,
        "content-length": str(len(body)),
        "cache-control": "no-store",
        **problem.headers,
    }
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": problem.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
