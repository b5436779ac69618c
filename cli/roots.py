"""The data directories that a command is about: those named, or that of the settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from forebay.flows.settings import load
from forebay.storage.base.directory import require_data_directory
from forebay.storage.base.errors import BadInput

F = TypeVar("F", bound=Callable[..., Any])

data_dirs_option: Callable[[F], F] = click.option(
    "--data-dir", "data_dirs", multiple=True, type=click.Path(path_type=Path),
    help="Repeat for several nodes.  [default: that of the settings]",
)  # fmt: skip


def roots_of(data_dirs: Sequence[Path], default: Path | None = None) -> list[Path]:
    """Raises BadInput if one of them is no data directory, or is named twice."""
    roots = list(data_dirs) or [default or load().data_dir]
    for root in roots:
        require_data_directory(root)
    if len({root.resolve() for root in roots}) < len(roots):
        named = ", ".join(map(str, roots))
        raise BadInput(f"--data-dir: expected each data directory once, got {named}")
    return roots
