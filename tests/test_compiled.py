"""Compiled code on disk is used for the argument types that it was compiled for, and no others; a
server compiles what questions call before they are asked."""

from __future__ import annotations

import os
import pkgutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from numba.extending import is_jitted

from forebay.query import analytics
from forebay.query.analytics.units import order
from forebay.serve.compiling import compile_all
from forebay.storage.base.compiled import is_kept

COMPILED = [one.name for one in pkgutil.iter_modules(analytics.__path__) if one.name != "charts"]

CHILD = """
import json, sys
import numpy as np
from forebay.storage.formats import payload
from forebay.storage.formats.hashes import fold_bytes
data = np.frombuffer(bytearray(b"some bytes to fold"), np.uint8)
if sys.argv[1] == "readonly":
    data.flags.writeable = False
bounds = np.array([0, 4, 18], np.int32)
out = np.zeros(2, np.uint64)
payload._add_bytes(bounds, data, np.zeros(0, np.uint8), 0, np.uint64(1), out)
hits = sum(sum(f.stats.cache_hits.values()) for f in (fold_bytes, payload._add_bytes))
print(json.dumps([out.tolist(), hits]))
"""


def run(cache: Path, how: str) -> str:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache)}
    child = [sys.executable, "-c", CHILD, how]
    done = subprocess.run(child, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.long
def test_code_that_stands_where_that_for_other_types_should_is_compiled_again(
    tmp_path: Path,
) -> None:
    """Two processes that compile at once may leave it so, for numba numbers its files by what its
    index has."""
    assert run(tmp_path, "writeable").startswith("[[")
    sound = run(tmp_path, "readonly")
    mended = run(tmp_path, "readonly")
    assert mended.endswith(", 1]\n"), "expected the warm cache to be used"
    first, second = sorted(tmp_path.rglob("hashes.fold_bytes*.nbc"))
    content = first.read_bytes(), second.read_bytes()
    second.write_bytes(content[0])
    first.write_bytes(content[1])
    for path in tmp_path.rglob("payload._add_bytes*"):
        path.unlink()
    assert run(tmp_path, "readonly").partition("]")[0] == sound.partition("]")[0]
    assert run(tmp_path, "writeable").partition("]")[0] == sound.partition("]")[0]
    assert second.read_bytes() != content[0]


def test_a_server_compiles_ahead_all_that_questions_call() -> None:
    compile_all()
    modules = [import_module(f"{analytics.__name__}.{name}") for name in COMPILED]
    functions = {one for module in modules for one in vars(module).values() if is_jitted(one)}
    inner = {name for one in functions for name in one.py_func.__code__.co_names}
    called = [one for one in functions if one.py_func.__name__ not in inner]
    assert (
        {"total_paths", "longest_paths"}
        <= {one.py_func.__name__ for one in called}
        < {one.py_func.__name__ for one in functions}
    )
    assert [one.py_func.__name__ for one in called if not one.signatures] == []


@pytest.mark.long
def test_where_code_cannot_be_kept_it_is_not_compiled_ahead() -> None:
    """As of an installation that is not writable, run without a home: `numba` finds no place."""
    code = (
        "import numba.core.caching as caching; caching.CacheImpl._locator_classes = []\n"
        "from forebay.query.analytics.units import order\n"
        "from forebay.storage.base.compiled import is_kept; print(is_kept(order))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    assert is_kept(order)
