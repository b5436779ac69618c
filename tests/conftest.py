"""Settings for all tests.

Hypothesis tries the same examples in every run, so a red test stays red, and the suite is fast
even then. HYPOTHESIS_PROFILE=long looks for new ones, many more of them, and makes what fails
small, which can take minutes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings

pytest.register_assert_rewrite("tests.partition", "tests.job", "tests.lane")

from tests import engine  # noqa: E402

engine.skip_without()

from tests.broker import Broker, missing  # noqa: E402
from tests.job import Job  # noqa: E402
from tests.lane import Lane, Lanes  # noqa: E402
from tests.partition import Partition  # noqa: E402

SLOW_IS_FINE = (HealthCheck.too_slow, HealthCheck.data_too_large)

settings.register_profile(
    "quick",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=60,
    phases=(Phase.explicit, Phase.generate),
    print_blob=True,
    suppress_health_check=SLOW_IS_FINE,
)
settings.register_profile(
    "long",
    settings.get_profile("quick"),
    derandomize=False,
    max_examples=2000,
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without settings."""
    for name in os.environ:
        if name.upper().startswith("FOREBAY_"):
            monkeypatch.delenv(name)


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clean: None) -> None:
    """An empty working directory, and an environment without settings."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def make_job(tmp_path: Path) -> Iterator[Callable[..., Job]]:
    """Makes jobs, each in a folder of its own; whatever still runs at the end is killed."""
    jobs: list[Job] = []

    def make(**settings: str) -> Job:
        jobs.append(Job(tmp_path / f"job-{len(jobs)}", settings))
        return jobs[-1]

    yield make
    for job in jobs:
        job.close()


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job that has read all of `tests.days`: to be copied."""
    from tests.days import fill

    return fill(tmp_path_factory.mktemp("filled") / "job")


@pytest.fixture
def partition(tmp_path: Path) -> Iterator[Partition]:
    partition = Partition(tmp_path)
    yield partition
    partition.files.close()


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A real Apache Kafka; without Java the tests skip (see below)."""
    lack = missing()
    if lack:
        pytest.skip(lack)
    with Broker(tmp_path_factory.mktemp("broker")) as running:
        yield running


@pytest.fixture
def lane(tmp_path: Path) -> Iterator[Lanes]:
    """Starts partitions below a temporary folder; `node` names the data directory."""
    made: list[Lane] = []

    def make(node: str = "data", name: str = "p00", **options: Any) -> Lane:
        made.append(Lane(tmp_path / node, name, **options))
        return made[-1].start()

    yield make
    for one in made:
        one.files.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where REQUIRE_KAFKA or REQUIRE_SPARK is set, a test of theirs that is skipped has failed."""
    report = yield
    required = [name for name in ("kafka", "spark") if os.environ.get(f"REQUIRE_{name.upper()}")]
    if report.skipped and any(map(item.get_closest_marker, required)):
        report.outcome = "failed"
    return report
