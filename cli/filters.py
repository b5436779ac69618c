"""Options that say which rejects are meant, the same for every command that asks."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

import click

from forebay.storage.base.times import FIRST_MS, LAST_MS, ms_of
from forebay.storage.formats.frame import REASONS
from forebay.storage.formats.rejects import RejectFilter

F = TypeVar("F", bound=Callable[..., Any])


def time_ms(_context: click.Context, _option: click.Parameter, text: str | None) -> int | None:
    """Milliseconds of an ISO 8601 time, UTC unless it says otherwise."""
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(re.sub(r"[zZ]\Z", "+00:00", text))
    except ValueError as error:
        raise click.BadParameter(
            f"expected a time such as 2024-05-01T12:00, got {text!r}"
        ) from error
    time = time if time.tzinfo else time.replace(tzinfo=UTC)
    ms = ms_of(time)
    if not FIRST_MS <= ms <= LAST_MS:
        raise click.BadParameter(f"expected a time of the years 1 to 9999 in UTC, got {text!r}")
    return ms


_OPTIONS = (
    click.option(
        "--reason", "reasons", multiple=True, type=click.Choice(REASONS), help="Repeatable."
    ),
    click.option("--partition", "partitions", multiple=True, help="It came from; repeatable."),
    click.option(
        "--offset", "offsets", multiple=True, type=click.IntRange(0, 2**53 - 1), help="Repeatable."
    ),
    click.option("--since", "since_ms", callback=time_ms, help="Broker time, included."),
    click.option("--until", "until_ms", callback=time_ms, help="Broker time, not included."),
)


def filtered(command: F) -> F:
    """Give `command` the options; it takes them as keywords for `RejectFilter`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def wanted(options: dict[str, Any]) -> RejectFilter:
    return RejectFilter(**options)
