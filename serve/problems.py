"""Problems: errors in the form of RFC 9457, each with what was expected and what was received."""

from __future__ import annotations

from dataclasses import dataclass, field
from http import HTTPStatus

import orjson

MEDIA_TYPE = "application/problem+json"


@dataclass(eq=False)
class Problem(Exception):
    """An answer that reports an error: `status` of HTTP, `detail` in a sentence, and more
    `headers`; `title` names the kind, if the status alone does not."""

    status: int
    detail: str
    headers: dict[str, str] = field(default_factory=dict)
    title: str = ""

    def __str__(self) -> str:
        return self.detail

    @property
    def body(self) -> bytes:
        said = {
            "type": "about:blank",
            "title": self.title or HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
        }
        return orjson.dumps(said, option=orjson.OPT_APPEND_NEWLINE)

    def encode(self) -> bytes:
        """The form in which it passes from a worker to the front."""
        return orjson.dumps({"status": self.status, "detail": self.detail, "title": self.title})

    @classmethod
    def decode(cls, data: bytes) -> Problem:
        return cls(**orjson.loads(data))
