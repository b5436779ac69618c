"""The paths of Amplitude's API that are served, and those that are not."""

from __future__ import annotations

from forebay.serve.problems import Problem

PREFIX = "/api/"
ENDPOINTS = {
    "amplitude segmentation": "/api/2/events/segmentation",
    "amplitude events": "/api/2/events/list",
    "amplitude funnels": "/api/2/funnels",
    "amplitude retention": "/api/2/retention",
    "amplitude users": "/api/2/users",
    "amplitude session lengths": "/api/2/sessions/length",
    "amplitude session average": "/api/2/sessions/average",
    "amplitude sessions per user": "/api/2/sessions/peruser",
    "amplitude composition": "/api/2/composition",
    "amplitude realtime": "/api/2/realtime",
    "amplitude user activity": "/api/2/useractivity",
    "amplitude user search": "/api/2/usersearch",
    "amplitude export": "/api/2/export",
    "amplitude annotations": "/api/2/annotations",
    "amplitude cohorts": "/api/3/cohorts",
}
"""Questions by name, with their paths."""
ARCHIVES = ("amplitude export",)
"""Endpoints that answer with a zip instead of JSON."""
NOT_SERVED = {
    "/api/2/revenue/ltv": (
        400,
        "revenue: no role has which events are purchases",
    ),
    "/api/3/chart": (404, "chart: no charts are saved here; ask the endpoint of its kind"),
    "/api/5/cohorts": (404, "cohorts: none are kept here"),
    "/api/2/taxonomy": (404, "taxonomy: none is kept here; /api/2/events/list names the events"),
}
"""Prefixes of other paths that clients use: the status, and what is missing."""


def is_amplitude(path: str) -> bool:
    """Whether a path is answered in Amplitude's forms."""
    return path.startswith(PREFIX)


def not_served(path: str, method: str) -> Problem:
    """The problem for a request that no endpoint takes."""
    if path in ENDPOINTS.values():
        detail = f"expected GET, got {method}"
        return Problem(405, detail, {"Allow": "GET, HEAD"}, "Method not allowed")
    for begin, (status, detail) in NOT_SERVED.items():
        if path == begin or path.startswith(f"{begin}/"):
            return Problem(status, detail, title="Not supported")
    known = ", ".join(ENDPOINTS.values())
    return Problem(404, f"expected one of {known}; got {path}", title="Not found")
