"""The `forebay` command: every subcommand, and how errors are told."""

from __future__ import annotations

from typing import Any

import click

from cli.config import config
from cli.demo import demo
from cli.generate import generate
from cli.run import run
from cli.sql import sql
from cli.status import status
from storage.errors import ForebayError


class _Commands(click.Group):
    """Errors that a user may meet are told in a line or a few, not as a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ForebayError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="forebay")
def main() -> None:
    """Forebay: the real-time layer of a lambda architecture.

    Settings come from forebay.toml and FOREBAY_*; see `forebay config show`.
    """


for command in (run, sql, status, generate, demo, config):
    main.add_command(command)

if __name__ == "__main__":
    main()
