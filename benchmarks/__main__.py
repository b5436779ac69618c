"""The benchmarks' command: `python -m benchmarks NAME`; `make bench BENCH=NAME EVENTS=N`.

`all` runs each in a process of its own, at its default size. Every figure is for this machine, in
this run; see `report` for what is written where.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module

import click

from benchmarks import ingest as ingest_benchmark
from benchmarks.measure import ROOT, Failed
from benchmarks.peer import PEERS
from benchmarks.report import Report
from forebay.flows.cluster import WORKER_ENVIRONMENT

PLAIN = (
    "scale", "checkpoint", "memory", "recovery", "freshness", "query", "chunks", "analytics",
    "serve",
)  # fmt: skip
"""Modules of this package with `EVENTS` and `run(events, runs, command)`."""
AS_A_WORKER = ("checkpoint", "memory", "recovery", "chunks")
"""Those that do a worker's work in their own process, which needs a worker's environment."""

_runs = click.option("--runs", type=click.IntRange(1), default=3, show_default=True)


Command = Callable[..., None]


def _events(default: int) -> Callable[[Command], Command]:
    return click.option("--events", type=click.IntRange(1_000), default=default, show_default=True)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Measure Forebay, its ceiling, and what one would pick instead."""


@main.command()
@_events(1_000_000)
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


def _add(name: str) -> None:
    module = import_module(f"benchmarks.{name}")

    @main.command(name, help=module.run.__doc__)
    @_events(module.EVENTS)
    @_runs
    def command(events: int, runs: int) -> None:
        if name in AS_A_WORKER and not os.environ.keys() >= WORKER_ENVIRONMENT.keys():
            again = [sys.executable, "-m", "benchmarks", *sys.argv[1:]]
            os.execve(sys.executable, again, {**os.environ, **WORKER_ENVIRONMENT})
        _finish(module.run(events, runs, _command()))


for _name in PLAIN:
    _add(_name)


@main.command("all")
def everything() -> None:
    """Every benchmark, and every variant of `ingest`, one after the other."""
    variants = [("ingest", "--variant", variant) for variant in ingest_benchmark.VARIANTS]
    failed = []
    for arguments in (*variants, *((name,) for name in PLAIN)):
        name, started_s = " ".join(arguments), time.monotonic()
        command = [sys.executable, "-m", "benchmarks", *arguments]
        if subprocess.run(command, cwd=ROOT, check=False).returncode:
            failed.append(name)
        click.echo(f"{name} took {time.monotonic() - started_s:.0f} s\n")
    if failed:
        raise Failed(f"these could not be run: {', '.join(failed)}")


def _command() -> str:
    return shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])


def _finish(report: Report) -> None:
    click.echo(f"written to {report.write()}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        main()
    except Failed as failure:
        raise SystemExit(str(failure)) from failure
