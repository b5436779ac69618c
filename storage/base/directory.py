"""Checks that a folder is a data directory before reading it: any other is not an empty store."""

from __future__ import annotations

import os
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from forebay.storage.base.errors import BadInput

ENTRIES = frozenset(
    ("batch", "batch.json", "batch.lock", "chunks", "drops", "ended", "form", "host", "hot", "lock",
     "recovery", "rejects", "replay", "sources", "topics"),
)  # fmt: skip
"""What may be in a data directory (see `storage.base.layout`)."""


def require_data_directory(root: Path) -> None:
    """Raise BadInput, in a line, unless `root` is a readable directory that is empty or has what
    Forebay keeps in one. (Hidden files and those of the file system itself are ignored.)"""
    try:
        found = {entry.name for entry in os.scandir(root)}
    except FileNotFoundError:
        raise BadInput(
            f"{root}: expected a readable data directory, got none; `forebay run` makes it"
        ) from None
    except (OSError, ValueError) as error:  # a NUL in the name is a ValueError
        raise BadInput(f"{root}: expected a readable data directory, got {error}") from error
    others = {name for name in found if not name.startswith(".") and name != "lost+found"}
    if others and not others & ENTRIES:
        raise BadInput(
            f"{root}: expected a data directory of Forebay's, got a folder with"
            f" {', '.join(sorted(others)[:3])}"
        )


def require_data_directories(what: str, roots: Sequence[Path]) -> None:
    """Raise BadInput unless all are data directories, none twice; `what` names them in errors."""
    for root in roots:
        require_data_directory(root)
    require_distinct(what, roots)


def require_distinct(what: str, roots: Sequence[Path]) -> None:
    if len({root.resolve() for root in roots}) < len(roots):
        named = ", ".join(map(str, roots))
        raise BadInput(f"{what}: expected each data directory once, got {named}")


def data_directory(data_dir: object) -> Path:
    """The path of a data directory, as a caller named it. Raises BadInput if that is not a path."""
    if not isinstance(data_dir, str | PathLike) or not str(data_dir):
        raise BadInput(f"forebay.open: expected paths of data directories, got {data_dir!r}")
    return Path(data_dir)
