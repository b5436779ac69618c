"""`forebay serve`: a data directory asked over HTTP."""

import logging
import os
import signal
from importlib.util import find_spec
from pathlib import Path

import click
from pydantic import ByteSize, TypeAdapter, ValidationError

from forebay.cli.interrupt import INTERRUPTED
from forebay.cli.options import data_dirs_option, settings
from forebay.serve.config import Config
from forebay.storage.base.errors import BadInput
from forebay.storage.base.text import size_text
from forebay.storage.base.times import duration_ms

NEEDED = ("starlette", "uvicorn", "prometheus_client")
MEMORY = 2 << 30


def seconds(_context: click.Context, _option: click.Parameter, text: str) -> float:
    try:
        found = duration_ms(text) / 1000
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    if not found:
        raise click.BadParameter("expected more than 0")
    return found


def size(_context: click.Context, _option: click.Parameter, text: str) -> int:
    try:
        found = int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError as error:
        raise click.BadParameter(f"expected a size such as 512MiB, got {text!r}") from error
    if found < 1:
        raise click.BadParameter(f"expected more than 0, got {text!r}")
    return found


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen at.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True)
@click.option(
    "--allow-host", "hosts", multiple=True, metavar="NAME",
    help="By which clients may call it, beside its address; repeatable.",
)  # fmt: skip
@click.option(
    "--workers", type=click.IntRange(1, 64), default=2, show_default=True,
    help="Questions that are answered at once, each in a process.",
)  # fmt: skip
@click.option("--timeout", default="60s", show_default=True, callback=seconds, help="Of an answer.")
@click.option(
    "--memory", default=size_text(MEMORY).replace(" ", ""), show_default=True, callback=size,
    help="Of a worker, which is ended where it takes more.",
)  # fmt: skip
@click.option("--max-rows", type=click.IntRange(1), default=10_000_000, help="Of an answer.")
@click.option(
    "--max-waiting", type=click.IntRange(0), default=32, show_default=True,
    help="Questions that wait for a worker; others are refused.",
)  # fmt: skip
@click.option(
    "--tokens", type=click.Path(path_type=Path), metavar="FILE",
    help="Only who has a token of this file may ask; see forebay token.",
)  # fmt: skip
@click.option("--tls-cert", type=click.Path(path_type=Path), metavar="FILE", help="As PEM.")
@click.option("--tls-key", type=click.Path(path_type=Path), metavar="FILE", help="As PEM.")
@click.option("--behind-proxy", is_flag=True, help="A proxy before it has TLS.")
@click.option(
    "--time-zone", default="UTC", show_default=True, help="Of days, in SQL and in Amplitude's API."
)
@data_dirs_option()
def serve(
    host: str, port: int, hosts: tuple[str, ...], workers: int, timeout: float, memory: int,
    max_rows: int, max_waiting: int, tokens: Path | None, tls_cert: Path | None,
    tls_key: Path | None, behind_proxy: bool, time_zone: str, roots: list[Path],
) -> None:  # fmt: skip
    """Answer questions over HTTP: SQL, analytics, progress, rejects, and events as they come.

    It listens on this host alone, unless it is given tokens, and TLS or a proxy that has it. Its
    first page, /, names the paths; /docs says what each takes.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise BadInput(
            f"serve: expected the extra serve, got no {missing[0]}: pip install 'forebay[serve]'"
        )
    from forebay.serve.server import serve as run

    logging.basicConfig(level=logging.INFO, format="%(asctime)s serve %(levelname)s %(message)s")
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    config = Config(
        tuple(root.absolute() for root in roots), host, port, hosts, workers, timeout, memory,
        max_rows, waiting=max_waiting, tokens=tokens, tls_cert=tls_cert, tls_key=tls_key,
        behind_proxy=behind_proxy, catalog=dict(settings().batch.catalog), time_zone=time_zone,
    )  # fmt: skip
    named = ", ".join(map(str, roots))
    number = run(config, lambda address: click.echo(f"{named} is served at {address}"))
    if number == signal.SIGINT:
        raise SystemExit(INTERRUPTED)
    if number not in (0, signal.SIGTERM):
        os._exit(1)
