"""`forebay run`: the job, as a supervised cluster of workers."""

from __future__ import annotations

import gc
import logging
import signal
import sys

import click

from storage.errors import PERMANENT, ForebayError


@click.command()
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True)
def run(workers: int) -> None:
    """Run the job until its input ends or SIGTERM. Workers may be more or fewer in another run."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: sys.exit(0))
    # Only now what takes time to import: a stop that comes early ends with 0 as well. It stays, so
    # the garbage collector need not look through it.
    gc.disable()
    from flows.cluster import Cluster
    from flows.settings import load, require_source

    gc.freeze()
    gc.enable()
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s supervisor %(levelname)s %(message)s"
    )
    try:
        settings = load()
        require_source(settings)
        code = Cluster(settings.data_dir, workers).run()
    except ForebayError as error:
        click.echo(f"Error: {error}", err=True)
        raise SystemExit(PERMANENT) from error
    if code != PERMANENT:
        from cli.summary import summary  # reads data, which a supervisor does not

        click.echo("\n".join(summary(settings.data_dir)))
    raise SystemExit(code)
