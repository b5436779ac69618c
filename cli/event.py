"""Events and filters as they are written on a command line, in the grammar of
`forebay.query.analytics.grammar`."""

from collections.abc import Callable
from typing import Any

import click

from forebay.query.analytics import Where
from forebay.query.analytics.grammar import parsed_event, parsed_filters


def events(_context: click.Context, _option: click.Parameter, given: Any) -> Any:
    """The event of an argument, or the events of a repeatable one."""
    return [parsed_event(one) for one in given] if isinstance(given, tuple) else parsed_event(given)


def filters(_context: click.Context, _option: click.Parameter, given: Any) -> list[Where]:
    """All filters of a repeatable option."""
    return [one for text in given for one in parsed_filters(text)]


def where_option(help: str, *name: str) -> Callable[[Any], Any]:
    """The command takes filters, as the parameter of this name."""
    return click.option(
        "--where", *name, metavar="FILTER", multiple=True, callback=filters, help=help
    )
