"""The benchmarks' command: `python -m benchmarks NAME`; `make bench BENCH=NAME EVENTS=N`.

Every figure is of this machine, in this run; see `report` for what is written where.
"""

from __future__ import annotations

import shlex
import sys

import click

from benchmarks import ingest as ingest_benchmark
from benchmarks.measure import Failed
from benchmarks.peer import PEERS
from benchmarks.report import Report

_events = click.option("--events", type=click.IntRange(1_000), default=1_000_000, show_default=True)
_runs = click.option("--runs", type=click.IntRange(1), default=3, show_default=True)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Measure Forebay, its ceiling, and what one would pick instead."""


@main.command()
@_events
@_runs
@click.option(
    "--variant", type=click.Choice(list(ingest_benchmark.VARIANTS)), default="plain",
    show_default=True,
)  # fmt: skip
@click.option("--peers", help="Names by comma, or none.  [default: all if plain, else none]")
def ingest(events: int, runs: int, variant: str, peers: str | None) -> None:
    """Events per CPU-second, from Kafka to committed and queryable."""
    if peers is None:
        peers = ",".join(PEERS) if variant == "plain" else "none"
    names = () if peers == "none" else tuple(peers.split(","))
    if unknown := set(names) - set(PEERS):
        raise click.BadParameter(f"expected peers among {', '.join(PEERS)}, got {unknown}")
    _finish(ingest_benchmark.run(events, runs, variant, names, _command()))


def _command() -> str:
    return shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])


def _finish(report: Report) -> None:
    click.echo(f"written to {report.write()}")


if __name__ == "__main__":
    try:
        main()
    except Failed as failure:
        raise SystemExit(str(failure)) from failure
