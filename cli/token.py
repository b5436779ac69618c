"""`forebay token`: who may ask a server."""

from pathlib import Path
from typing import get_args

import click

from forebay.cli.example import example
from forebay.cli.output import echo_table
from forebay.serve.tokens import FILE, Scope, add_token, read_tokens, remove_token

file_option = click.option(
    "--file", "path", type=click.Path(path_type=Path), default=FILE, show_default=True,
    help="The file that forebay serve --tokens reads.",
)  # fmt: skip


@click.group(epilog=example("forebay token add dashboards"))
def token() -> None:
    """Add, list or remove the tokens of `forebay serve`."""


@token.command(epilog=example("forebay token add dashboards --scope read"))
@click.argument("name")
@click.option(
    "--scope", type=click.Choice(get_args(Scope)), default="read", show_default=True,
    help="read asks; admin may also replay rejects, seal and complete.",
)  # fmt: skip
@file_option
def add(name: str, scope: Scope, path: Path) -> None:
    """Make a token for NAME, and print it: it is only shown now. The file has its hash."""
    click.echo(add_token(path, name, scope))


@token.command(name="list", epilog=example("forebay token list"))
@file_option
def list_(path: Path) -> None:
    """List the tokens: name, scope, and when each was made."""
    rows = [(one.name, one.scope, one.created) for one in read_tokens(path)]
    if rows:
        echo_table(("name", "scope", "created"), rows)
    else:
        click.echo("no tokens")


@token.command(epilog=example("forebay token remove dashboards"))
@click.argument("name")
@file_option
def remove(name: str, path: Path) -> None:
    """Remove a token: it is refused from the next request on."""
    remove_token(path, name)
    click.echo(f"{name} is removed")
