"""`forebay mcp`: a language model asks a data directory, over standard input and output."""

import logging
import sys
from pathlib import Path

import click

from forebay.cli.example import example
from forebay.cli.options import (
    data_dirs_option,
    memory_option,
    require_extra,
    settings,
    time_zone_option,
    timeout_option,
)
from forebay.serve.config import Config


@click.command(epilog=example("forebay mcp --timeout 30s"))
@timeout_option
@memory_option
@time_zone_option
@data_dirs_option()
def mcp(timeout: float, memory: int, time_zone: str, roots: list[Path]) -> None:
    """Answer a language model that starts this command, over the Model Context Protocol (MCP).

    Its tools list tables, run queries, ask for segmentation, funnels and retention, explain a dedup
    key, and report the progress of the job; none changes anything. It ends with its standard input.
    `forebay serve` offers the same at /mcp, for models elsewhere.
    """
    require_extra("mcp", "mcp", ("mcp", "starlette", "prometheus_client"))
    from forebay.serve.stdio import answer

    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s mcp %(levelname)s %(message)s", stream=sys.stderr
    )
    config = Config(
        tuple(root.absolute() for root in roots), workers=1, seconds=timeout, memory_bytes=memory,
        waiting_seconds=timeout, catalog=dict(settings().batch.catalog), time_zone=time_zone,
    )  # fmt: skip
    answer(config)
