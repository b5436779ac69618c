"""The `forebay` command: every subcommand, and how errors are reported.

A subcommand is imported when it is used, so that the supervisor stays small and `--help` fast. An
error that users may meet is a line or a few, not a traceback. Ctrl-C ends quietly with 130, and a
reader that has gone (`| head`) with 141, as a shell reports a process ended by a signal.
"""

import os
import sys
from importlib import import_module
from typing import Any

import click

from forebay import __version__
from forebay.cli.example import example
from forebay.cli.interrupt import INTERRUPTED, importing
from forebay.flows.secrets import masked
from forebay.storage.base.errors import ForebayError
from forebay.storage.base.text import did_you_mean, plain_lines

COMMANDS = (
    "run", "sql", "tail", "status", "files", "export", "rejects", "why", "batch", "disk", "check",
    "funnel", "retention", "segment", "sessions", "stickiness", "paths", "lifecycle", "user",
    "serve", "mcp", "token", "generate", "demo", "verify", "config",
)  # fmt: skip
"""Each is a command in a module of the same name."""
NO_READER = 141


class _Commands(click.Group):
    """Imports a command when it is used, and turns errors into lines."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        with importing():
            command: click.Command = getattr(import_module(f"forebay.cli.{cmd_name}"), cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            raise click.UsageError(f"no such command {name!r}{did_you_mean(name, COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        if sys.stdout is None:  # closed by the parent process
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        try:
            answer = super().invoke(ctx)
            sys.stdout.flush()
        except KeyboardInterrupt:
            raise SystemExit(INTERRUPTED) from None
        except BrokenPipeError:
            # The rest of the buffer would raise again when the interpreter ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(NO_READER) from None
        except (ForebayError, OSError) as error:
            # Quoted text may be hostile, or a secret.
            raise click.ClickException(plain_lines(masked(str(error)))) from error
        return answer


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=example('forebay sql "select count(*) from events"'),
)
@click.version_option(__version__, prog_name="forebay")
def main() -> None:
    """Forebay: the real-time layer of a lambda architecture.

    Settings come from forebay.toml and FOREBAY_*; see `forebay config show`.
    """


if __name__ == "__main__":
    main()
