"""What can be asked at which path, and the formats of answers."""

from __future__ import annotations

from collections.abc import Sequence

from forebay.serve.problems import Problem

ASKED = {
    "sql": "/v1/sql",
    "segmentation": "/v1/segmentation",
    "formula": "/v1/formula",
    "funnel": "/v1/funnel",
    "retention": "/v1/retention",
    "sessions": "/v1/sessions",
    "stickiness": "/v1/stickiness",
    "paths": "/v1/paths",
    "lifecycle": "/v1/lifecycle",
    "sample": "/v1/sample",
    "timeline": "/v1/users/{user}",
    "partitions": "/v1/partitions",
    "per_minute": "/v1/per_minute",
    "receipt": "/v1/receipt",
    "rejects": "/v1/rejects",
    "schema": "/v1/schema",
    "tables": "/v1/tables",
    "why": "/v1/why",
    "roles": "/v1/roles",
}
"""Questions by name; each is asked by GET, with parameters in the query, or by POST, with a JSON
object."""
INDEX = "/v1"
REPLAY = "/v1/rejects/replay"
SEAL = "/v1/batch/seal"
COMPLETE = "/v1/batch/complete"
ORDERED = {"replay": REPLAY, "seal": SEAL, "complete": COMPLETE}
"""Requests that change something, by name: POST only, with scope admin."""
EVENTS = "/v1/events"
OFFER = "/v1/node"
SCAN = "/v1/node/scan"
"""What other nodes ask: what this node has, and its rows. The paths are in `query.exchange` too."""
FRESH = ("offer", "scan", *ORDERED)
"""Questions whose answers are not shared: one from a second ago would be of an old view."""
BESIDE = ("seal", "complete")
"""Questions that mostly wait for the job: they don't count as questions at once."""
SCAN_BYTES_MAX = 32 << 20
"""Naming the blocks and chunks of a view takes some hundred bytes each."""
MISSING = "forebay-missing"
"""Header of a partial answer: the nodes that are missing."""
FILES = "/v1/files"
FILE = "/v1/files/{name}"
MCP = "/mcp"
MEDIA_TYPES = {
    "json": "application/json",
    "ndjson": "application/x-ndjson",
    "csv": "text/csv; charset=utf-8",
    "spreadsheet": "text/csv; charset=utf-8",
    "arrow": "application/vnd.apache.arrow.stream",
    "parquet": "application/vnd.apache.parquet",
}
PROGRAMS = {"python": "text/x-python; charset=utf-8", "sql": "application/sql; charset=utf-8"}
"""Programs that ask the same, in place of an answer of analytics; available only by name."""


ARCHIVE = "zip"
CONTENT_TYPES = {**MEDIA_TYPES, **PROGRAMS, ARCHIVE: "application/zip"}
"""Media types of answers; an archive is not a format to ask for."""


def format_of(named: Sequence[str], accepted: str) -> str:
    """The requested format: one that is named, or the one that the Accept header `accepted`
    prefers. Raises Problem."""
    if named:
        if len(named) > 1 or named[0] not in {**MEDIA_TYPES, **PROGRAMS}:
            names = ", ".join((*MEDIA_TYPES, *PROGRAMS))
            raise Problem(400, f"format: expected one of {names}; got {', '.join(named)!r}")
        return named[0]
    weights = dict(map(_weighed, accepted.split(","))) if accepted.strip() else {"*/*": 1.0}

    def weight(name: str) -> float:
        plain = MEDIA_TYPES[name].partition(";")[0]
        ranges = (plain, f"{plain.partition('/')[0]}/*", "*/*")
        return next((weights[one] for one in ranges if one in weights), 0.0)

    best = max(MEDIA_TYPES, key=weight)
    if not weight(best):
        known = ", ".join(MEDIA_TYPES.values())
        raise Problem(406, f"Accept: expected one of {known}; got {accepted!r}")
    return best


def _weighed(text: str) -> tuple[str, float]:
    """A media type of an Accept header, and its weight."""
    kind, *rest = (part.strip() for part in text.split(";"))
    weight = next((one[2:] for one in rest if one.startswith("q=")), "1")
    try:
        return kind.casefold(), float(weight)
    except ValueError:
        return kind.casefold(), 0.0
