"""`forebay status`: progress and totals of a data directory, whether or not the job runs."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import orjson
from rich.console import Console
from rich.live import Live
from rich.text import Text

from forebay import query
from forebay.cli.roots import data_dirs_option
from forebay.cli.table import number_text, table, terminal_width, time_text, totals
from forebay.flows.recovery import job_runs
from forebay.flows.settings import load
from forebay.query.receipt import COUNTS
from forebay.query.view import View
from forebay.storage.base.directory import require_data_directory
from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import BadInput
from forebay.storage.base.layout import Layout
from forebay.storage.base.text import plain

WATCH_S = 1.0
COLUMNS = ("stream_time", "next_offset", "lag", "accepted", "hot_events", "cold_events")


def report(store: query.Store) -> dict[str, Any]:
    """Totals, batch number, jobs and partitions, as JSON types."""
    partitions = store.partitions()
    receipt, view = store.receipt(), store.last_view
    return {
        "totals": {name: int(partitions[name].sum()) for name in COUNTS},
        "batch_number": receipt.batch_number,
        "covered_until": receipt.covered_until,
        "nodes": [_node(node.root) for node in view.nodes],
        "quiet_since": _quiet_since(view),
        "silent_nodes": list(receipt.silent_nodes),
        "silent_partitions": [asdict(partition) for partition in receipt.silent_partitions],
        "unread_partitions": _unread(view),
        "partitions": partitions.to_dicts(),
    }


@click.command()
@click.option(
    "--json", "as_json", is_flag=True, help="As one JSON object; with --watch one a line."
)
@click.option("--watch", is_flag=True, help="Again every second, with the rate, until Ctrl-C.")
@data_dirs_option
def status(as_json: bool, watch: bool, data_dirs: tuple[Path, ...]) -> None:
    """Show totals, and each partition's stream time, next offset and lag. Exit code 1 if a node
    or partition can't be read."""
    roots = list(data_dirs) or [load().data_dir]
    if not any(root.is_dir() for root in roots):
        raise BadInput(
            f"{roots[0]}: expected a readable data directory, got none; `forebay run` makes it"
        )
    for root in (root for root in roots if root.is_dir()):
        require_data_directory(root)
    store = query.open(*roots, partial=True)
    if watch:
        _watch(store, as_json)
        return
    found = report(store)
    if as_json:
        click.echo(orjson.dumps(found, option=orjson.OPT_INDENT_2))
    else:
        click.echo("\n".join(_lines(found, None)))
    if found["silent_nodes"] or found["silent_partitions"]:
        raise SystemExit(1)


def _watch(store: query.Store, as_json: bool) -> None:
    """At a terminal one picture that changes, else a block of lines each time."""
    try:
        if as_json or not sys.stdout.isatty():
            for found, rate in _looks(store):
                told = orjson.dumps(found).decode() if as_json else "\n".join(_lines(found, rate))
                click.echo(told if as_json else f"{told}\n")
                sys.stdout.flush()
        console = Console(highlight=False)
        with Live(console=console, auto_refresh=False, vertical_overflow="visible") as live:
            for found, rate in _looks(store):
                live.update(Text("\n".join(_lines(found, rate))), refresh=True)
    except KeyboardInterrupt:
        return


def _looks(store: query.Store) -> Iterator[tuple[dict[str, Any], float | None]]:
    """A report each second, with the rate in messages a second since the one before."""
    last: tuple[float, int] | None = None
    while True:
        found = report(store)
        seen = sum(found["totals"][name] for name in ("accepted", "duplicates", "rejects"))
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
    lines += [f"{plain(node)} did not answer" for node in found["silent_nodes"]]
    lines += [
        plain(f"{silent['partition']} can't be read: {silent['reason']}")
        for silent in found["silent_partitions"]
    ]
    rows = [
        (
            row["partition"],
            time_text(row["stream_time"]),
            *(number_text(row[n]) for n in COLUMNS[1:]),
        )
        for row in found["partitions"]
    ]
    rows += [(name, "no message yet", *["-"] * 5) for name in found["unread_partitions"]]
    if rows:
        lines += table(("partition", *COLUMNS), rows, right=COLUMNS[1:], width=width)
    return lines


def _jobs(found: dict[str, Any]) -> list[str]:
    """Whether a job runs on each node, and since when nothing new was published."""
    since: datetime | None = found["quiet_since"]
    quiet = "" if since is None else f"; the newest data was published {time_text(since)}"
    nodes = found["nodes"]
    running = [node["node"] for node in nodes if node["job_runs"]]
    if len(running) in (0, len(nodes)):
        return [f"{'a job runs' if running else 'no job runs'}{quiet}"]
    idle = [node["node"] for node in nodes if not node["job_runs"]]
    return [plain(f"a job runs on {', '.join(running)}, none on {', '.join(idle)}{quiet}")]


def _node(root: Path) -> dict[str, Any]:
    return {"node": str(root), "job_runs": job_runs(Disk(), Layout(root))}


def _quiet_since(view: View) -> datetime | None:
    """When a partition published something new for the last time: a manifest is written only if it
    says something new."""
    paths = [partition.folder / "manifest.json" for partition in view.partitions]
    times = [path.stat().st_mtime for path in paths if path.exists()]
    return datetime.fromtimestamp(max(times), UTC) if times else None


def _unread(view: View) -> list[str]:
    """The source's partitions that are known, but of which no message was read yet."""
    seen = {partition.state.partition for partition in view.partitions}
    for partition in view.partitions:
        seen |= partition.state.next_offsets.keys()
    known: set[str] = set()
    for node in view.nodes:
        if node.batch is not None and (folder := Layout(node.root).sources).is_dir():
            known |= {path.name for path in folder.iterdir()}
        seen |= {partition.partition for partition in node.silent}
    return sorted(known - seen)
