"""`forebay retention`: what is kept on disk, what would be deleted now, and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import orjson
from rich.console import Console
from rich.table import Table

from flows.settings import load
from query.view import NodeView, PartitionView, take_view
from storage.batch import Batch
from storage.catalog import Chunk
from storage.files import Files
from storage.layout import utc_text
from storage.retention import HANDED_OFF, Retention
from storage.state import BlockState

STAYS = "stays"


@dataclass(frozen=True)
class _Item:
    """A block or chunk, and what is to become of it."""

    partition: str
    what: str
    name: str
    first: str
    last: str
    rows: int
    bytes: int
    fate: str
    reason: str


@click.command()
@click.option("--dry-run", is_flag=True, help="Only what would go now, each with its reason.")
@click.option("--json", "as_json", is_flag=True, help="A JSON list of objects.")
@click.option(
    "--data-dir", "data_dirs", multiple=True, type=click.Path(path_type=Path),
    help="Repeat for several nodes.  [default: that of the settings]",
)  # fmt: skip
def retention(dry_run: bool, as_json: bool, data_dirs: tuple[Path, ...]) -> None:
    """List blocks and chunks, whether they stay or go, and why. The job deletes what goes: as soon
    as a day was handed over, and every tick interval; files follow after the grace period."""
    settings = load()
    view = take_view(Files(), list(data_dirs) or [settings.data_dir])
    items = [item for node in view.nodes for item in _items(node, settings.retention)]
    if dry_run:
        items = [item for item in items if item.fate != STAYS]
    if as_json:
        click.echo(orjson.dumps(items, option=orjson.OPT_INDENT_2))
        return
    table = Table("partition", "", "name", "first", "last", box=None, header_style="bold")
    for heading in ("rows", "bytes"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for item in items:
        table.add_row(
            item.partition, item.what, item.name, item.first, item.last, f"{item.rows:,}",
            f"{item.bytes:,}", f"{item.fate}: {item.reason}",
        )  # fmt: skip
    Console().print(table)
    for fate in sorted({item.fate for item in items}):
        mine = [item for item in items if item.fate == fate]
        rows, size = sum(item.rows for item in mine), sum(item.bytes for item in mine)
        click.echo(f"{fate}: {len(mine)} of {rows:,} events and {size:,} bytes")


def _items(node: NodeView, retention_ms: int) -> Iterator[_Item]:
    batch = node.batch or Batch()
    for partition in node.partitions:
        rule = Retention(batch, partition.state.stream_time_ms, retention_ms)
        for chunk in partition.chunks:
            yield _item(partition, chunk, rule)
        for block in partition.hot:
            yield _item(partition, block, rule)


def _item(partition: PartitionView, part: Chunk | BlockState, rule: Retention) -> _Item:
    reason = rule.reason(part)
    size = part.checksum.bytes if isinstance(part, Chunk) else sum(e.bytes for e in part.extents)
    fate = "goes" if reason else STAYS
    if isinstance(part, Chunk) and reason == HANDED_OFF and part.batch >= rule.batch.number:
        fate, reason = STAYS, "made since the last handoff, goes at the next"
    return _Item(
        partition.state.partition,
        "chunk" if isinstance(part, Chunk) else "block",
        str(part.id),
        utc_text(part.first_ms),
        utc_text(part.last_ms),
        part.rows,
        size,
        fate,
        reason or _kept(part, rule.batch),
    )


def _kept(part: Chunk | BlockState, batch: Batch) -> str:
    until_ms = batch.covered_until_ms
    if until_ms is None or part.first_ms >= until_ms:
        return "not handed over"
    return "straddles the boundary" if part.last_ms >= until_ms else "late table"
