"""Whether the job can run here: its engine, bytewax, has wheels up to Python 3.12 only."""

import sys
from importlib.util import find_spec

import click

from forebay.storage.base.errors import PERMANENT

ENGINE_BEFORE = (3, 13)
"""The first Python version without it, as in pyproject.toml."""


class NoEngine(click.ClickException):
    """Ends the command with one line, and the exit code of errors that a restart would not mend."""

    exit_code = PERMANENT


def require_engine(command: str) -> None:
    """Raise NoEngine if the engine is missing for a command that runs the job."""
    if find_spec("bytewax") is not None:
        return
    expected = "the job's engine, bytewax, to be installed, got none: install forebay again"
    if sys.version_info >= ENGINE_BEFORE:
        here = ".".join(map(str, sys.version_info[:2]))
        expected = (
            "Python 3.11 or 3.12, which the job's engine (bytewax) has wheels for, got"
            f" {here}: with it, data can be read only (forebay sql, status, export)"
        )
    raise NoEngine(f"forebay {command}: expected {expected}")
