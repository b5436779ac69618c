"""Compiled functions: numba's, with the machine code kept on disk where that can be.

numba looks for a place when a function is declared: beside the module, or in the user's cache
folder. An installation that is not writable, run without a home, has neither: each process then
compiles for itself, which takes seconds of its start, and says so once.

SUBTLE: numba keeps one file for each list of argument types, and an index of them. Two processes
that compile a function for different types at the same time may both take the next number: then the
index has the types of one, and the file has the code of the other. numba does not check this, and
every later start would fail, or hash what is not there. So loaded code is used only if it is for
the requested types; otherwise it is compiled again, which repairs the file.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import numba
from numba.core.caching import NullCache
from numba.core.sigutils import normalize_signature

P = ParamSpec("P")
R = TypeVar("R")

log = logging.getLogger("forebay.compiled")
COMPILING = "compiling functions for this machine; each is kept, so that this happens once"
_told: set[str] = set()


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, compiled at its first call, without Python's lock."""
    try:
        made: Any = numba.njit(cache=True, nogil=True)(function)
        made._cache.load_overload = _of_these_types(made._cache.load_overload)
    except RuntimeError:  # no place for the cache
        _tell_once(
            logging.WARNING,
            "each start compiles again, as compiled code can be kept neither beside the modules nor"
            " in a home; set NUMBA_CACHE_DIR to a folder that can be written to",
        )
        made = numba.njit(nogil=True)(function)
    return cast(Callable[P, R], made)


def is_kept(function: Callable[..., object]) -> bool:
    """Whether the code of a compiled function is kept for other processes."""
    return not isinstance(cast(Any, function)._cache, NullCache)


def _of_these_types(load: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """`load`, which takes a signature and a target, ignoring code for another signature."""

    def load_overload(signature: Any, target: Any) -> Any:
        found = load(signature, target)
        wanted, _ = normalize_signature(signature)  # type: ignore[no-untyped-call]
        if found is not None and tuple(found.signature.args) == wanted:
            return found
        _tell_once(logging.INFO, COMPILING)
        return None

    return load_overload


def _tell_once(level: int, text: str) -> None:
    if text not in _told:
        _told.add(text)
        log.log(level, text)
