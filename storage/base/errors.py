"""Errors, one class for each party at fault.

`Corruption`      bytes on disk that Forebay did not write, or that changed since
`FormatVersion`   files of another version of Forebay
`MissingFile`     a file that a committed state names is not on this host
`BadInput`        configuration or arguments that cannot work
`NodeError`       another node that does not answer, or not as it should

A plain assertion or any other exception is a bug in Forebay.
"""

from __future__ import annotations

__all__ = [
    "INCOMPLETE",
    "PERMANENT",
    "BadInput",
    "Corruption",
    "ForebayError",
    "FormatVersion",
    "MissingFile",
    "NodeError",
]

PERMANENT = 78
"""Exit code of a process that met an error which a restart would meet again (EX_CONFIG)."""
INCOMPLETE = 65
"""Exit code of a job whose input ended, but some of it could not be read (EX_DATAERR)."""


class ForebayError(Exception):
    """Base of all errors that a user may meet."""


class Corruption(ForebayError):
    """A file's content is not what was written; the message names file and offset; `offset` is the
    first that is known to be wrong, if any is."""

    def __init__(self, message: str, offset: int | None = None) -> None:
        super().__init__(message)
        self.offset = offset


class FormatVersion(ForebayError):
    """A file carries a version number that this build does not read."""


class MissingFile(ForebayError):
    """A file named by a committed state does not exist here."""


class BadInput(ForebayError, ValueError):
    """What the user asked for cannot be done; the message says what was expected."""


class NodeError(ForebayError):
    """Another node could not be reached, ended its answer too early, or gave one that can't be
    used; the message names it, as `node` does."""

    def __init__(self, node: str, message: str) -> None:
        super().__init__(f"{node}: {message}")
        self.node = node
