"""The files of the page at `/`: read once, and sent unchanged to browsers that don't have them.

What always holds: they load nothing from elsewhere, pages contain no inline script or style, and no
text can become one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from forebay.serve.gate import OPEN_BELOW, POLICY

FOLDER = Path(__file__).with_name("page")
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
PAGE_POLICY = (
    f"{POLICY}; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " require-trusted-types-for 'script'; trusted-types 'none'"
)


@dataclass(frozen=True)
class File:
    """One of the files, as an ASGI application."""

    data: bytes
    kind: str
    etag: str

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {"etag": self.etag, "content-security-policy": PAGE_POLICY}
        if self.etag in Headers(scope=scope).get("if-none-match", ""):
            response = Response(status_code=304, headers=headers)
        else:
            response = Response(self.data, media_type=self.kind, headers=headers)
        await response(scope, receive, send)


def files() -> dict[str, File]:
    """All files by path: `/` is index.html, the others are below /page/."""
    found = {}
    for path in sorted(FOLDER.iterdir()):
        data = path.read_bytes()
        etag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
        name = "/" if path.name == "index.html" else OPEN_BELOW + path.name
        found[name] = File(data, MEDIA_TYPES[path.suffix], etag)
    return found
