"""`forebay batch`: handing over to a batch layer, step by step or with the one included."""

from datetime import datetime
from pathlib import Path

import click
import orjson
import polars as pl
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from forebay import query
from forebay.cli.example import example
from forebay.cli.options import data_dirs_option, force_option, json_option, settings, time_option
from forebay.cli.output import echo_json
from forebay.cli.target import new_file
from forebay.storage.base.errors import BadInput
from forebay.storage.base.text import count_text
from forebay.storage.base.times import now_ms, utc_text
from forebay.storage.formats.boundary import Boundary
from forebay.storage.formats.schema import UPLOAD_TIME
from forebay.storage.handoff import Handoff

SHOWN = 5
NOTES = {
    "written": "",
    "taken up": " (written by a run that did not complete it; now completed)",
    "completed before": " (completed before: nothing to do)",
}

through_option = time_option(
    "--through", "until_ms", required=True,
    help="Upload time up to which, not included: 2024-05-02 is the end of the 1st (UTC).",
)  # fmt: skip


@click.group(epilog=example("forebay batch run --catch-up"))
def batch() -> None:
    """Hand days over to a batch layer. Each command may be repeated, and run by any scheduler."""


@batch.command(epilog=example("forebay batch seal --through 2024-05-02"))
@through_option
@data_dirs_option()
def seal(until_ms: int, roots: list[Path]) -> None:
    """From now on, new events for earlier upload times are late: what is there never changes.

    Returns when no crash can undo that. Then read the table `events_sealed`, which includes the
    late table, and run `complete --late`.
    """
    with Handoff(roots) as handoff:
        for found in handoff.seal(until_ms):
            number = found.seal.number if found.seal else 0
            click.echo(f"sealed until {utc_text(until_ms)}, seal {number}")


@batch.command(epilog=example("forebay batch complete --through 2024-05-02 --late"))
@through_option
@click.option("--late", is_flag=True, help="The batch layer has taken the late table as well.")
@data_dirs_option()
def complete(until_ms: int, late: bool, roots: list[Path]) -> None:
    """From now on, the batch layer answers for earlier upload times. Seals them if needed: events
    that arrived since you read them are then hidden, so `seal` before you read."""
    with Handoff(roots) as handoff:
        handoff.seal(until_ms)
        for found in handoff.complete(now_ms(), late=late):
            click.echo(f"batch {found.number}, covered until {utc_text(until_ms)}")


@batch.command(epilog=example("forebay batch show --json"))
@json_option("As one JSON object.")
@data_dirs_option()
def show(as_json: bool, roots: list[Path]) -> None:
    """The batch number, the boundary, the seal, the late table's size and the last handoffs."""
    store = query.open(*roots)
    late = _late_by_day(store)
    view = store.last_view
    found = {
        "batch_number": view.batch_number,
        "covered_until": _text(view.covered_until_ms),
        "sealed_until": _text(view.sealed_until_ms),
        "late_events": int(late["events"].sum()),
        "table": view.table,
    }
    nodes = {
        str(node.root): [
            {
                "number": one.number,
                "covered_until": utc_text(one.covered_until_ms),
                "at": utc_text(one.at_ms),
                "table": one.table,
            }
            for one in (node.boundary or Boundary()).history
        ]
        for node in view.nodes
    }
    if as_json:
        histories = [{"node": node, "history": history} for node, history in nodes.items()]
        echo_json({**found, "nodes": histories})
        return
    for name, value in found.items():
        click.echo(f"{name.replace('_', ' '):14} {'-' if value is None else value}")
    for node, history in nodes.items():
        for one in history[-SHOWN:]:
            since = f"covered until {one['covered_until']}, since {one['at']}"
            click.echo(f"{node}: batch {one['number']} {since}")


@batch.command(epilog=example("forebay batch late --export late.parquet --force"))
@click.option(
    "--export", "file", type=click.Path(path_type=Path, dir_okay=False),
    help="Write the late table to this Parquet file.",
)  # fmt: skip
@force_option
@data_dirs_option()
def late(file: Path | None, force: bool, roots: list[Path]) -> None:
    """The late table: events that arrived after their time was handed over. `batch run` takes them
    with the next day; for your own batch layer, they are in `events_sealed` after a seal."""
    store = query.open(*roots)
    if file is not None:
        with new_file(file, force=force) as temporary:
            store.late().sink_parquet(temporary)
    found = _late_by_day(store)
    for row in found.iter_rows(named=True):
        click.echo(f"{row['day']}  {row['events']:,}")
    click.echo(count_text(int(found["events"].sum()), "late event"))


@batch.command(epilog=example("forebay batch run --catch-up"))
@click.option("--day", type=click.DateTime(["%Y-%m-%d"]), help="The day (UTC) to hand over.")
@click.option("--catch-up", is_flag=True, help="All days that are over and not handed over.")
@json_option("One JSON object a day.")
@data_dirs_option()
def run(day: datetime | None, catch_up: bool, as_json: bool, roots: list[Path]) -> None:
    """The included batch layer: write a day's events, once each, into an Iceberg table."""
    if (day is None) != catch_up:
        raise BadInput("batch run: expected either --day or --catch-up")
    try:
        from forebay.flows.batch import missing_days, run_day
    except ModuleNotFoundError as error:
        raise BadInput(
            f"batch run: expected the extra batch, got no {error.name}:"
            " pip install 'forebay[batch]'"
        ) from error
    days = missing_days(roots) if day is None else [day.date()]
    for one in days:
        with _progress(quiet=as_json) as bar:
            task = bar.add_task(f"{one}", total=None)

            def show_rows(done: int, total: int) -> None:
                bar.update(task, completed=done, total=total)  # noqa: B023

            report = run_day(roots, settings().batch, one, show_rows)
        if as_json:
            click.echo(orjson.dumps(report))
            continue
        click.echo(
            f"{report.day}: batch {report.number}, {count_text(report.rows, 'event')},"
            f" {count_text(report.duplicates, 'duplicate')} across partitions, {report.late:,} late"
            + NOTES[report.outcome]
        )
    if not days:
        click.echo("no day is over that was not handed over", err=True)


def _progress(*, quiet: bool) -> Progress:
    console = Console(stderr=True)
    bar = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*bar, console=console, disable=quiet or not console.is_terminal)


def _late_by_day(store: query.Store) -> pl.DataFrame:
    day = pl.col(UPLOAD_TIME).dt.date().alias("day")
    return store.late().group_by(day).agg(pl.len().alias("events")).sort("day").collect()


def _text(ms: int | None) -> str | None:
    return None if ms is None else utc_text(ms)
