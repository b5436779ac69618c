"""Where there is no engine (Python 3.13 and later), a test that needs it is skipped.

`skip_without` makes the import of bytewax a skip: of a whole module of tests, if that imports it,
itself or through what it tests, and else of the one test. `need` skips a test that is about to run
the job in a process of its own. That what reads data never imports the engine is a test of its own
(`tests/test_packaging.py`), which a skip can't hide.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

import pytest

ENGINE = "bytewax"


class _Skips(MetaPathFinder):
    """Asked last, so only where the engine is not installed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.split(".")[0] == ENGINE:
            _skip()
        return None


def _skip() -> None:
    pytest.skip(f"needs the engine ({ENGINE}), which is not installed", allow_module_level=True)


def skip_without() -> None:
    sys.meta_path.append(_Skips())


def need() -> None:
    if PathFinder.find_spec(ENGINE) is None:
        _skip()
