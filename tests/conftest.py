"""Settings for all tests.

Hypothesis tries the same examples in every run, so a red test stays red: a few in `make test`, more
in `make test-long`, which has HYPOTHESIS_PROFILE=full, and fewest on another Python (`first`).
`long` looks for new ones, many more of them, and makes what fails small, which can take minutes.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, Phase, is_hypothesis_test, settings

pytest.register_assert_rewrite(
    "tests.days",
    "tests.decoding",
    "tests.input_files",
    "tests.job",
    "tests.lane",
    "tests.life",
    "tests.partition",
    "tests.terminal",
    "tests.topic",
)

from tests import PROFILE, engine, forked  # noqa: E402

engine.skip_without()

from tests.broker import Broker, BrokerProcess, missing  # noqa: E402
from tests.job import Job  # noqa: E402
from tests.lane import Lane, Lanes  # noqa: E402
from tests.partition import Partition  # noqa: E402

if TYPE_CHECKING:
    from xdist.workermanage import WorkerController

    from benchmarks.query import Engine

# For workers, which find no modules in the folder that they are started in.
os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parent.parent)

SLOW_IS_FINE = (HealthCheck.too_slow, HealthCheck.data_too_large)

settings.register_profile(
    "quick",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=8,
    phases=(Phase.explicit, Phase.generate),
    print_blob=True,
    suppress_health_check=SLOW_IS_FINE,
)
settings.register_profile("full", settings.get_profile("quick"), max_examples=16)
settings.register_profile("first", settings.get_profile("quick"), max_examples=3)
settings.register_profile(
    "long",
    settings.get_profile("quick"),
    derandomize=False,
    max_examples=2000,
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
)
settings.load_profile(PROFILE)


def pytest_itemcollected(item: pytest.Item) -> None:
    """What hypothesis finds is looked for longer in `make test-long`."""
    if is_hypothesis_test(getattr(item, "obj", None)):
        item.add_marker("cases")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What takes longest begins first: the quick tests on another Python. There FIRST_CASES is set:
    of what is tried with many parameters, it has the first alone. Of tests that are marked `few`,
    what is not among the few, spread evenly, is of the long ones."""
    tests: dict[tuple[str, int], list[pytest.Item]] = {}
    for item in items:
        if mark := item.get_closest_marker("few"):
            tests.setdefault((item.nodeid.partition("[")[0], *mark.args), []).append(item)
    for (_, few), same in tests.items():
        stay = {n * len(same) // few for n in range(few)}
        for n, item in enumerate(same):
            if n not in stay:
                item.add_marker("long")
    items.sort(key=lambda item: "each_other_python" not in item.name)
    if os.environ.get("FIRST_CASES"):
        first = set({one.nodeid.partition("[")[0]: one for one in reversed(items)}.values())
        left_out = [item for item in items if item not in first]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item in first]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config) -> None:
    """Have compiled once what each process of tests would otherwise compile at the same time."""
    if not config.option.collectonly:
        subprocess.run([sys.executable, "-m", "tests.compiling"], check=True)


@pytest.fixture(autouse=True)
def _forked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of ours have their imports from another, unless the test is of whole ones."""
    if not request.node.get_closest_marker("executed"):
        monkeypatch.setattr(subprocess, "Popen", forked.Forked)


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


@pytest.fixture(scope="session")
def clickhouse() -> Iterator[Engine]:
    """A process that answers queries, in an environment of its own, made at its first use."""
    from benchmarks.query import Engine

    engine = Engine("chdb", Path(), "tests.clickhouse")
    yield engine
    engine.close()


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
def broker(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Broker]:
    """A real Apache Kafka, one for all processes of a run; without Java the tests skip (below)."""
    lack = missing()
    if lack:
        pytest.skip(lack)
    if shared := _shared(pytestconfig):
        yield Broker((shared / "address").read_text())
        return
    with BrokerProcess(tmp_path_factory.mktemp("broker"), brief=True) as running:
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
    """Where REQUIRE_KAFKA, REQUIRE_SPARK, REQUIRE_AIRBYTE or REQUIRE_BROWSER is set, a test of
    theirs that is skipped has failed."""
    report = yield
    names = ("kafka", "spark", "airbyte", "browser")
    required = [name for name in names if os.environ.get(f"REQUIRE_{name.upper()}")]
    if report.skipped and any(map(item.get_closest_marker, required)):
        report.outcome = "failed"
    return report


# -- a run in several processes -----------------------------------------------------------------
#
# The processes that run tests say, before the first one runs, whether any of theirs wants a broker;
# the one that started them then starts it, and ends it once they are done.

FOLDER = pytest.StashKey[tempfile.TemporaryDirectory[str]]()
BROKER = pytest.StashKey[BrokerProcess]()


def _shared(config: pytest.Config) -> Path | None:
    """The folder of this run, in a process that runs a part of its tests."""
    given = getattr(config, "workerinput", {}).get("shared")
    return Path(given) if given else None


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: WorkerController) -> None:
    stash = node.config.stash
    if FOLDER not in stash:
        stash[FOLDER] = tempfile.TemporaryDirectory(prefix="forebay-tests-")
    node.workerinput["shared"] = stash[FOLDER].name


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    shared = _shared(session.config)
    if shared and any("broker" in getattr(item, "fixturenames", ()) for item in session.items):
        (shared / "wanted").touch()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: WorkerController) -> None:
    stash = node.config.stash
    shared = Path(stash[FOLDER].name)
    if BROKER not in stash and (shared / "wanted").exists() and not missing():
        stash[BROKER] = BrokerProcess(shared / "broker", brief=True)
        stash[BROKER].start()
        (shared / "address").write_text(stash[BROKER].address)


def pytest_sessionfinish(session: pytest.Session) -> None:
    forked.close()
    stash = session.config.stash
    if BROKER in stash:
        stash[BROKER].stop()
    if FOLDER in stash:
        stash[FOLDER].cleanup()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What the run took of the CPU, with all processes that it waited for."""
    both = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    used = [resource.getrusage(who) for who in both]
    seconds = sum(one.ru_utime + one.ru_stime for one in used)
    budget = os.environ.get("CPU_BUDGET_S")
    of = f" of {budget}, the budget" if budget else ""
    terminalreporter.write_line(f"CPU seconds: {seconds:.0f}{of}")
