"""`forebay status`: progress and totals of a data directory, whether or not the job runs."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import orjson
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

import query
from flows.settings import load
from query.receipt import COUNTS

WATCH_S = 1.0


def report(store: query.Store) -> dict[str, Any]:
    """Totals, batch number and partitions, as JSON types."""
    partitions = store.partitions()
    receipt = store.receipt()
    return {
        "totals": {name: int(partitions[name].sum()) for name in COUNTS},
        "batch_number": receipt.batch_number,
        "covered_until": receipt.covered_until,
        "silent_nodes": list(receipt.silent_nodes),
        "silent_partitions": [asdict(partition) for partition in receipt.silent_partitions],
        "partitions": partitions.to_dicts(),
    }


@click.command()
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
@click.option("--watch", is_flag=True, help="Again every second, with the rate.")
@click.option(
    "--data-dir", "data_dirs", multiple=True, type=click.Path(path_type=Path),
    help="Repeat for several nodes.  [default: that of the settings]",
)  # fmt: skip
def status(as_json: bool, watch: bool, data_dirs: tuple[Path, ...]) -> None:
    """Show totals, and each partition's stream time, next offset and lag. Exit code 1 if a node
    or partition can't be read."""
    store = query.open(*(data_dirs or [load().data_dir]), partial=True)
    if watch:
        _watch(store)
    elif as_json:
        click.echo(orjson.dumps(report(store), option=orjson.OPT_INDENT_2))
    else:
        Console().print(_drawn(report(store), None))
    receipt = store.receipt()
    if receipt.silent_nodes or receipt.silent_partitions:
        raise SystemExit(1)


def _watch(store: query.Store) -> None:
    last: tuple[float, int] | None = None
    with Live(console=Console(), auto_refresh=False) as live:
        while True:
            found = report(store)
            seen = sum(found["totals"][name] for name in ("accepted", "duplicates", "rejects"))
            now = time.monotonic()
            rate = None if last is None else (seen - last[1]) / (now - last[0])
            last = now, seen
            live.update(_drawn(found, rate), refresh=True)
            time.sleep(WATCH_S)


def _drawn(found: dict[str, Any], rate: float | None) -> RenderableType:
    totals = "  ".join(f"{name} {count:,}" for name, count in found["totals"].items() if count)
    batch = f"batch {found['batch_number']}"
    if found["covered_until"] is not None:
        batch += f", covered until {found['covered_until']:%Y-%m-%d %H:%M:%S}"
    speed = "" if rate is None else f"  {rate:,.0f} messages/s"
    columns = ("stream_time", "next_offset", "lag", "accepted", "hot_events", "cold_events")
    table = Table("partition", *columns, box=None, header_style="bold")
    for row in found["partitions"]:
        values = (row[name] for name in columns)
        table.add_row(row["partition"], *(_cell(value) for value in values))
    lines = [Text(totals or "no events yet"), Text(batch + speed)]
    lines += [Text(f"{node} did not answer", "red") for node in found["silent_nodes"]]
    lines += [
        Text(f"{silent['partition']} can't be read: {silent['reason']}", "red")
        for silent in found["silent_partitions"]
    ]
    return Group(*lines, table)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:%Y-%m-%d %H:%M:%S}"
