"""The `forebay` command: every subcommand, and how errors are told.

A subcommand is imported when it is asked for, so that the supervisor stays small and `--help` fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from storage.errors import ForebayError

COMMANDS = (
    "run", "sql", "status", "rejects", "why", "batch", "retention", "check", "generate", "demo",
    "verify", "config",
)  # fmt: skip
"""Each is a command of its name in a module of its name."""


class _Commands(click.Group):
    """Errors that a user may meet are told in a line or a few, not as a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"cli.{cmd_name}"), cmd_name)
        return command

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


if __name__ == "__main__":
    main()
