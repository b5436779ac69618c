"""MCP over standard input and output: tools for one model, in a process that it started.

What always holds: only the protocol gets to standard output; the process ends with its input, on
Ctrl-C and on SIGTERM, and its workers with it. Questions go to a worker as in a server, so
deadlines and memory limits are the same.
"""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

from mcp.server.stdio import stdio_server

from forebay.serve.config import Config
from forebay.serve.metrics import Metrics
from forebay.serve.pool import Pool
from forebay.serve.problems import Problem
from forebay.serve.protocol import server_of
from forebay.serve.sharing import Answers
from forebay.storage.base.errors import BadInput

INTERRUPTED = 130


def answer(config: Config) -> None:
    """Answer until the input ends; on a signal, end the process. Raises BadInput if data can't be
    read, BrokenPipeError if nobody reads the answers."""
    try:
        asyncio.run(_answer(config))
    except* BrokenPipeError as gone:
        raise BrokenPipeError from gone


async def _answer(config: Config) -> None:
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[int] = loop.create_future()

    def end(number: int) -> None:
        if not ended.done():
            ended.set_result(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end, int(number))
    metrics = Metrics()
    try:
        async with Pool(config, metrics) as pool:
            serving = asyncio.create_task(_serve(Answers(pool, config, metrics)))
            either: list[asyncio.Future[Any]] = [serving, ended]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    except Problem as problem:
        raise BadInput(problem.detail) from problem
    if ended.done():
        # A thread still waits for input, and the interpreter would wait for that thread.
        os._exit(INTERRUPTED if ended.result() == signal.SIGINT else 0)
    await serving


async def _serve(answers: Answers) -> None:
    server = server_of(answers)
    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())
