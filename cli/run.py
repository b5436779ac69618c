"""`forebay run`: the job, as a supervised cluster of workers."""

from __future__ import annotations

import logging

import click

from flows.cluster import Cluster
from flows.settings import load


@click.command()
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True)
def run(workers: int) -> None:
    """Run the job until its input ends or SIGTERM. Workers may be more or fewer in another run."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s supervisor %(levelname)s %(message)s"
    )
    raise SystemExit(Cluster(load().data_dir, workers).run())
