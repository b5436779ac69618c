"""The server: its socket, the front, its workers, and shutdown.

What always holds: it ends at once on SIGTERM and SIGINT, and leaves no process of its own behind,
however it ends: its processes end with the pipe to them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import uvicorn

from forebay.serve.config import Config
from forebay.serve.feed import Feed
from forebay.serve.files import Files
from forebay.serve.front import front
from forebay.serve.gate import Gate
from forebay.serve.mcp import Mcp
from forebay.serve.metrics import Metrics
from forebay.serve.pool import Pool
from forebay.serve.problems import Problem
from forebay.serve.sharing import Answers
from forebay.serve.tokens import Tokens
from forebay.storage.base.errors import BadInput

CONNECTIONS_MAX = 1000
BACKLOG = 256


class _Server(uvicorn.Server):
    """Leaves signals to the caller."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def require_safe(config: Config) -> None:
    """Raise BadInput for an address beyond this host without tokens, or without TLS or a proxy that
    provides it."""
    if (config.tls_cert is None) != (config.tls_key is None):
        raise BadInput("serve: expected --tls-cert with --tls-key, got one of them")
    if config.loopback and not config.behind_proxy:
        return
    needed = []
    if config.tokens is None:
        needed.append("--tokens FILE (forebay token add NAME makes it)")
    if config.tls_cert is None and not config.behind_proxy:
        needed.append("--tls-cert and --tls-key, or --behind-proxy where a proxy has TLS")
    if not config.hosts and (config.behind_proxy or config.host in ("0.0.0.0", "::")):
        needed.append("--allow-host NAME, by which clients call it")
    if needed:
        raise BadInput(f"serve: expected {'; '.join(needed)}: {config.host} is open to others")


def serve(config: Config, told: Callable[[str], None]) -> int:
    """Serve until a signal; return its number. `told` is called with the address once it answers.
    Raises BadInput."""
    require_safe(config)
    tokens = None if config.tokens is None else Tokens(config.tokens)
    if config.tls_cert is not None:
        _require_certificate(config.tls_cert, config.tls_key)
    with _listening(config) as listening:
        return asyncio.run(_serve(config, tokens, listening, told))


def _require_certificate(certificate: Path, key: Path | None) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except (OSError, ValueError) as error:  # an SSLError is an OSError
        raise BadInput(f"--tls-cert: expected a certificate and its key, got {error}") from error


def _listening(config: Config) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        listening = socket.create_server((config.host, config.port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        raise BadInput(
            f"serve: expected an address to listen at, got {config.host}:{config.port}: {error}"
        ) from error
    # Accepted connections inherit it. Otherwise the body of an answer waits until the client has
    # acknowledged its head, which takes 40 ms.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


async def _serve(
    config: Config,
    tokens: Tokens | None,
    listening: socket.socket,
    told: Callable[[str], None],
) -> int:
    loop = asyncio.get_running_loop()
    metrics = Metrics()
    ended: asyncio.Future[int] = loop.create_future()

    def end(number: int) -> None:
        if not ended.done():
            ended.set_result(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end, int(number))
    feed = Feed(config, metrics)
    try:
        async with Pool(config, metrics) as pool, _compiling():
            answers = Answers(pool, config, metrics)
            files, mcp = Files(answers, config, metrics), Mcp(answers, config, metrics)
            app = front(config, tokens, pool, answers, feed, files, mcp, metrics)
            server = _server(config, app)
            serving = asyncio.create_task(server.serve([listening]))
            scheme = "http" if config.tls_cert is None else "https"
            host = f"[{config.host}]" if ":" in config.host else config.host
            told(f"{scheme}://{host}:{listening.getsockname()[1]}")
            either: list[asyncio.Future[Any]] = [serving, ended]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            server.should_exit = server.force_exit = True
            await serving
            await mcp.close()
            files.close()
    except Problem as problem:
        raise BadInput(problem.detail) from problem
    finally:
        await feed.close()
    return ended.result() if ended.done() else 0


@asynccontextmanager
async def _compiling() -> AsyncIterator[None]:
    """Meanwhile, another process compiles what the first funnel would otherwise wait for."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "forebay.serve.compiling",
        stdin=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONSAFEPATH": "1"},
    )
    try:
        yield
    finally:
        with suppress(ProcessLookupError):  # it has ended
            process.kill()
        await process.wait()


def _is_news(record: logging.LogRecord) -> bool:
    """Drop reports of answers cut off: these are logged with the reason, or end with the server."""
    ended = record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError)
    return not ended and "without completing response" not in record.getMessage()


def _server(config: Config, app: Gate) -> _Server:
    made = uvicorn.Config(
        app,
        lifespan="off",
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=CONNECTIONS_MAX,
        ssl_certfile=config.tls_cert,
        ssl_keyfile=config.tls_key,
    )
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    return _Server(made)
