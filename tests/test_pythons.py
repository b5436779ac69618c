"""Each Python that is claimed and to be had here passes the quick tests, as far as they concern it;
of a test with many parameters, with the first.

Where the engine has no wheels, tests that need it are skipped (`tests.engine`); what such a Python
is for, to read what a job of another Python writes, is a test of its own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from forebay.cli.engine import ENGINE_BEFORE
from forebay.cli.load import Load, LoadSpec
from forebay.cli.outlet import files
from tests import engine
from tests.image import ROOT
from tests.job import Job
from tests.pythons import claimed, environment, interpreter

pytestmark = [pytest.mark.long, pytest.mark.timeout(0)]

OWN = f"{sys.version_info.major}.{sys.version_info.minor}"
OTHERS = [version for version in claimed() if version != OWN]
QUICK = "not (long or spark or mutant or kafka)"
TESTS_MIN = 500
"""What must have passed at least, so that a rule that skips all is noticed."""


def _python(version: str) -> Path:
    found = interpreter(version)
    if found is None:
        pytest.skip(f"expected a Python {version} with venv on PATH, of pyenv or of uv; got none")
    return environment(version, found)


def _has_engine(version: str) -> bool:
    return tuple(map(int, version.split("."))) < ENGINE_BEFORE


def test_python_of_this_environment_is_claimed() -> None:
    assert OWN in claimed()


@pytest.mark.parametrize("version", OTHERS)
def test_quick_tests_pass_on_each_other_python(version: str) -> None:
    python = _python(version)
    done = subprocess.run(
        [python, "-m", "pytest", "-q", "-n", str(os.cpu_count()), "-m", QUICK, "-rfE"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={
            name: text
            for name, text in os.environ.items()
            if not name.startswith(("PYTEST_", "HYPOTHESIS_"))
        }
        | {"FIRST_CASES": "1", "HYPOTHESIS_PROFILE": "first"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-20_000:]
    *_, last = done.stdout.splitlines()
    print(f"Python {version}: {last}")
    passed = re.search(r"(\d+) passed", last)
    assert passed is not None
    assert int(passed[1]) >= TESTS_MIN
    asked = [str(python), "-c", "import bytewax"]
    assert (subprocess.run(asked, capture_output=True).returncode == 0) == _has_engine(version)


@pytest.mark.parametrize("version", [one for one in OTHERS if not _has_engine(one)])
def test_python_without_the_engine_reads_what_a_job_of_another_writes(
    version: str, make_job: Callable[..., Job]
) -> None:
    engine.need()
    python = _python(version)
    job = make_job()
    load = Load(LoadSpec(events=5000, partitions=2))
    with files(job.folder / "events", 2, "zstd") as outlet:
        for parts in load.slices():
            outlet.send(parts)
    job.settings["FILES__PATH"] = str(job.folder / "events")
    assert job.ends(job.run(2)) == 0, job.told()

    def told(*command: str) -> str:
        done = subprocess.run(
            [python, *command], env=job.environment, cwd=job.folder, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    ask = "import forebay, sys; print(forebay.open(sys.argv[1]).scan().collect().height)"
    assert told("-c", ask, str(job.data)) == "5000\n"
    counted = "select count(*) as n from events"
    assert told("-m", "forebay", "sql", "--format", "csv", counted).split() == ["n", "5000"]
    assert "all as written" in told("-m", "forebay", "check")
    assert told("-m", "forebay", "status", "--json")
    assert told("-m", "forebay", "batch", "run", "--catch-up")
    assert told("-m", "forebay", "batch", "show")
    run = subprocess.run([python, "-m", "forebay", "run"], capture_output=True, text=True)
    assert run.returncode == 78
    assert run.stderr.count("\n") == 1
    assert f"got {version}" in run.stderr
