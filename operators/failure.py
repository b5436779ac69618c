"""The failure of this process: the first error that any of our steps raised.

The engine does not keep it. A worker that has peers panics instead, as they do; and a `close` that
raises aborts the process without a word. So each entry from the engine into our code is `noted`,
and no `close` raises: it notes what went wrong. Whoever runs the dataflow asks for the failure
afterwards, whatever the engine made of it.

What of the input could not be read is no failure, for all else is read to its end: it is noted too,
and whoever runs the dataflow asks for it at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_noted: list[BaseException] = []
_unread: list[str] = []


def failure() -> BaseException | None:
    """What went wrong first; None if nothing did."""
    return _noted[0] if _noted else None


def note(error: BaseException) -> None:
    _noted.append(error)


def unread() -> list[str]:
    """What of the input could not be read in this run, a line each that says why."""
    return list(_unread)


def note_unread(what: str) -> None:
    _unread.append(what)


def noted(entry: Callable[P, R]) -> Callable[P, R]:
    """`entry`, with what it raises noted. (StopIteration is how a source ends.)"""

    @wraps(entry)
    def noting(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return entry(*args, **kwargs)
        except StopIteration:
            raise
        except Exception as error:
            note(error)
            raise

    return noting
