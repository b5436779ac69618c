"""Compiled functions: numba's, with the machine code kept on disk where that can be.

numba looks for a place when a function is declared: beside the module, or in the user's cache
folder. An installation that may not be written to, run without a home, has neither; then each
process compiles for itself, which takes seconds of its start, and says so once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import numba

P = ParamSpec("P")
R = TypeVar("R")

log = logging.getLogger("forebay.compiled")
_told: list[str] = []


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, compiled at its first call, without Python's lock."""
    try:
        made = numba.njit(cache=True, nogil=True)(function)
    except RuntimeError as error:  # no place for the cache
        if not _told:
            _told.append(str(error))
            log.warning(
                "each start compiles anew, for compiled code can be kept neither beside the"
                " modules nor in a home; set NUMBA_CACHE_DIR to a folder that can be written to"
            )
        made = numba.njit(nogil=True)(function)
    return cast(Callable[P, R], made)
