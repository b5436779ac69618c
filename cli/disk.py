"""`forebay disk`: what is kept on disk, what would be deleted now, and why."""

from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import astuple, dataclass
from pathlib import Path

import click

from forebay.cli.example import example
from forebay.cli.options import data_dirs_option, json_option, settings
from forebay.cli.output import echo_json, echo_table
from forebay.flows.settings import Settings
from forebay.query.partition import Partition
from forebay.query.view import NodeView, take_view
from forebay.storage.base.disk import Disk
from forebay.storage.base.layout import BlockId
from forebay.storage.base.text import count_text, size_text
from forebay.storage.base.times import now_ms, utc_text
from forebay.storage.formats.boundary import Boundary
from forebay.storage.formats.catalog import Chunk
from forebay.storage.formats.state import BlockState
from forebay.storage.partition.expiry import EXPIRED, HANDED_OFF, Expiry, Kept, kept, room
from forebay.storage.partition.gc import leaving

HEADINGS = ("partition", "what", "name", "first", "last", "rows", "bytes", "fate")
SUMMARY = ("fate", "what", "count", "rows", "size")
GOES, STAYS = "goes", "stays"
REJECTS = "rejects"


@dataclass(frozen=True)
class _Item:
    """A block, a chunk or a file of rejects, and what will become of it."""

    partition: str
    what: str
    name: str
    first: str
    last: str
    rows: int
    bytes: int
    fate: str
    reason: str


@click.command(epilog=example("forebay disk --dry-run"))
@click.option("--dry-run", is_flag=True, help="Only what would go now, each with its reason.")
@click.option(
    "--limit", type=click.IntRange(min=0), default=20, show_default=True,
    help="How many of them are listed one by one.",
)  # fmt: skip
@json_option("All of them, as a JSON list of objects.")
@data_dirs_option()
def disk(dry_run: bool, limit: int, as_json: bool, roots: list[Path]) -> None:
    """Show which blocks, chunks and files of rejects stay or go, and why: totals first, then one by
    one. The job deletes what goes as soon as a day was handed over, and every tick interval; files
    follow after the grace period."""
    view = take_view(Disk(), roots)
    items = [item for node in view.nodes for item in _items(node, settings())]
    if dry_run:
        items = [item for item in items if item.fate != STAYS]
    if as_json:
        echo_json(items)
        return
    if not items:
        click.echo("nothing goes now" if dry_run else "nothing is kept yet")
        return
    for fate in sorted({item.fate for item in items}):
        mine = [item for item in items if item.fate == fate]
        size = size_text(sum(item.bytes for item in mine))
        rejects = sum(item.rows for item in mine if item.what == REJECTS)
        events = sum(item.rows for item in mine) - rejects
        held = count_text(events, "event")
        held += f", {count_text(rejects, 'reject')}" if rejects else ""
        click.echo(f"{fate}: {size}, {held} ({len(mine):,} blocks, chunks and reject files)")
    click.echo()
    echo_table(SUMMARY, _summary(items), right=("count", "rows", "size"))
    listed = sorted(items, key=lambda item: item.fate)[:limit]
    if listed:
        click.echo()
        rows = [(*astuple(item)[:-2], f"{item.fate}: {item.reason}") for item in listed]
        echo_table(HEADINGS, rows, right=("rows", "bytes"))
    if len(items) > limit:
        click.echo(f"{len(items) - limit:,} more; --limit shows them", err=True)


def _summary(items: list[_Item]) -> list[tuple[str, str, int, int, str]]:
    """For each fate with its reason, and each kind: how many there are, their rows and their
    size."""
    groups = defaultdict(list)
    for item in items:
        groups[f"{item.fate}: {item.reason}", item.what].append(item)
    return [
        (
            fate,
            what,
            len(mine),
            sum(one.rows for one in mine),
            size_text(sum(b.bytes for b in mine)),
        )
        for (fate, what), mine in sorted(groups.items())
    ]


def _items(node: NodeView, settings: Settings) -> Iterator[_Item]:
    boundary, window_ms = node.boundary or Boundary(), settings.dedup_window
    found = (
        kept(one.state.stream_time_ms, one.chunks, one.hot, boundary, window_ms)
        for one in node.partitions
    )
    from_ms = room(sum(found, Kept()), settings.retention_bytes).from_ms
    for partition in node.partitions:
        rule = Expiry(boundary, partition.state.stream_time_ms, settings.retention, from_ms)
        leaves = {edit.block for edit in leaving(partition.state, boundary, window_ms, from_ms)}
        parts: list[Chunk | BlockState] = [*partition.chunks, *partition.hot]
        for part in parts:
            yield _item(partition, part, *_fate(part, rule.reason(part), boundary, leaves))
        yield from _rejects(partition, boundary, settings.rejects_retention)
        yield from _strays(partition)


def _rejects(partition: Partition, boundary: Boundary, kept_ms: int) -> Iterator[_Item]:
    """Files of rejects, by the arrival of the newest reject in each."""
    until_ms = boundary.covered_until_ms
    for extent in partition.state.rejects:
        file = partition.state.reject_files.get(extent.file)
        arrived_ms, fate = file.arrived_ms if file else None, (STAYS, "not old enough")
        if arrived_ms is not None and until_ms is not None and arrived_ms < until_ms:
            fate = GOES, HANDED_OFF
        elif arrived_ms is not None and kept_ms and arrived_ms < now_ms() - kept_ms:
            fate = GOES, EXPIRED
        last = utc_text(arrived_ms) if arrived_ms is not None else ""
        size = extent.bytes
        yield _Item(partition.name, REJECTS, extent.file, "", last, extent.rows, size, *fate)


def _fate(
    part: Chunk | BlockState, reason: str | None, boundary: Boundary, leaves: Collection[BlockId]
) -> tuple[str, str]:
    """What becomes of it, and why. `leaves` are the live blocks that may go."""
    taken, until_ms = reason == HANDED_OFF, boundary.covered_until_ms
    if isinstance(part, Chunk):
        if taken and part.batch >= boundary.number:
            return STAYS, "made since the last handoff, goes at the next"
    elif part.number is None and part.id not in leaves:
        return STAYS, "in the cache"
    if reason:
        return GOES, reason
    if until_ms is None or part.first_ms >= until_ms:
        return STAYS, "not handed over"
    return STAYS, "straddles the boundary" if part.last_ms >= until_ms else "late table"


def _strays(partition: Partition) -> Iterator[_Item]:
    """Files that no catalog names: replaced, withdrawn, or left by a killed run."""
    named = {*partition.chunk_paths}
    for path in sorted({*partition.layout.chunks(partition.name).rglob("*.parquet*")} - named):
        name, size = path.name, path.stat().st_size
        reason = "no catalog names it"
        yield _Item(partition.name, "file", name, "", "", 0, size, GOES, reason)


def _item(partition: Partition, part: Chunk | BlockState, fate: str, reason: str) -> _Item:
    if isinstance(part, Chunk):
        what, size = "chunk", part.checksum.bytes
    else:
        what, size = "block", sum(extent.bytes for extent in part.extents)
    times = utc_text(part.first_ms), utc_text(part.last_ms)
    return _Item(partition.name, what, str(part.id), *times, part.rows, size, fate, reason)
