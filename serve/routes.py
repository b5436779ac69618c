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
    "timeline": "/v1/users/{user}",
    "partitions": "/v1/partitions",
    "receipt": "/v1/receipt",
    "rejects": "/v1/rejects",
    "schema": "/v1/schema",
}
"""Questions by name; each is asked by GET, with parameters in the query, or by POST, with a JSON
object."""
REPLAY = "/v1/rejects/replay"
EVENTS = "/v1/events"
MEDIA_TYPES = {
    "json": "application/json",
    "ndjson": "application/x-ndjson",
    "csv": "text/csv; charset=utf-8",
    "arrow": "application/vnd.apache.arrow.stream",
    "parquet": "application/vnd.apache.parquet",
}


ARCHIVE = "zip"
CONTENT_TYPES = {**MEDIA_TYPES, ARCHIVE: "application/zip"}
"""Of answers; an archive is no format that can be asked for."""


def format_of(named: Sequence[str], accepted: str) -> str:
    """The format that is asked for: one that is named, or what `accepted`, a header Accept, likes
    best. Raises Problem."""
    if named:
        if len(named) > 1 or named[0] not in MEDIA_TYPES:
            raise Problem(
                400, f"format: expected one of {', '.join(MEDIA_TYPES)}; got {', '.join(named)!r}"
            )
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
