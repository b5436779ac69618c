"""Pending requests to the job about rejects, as lines and as JSON."""

from typing import Any

from forebay.query.view import View
from forebay.storage.base.disk import Disk
from forebay.storage.base.layout import Layout
from forebay.storage.base.running import job_runs
from forebay.storage.base.text import plain
from forebay.storage.base.times import utc_text
from forebay.storage.formats.rejects import RejectFilter
from forebay.storage.formats.replay_request import pending


def pending_requests(view: View) -> list[dict[str, Any]]:
    """Each with its node, its number, what it asks for, of which rejects, and when it is done."""
    disk, found = Disk(), []
    for node in (node for node in view.nodes if node.node is None):
        layout = Layout(node.root)
        done = [partition.state.replays for partition in node.partitions]
        for request in pending(disk, layout, done):
            found.append(
                {
                    "node": str(node.root),
                    "number": request.number,
                    "what": "replay" if request.delete is None else "delete",
                    "rejects": _meant(request.wanted),
                    "when": "the job takes it up within seconds"
                    if job_runs(disk, layout)
                    else "no job runs, the next one does it",
                }
            )
    return found


def pending_lines(requests: list[dict[str, Any]]) -> list[str]:
    return [
        plain(f"request {one['number']} is pending: {one['what']} {one['rejects']}; {one['when']}")
        for one in requests
    ]


def _meant(wanted: RejectFilter) -> str:
    parts = [
        f"{name} {', '.join(map(str, values))}"
        for name, values in (
            ("reason", wanted.reasons),
            ("partition", wanted.partitions),
            ("offset", wanted.offsets),
        )
        if values
    ]
    parts += [f"since {utc_text(wanted.since_ms)}"] if wanted.since_ms is not None else []
    parts += [f"until {utc_text(wanted.until_ms)}"] if wanted.until_ms is not None else []
    return f"rejects of {', '.join(parts)}" if parts else "all rejects"
