"""`forebay status`: progress and totals of a data directory, whether or not the job runs."""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import orjson
from rich.live import Live
from rich.text import Text

from forebay import query
from forebay.cli.example import example
from forebay.cli.nodes import Places, places_option
from forebay.cli.options import json_option
from forebay.cli.output import (
    PipedConsole,
    echo_json,
    terminal_width,
    text_table,
    time_text,
    totals,
)
from forebay.cli.requests import pending_lines, pending_requests
from forebay.query.receipt import COUNTS, MESSAGES
from forebay.query.view import View
from forebay.storage.base.directory import require_data_directory
from forebay.storage.base.disk import Disk
from forebay.storage.base.layout import Layout
from forebay.storage.base.running import job_runs
from forebay.storage.base.text import plain

WATCH_S = 1.0
COLUMNS = (
    "partition", "stream_time", "next_offset", "lag", "accepted", "hot_events", "cold_events",
)  # fmt: skip


def report(store: query.Store) -> dict[str, Any]:
    """Totals, batch number, jobs and partitions, as JSON types."""
    partitions = store.partitions()
    receipt, view = store.receipt(), store.last_view
    return {
        "totals": {name: int(partitions[name].sum()) for name in COUNTS},
        "batch_number": receipt.batch_number,
        "covered_until": receipt.covered_until,
        "nodes": [
            {
                "node": node.name,
                "job_runs": job_runs(Disk(), Layout(node.root)) if node.node is None else None,
            }
            for node in view.nodes
        ],
        "quiet_since": _quiet_since(view),
        "silent_nodes": list(receipt.silent_nodes),
        "silent_partitions": [asdict(partition) for partition in receipt.silent_partitions],
        "unread_partitions": _unread(view),
        "pending_requests": pending_requests(view),
        "partitions": partitions.to_dicts(),
    }


def _require_one(_what: str, roots: Sequence[Path]) -> None:
    """Raise BadInput if no data directory exists, or another folder is in its place."""
    for root in [root for root in roots if root.is_dir()] or roots[:1]:
        require_data_directory(root)


@click.command(epilog=example("forebay status --json"))
@json_option("As one JSON object; with --watch one a line.")
@click.option("--watch", is_flag=True, help="Refresh every second, with the rate, until Ctrl-C.")
@places_option(_require_one, partial=False)
def status(as_json: bool, watch: bool, places: Places) -> None:
    """Show totals, and each partition's stream time, next offset and lag. Exit code 1 if a node
    or partition can't be read."""
    store = places.open()
    if watch:
        _watch(store, as_json)
        return
    found = report(store)
    if as_json:
        echo_json(found)
    else:
        click.echo("\n".join(_lines(found, None)))
    if found["silent_nodes"] or found["silent_partitions"]:
        raise SystemExit(1)


def _watch(store: query.Store, as_json: bool) -> None:
    """At a terminal, update one picture; otherwise, print a block of lines each time."""
    try:
        if as_json or not sys.stdout.isatty():
            for found, rate in _looks(store):
                lines = [*_lines(found, rate), ""]
                click.echo(orjson.dumps(found).decode() if as_json else "\n".join(lines))
                sys.stdout.flush()
        console = PipedConsole(highlight=False)
        with Live(console=console, auto_refresh=False, vertical_overflow="visible") as live:
            for found, rate in _looks(store):
                live.update(Text("\n".join(_lines(found, rate))), refresh=True)
    except KeyboardInterrupt:
        return


def _looks(store: query.Store) -> Iterator[tuple[dict[str, Any], float | None]]:
    """A report each second, with the rate in messages per second since the one before."""
    last: tuple[float, int] | None = None
    while True:
        found = report(store)
        seen = sum(found["totals"][name] for name in MESSAGES)
        now = time.monotonic()
        yield found, None if last is None else (seen - last[1]) / (now - last[0])
        last = now, seen
        time.sleep(WATCH_S)


def _lines(found: dict[str, Any], rate: float | None) -> list[str]:
    width = terminal_width()
    batch = f"batch {found['batch_number']}"
    if found["covered_until"] is not None:
        batch += f", covered until {time_text(found['covered_until'])}"
    speed = "" if rate is None else f"  {rate:,.0f} messages/s"
    counts = totals(found["totals"], width) if any(found["totals"].values()) else ["no events yet"]
    lines = [*counts, batch + speed, *_jobs(found)]
    lines += pending_lines(found["pending_requests"])
    lines += [f"{plain(node)} did not answer" for node in found["silent_nodes"]]
    lines += [
        plain(f"{silent['partition']} can't be read: {silent['reason']}")
        for silent in found["silent_partitions"]
    ]
    rows = [[row[name] for name in COLUMNS] for row in found["partitions"]]
    rows += [[name, "no message yet", *[None] * 5] for name in found["unread_partitions"]]
    if rows:
        lines += text_table(COLUMNS, rows, right=COLUMNS[2:], width=width)
    return lines


def _jobs(found: dict[str, Any]) -> list[str]:
    """For each node, whether a job runs, and since when nothing new was published."""
    since: datetime | None = found["quiet_since"]
    quiet = "" if since is None else f"; the newest data was published {time_text(since)}"
    nodes = [node for node in found["nodes"] if node["job_runs"] is not None]
    if not nodes:  # none on this host, so no job can be looked for
        return []
    running = [node["node"] for node in nodes if node["job_runs"]]
    if len(running) in (0, len(nodes)):
        return [f"{'a job runs' if running else 'no job runs'}{quiet}"]
    idle = [node["node"] for node in nodes if not node["job_runs"]]
    return [plain(f"a job runs on {', '.join(running)}, none on {', '.join(idle)}{quiet}")]


def _quiet_since(view: View) -> datetime | None:
    """When a partition last published something new: a manifest is only written if it has
    changed."""
    here = [partition for partition in view.partitions if partition.remote is None]
    paths = [partition.layout.manifest(partition.name) for partition in here]
    times = [path.stat().st_mtime for path in paths if path.exists()]
    return datetime.fromtimestamp(max(times), UTC) if times else None


def _unread(view: View) -> list[str]:
    """The source's known partitions of which no message was read yet."""
    seen: set[str] = set()
    for partition in view.partitions:
        seen |= {partition.name, *partition.state.next_offsets}
    known: set[str] = set()
    for node in view.nodes:
        here = node.boundary is not None and node.node is None
        if here and (folder := Layout(node.root).sources).is_dir():
            known |= {path.name for path in folder.iterdir()}
        seen |= {partition.partition for partition in node.silent}
    return sorted(known - seen)
