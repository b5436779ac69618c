"""Per thread: what the partitions of one worker thread share.

SUBTLE: not threading.local, which a thread of the engine finds empty again whenever the engine has
let go of Python's lock in between.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class PerThread(Generic[T]):
    """One value for each thread that asks, made when it first does."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._values: dict[int, T] = {}

    def get(self) -> T:
        """The value of the calling thread."""
        thread = threading.get_ident()
        if thread not in self._values:
            self._values[thread] = self._make()
        return self._values[thread]
