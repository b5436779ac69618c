"""`forebay verify`: run every crash story against the installed build, and print the results."""

import itertools
import math
import re
import shutil
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import click
import polars as pl
from rich.console import Console
from rich.table import Table

from forebay.cli.engine import require_engine
from forebay.cli.example import example
from forebay.cli.options import json_option
from forebay.cli.output import echo_json
from forebay.verify.harness import Row, play
from forebay.verify.stories import STORIES

COLUMNS = ("events", "kills", "lost", "doubled", "seconds")


@click.command(epilog=example('forebay verify --story "torn log"'))
@json_option("The table as a JSON list.")
@click.option("--long", is_flag=True, help="Continue with new seeds until stopped.")
@click.option("--minutes", type=click.FloatRange(0), help="With --long: stop after this many.")
@click.option("--kills", type=click.IntRange(1), help="With --long: stop after this many.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--story", "names", multiple=True, type=click.Choice(list(STORIES)), help="Tell only this one."
)
@click.option(
    "--dir", "folder", type=click.Path(path_type=Path),
    help="Work here and keep everything.  [default: a temporary folder, kept on a difference]",
)  # fmt: skip
def verify(
    as_json: bool, long: bool, minutes: float | None, kills: int | None, seed: int,
    names: tuple[str, ...], folder: Path | None,
) -> None:  # fmt: skip
    """Kill the job at every dangerous step, and compare what comes out with what went in.

    Each story runs the real job on its own input. The table shows the results; on any difference
    the exit code is 1. Ctrl-C prints the table so far.
    """
    require_engine("verify")
    if not long and (minutes is not None or kills is not None):
        raise click.UsageError("--minutes, --kills: expected --long with them")
    until_s = time.monotonic() + 60 * (math.inf if minutes is None else minutes)
    names, seeds = names or tuple(STORIES), itertools.count(seed) if long else (seed,)
    if folder:
        _require_room(folder, names, seed, long)
    work = folder or Path(tempfile.mkdtemp(prefix="forebay-verify-"))
    console = Console(stderr=True, highlight=False)
    rows: list[Row] = []
    wrong = 0
    try:
        for now, name in ((now, name) for now in seeds for name in names):
            console.print(f"seed {now}: {name} ... ", end="")
            place = work / str(now) / _folder_of(name)
            row, fault = play(name, STORIES[name], place, now)
            died = "1 kill" if row.kills == 1 else f"{row.kills} kills"
            console.print(f"{row.events:,} events, {died}, {row.seconds} s")
            rows.append(row)
            if fault or row.lost or row.doubled:
                wrong += 1
                console.print(
                    f"[red]{row.story} went wrong[/]: {row.lost} lost, {row.doubled} doubled"
                )
                console.print(fault, markup=False)
            elif not folder:
                shutil.rmtree(place)
            if time.monotonic() > until_s or sum(r.kills for r in rows) >= (kills or math.inf):
                break
    except KeyboardInterrupt:
        console.print("stopped")
    _print(_summed(rows), as_json)
    if wrong:
        raise click.ClickException(f"{wrong} stories went wrong; their files are in {work}")
    if not folder:
        shutil.rmtree(work, ignore_errors=True)


def _require_room(folder: Path, names: tuple[str, ...], seed: int, long: bool) -> None:
    """Raise UsageError if a folder that a story needs is taken."""
    for name in names:
        for place in sorted(folder.glob(f"*/{_folder_of(name)}")):
            now = place.parent.name
            later = long and re.fullmatch(r"-?\d+", now) and int(now) > seed
            if now == str(seed) or later:
                raise click.UsageError(f"--dir: expected a folder without {place}")


def _folder_of(name: str) -> str:
    return re.sub(r"\W+", "-", name)


def _summed(rows: list[Row]) -> list[Row]:
    """One row per story."""
    stories = pl.DataFrame(rows).group_by("story", maintain_order=True) if rows else None
    return [] if stories is None else [Row(*row) for row in stories.sum().rows()]


def _print(rows: list[Row], as_json: bool) -> None:
    if as_json:
        echo_json([asdict(row) for row in rows])
        return
    table = Table("story", box=None)
    for column in COLUMNS:
        table.add_column(column, justify="right")
    total = Row("in all", *(sum(getattr(row, column) for row in rows) for column in COLUMNS))
    for row in [*rows, total]:
        table.add_row(
            row.story, *(f"{getattr(row, c):,}" for c in COLUMNS[:-1]), f"{row.seconds:.1f}"
        )
    Console().print(table)
