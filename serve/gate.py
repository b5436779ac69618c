"""The gate: which requests are admitted, and the headers that every answer has for browsers.

What always holds: a request uses an allowed name of the host, so that no page of another site can
reach a server on loopback by a name that it made resolve to it; it comes from no page of another
site; if there are tokens, it has one. Amplitude's clients send theirs as the secret key of HTTP
Basic, and get errors in Amplitude's form.
"""

from __future__ import annotations

import binascii
import re
from base64 import b64decode
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from forebay.serve.amplitude import refusals
from forebay.serve.amplitude.endpoints import is_amplitude
from forebay.serve.config import Config
from forebay.serve.problems import MEDIA_TYPE, Problem
from forebay.serve.routes import INDEX, MCP, ORDERED
from forebay.serve.tokens import Tokens

OPEN = ("/", INDEX, "/livez", "/readyz", "/docs", "/openapi.json")
OPEN_BELOW = "/page/"
"""Reveals nothing about the data, and needs no token."""
ADMIN = tuple(ORDERED.values())
POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
SAID = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "private, no-cache",
    "vary": "Accept, Authorization",
}
"""Headers of each answer that sets no other value for them."""
_BEARER = re.compile(r"bearer +([\x21-\x7e]+) *\Z", re.IGNORECASE)
_BASIC = re.compile(r"basic +([A-Za-z0-9+/=]+) *\Z", re.IGNORECASE)
_HOST = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^:\[\]/@\s]+)(?::\d{1,5})?\Z")


class Gate:
    """ASGI middleware. `tokens` is None if none is needed."""

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
            await answer_problem(problem, said, scope["path"])
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
        asks = path == MCP or path.startswith("/v1/") or is_amplitude(path)
        if asks and headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            raise Problem(
                403, "expected a request from this site or from none, got one from another site"
            )
        if self._tokens is not None and path not in OPEN and not path.startswith(OPEN_BELOW):
            self._let_in(self._tokens, headers.getlist("authorization"), path)

    def _let_in(self, tokens: Tokens, given: list[str], path: str) -> None:
        kind, of = ("Basic", _secret_key) if is_amplitude(path) else ("Bearer", _bearer)
        token = of(given[0]) if len(given) == 1 else None
        scope = None if token is None else tokens.scope_of(token)
        if scope is None:
            came = "none" if not given else "another"
            named = "a token of this server"
            if kind == "Basic":
                named += " as the secret key"
            raise Problem(
                401,
                f"Authorization: expected {kind} and {named}, got {came}",
                {"WWW-Authenticate": f'{kind} realm="forebay"'},
            )
        if path in ADMIN and scope != "admin":
            raise Problem(403, f"token: expected one of scope admin, got scope {scope}")


def _bearer(given: str) -> str | None:
    found = _BEARER.match(given)
    return None if found is None else found[1]


def _secret_key(given: str) -> str | None:
    """The password of HTTP Basic; any user name is accepted."""
    found = _BASIC.match(given)
    try:
        text = "" if found is None else b64decode(found[1], validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None
    return text.partition(":")[2] or None


async def answer_problem(problem: Problem, send: Send, path: str) -> None:
    """Answer a request for this path with a problem, in the form that its clients expect."""
    status, headers, body = told(problem, path)
    headers |= {"content-length": str(len(body)), "cache-control": "no-store"}
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def told(problem: Problem, path: str) -> tuple[int, dict[str, str], bytes]:
    """The status, headers and body of the answer for a problem."""
    if is_amplitude(path):
        headers = {"content-type": refusals.MEDIA_TYPE, **problem.headers}
        return refusals.status_of(problem), headers, refusals.body_of(problem)
    return problem.status, {"content-type": MEDIA_TYPE, **problem.headers}, problem.body
