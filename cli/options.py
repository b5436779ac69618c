"""Options that several commands have, each defined once, and their values.

`--data-dir` gives a command its data directories as `roots`: those named, or the one in the
settings; each was checked to be one.
"""

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import click
from pydantic import ByteSize, TypeAdapter, ValidationError

from forebay.flows.settings import Settings, load
from forebay.storage.base.directory import require_data_directories
from forebay.storage.base.errors import BadInput
from forebay.storage.base.text import size_text
from forebay.storage.base.times import FIRST_MS, LAST_MS, duration_ms, ms_of
from forebay.storage.formats.frame import REASONS

MEMORY = 2 << 30
Check = Callable[[str, Sequence[Path]], None]
F = TypeVar("F", bound=Callable[..., Any])


def settings() -> Settings:
    """The settings, loaded once per command. Raises BadInput."""
    kept = click.get_current_context().meta
    if "forebay.settings" not in kept:
        kept["forebay.settings"] = load()
    found: Settings = kept["forebay.settings"]
    return found


def data_dirs_option(
    check: Check = require_data_directories, *, multiple: bool = True
) -> Callable[[F], F]:
    """The command takes `roots`, which have passed `check`; a single one, unless `multiple`."""

    def roots(_context: click.Context, _option: click.Parameter, named: Any) -> list[Path]:
        found = [named] if isinstance(named, Path) else [*(named or ())]
        found = found or [settings().data_dir]
        check("--data-dir", found)
        return found

    default = "[default: that of the settings]"
    return click.option(
        "--data-dir", "roots", multiple=multiple, type=click.Path(path_type=Path), callback=roots,
        help=f"Repeat for several nodes.  {default}" if multiple else default,
    )  # fmt: skip


def json_option(help: str) -> Callable[[F], F]:
    return click.option("--json", "as_json", is_flag=True, help=help)


force_option: Callable[[F], F] = click.option(
    "--force", is_flag=True, help="Overwrite the file if it exists."
)


def time_ms(text: str) -> int:
    """Milliseconds of an ISO 8601 time; UTC unless it has a zone."""
    try:
        time = datetime.fromisoformat(re.sub(r"[zZ]\Z", "+00:00", text))
    except ValueError as error:
        raise click.BadParameter(
            f"expected a time such as 2024-05-01T12:00, got {text!r}"
        ) from error
    ms = ms_of(time if time.tzinfo else time.replace(tzinfo=UTC))
    if not FIRST_MS <= ms <= LAST_MS:
        raise click.BadParameter(f"expected a time of the years 1 to 9999 in UTC, got {text!r}")
    return ms


def time_option(name: str, parameter: str, **attributes: Any) -> Callable[[F], F]:
    """The command takes a time, in milliseconds."""
    return click.option(
        name, parameter, **{"metavar": "TIME", **attributes},
        callback=lambda _context, _option, text: None if text is None else time_ms(text),
    )  # fmt: skip


def require_extra(command: str, extra: str, modules: Sequence[str]) -> None:
    """Raise BadInput if one of the modules that the named extra installs is missing."""
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise BadInput(
            f"{command}: expected the extra {extra}, got no {missing[0]}:"
            f" pip install 'forebay[{extra}]'"
        )


def _seconds(_context: click.Context, _option: click.Parameter, text: str) -> float:
    try:
        found = duration_ms(text) / 1000
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    if not found:
        raise click.BadParameter("expected more than 0")
    return found


def _size(_context: click.Context, _option: click.Parameter, text: str) -> int:
    try:
        found = int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError as error:
        raise click.BadParameter(f"expected a size such as 512MiB, got {text!r}") from error
    if found < 1:
        raise click.BadParameter(f"expected more than 0, got {text!r}")
    return found


timeout_option: Callable[[F], F] = click.option(
    "--timeout",
    metavar="DURATION",
    default="60s",
    show_default=True,
    callback=_seconds,
    help="Time limit for an answer.",
)
memory_option: Callable[[F], F] = click.option(
    "--memory", metavar="SIZE", default=size_text(MEMORY).replace(" ", ""), show_default=True,
    callback=_size, help="Memory limit of a worker, which is killed if it takes more.",
)  # fmt: skip
time_zone_option: Callable[[F], F] = click.option(
    "--time-zone",
    metavar="ZONE",
    default="UTC",
    show_default=True,
    help="The time zone of days, in SQL and in Amplitude's API.",
)


def reject_filter_options(command: F) -> F:
    """The command takes the selection of rejects, as keywords for `RejectFilter`."""
    reasons, offsets = click.Choice(REASONS), click.IntRange(0, 2**53 - 1)
    for option in (
        time_option("--until", "until_ms", help="Broker time, exclusive."),
        time_option("--since", "since_ms", help="Broker time, inclusive."),
        click.option("--offset", "offsets", multiple=True, type=offsets, help="Repeatable."),
        click.option(
            "--partition",
            "partitions",
            multiple=True,
            help="The partition they came from; repeatable.",
        ),
        click.option("--reason", "reasons", multiple=True, type=reasons, help="Repeatable."),
    ):
        command = option(command)
    return command
