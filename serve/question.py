"""A question as it passes from the front to a worker."""

from __future__ import annotations

from dataclasses import dataclass, field

import orjson

OPENAPI = "openapi"
"""The question for the document that describes all others."""
BRIEF = "brief"
"""The format of an answer for a language model; no HTTP request can name it."""
BUNDLE = "bundle"
"""The format of a list of files with the rows that are in none: a line of JSON, Parquet, and the
number of its rows in 8 bytes (big-endian); no HTTP request can name it."""


@dataclass(frozen=True)
class Question:
    """A question: its `name`, the `format` and `table` of the answer, and parameters: `given` texts
    by name, or a JSON object as it was sent (`body`), and those of the path. `known` are tags of
    answers that the client has; `rows` is how many an answer in brief shows."""

    name: str
    format: str = "json"
    given: dict[str, list[str]] = field(default_factory=dict)
    body: str | None = None
    path: dict[str, str] = field(default_factory=dict)
    known: tuple[str, ...] = ()
    rows: int = 0

    @property
    def key(self) -> bytes:
        """Equal for equal questions."""
        parsed = None if self.body is None else orjson.loads(self.body)
        asked = [self.name, self.format, self.given, parsed, self.path, self.rows]
        return orjson.dumps(asked, option=orjson.OPT_SORT_KEYS)

    def encode(self) -> bytes:
        return orjson.dumps(self)

    @classmethod
    def decode(cls, data: bytes) -> Question:
        found = orjson.loads(data)
        return cls(**{**found, "known": tuple(found["known"])})
