"""`forebay serve`: a data directory over HTTP."""

import logging
import os
import signal
from pathlib import Path

import click

from forebay.cli.example import example
from forebay.cli.interrupt import INTERRUPTED
from forebay.cli.nodes import Places, places_option
from forebay.cli.options import (
    memory_option,
    require_extra,
    settings,
    time_zone_option,
    timeout_option,
)
from forebay.serve.config import Config

NEEDED = ("starlette", "uvicorn", "prometheus_client")


@click.command(epilog=example("forebay serve --port 8081 --timeout 30s"))
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True)
@click.option(
    "--allow-host", "hosts", multiple=True, metavar="NAME",
    help="Another name by which clients may address it; repeatable.",
)  # fmt: skip
@click.option(
    "--workers", type=click.IntRange(1, 64), default=2, show_default=True,
    help="Questions that are answered at once, each in a process.",
)  # fmt: skip
@timeout_option
@memory_option
@click.option(
    "--max-rows", type=click.IntRange(1), default=10_000_000, help="Row limit of an answer."
)
@click.option(
    "--max-waiting", type=click.IntRange(0), default=32, show_default=True,
    help="Questions that wait for a worker; others are refused.",
)  # fmt: skip
@click.option(
    "--tokens", type=click.Path(path_type=Path), metavar="FILE",
    help="Only holders of a token in this file may ask; see forebay token.",
)  # fmt: skip
@click.option("--tls-cert", type=click.Path(path_type=Path), metavar="FILE", help="As PEM.")
@click.option("--tls-key", type=click.Path(path_type=Path), metavar="FILE", help="As PEM.")
@click.option("--behind-proxy", is_flag=True, help="A proxy in front of it terminates TLS.")
@time_zone_option
@places_option()
def serve(
    host: str, port: int, hosts: tuple[str, ...], workers: int, timeout: float, memory: int,
    max_rows: int, max_waiting: int, tokens: Path | None, tls_cert: Path | None,
    tls_key: Path | None, behind_proxy: bool, time_zone: str, places: Places,
) -> None:  # fmt: skip
    """Answer questions over HTTP: SQL, analytics, progress, rejects, and events as they arrive.

    It listens on this host only, unless it is given tokens, and TLS or a proxy that provides it.
    Its first page, /, is for people; /docs says what programs can ask.
    """
    require_extra("serve", "serve", NEEDED)
    from forebay.serve.server import serve as run

    logging.basicConfig(level=logging.INFO, format="%(asctime)s serve %(levelname)s %(message)s")
    for name in ("mcp", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.WARNING)
    config = Config(
        tuple(root.absolute() for root in places.roots), host, port, hosts, workers, timeout,
        memory, max_rows, waiting=max_waiting, tokens=tokens, tls_cert=tls_cert, tls_key=tls_key,
        behind_proxy=behind_proxy, nodes=places.urls,
        node_seconds=min(places.seconds, timeout / 2), partial=places.partial,
        catalog=dict(settings().batch.catalog), time_zone=time_zone,
    )  # fmt: skip
    number = run(config, lambda address: click.echo(f"{places} is served at {address}"))
    if number == signal.SIGINT:
        raise SystemExit(INTERRUPTED)
    if number not in (0, signal.SIGTERM):
        os._exit(1)
