"""`forebay run`: the job, as a supervised cluster of workers."""

import gc
import logging
import os
import signal
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import click

from forebay import __version__
from forebay.cli.engine import require_engine
from forebay.cli.example import example
from forebay.storage.base.errors import PERMANENT, ForebayError

if TYPE_CHECKING:
    from forebay.flows.settings import Settings


def _open_standard_streams() -> None:
    """Open standard streams that the parent process closed. Otherwise the next opened file takes
    such a number: workers would have the lock as standard output, and write into it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            lowest_free = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(lowest_free, True)


def _exported(settings: "Settings") -> Callable[[], Mapping[str, str]]:
    """Serve metrics to Prometheus from now on; return what workers need for it."""
    from forebay.flows.exporter import Exporter  # not loaded in a job without metrics
    from forebay.flows.hosts import Address
    from forebay.flows.metrics import Published, ends_of
    from forebay.storage.base.layout import Layout

    published = Published(Layout(settings.data_dir), ends_of(settings))
    exporter = Exporter(Address.parse(settings.metrics), published)
    exporter.open()
    return exporter.renew


_HOSTS = """Run the job over several hosts, each with a data directory of its own: the same list on
all of them. The others connect to the port of host 0, and each host has a port above its own for
each worker."""


@click.command(epilog=example("forebay run --workers 2"))
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True)
@click.option("--hosts", "named", metavar="A:PORT,B:PORT", help=_HOSTS)
@click.option("--host", type=int, help="Which of --hosts this is, counted from 0.")
def run(workers: int, named: str | None, host: int | None) -> None:
    """Run the job until its input ends, or Ctrl-C (or SIGTERM) stops it. The next run continues
    where it stopped, and may have another number of workers."""
    if (named is None) != (host is None):
        raise click.UsageError("expected both --hosts and --host, or neither")
    _open_standard_streams()
    require_engine("run")
    stops = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        stops.append(signal.SIGHUP)
    for number in stops:
        signal.signal(number, lambda *_: os._exit(0))
    # Slow imports come only now: an early stop also ends with 0, at once, as nothing has begun.
    # What they load stays, so the garbage collector need not scan it.
    gc.disable()
    from forebay.flows.cluster import Cluster
    from forebay.flows.handshake import shared
    from forebay.flows.hosts import Hosts
    from forebay.flows.open_files import require_open_files
    from forebay.flows.settings import config_file, load, require_source
    from forebay.operators.sources.folder import FilesConfig, file_partitions

    gc.freeze()
    gc.enable()
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s supervisor %(levelname)s %(message)s"
    )
    try:
        hosts = None if named is None or host is None else Hosts.parse(named, host, workers)
        settings = load()
        require_source(settings)
        require_open_files(workers)
        if settings.source == "files" and not settings.data_dir.exists():
            # Otherwise it would be created before a worker finds that there is nothing to read.
            file_partitions(FilesConfig(settings.files.path, leave_out=settings.data_dir))
        same = {**shared(settings), "version": __version__}
        measured = _exported(settings) if settings.metrics else None
        cluster = Cluster(settings.data_dir, workers, hosts=hosts, shared=same, measured=measured)
        code = cluster.run()
    except ForebayError as error:
        told = str(error)
        if told.startswith("files.path") and not config_file().is_file():
            told += f" (the default, as there is no {config_file().absolute()})"
        click.echo(f"Error: {told}", err=True)
        raise SystemExit(PERMANENT) from error
    if code != PERMANENT:
        from forebay.cli.summary import summary  # reads data, unlike the supervisor

        click.echo("\n".join(summary(settings.data_dir)))
        if cluster.stopped and code == 0:
            click.echo("stopped as asked; the next run continues there")
    raise SystemExit(code)
