"""A question as it passes from the front to a worker."""

from __future__ import annotations

from dataclasses import dataclass, field

import orjson

OPENAPI = "openapi"
"""Name of the question for the document that describes all others."""
BRIEF = "brief"
"""The format of an answer to a language model, which no request over HTTP can name."""
BUNDLE = "bundle"
"""The same of a list of files with what is in none: a line of JSON, Parquet, and in 8 bytes
(big-endian) how many rows that has."""


@dataclass(frozen=True)
class Question:
    """What is asked: `name` of what, `format` and `table` of the answer, and parameters: `given`
    texts by name, or an object of JSON as it was sent (`body`), and those of the path. `known` are
    tags of answers that the asker has; `rows` is how many an answer in brief shows."""

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
