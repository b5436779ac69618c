"""Problems in the form of errors of Amplitude's API, as observed of its servers:

{"error": {"http_code": 400, "type": "invalid", "message": "Invalid chart definition",
           "metadata": {"details": "..."}}}
"""

from __future__ import annotations

from http import HTTPStatus

import orjson

from forebay.serve.problems import Problem

MEDIA_TYPE = "application/json"
INVALID = "Invalid chart definition"
TYPES = {400: "invalid", 401: "unauthorized", 403: "forbidden", 404: "not_found", 429: "too_many"}
"""Only the first was observed."""


def status_of(problem: Problem) -> int:
    """The status of a problem. Amplitude's API has no 422."""
    return 400 if problem.status == 422 else problem.status


def body_of(problem: Problem) -> bytes:
    status = status_of(problem)
    said = HTTPStatus(status).phrase if status != 400 else INVALID
    error = {
        "http_code": status,
        "type": TYPES.get(status, "error"),
        "message": problem.title or said,
        "metadata": {"details": problem.detail},
    }
    return orjson.dumps({"error": error}, option=orjson.OPT_APPEND_NEWLINE)
