"""Compiled functions where machine code can be kept nowhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa

from operators.routing import state_key
from storage.index import hash_keys
from storage.layout import PartitionKey

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("storage", "operators")
HASHED = """
import pyarrow as pa
from operators.routing import state_key
from storage.index import hash_keys
from storage.layout import PartitionKey
print(hash_keys([pa.array(["a", "b"])]).tolist(), state_key(PartitionKey("p", 7)))
"""


def test_an_installation_that_may_not_be_written_to_works_without_a_home_and_says_so_once(
    tmp_path: Path,
) -> None:
    """A file in place of each folder of caches keeps even root from making one."""
    for name in PACKAGES:
        shutil.copytree(
            ROOT / name, tmp_path / name, ignore=lambda *_: ["__pycache__"], dirs_exist_ok=True
        )
        (tmp_path / name / "__pycache__").touch()
    nowhere = {"HOME": os.devnull, "XDG_CACHE_HOME": os.devnull, "PYTHONPATH": str(tmp_path)}
    left_out = ("NUMBA_CACHE_DIR", "PYTHONPYCACHEPREFIX")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    done = subprocess.run(
        [sys.executable, "-c", HASHED],
        env=environment | nowhere,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (told,) = done.stderr.splitlines()
    assert "set NUMBA_CACHE_DIR to a folder that can be written to" in told
    hashes = hash_keys([pa.array(["a", "b"])]).tolist()
    assert done.stdout == f"{hashes} {state_key(PartitionKey('p', 7))}\n"
