"""What is installed: one top-level name, the same by each way, that works without this checkout.

The tests marked `long` install the wheel, and what constraints.txt pins, into an empty environment.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tarfile
import textwrap
import tomllib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from forebay.cli.engine import ENGINE_BEFORE
from forebay.cli.load import Load, LoadSpec
from forebay.cli.main import COMMANDS
from forebay.cli.outlet import files
from forebay.storage.base.errors import PERMANENT
from tests import engine
from tests.checkout import BASE
from tests.image import HOSTS_OWN, KEPT, ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PROJECT_VERSION = importlib.metadata.version("forebay")
FOLDERS = ("cli", "flows", "operators", "query", "serve", "storage", "verify")
EVENTS = 2000
COUNT = "select count(*) as n from events"
NO_ENGINE = "import sys; sys.modules['bytewax'] = None; sys.argv[0] = 'forebay'\n"
"""What makes a process one that has no engine, on any Python."""


def built(kind: str, source: Path, folder: Path) -> Path:
    """The sdist or wheel of a source tree."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(folder)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    [made] = folder.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return made


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def without_settings() -> dict[str, str]:
    return {name: text for name, text in os.environ.items() if not name.startswith("FOREBAY_")}


def test_wheel_has_one_top_level_name_and_says_that_it_is_typed(wheel: Path) -> None:
    names = contents(wheel)
    tops = {name.split("/")[0] for name in names}
    assert tops == {"forebay", f"forebay-{PROJECT_VERSION}.dist-info"}
    assert "forebay/py.typed" in names
    assert {f"forebay/{name}/__init__.py" for name in FOLDERS} <= set(names)
    pages = {path.name for path in (ROOT / "serve" / "page").iterdir()}
    assert {name.rpartition("/")[2] for name in names if "/serve/page/" in name} == pages


def test_wheel_of_the_source_distribution_is_that_of_the_checkout(
    wheel: Path, tmp_path: Path
) -> None:
    sdist = built("sdist", ROOT, tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        names = {Path(member.name).parts[1] for member in archive.getmembers()}
        archive.extractall(tmp_path / "source", filter="data")
        assert not [member for member in archive.getmembers() if member.issym()]
    [source] = (tmp_path / "source").iterdir()
    assert names == {
        ".gitignore", "CHANGELOG.md", "LICENSE", "PKG-INFO", "README.md", "forebay",
        "pyproject.toml",
    }  # fmt: skip
    assert contents(built("wheel", source, tmp_path / "again")) == contents(wheel)


@pytest.mark.parametrize("cloned_here", [False, True])
def test_editable_install_has_that_one_name_too(tmp_path: Path, cloned_here: bool) -> None:
    """Also in the folder with a clone, which is named as the package is."""
    if cloned_here:
        (tmp_path / "forebay").mkdir()
    code = f"""
        from importlib.util import find_spec
        import forebay
        print(forebay.__file__)
        print([name for name in {FOLDERS} if find_spec(name)])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=tmp_path, capture_output=True, text=True, check=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )  # fmt: skip
    assert done.stdout.splitlines() == [str(ROOT / ".editable" / "forebay" / "__init__.py"), "[]"]


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-dev.txt"])
def test_engine_is_pinned_for_the_pythons_that_it_has_wheels_for(name: str) -> None:
    [pin] = re.findall(r"^bytewax==.*", (ROOT / name).read_text(), re.MULTILINE)
    before = ".".join(map(str, ENGINE_BEFORE))
    assert f"python_full_version < '{before}'" in pin
    [declared] = [text for text in PROJECT["dependencies"] if text.startswith("bytewax")]
    assert declared.endswith(f"; python_version < '{before}'")


def test_pythons_that_are_claimed_are_those_that_tools_check_for() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    oldest, *_ = claimed = [
        text.rpartition(" ")[2] for text in PROJECT["classifiers"] if " Python :: 3" in text
    ]
    assert claimed == sorted(claimed)
    assert PROJECT["requires-python"] == f">={oldest}"
    assert settings["tool"]["mypy"]["python_version"] == oldest
    assert settings["tool"]["ruff"]["target-version"] == f"py{oldest.replace('.', '')}"
    assert f"--python-version {oldest} " in (ROOT / "Makefile").read_text()


# Without the engine.


def without_engine(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """`forebay ARGUMENTS` where bytewax can't be imported."""
    code = f"{NO_ENGINE}from forebay.cli.main import main\nmain({list(arguments)!r})"
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=without_settings(), capture_output=True,
        text=True,
    )  # fmt: skip


@pytest.mark.few(1)
@pytest.mark.parametrize("command", ["run", "demo", "verify"])
def test_command_that_needs_the_engine_says_so_in_a_line(command: str, tmp_path: Path) -> None:
    done = without_engine(command, folder=tmp_path)
    assert done.returncode == PERMANENT
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith(f"Error: forebay {command}: expected ")
    assert "bytewax" in line
    if sys.version_info >= ENGINE_BEFORE:
        assert "expected Python 3.11 or 3.12" in line
    assert not list(tmp_path.iterdir())


def test_every_command_has_its_help_without_the_engine(tmp_path: Path) -> None:
    code = f"""{NO_ENGINE}
from click.testing import CliRunner
from forebay.cli.main import main
for command in {COMMANDS}:
    done = CliRunner().invoke(main, [command, "--help"])
    assert done.exit_code == 0, (command, done.exception)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.long
def test_commands_that_read_need_no_engine(tmp_path: Path) -> None:
    """Over a data directory that an earlier version wrote."""
    with tarfile.open(ROOT / "tests" / "golden" / "1" / "data.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    new = tmp_path / "new"
    of_some_events(new)
    for arguments in (
        ("sql", "select count(*) as n from events"),
        ("status", "--json"),
        ("files",),
        ("export", "out.parquet"),
        ("rejects", "list"),
        ("batch", "show"),
        ("check",),
        ("generate", "--out", "made", "--events", "1000"),
        ("config", "show"),
        ("config", "check", "--connect"),
    ):
        done = without_engine(*arguments, folder=new if "config" in arguments else tmp_path)
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)


@pytest.mark.parametrize("module", ["forebay.flows.realtime", "flows.realtime"])
def test_engine_launches_the_flow_by_its_name_from_anywhere_and_in_a_checkout_by_its_folders(
    module: str, tmp_path: Path
) -> None:
    engine.need()
    cwd = tmp_path if module.startswith("forebay.") else ROOT
    settings = of_some_events(tmp_path)
    launch(sys.executable, module, cwd, tmp_path / "data", {**without_settings(), **settings})
    assert accepted(sys.executable, tmp_path / "data", tmp_path, without_settings()) == EVENTS


def of_some_events(folder: Path) -> dict[str, str]:
    """Settings of a job that reads a load of EVENTS below the folder."""
    load = Load(LoadSpec(events=EVENTS, partitions=2))
    with files(folder / "events", 2, "none") as outlet:
        for parts in load.slices():
            outlet.send(parts)
    return {
        "FOREBAY_DATA_DIR": str(folder / "data"),
        "FOREBAY_FILES__PATH": str(folder / "events"),
    }


def launch(python: str, module: str, cwd: Path, data: Path, environment: Mapping[str, str]) -> None:
    """The job as the engine documents it, in one process."""
    recovery = data / "recovery"
    recovery.mkdir(parents=True)
    for command in (
        ["-m", "bytewax.recovery", str(recovery), "1"],
        ["-m", "bytewax.run", module, "-r", str(recovery), "-s", "1", "-b", "0"],
    ):
        done = subprocess.run(
            [python, *command], cwd=cwd, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr


def accepted(python: str, data: Path, cwd: Path, environment: Mapping[str, str]) -> int:
    """How many events there are, as the public interface says."""
    code = f"import forebay; print(forebay.open({str(data)!r}).sql({COUNT!r}).item())"
    done = subprocess.run(
        [python, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


# Installed.


@dataclass(frozen=True)
class Installed:
    """The wheel, and what constraints.txt pins, in an environment of its own below `root`."""

    root: Path

    @property
    def python(self) -> Path:
        return self.root / "venv" / "bin" / "python"

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: text for name, text in os.environ.items() if name in KEPT}
        return {**kept, "HOME": str(self.root / "home")}

    def run(self, *arguments: str, cwd: Path, **settings: str) -> str:
        """What the environment's Python prints; it must end with 0."""
        done = subprocess.run(
            [self.python, *arguments], cwd=cwd, env={**self.environment, **settings},
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    made = Installed(tmp_path_factory.mktemp("installed"))
    subprocess.run([BASE, "-m", "venv", made.root / "venv"], check=True)
    own = {name: text for name, text in os.environ.items() if HOSTS_OWN.match(name)}
    pip = (str(made.python), "-m", "pip", "--quiet", "install")
    for command in (
        [*pip, "--require-hashes", "-r", str(ROOT / "constraints.txt")],
        [*pip, "--no-deps", str(wheel)],
        [str(made.python), "-m", "pip", "check"],
    ):
        environment = {**made.environment, **own, "HOME": os.environ.get("HOME", "")}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return made


@pytest.mark.long
def test_installed_wheel_adds_one_name_and_its_command(
    installed: Installed, tmp_path: Path
) -> None:
    code = """
        from importlib.metadata import files
        print(*sorted({file.parts[0] if ".." not in file.parts else str(file)
                       for file in files("forebay")}))
    """
    names = installed.run("-c", textwrap.dedent(code), cwd=tmp_path).split()
    command, package, info = names
    assert command.endswith("bin/forebay")
    assert (package, info) == ("forebay", f"forebay-{PROJECT_VERSION}.dist-info")
    told = installed.run("-m", "forebay", "--version", cwd=tmp_path)
    assert told == f"forebay, version {PROJECT_VERSION}\n"
    command = str(installed.python.with_name("forebay"))
    shown = installed.run(command, "--help", cwd=tmp_path)
    assert all(f"\n  {name} " in shown for name in COMMANDS)
    asked = installed.run("-c", "import forebay; print(forebay.__version__)", cwd=tmp_path)
    assert asked == f"{PROJECT_VERSION}\n"


@pytest.mark.long
def test_installed_job_reads_files_and_a_notebook_queries_them(
    installed: Installed, tmp_path: Path
) -> None:
    """In a folder whose own modules have the names of Forebay's folders."""
    for name in (*FOLDERS, "errors"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("mine = True\n")
    settings = of_some_events(tmp_path)
    installed.run("-m", "forebay", "run", cwd=tmp_path, **settings)
    data = tmp_path / "data"
    assert accepted(str(installed.python), data, tmp_path, installed.environment) == EVENTS
    mine = "; ".join(f"import {name}; assert {name}.mine" for name in FOLDERS)
    installed.run("-c", f"import forebay; forebay.open('data'); {mine}", cwd=tmp_path)
    status = json.loads(installed.run("-m", "forebay", "status", "--json", cwd=tmp_path))
    assert status["totals"]["accepted"] == EVENTS
    package = installed.python.parents[1].glob("lib/python*/site-packages/forebay")
    assert [cached for folder in package for cached in folder.rglob("*.nbi")], "numba's cache"


@pytest.mark.long
def test_installed_flow_is_launched_by_the_engine(installed: Installed, tmp_path: Path) -> None:
    environment = {**installed.environment, **of_some_events(tmp_path)}
    python = str(installed.python)
    launch(python, "forebay.flows.realtime", tmp_path, tmp_path / "data", environment)
    assert accepted(python, tmp_path / "data", tmp_path, installed.environment) == EVENTS


RIGHT = """
from datetime import datetime
from pathlib import Path

import polars as pl

import forebay
from forebay import Receipt, errors


def ask(path: Path) -> pl.DataFrame:
    store: forebay.Store = forebay.open("data", path, partial=True, verify=True)
    lazy: pl.LazyFrame = store.scan(layers="all")
    receipt: Receipt = store.receipt()
    number: int = receipt.batch_number
    until: datetime | None = receipt.covered_until
    silent: list[str] = [one.reason for one in receipt.silent_partitions]
    rejects: pl.LazyFrame = store.rejects(forebay.RejectFilter(reasons=("bad json",)))
    answer: forebay.Explanation = store.why({"insert_id": "x"})
    places: list[tuple[str, int]] = [(copy.partition, copy.offset) for copy in answer.copies]
    with forebay.Handoff(["data", path]) as handoff:
        sealed: list[forebay.Boundary] = handoff.seal(0)
    print(lazy, number, until, silent, rejects, places, sealed, forebay.__version__)
    try:
        return store.sql("select 1")
    except errors.BadInput as error:
        told: str = str(error)
        base: errors.ForebayError | ValueError = error
        print(told, base)
    return store.partitions()
"""
WRONG = {
    "forebay.open(1)": "arg-type",
    "forebay.oppen('data')": "attr-defined",
    "store.sql()": "call-arg",
    "text: str = store.sql('select 1')": "assignment",
    "store.scan(layers='both')": "arg-type",
    "store.receipt().batch_number = 2": "misc",
    "forebay.RejectFilter(reasons='bad json')": "arg-type",
    "forebay.errors.NoSuchError": "attr-defined",
    "forebay.Handoff('data').complete(0)": "call-arg",
}


@pytest.mark.long
def test_type_checker_sees_the_interface_of_the_installed_wheel_and_refuses_wrong_calls(
    installed: Installed, tmp_path: Path
) -> None:
    (tmp_path / "right.py").write_text(RIGHT)
    head = "import forebay\n\nstore = forebay.open('data')\n"
    (tmp_path / "wrong.py").write_text(head + "\n".join(WRONG) + "\n")

    def checked(name: str) -> list[str]:
        """Errors, each as LINE:CODE."""
        done = subprocess.run(
            [sys.executable, "-m", "mypy", "--strict", "--config-file", os.devnull,
             "--python-executable", str(installed.python), name],
            cwd=tmp_path, capture_output=True, text=True,
        )  # fmt: skip
        found = re.findall(r"^wrong\.py:(\d+): error: .*\[([\w-]+)\]$", done.stdout, re.MULTILINE)
        assert done.returncode == (1 if found else 0), done.stdout + done.stderr
        return [f"{line}:{code}" for line, code in found]

    assert checked("right.py") == []
    first = head.count("\n") + 1
    assert checked("wrong.py") == [
        f"{first + number}:{code}" for number, code in enumerate(WRONG.values())
    ]
