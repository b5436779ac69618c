"""`forebay retention`: what is kept on disk, what would be deleted now, and why."""

from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path

import click

from forebay.cli.options import data_dirs_option, json_option, settings
from forebay.cli.output import echo_json, echo_table
from forebay.flows.settings import Settings
from forebay.query.view import NodeView, take_view
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
@json_option("A JSON list of objects.")
@data_dirs_option()
def retention(dry_run: bool, as_json: bool, roots: list[Path]) -> None:
    """List blocks and chunks, whether they stay or go, and why. The job deletes what goes: as soon
    as a day was handed over, and every tick interval; files follow after the grace period."""
    view = take_view(Disk(), roots)
    items = [item for node in view.nodes for item in _items(node, settings())]
    if dry_run:
        items = [item for item in items if item.fate != STAYS]
    if as_json:
        echo_json(items)
        return
    rows = [(*astuple(item)[:-2], f"{item.fate}: {item.reason}") for item in items]
    if rows:
        echo_table(HEADINGS, rows, right=("rows", "bytes"))
    else:
        click.echo("nothing goes now" if dry_run else "nothing is kept yet")
    for fate in sorted({item.fate for item in items}):
        mine = [item for item in items if item.fate == fate]
        events, size = sum(item.rows for item in mine), sum(item.bytes for item in mine)
        click.echo(f"{fate}: {len(mine)} of {events:,} events and {size:,} bytes")


def _items(node: NodeView, settings: Settings) -> Iterator[_Item]:
    boundary = node.boundary or Boundary()
    sure_ms = (boundary.covered_until_ms or 0) - settings.dedup_window
    for partition in node.partitions:
        rule = Retention(boundary, partition.state.stream_time_ms, settings.retention)
        parts: list[Chunk | BlockState] = [*partition.chunks, *partition.hot]
        for part in parts:
            if isinstance(part, Chunk):
                what, size = "chunk", part.checksum.bytes
            else:
                what, size = "block", sum(extent.bytes for extent in part.extents)
            times = utc_text(part.first_ms), utc_text(part.last_ms)
            fate = _fate(part, rule.reason(part), boundary, sure_ms)
            yield _Item(partition.name, what, str(part.id), *times, part.rows, size, *fate)
        # Replaced, withdrawn, or left by a run that was killed.
        found = {*partition.layout.chunks(partition.name).rglob("*.parquet*")}
        for path in sorted(found - {*partition.chunk_paths}):
            size = path.stat().st_size
            reason = "no catalog names it"
            yield _Item(partition.name, "file", path.name, "", "", 0, size, GOES, reason)


def _fate(
    part: Chunk | BlockState, reason: str | None, boundary: Boundary, sure_ms: int
) -> tuple[str, str]:
    """What becomes of it, and why. `sure_ms`: a live block that was touched later does not go."""
    taken, until_ms = reason == HANDED_OFF, boundary.covered_until_ms
    if isinstance(part, Chunk):
        if taken and part.batch >= boundary.number:
            return STAYS, "made since the last handoff, goes at the next"
    elif part.number is None and (not taken or part.touched_ms > sure_ms):
        return STAYS, "in the cache"
    if reason:
        return GOES, reason
    if until_ms is None or part.first_ms >= until_ms:
        return STAYS, "not handed over"
    return STAYS, "straddles the boundary" if part.last_ms >= until_ms else "late table"
