"""`forebay demo`: the real job over real and generated events, killed in the middle, then counted.

Steps: write a seeded load to files, with redelivered batches, late events and broken lines; run the
job; kill all of its processes with SIGKILL half-way; run it again to the end; compare every total
with the load's own. Then run the job over the GitHub sample. Any difference is an error.

It works in a folder of its own: others are refused, and only what an earlier demo made there is
deleted. The jobs have their own settings, whatever forebay.toml or the environment say.
"""

import gzip
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import click
import orjson
import polars as pl
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from forebay import query
from forebay.cli.engine import require_engine
from forebay.cli.example import example
from forebay.cli.load import COUNTS, Load, LoadSpec
from forebay.cli.outlet import files
from forebay.cli.output import PipedConsole
from forebay.cli.target import own_folder
from forebay.flows.settings import ENV_PREFIX
from forebay.query.receipt import MESSAGES
from forebay.storage.base.directory import ENTRIES
from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import BadInput
from forebay.storage.base.layout import Layout
from forebay.storage.formats.schema import UPLOAD_TIME

POLL_S = 0.2
KILL_AT = 0.5
CHART_ROWS = 8
BLOCKS = " ▁▂▃▄▅▆▇█"
MARKER = ".forebay-demo"
MADE = (
    "events", "data", "data.toml", "github", "github-data", "github-data.toml", "job.log",
)  # fmt: skip
SAMPLE = Path("tests/data/github-events-2021-07-21.ndjson.gz")
TOP = (
    "select event_type, count(*) as events, count(distinct user_id) as users from events"
    " group by event_type order by events desc limit 5"
)


@dataclass
class _Job:
    """A job of the demo: a folder of events, a schema, and the expected result; then the seconds
    that it took in total, and whether it was killed half-way."""

    name: str
    schema: str
    events: Path
    data: Path
    expected: dict[str, int]
    kill_at: float
    seconds: float = 0
    killed: bool = False

    @cached_property
    def store(self) -> query.Store:
        """The resulting data."""
        return query.open(self.data)

    @property
    def settings(self) -> Path:
        return self.data.with_suffix(".toml")

    @property
    def messages(self) -> int:
        return sum(self.expected[name] for name in ("accepted", "duplicates", "rejects"))

    def start(self, log: Path) -> subprocess.Popen[bytes]:
        """The job as a user starts it, in a process group of its own."""
        self.settings.write_text(
            f'source = "files"\ndata_dir = {_toml(self.data)}\nschema = {_toml(self.schema)}\n'
            f"files = {{ path = {_toml(self.events)} }}\n"
        )
        kept = {k: v for k, v in os.environ.items() if not k.upper().startswith(ENV_PREFIX)}
        environment = {**kept, f"{ENV_PREFIX}CONFIG": str(self.settings)}
        command = [sys.executable, "-m", "forebay", "run", "--workers", "2"]
        with log.open("ab") as out:
            return subprocess.Popen(
                command, env=environment, stdout=out, stderr=out, start_new_session=True
            )


@click.command(epilog=example("forebay demo --events 100000"))
@click.option(
    "--dir", "folder", type=click.Path(path_type=Path), default=Path("build/demo"),
    show_default=True, help="A new or empty folder, or that of an earlier demo, which is replaced.",
)  # fmt: skip
@click.option("--events", type=click.IntRange(1000), default=1_000_000, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--github", type=click.Path(path_type=Path), default=SAMPLE, show_default=True)
def demo(folder: Path, events: int, seed: int, github: Path) -> None:
    """Run the job on a load, kill it half-way, and show that nothing is lost or doubled."""
    require_engine("demo")
    for name in ("data", "github-data"):
        if Disk().locked(Layout(folder / name).lock):
            raise BadInput(f"{folder / name}: expected no job to run on it, one does")
    with own_folder(folder, MARKER, MADE, _is_ours):
        _demo(folder, events, seed, github)


def _demo(folder: Path, events: int, seed: int, github: Path) -> None:
    console = PipedConsole()
    bar = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*bar, console=console) as progress:
        jobs = [_generated(folder, events, seed, progress)]
        if github.is_file():
            jobs.append(_github(folder, github))
        else:
            console.print(f"no GitHub sample at {github}: leaving it out")
        for job in jobs:
            _run(job, folder / "job.log", progress)
    wrong = [fault for job in jobs for fault in _differences(job)]
    console.print(_summary(jobs))
    store = jobs[0].store
    console.print(f"\n[bold]{TOP}[/]")
    with pl.Config(tbl_hide_dataframe_shape=True, tbl_hide_column_data_types=True):
        console.print(str(store.sql(TOP)))
    console.print("\n[bold]events per minute of upload time[/]")
    console.print(_chart(store, console.width - 12), highlight=False)
    if wrong:
        raise click.ClickException("\n".join(wrong))
    data = escape(shlex.quote(str(jobs[0].data)))
    killed = ", after a SIGKILL half-way" if any(job.killed for job in jobs) else ""
    console.print(
        f"\nEvery total equals the load's own{killed}. Ask more, or look at it on a page:\n"
        f"  forebay sql --data-dir {data} 'select count(*) from events'\n"
        f"  forebay serve --data-dir {data}    # and open http://localhost:8080",
        highlight=False,
        soft_wrap=True,  # the command is to be copied
    )


def _is_ours(entry: Path) -> bool:
    """Whether a demo made this, judging by its name and its folder's."""
    if entry.parent.name in ("data", "github-data"):
        return entry.name in ENTRIES
    return re.fullmatch(r"part-\d{5}\.ndjson|events\.ndjson", entry.name) is not None


def _toml(value: object) -> str:
    return orjson.dumps(str(value)).decode()


def _generated(folder: Path, events: int, seed: int, progress: Progress) -> _Job:
    task = progress.add_task("writing events", total=events)
    load = Load(LoadSpec(events=events, seed=seed, span_ms=75 * 60_000, late=0.0005))
    with files(folder / "events", load.spec.partitions, "none") as outlet:
        for parts in load.slices():
            outlet.send(parts)
            progress.advance(task, min(load.spec.slice_events, events))
    expected = {name: int(load.totals[name]) for name in COUNTS if name != "messages"}
    kill_at = KILL_AT * load.totals["messages"]
    return _Job("generated", "amplitude", folder / "events", folder / "data", expected, kill_at)


def _github(folder: Path, sample: Path) -> _Job:
    """The sample, with its last hundred events redelivered; too short to be killed half-way."""
    lines = gzip.decompress(sample.read_bytes()).splitlines()
    unique = len({orjson.loads(line)["id"] for line in lines})
    lines += lines[-100:]
    target = folder / "github" / "events.ndjson"
    target.parent.mkdir()
    target.write_bytes(b"\n".join(lines))
    expected = {"accepted": unique, "duplicates": len(lines) - unique, "rejects": 0}
    return _Job("github", "github", target.parent, folder / "github-data", expected, math.inf)


def _run(job: _Job, log: Path, progress: Progress) -> None:
    """Run, kill half-way (unless the job ends first), run to the end."""
    task = progress.add_task(f"ingesting {job.name}", total=job.messages)
    started_s = time.monotonic()
    process = job.start(log)
    try:
        while process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(POLL_S)
            taken = _taken(job.data)
            progress.update(task, completed=taken)
            if taken >= job.kill_at and not job.killed and process.poll() is None:
                _kill(process)
                job.killed = True
                progress.console.print(f"SIGKILL at {taken:,} of {job.messages:,} messages; again")
                process = job.start(log)
    finally:
        _kill(process)
    if process.returncode:
        tail = log.read_text(errors="replace")[-2000:]
        raise click.ClickException(f"the job ended with {process.returncode}:\n{tail}")
    job.seconds = time.monotonic() - started_s


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Send SIGKILL to all of a job's processes; do nothing if it has ended."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _taken(data: Path) -> int:
    """Messages counted so far; 0 while there is nothing to read."""
    try:
        found = query.open(data).partitions()
    except BadInput:
        return 0
    return int(found.select(pl.sum_horizontal(MESSAGES).sum()).item())


def _differences(job: _Job) -> list[str]:
    """Every total that differs from the oracle's."""
    totals = job.store.partitions().select(pl.col(*job.expected).sum()).row(0, named=True)
    faults = [
        f"{job.name}: expected {name} {count}, got {totals[name]}"
        for name, count in job.expected.items()
        if totals[name] != count
    ]
    key, accepted = pl.struct("_partition", "_offset"), job.expected["accepted"]
    counted = job.store.scan().select(pl.len(), key.n_unique().alias("unique")).collect()
    rows, unique = counted.row(0)
    if rows != accepted or unique != accepted:
        faults.append(
            f"{job.name}: expected {accepted} events, a query finds {rows}, {unique} of them unique"
        )
    return faults


def _summary(jobs: list[_Job]) -> Table:
    table = Table("", *(job.name for job in jobs), title="after the restart", box=None)
    found = [job.store.partitions() for job in jobs]
    for name in (*COUNTS[1:], "hot_events", "cold_events", "chunks"):
        table.add_row(name, *(f"{partitions[name].sum():,}" for partitions in found))
    rates = [f"{job.messages / job.seconds:,.0f}" for job in jobs]
    table.add_row("messages/s, start-up and restart included", *rates)
    return table


def _chart(store: query.Store, width_max: int) -> str:
    """Events per minute as bars, one column per minute; the last ones that fit."""
    minutes = (
        store.scan()
        .group_by(pl.col(UPLOAD_TIME).dt.truncate("1m").alias("minute"))
        .agg(pl.len().alias("events"))
        .sort("minute")
        .collect()
        .upsample("minute", every="1m")
        .with_columns(pl.col("events").fill_null(0))
        .tail(width_max)
    )
    counts = minutes["events"].to_list()
    most = max(counts, default=1)
    lines = []
    for row in range(CHART_ROWS - 1, -1, -1):
        eighths = [round(8 * CHART_ROWS * count / most) - 8 * row for count in counts]
        label = f"{most:>9,} " if row == CHART_ROWS - 1 else " " * 10
        lines.append(label + "".join(BLOCKS[max(0, min(8, one))] for one in eighths))
    first, last = minutes["minute"][0], minutes["minute"][-1]
    width = max(len(counts), 11)
    lines.append(" " * 10 + f"{first:%H:%M}".ljust(width - 5) + f"{last:%H:%M}")
    return "\n".join(lines)
