"""The Pythons that pyproject.toml claims, and those of them that this machine has.

`environment` makes a virtual environment below build/ with what constraints-dev.txt pins and this
checkout, once for each state of both; a later run takes it as it is. One that was not finished is
made from nothing again, and of processes that want the same one at once the first makes it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tomllib
from pathlib import Path

from tests.image import ROOT

BUILD = ROOT / "build" / "pythons"
PINS = ("constraints-dev.txt", "pyproject.toml")
PROBE = "import sys, venv, ensurepip; print(*sys.version_info[:2], sep='.')"


def claimed() -> list[str]:
    """Each as MAJOR.MINOR, from the oldest on."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    last = [text.rpartition(" ")[2] for text in project["classifiers"] if " Python :: 3" in text]
    return sorted(last, key=lambda version: int(version.partition(".")[2]))


def interpreter(version: str) -> Path | None:
    """One of this version that can make a virtual environment: on PATH, of pyenv, or of uv."""
    home = Path.home()
    known = [shutil.which(f"python{version}")]
    for pattern in (f".pyenv/versions/{version}.*", f".local/share/uv/python/cpython-{version}.*"):
        known += [str(folder / "bin" / "python3") for folder in sorted(home.glob(pattern))]
    for python in filter(None, known):
        try:
            done = subprocess.run([python, "-c", PROBE], capture_output=True, text=True)
        except OSError:
            continue
        if done.returncode == 0 and done.stdout.strip() == version:
            return Path(python)
    return None


def environment(version: str, python: Path) -> Path:
    """The Python of a virtual environment of that version that has what the tests need."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with open(BUILD / f"{version}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _made(BUILD / version, python)


def _made(venv: Path, python: Path) -> Path:
    ready, inside = venv / "ready", venv / "bin" / "python"
    wanted = "".join((ROOT / name).read_text() for name in PINS) + str(ROOT)
    if ready.exists() and ready.read_text() == wanted:
        return inside
    shutil.rmtree(venv, ignore_errors=True)
    pip = [str(inside), "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    for command in (
        [str(python), "-m", "venv", str(venv)],
        [*pip, "--require-hashes", "-r", "constraints-dev.txt"],
        [*pip, "--no-deps", "--no-build-isolation", "-e", "."],
    ):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=_own())
        assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}{done.stderr}"
    ready.write_text(wanted)
    return inside


def _own() -> dict[str, str]:
    """This process's variables, without those that would lead pip elsewhere."""
    left_out = ("PYTHONPATH", "PYTHONHOME", "PIP_USER", "PIP_TARGET", "PIP_PREFIX")
    return {name: text for name, text in os.environ.items() if name not in left_out}
