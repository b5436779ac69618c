"""The options of commands that read other nodes too, and the store that they open.

`--nodes` are servers (`forebay serve`) that are asked in addition to the named data directories, or
in place of the one in the settings. Their tokens and authorities come from FOREBAY_TOKEN and
FOREBAY_CA. No engine is loaded before the store is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from forebay.cli.options import Check, settings
from forebay.storage.base.directory import require_data_directories
from forebay.storage.base.errors import BadInput
from forebay.storage.base.text import plain
from forebay.storage.base.times import duration_ms

if TYPE_CHECKING:
    from forebay.query import Store

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Places:
    """The data directories, and URLs of nodes, that a command was given; `seconds` limits each
    answer of a node. With `partial`, answers do without what can't be read."""

    roots: tuple[Path, ...]
    urls: tuple[str, ...]
    seconds: float
    partial: bool

    @property
    def names(self) -> list[str]:
        return [*map(str, self.roots), *self.urls]

    def __str__(self) -> str:
        return ", ".join(self.names)

    def open(self, **options: Any) -> Store:
        """Raises BadInput, NodeError."""
        from forebay import query

        more = {"partial": self.partial, "seconds": self.seconds, **options}
        return query.open(*self.roots, *self.urls, **more)

    def tell_missing(self, store: Store) -> None:
        """Warn of what is missing in the last answer."""
        receipt = store.receipt()
        missing = [f"{one.node}: {one.missing}" for one in receipt.nodes if one.missing is not None]
        missing += [f"{p.node}: {p.partition}: {p.reason}" for p in receipt.silent_partitions]
        for one in missing:
            click.echo(plain(f"Warning: the answer is without {one}"), err=True)


def places_option(
    check: Check = require_data_directories, *, partial: bool = True
) -> Callable[[F], F]:
    """The command takes `places`, whose data directories have passed `check`; and `--partial`,
    unless its answers are partial anyway."""

    def keep(context: click.Context, option: click.Parameter, value: Any) -> None:
        context.meta[f"forebay.{option.name}"] = value

    def seconds(context: click.Context, option: click.Parameter, text: str) -> None:
        try:
            keep(context, option, duration_ms(text) / 1000)
        except ValueError as error:
            raise click.BadParameter(str(error)) from error

    def places(context: click.Context, _option: click.Parameter, named: Sequence[Path]) -> Places:
        urls, each = (context.meta[f"forebay.{name}"] for name in ("nodes", "node_timeout"))
        if strange := [one for one in urls if not one.startswith(("http://", "https://"))]:
            raise BadInput(f"--nodes: expected URLs such as https://a:8080, got {strange[0]!r}")
        roots = [*named] or ([] if urls else [settings().data_dir])
        check("--data-dir", roots)
        return Places(tuple(roots), urls, each, context.meta.get("forebay.partial", True))

    early: dict[str, Any] = {"is_eager": True, "expose_value": False}
    options = [
        click.option(
            "--node-timeout", metavar="DURATION", default="60s", show_default=True, **early,
            callback=seconds, help="Time limit for an answer of a node.",
        ),
        click.option(
            "--nodes", multiple=True, metavar="URL", **early, callback=keep,
            help="Another node, a forebay serve; repeatable. Without --data-dir, nodes alone.",
        ),
        click.option(
            "--data-dir", "places", multiple=True, type=click.Path(path_type=Path), callback=places,
            help="Repeat for several nodes.  [default: that of the settings]",
        ),
    ]  # fmt: skip
    if partial:
        help = "Answer without what can't be read, and say so."
        options.insert(
            0, click.option("--partial", is_flag=True, **early, callback=keep, help=help)
        )

    def made(command: F) -> F:
        for option in options:
            command = option(command)
        return command

    return made
