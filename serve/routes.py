"""What can be asked under which path, and the formats of answers."""

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
"""What changes something, by name: asked by POST, with scope admin."""
EVENTS = "/v1/events"
OFFER = "/v1/node"
SCAN = "/v1/node/scan"
"""What other nodes ask: what there is here, and rows of it. Their paths stand in `query.exchange`
too."""
FRESH = ("offer", "scan", *ORDERED)
"""Questions whose answers are not shared: an answer of a second ago would be of an old view."""
BESIDE = ("seal", "complete")
"""Questions that wait for the job more than they compute: they are not among those at once."""
SCAN_BYTES_MAX = 32 << 20
"""What names the blocks and chunks of a view takes some hundred bytes for each."""
MISSING = "forebay-missing"
"""The header of an answer that is partial: the nodes that it lacks."""
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
"""In place of an answer of analytics: what asks the same. They are had by their names alone."""


ARCHIVE = "zip"
CONTENT_TYPES = {**MEDIA_TYPES, **PROGRAMS, ARCHIVE: "application/zip"}
"""Of answers; an archive is no format that can be asked for."""


def format_of(named: Sequence[str], accepted: str) -> str:
    """The format that is asked for: one that is named, or what `accepted`, a header Accept, likes
    best. Raises Problem."""
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
