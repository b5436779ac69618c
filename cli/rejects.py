"""`forebay rejects`: the messages that could not become events: list, replay, delete them."""

import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import click
import polars as pl

from forebay import query
from forebay.cli.example import example
from forebay.cli.export import json_line, write_rows
from forebay.cli.options import data_dirs_option, force_option, json_option, reject_filter_options
from forebay.cli.output import echo_table, time_text
from forebay.cli.requests import pending_lines, pending_requests
from forebay.cli.target import new_file
from forebay.query.view import View
from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import BadInput
from forebay.storage.base.layout import Layout, is_hash_partition
from forebay.storage.base.running import job_runs
from forebay.storage.base.text import count_text, did_you_mean, plain, plain_lines, shortened
from forebay.storage.formats.frame import REJECT_SCHEMA
from forebay.storage.formats.outcome import reason_text
from forebay.storage.formats.rejects import ALL, RejectFilter
from forebay.storage.formats.replay_request import ReplayRequest, ask

SHOWN_CHARACTERS = 60
HEADINGS = ("partition", "offset", "broker time", "reason", "message")
SUFFIXES = (".ndjson", ".jsonl", ".parquet")


@click.group(epilog=example("forebay rejects list --limit 5"))
def rejects() -> None:
    """List, show, export, replay or delete the messages that could not become events."""


@rejects.command(name="list", epilog=example('forebay rejects list --reason "bad json" --limit 10'))
@reject_filter_options
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True)
@json_option("As NDJSON, as `export` writes it.")
@data_dirs_option()
def list_(limit: int, as_json: bool, roots: list[Path], **options: Any) -> None:
    """List rejects, by partition and offset."""
    store = query.open(*roots)
    found = store.rejects(_meant(store.last_view, options)).sort("_partition", "_offset")
    first = found.head(limit + 1).collect()
    shown = first.head(limit)
    if as_json:
        for row in shown.iter_rows(named=True):
            click.echo(json_line(row, ("message",)), nl=False)
    elif shown.height:
        rows = [
            (
                row["_partition"], str(row["_offset"]), time_text(row["broker_time"], ms=True),
                reason_text(row), _beginning(row["message"] or b""),
            )
            for row in shown.iter_rows(named=True)
        ]  # fmt: skip
        echo_table(HEADINGS, rows, right=("offset",))
    else:
        click.echo("no rejects")
    if first.height > limit:
        click.echo(f"the first {limit}; --limit shows more", err=True)
    for line in pending_lines(pending_requests(store.last_view)):
        click.echo(line, err=True)


@rejects.command(epilog=example("forebay rejects show part-00000.ndjson 17"))
@click.argument("partition")
@click.argument("offset", type=int)
@click.option("--raw", is_flag=True, help="The message alone, byte for byte.")
@data_dirs_option()
def show(partition: str, offset: int, raw: bool, roots: list[Path]) -> None:
    """Show the reject at an offset: the reason, and the whole message."""
    meant = RejectFilter(partitions=(partition,), offsets=(offset,))
    rows = query.open(*roots).rejects(meant).collect().to_dicts()
    if not rows:
        raise BadInput(f"rejects show: expected a reject at {partition} {offset}, got none")
    for row in rows:
        message = row["message"] or b""
        if raw:
            sys.stdout.buffer.write(message)
            continue
        shown = {
            "partition": plain(row["_partition"]), "offset": row["_offset"],
            "broker time": time_text(row["broker_time"], ms=True), "reason": reason_text(row),
            "bytes": len(message),
        }  # fmt: skip
        click.echo("".join(f"{name:13}{value}\n" for name, value in shown.items()))
        # Invalid UTF-8 and control characters are shown as escapes.
        click.echo(plain_lines(message.decode(errors="backslashreplace")))


@rejects.command(epilog=example("forebay rejects export rejects.ndjson --force"))
@reject_filter_options
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@force_option
@data_dirs_option()
def export(file: Path, force: bool, roots: list[Path], **options: Any) -> None:
    """Write rejects to FILE.ndjson or FILE.parquet.

    In NDJSON, a message that is UTF-8 is `message`, any other is `message_base64`.
    """
    if file.suffix not in SUFFIXES:
        raise BadInput(f"rejects export: expected {', '.join(SUFFIXES)}; got {file.name!r}")
    store = query.open(*roots)
    batches = store.reject_batches(_meant(store.last_view, options))
    with new_file(file, force=force) as temporary:
        rows = write_rows(temporary, file.suffix, REJECT_SCHEMA, batches)
    click.echo(f"{count_text(rows, 'reject')} in {file}")


@rejects.command(epilog=example('forebay rejects replay --reason "too large"'))
@reject_filter_options
@data_dirs_option(multiple=False)
def replay(roots: list[Path], **options: Any) -> None:
    """Have the job decode rejects again, under the configuration that it runs with.

    Rejects that pass become events, or duplicates, exactly once; the others stay rejects. The job
    does it within seconds if it runs, else when it is started.
    """
    disk, layout, store = Disk(), Layout(*roots), query.open(*roots)
    view = store.last_view
    if any(is_hash_partition(partition.name) for partition in view.partitions):
        raise BadInput(
            "rejects replay: expected partitions that are the source's own, got hash partitions"
            " (hash_partitions): export the rejects and send them again instead"
        )
    meant = _meant(view, options)
    _tell_pending(view)
    count = store.rejects(meant).select(pl.len()).collect().item()
    if not count:
        click.echo("no rejects to replay")
        return
    runs = {p.name: p.state.incarnation for p in view.partitions}
    request = ask(disk, layout, meant, runs)
    if all(partition.state.replays >= request.number for partition in view.partitions):
        click.echo(
            f"request {request.number} was carried out in this run;"
            f" rejects that still fail: {count:,}"
        )
    else:
        _tell(disk, layout, request, count)


@rejects.command(epilog=example('forebay rejects delete --reason "bad json" --dry-run'))
@reject_filter_options
@click.option("--dry-run", is_flag=True, help="Only count them, by reason.")
@click.option("--yes", is_flag=True, help="Don't ask.")
@data_dirs_option(multiple=False)
def delete(dry_run: bool, yes: bool, roots: list[Path], **options: Any) -> None:
    """Have the job delete rejects: those that exist now, not later ones.

    They are counted as `rejects_expired`, and their messages are gone: use `export` first to keep
    them in a file. The job does it within seconds if it runs, else when it is started; files follow
    after the grace period.
    """
    if dry_run and yes:
        raise click.UsageError("expected --dry-run or --yes, got both")
    disk, layout, store = Disk(), Layout(*roots), query.open(*roots)
    view = store.last_view
    meant = _meant(view, options)
    _tell_pending(view)
    if meant == ALL:
        # Counted from what is known about files, so that unreadable ones can be deleted too.
        counters = [partition.state.counters for partition in view.partitions]
        count = sum(one.rejects for one in counters)
        found = sum((Counter(one.rejected) for one in counters), Counter[str]())
    else:
        reasons = store.rejects(meant).group_by("reason").len().collect()
        found = Counter(dict(reasons.iter_rows()))
        count = found.total()
    if not count:
        click.echo("no rejects to delete")
        return
    for reason, rows in found.most_common():
        click.echo(f"{rows:,} {plain(reason)}")
    if dry_run:
        click.echo(f"{count_text(count, 'reject')} would be deleted")
        return
    if not yes:
        if not _at_terminal():
            raise BadInput("rejects delete: expected --yes where there is no terminal to ask at")
        if not _confirmed(f"Delete {count_text(count, 'reject')}?"):
            return
    runs = {p.name: p.state.incarnation for p in view.partitions}
    next_offsets = {p.name: dict(p.state.next_offsets) for p in view.partitions}
    _tell(disk, layout, ask(disk, layout, meant, runs, next_offsets), count)


def _at_terminal() -> bool:
    return sys.stdin.isatty()


def _confirmed(question: str) -> bool:
    """The user's answer; Ctrl-C ends the command as elsewhere."""
    signal.siginterrupt(signal.SIGINT, True)  # with Polars' handler, a read would continue
    try:
        return click.confirm(question)
    except click.Abort:
        raise KeyboardInterrupt from None


def _tell_pending(view: View) -> None:
    for line in pending_lines(pending_requests(view)):
        click.echo(line)


def _tell(disk: Disk, layout: Layout, request: ReplayRequest, count: int) -> None:
    asked = f"request {request.number}: {count_text(count, 'reject')}"
    if job_runs(disk, layout):
        click.echo(f"{asked}; the job takes it up within seconds")
    else:
        click.echo(f"{asked}; no job runs, the next one does it")


def _meant(view: View, options: dict[str, Any]) -> RejectFilter:
    """Raises BadInput for a partition that nothing was read from: to report that it has no rejects
    would be true, but would hide a typing error."""
    meant = RejectFilter(**options)
    states = [partition.state for partition in view.partitions]
    known = {name for state in states for name in (state.partition, *state.next_offsets)}
    for name in meant.partitions:
        if name not in known:
            raise BadInput(
                "partition: expected one that messages were read from,"
                f" got {name!r}{did_you_mean(name, known)}"
            )
    return meant


def _beginning(message: bytes) -> str:
    text = plain(message[: 4 * SHOWN_CHARACTERS].decode(errors="backslashreplace"))
    return shortened(text, SHOWN_CHARACTERS)
