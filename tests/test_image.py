"""The image and the compose file: what goes in, and that every command works in what comes out.

There is no Docker engine here. What can be done without one is done for real: see `tests.image`.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from forebay.cli.load import Load, LoadSpec
from forebay.cli.outlet import files
from tests.broker import Broker
from tests.image import COMPOSE, ROOT, Image, build, context, copy_context, services
from tests.manual import commands

EVENTS = 3000


def _pins(name: str) -> dict[str, str]:
    """Each pinned package (NAME==VERSION), and its hashes."""
    text = re.sub(r"\\\n\s*", "", (ROOT / name).read_text())
    found = re.findall(r"^(\S+==\S+).*?((?:--hash=\S+\s*)+)$", text, re.MULTILINE)
    return {pin: hashes.strip() for pin, hashes in found}


@pytest.mark.long
def test_what_an_image_build_may_see_is_what_the_wheel_is_made_from() -> None:
    tops = {path.parts[0] for path in context()}
    assert tops == {
        "constraints.txt", "constraints-build.txt", "pyproject.toml", "README.md", "LICENSE",
        "forebay", "flows", "operators", "storage", "query", "cli", "serve", "verify",
    }  # fmt: skip
    assert not [path for path in context() if "__pycache__" in path.parts]


@pytest.mark.long
def test_wheel_of_what_an_image_build_may_see_has_every_file(tmp_path: Path) -> None:
    copy_context(tmp_path / "src")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"]
    build_it = [*pip, "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), "."]
    subprocess.run(build_it, cwd=tmp_path / "src", check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    folders = [path for path in (ROOT / "forebay").iterdir() if path.is_dir()]
    expected = {path.relative_to(ROOT).as_posix() for path in (ROOT / "forebay").glob("*.py")}
    expected.add("forebay/py.typed")
    expected |= {
        f"forebay/{folder.name}/{path.relative_to(folder).as_posix()}"
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in names if not name.startswith("forebay-")} == expected


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-build.txt"])
def test_what_the_image_pins_is_what_the_tests_run_with(name: str) -> None:
    tried, pins = _pins("constraints-dev.txt"), _pins(name)
    assert pins
    assert {pin: tried.get(pin) for pin in pins} == pins


@pytest.mark.parametrize(
    "name", ["constraints.txt", "constraints-build.txt", "constraints-dev.txt", "pyproject.toml"]
)
def test_no_file_of_pins_names_a_host(name: str) -> None:
    assert not re.search(r"://|index-url|find-links", (ROOT / name).read_text())


def test_each_service_of_compose_has_what_its_part_needs() -> None:
    found = services({})
    ours = {name for name, service in found.items() if service["image"] == "forebay"}
    assert ours == {"job", "serve", "load", "batch", "shell"}
    holding = {name for name in ours if "data:/data" in found[name].get("volumes", ())}
    assert holding == {"job", "serve", "batch", "shell"}
    assert found["serve"]["ports"] == ["127.0.0.1:8080:8080"]
    assert found["batch"]["profiles"] == found["shell"]["profiles"] == ["tools"]
    for name, service in found.items():
        assert set(service.get("depends_on", ())) <= set(found), name
        assert "mem_limit" in service, f"{name}: expected a bound"


def test_variables_that_compose_takes_are_those_that_its_head_names() -> None:
    text = COMPOSE.read_text()
    head = re.search(r"# From the environment.*?: (.*)\.", text)
    assert head is not None
    named = set(re.findall(r"\b[A-Z_]+\b", head.group(1)))
    assert set(re.findall(r"\$\{(\w+):-", text)) == named


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    """Not below pytest's folder, whose path is too long for some things and forbidden to others."""
    root = Path(tempfile.mkdtemp(prefix="forebay-image-"))
    yield build(root)
    subprocess.run(["chmod", "-R", "u+w", str(root)], check=True)
    shutil.rmtree(root)


@pytest.mark.long
def test_every_command_of_the_image_says_its_help(image: Image, tmp_path: Path) -> None:
    for words in commands():
        told = image.run(*words, "--help", folder=tmp_path)
        assert told.startswith(f"Usage: {' '.join(('forebay', *words))} [OPTIONS]"), told
    assert image.run("--version", folder=tmp_path).startswith("forebay, version ")


@pytest.mark.long
def test_job_batch_layer_and_queries_work_in_the_image(image: Image, tmp_path: Path) -> None:
    """In an empty folder, with nothing to write to but the data and the numba cache."""
    load = Load(LoadSpec(events=EVENTS, span_ms=3 * 86_400_000, partitions=2))
    with files(tmp_path / "events", 2, "none") as outlet:
        for parts in load.slices():
            outlet.send(parts)
    settings = {"FOREBAY_FILES__PATH": str(tmp_path / "events")}
    cwd = tmp_path / "empty"
    cwd.mkdir()

    def invoke(*arguments: str) -> str:
        return image.run(*arguments, folder=cwd, settings=settings)

    def count(table: str) -> int:
        [row] = json.loads(invoke("sql", "--format", "json", f"select count(*) n from {table}"))
        return int(row["n"])

    invoke("run")
    assert count("events") == EVENTS
    invoke("batch", "run", "--catch-up")
    status = json.loads(invoke("status", "--json"))
    assert status["batch_number"] >= 1
    assert count("events_all") == EVENTS
    assert count("events") < EVENTS
    invoke("check")
    assert list((image.root / "var" / "cache" / "forebay").rglob("*.nbi")), "numba's cache"
    assert not list(cwd.iterdir())


@pytest.mark.long
def test_verify_works_in_the_image(image: Image, tmp_path: Path) -> None:
    told = image.run("verify", "--story", "random moments", folder=tmp_path)
    assert re.search(r"random moments +[\d,]+ +[1-9]\d* +0 +0 ", told), told


@pytest.mark.long
@pytest.mark.kafka
def test_what_compose_runs_works_with_the_environment_it_gives(
    image: Image, tmp_path: Path, broker: Broker
) -> None:
    """The commands of the services, as compose has them, against a real broker."""
    asked = {"EVENTS": str(EVENTS), "RATE": "20000", "WORKERS": "2"}
    found = services(asked)
    topic = dict(re.findall(r"--(\w+)=(\w+)", " ".join(found["topic"]["command"])))
    broker.create_topic(topic["topic"], int(topic["partitions"]))
    shutil.rmtree(image.data)
    image.data.mkdir()

    def settings(name: str) -> dict[str, str]:
        given = found[name]["environment"]
        return {
            key: image.inside(text.replace("kafka:9092", broker.address))
            for key, text in given.items()
        }

    def invoke(name: str, *arguments: str) -> str:
        return image.run(*arguments, folder=tmp_path, settings=settings(name))

    shell, flag, script = found["load"]["entrypoint"]
    loading = image.start(
        shell, flag, script.replace("kafka:9092", broker.address),
        folder=tmp_path, settings={**settings("load"), **asked},
    )  # fmt: skip
    told, _ = loading.communicate(timeout=120)
    assert loading.returncode == 0, told
    assert json.loads(told[told.index("{") :])["accepted"] == EVENTS

    job = image.start(
        str(image.forebay), *found["job"]["command"], folder=tmp_path, settings=settings("job")
    )
    try:
        assert job.stdout is not None
        while "started 2 workers" not in (line := job.stdout.readline()):
            assert line, "expected the job to say that it started"
        accepted = 0
        while accepted < EVENTS:
            assert job.poll() is None
            accepted = json.loads(invoke("shell", "status", "--json"))["totals"]["accepted"]
        assert invoke("shell", *found["shell"]["command"])
        _asked_for_events(image, found["serve"]["entrypoint"], tmp_path, settings("serve"))
        invoke("batch", *found["batch"]["command"])
    finally:
        job.send_signal(signal.SIGTERM)
        told, _ = job.communicate(timeout=90)
        broker.delete_topic(topic["topic"])
    assert job.returncode == 0, told


def _asked_for_events(
    image: Image, entrypoint: list[str], folder: Path, settings: dict[str, str]
) -> None:
    """The server makes a token, and answers its holder; on a port of its own choice."""
    shell, flag, script = entrypoint
    own = image.inside(script).replace("exec forebay serve", "exec forebay serve --port 0")
    process = image.start(shell, flag, own, folder=folder, settings=settings)
    try:
        assert process.stdout is not None
        token = process.stdout.readline().strip()
        assert token.startswith("forebay_")
        while (found := re.search(r"0\.0\.0\.0:(\d+)", line := process.stdout.readline())) is None:
            assert line, "expected the server to say where it answers"
        address = f"http://localhost:{found[1]}/v1/sql"
        question = urllib.request.Request(
            f"{address}?text=select+count(*)+as+n+from+events",
            headers={"Authorization": f"Bearer {token}"},
        )
        with urllib.request.urlopen(question, timeout=120) as answer:
            assert json.load(answer) == [{"n": EVENTS}]
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(address, timeout=60)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
