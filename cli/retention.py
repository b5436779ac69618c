"""`forebay retention`: what is kept on disk, what would be deleted now, and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import orjson

from forebay.cli.roots import data_dirs_option, roots_of
from forebay.cli.table import echo_table
from forebay.flows.settings import Settings, load
from forebay.query.view import NodeView, PartitionView, take_view
from forebay.storage.base.disk import Disk
from forebay.storage.base.times import utc_text
from forebay.storage.formats.boundary import Boundary
from forebay.storage.formats.catalog import Chunk
from forebay.storage.formats.state import BlockState
from forebay.storage.partition.retention import HANDED_OFF, Retention

HEADINGS = ("partition", "what", "name", "first", "last", "rows", "bytes", "fate")
GOES, STAYS = "goes", "stays"


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
@data_dirs_option
def retention(dry_run: bool, as_json: bool, data_dirs: tuple[Path, ...]) -> None:
    """List blocks and chunks, whether they stay or go, and why. The job deletes what goes: as soon
    as a day was handed over, and every tick interval; files follow after the grace period."""
    settings = load()
    view = take_view(Disk(), roots_of(data_dirs, settings.data_dir))
    items = [item for node in view.nodes for item in _items(node, settings)]
    if dry_run:
        items = [item for item in items if item.fate != STAYS]
    if as_json:
        click.echo(orjson.dumps(items, option=orjson.OPT_INDENT_2))
        return
    rows = [
        (
            item.partition, item.what, item.name, item.first, item.last, f"{item.rows:,}",
            f"{item.bytes:,}", f"{item.fate}: {item.reason}",
        )
        for item in items
    ]  # fmt: skip
    if rows:
        echo_table(HEADINGS, rows, right=("rows", "bytes"))
    else:
        click.echo("nothing goes now" if dry_run else "nothing is kept yet")
    for fate in sorted({item.fate for item in items}):
        mine = [item for item in items if item.fate == fate]
        events, size = sum(item.rows for item in mine), sum(item.bytes for item in mine)
        click.echo(f"{fate}: {len(mine)} of {events:,} events and {size:,} bytes")


def _items(node: NodeView, settings: Settings) -> Iterator[_Item]:
    batch = node.batch or Boundary()
    for partition in node.partitions:
        rule = Retention(batch, partition.state.stream_time_ms, settings.retention)
        for chunk in partition.chunks:
            reason = rule.reason(chunk)
            if reason == HANDED_OFF and chunk.batch >= batch.number:
                yield _item(
                    partition, chunk, STAYS, "made since the last handoff, goes at the next"
                )
            else:
                yield _item(partition, chunk, *_fate(chunk, reason, batch))
        sure_ms = (batch.covered_until_ms or 0) - settings.dedup_window
        for block in partition.hot:
            reason = rule.reason(block)
            if block.number is None and (reason != HANDED_OFF or block.touched_ms > sure_ms):
                yield _item(partition, block, STAYS, "in the cache")
            else:
                yield _item(partition, block, *_fate(block, reason, batch))
        yield from _strays(partition)


def _fate(part: Chunk | BlockState, reason: str | None, batch: Boundary) -> tuple[str, str]:
    return (GOES, reason) if reason else (STAYS, _kept(part, batch))


def _strays(partition: PartitionView) -> Iterator[_Item]:
    """Files that no catalog names: replaced, withdrawn, or left by a run that was killed."""
    named = {*partition.chunk_paths}
    for path in sorted({*partition.chunks_folder.rglob("*.parquet*")} - named):
        name, size = path.name, path.stat().st_size
        told = "no catalog names it"
        yield _Item(partition.state.partition, "file", name, "", "", 0, size, GOES, told)


def _item(partition: PartitionView, part: Chunk | BlockState, fate: str, reason: str) -> _Item:
    size = part.checksum.bytes if isinstance(part, Chunk) else sum(e.bytes for e in part.extents)
    return _Item(
        partition.state.partition,
        "chunk" if isinstance(part, Chunk) else "block",
        str(part.id),
        utc_text(part.first_ms),
        utc_text(part.last_ms),
        part.rows,
        size,
        fate,
        reason,
    )


def _kept(part: Chunk | BlockState, batch: Boundary) -> str:
    until_ms = batch.covered_until_ms
    if until_ms is None or part.first_ms >= until_ms:
        return "not handed over"
    return "straddles the boundary" if part.last_ms >= until_ms else "late table"
