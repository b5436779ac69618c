"""The documentation is what the code does: every block of it is run or checked, and every command,
setting, table, counter and exit code is there, and no other.
"""

from __future__ import annotations

import json
import re
import shlex
import signal
import sysconfig
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import NamedTemporaryFile

import click
import polars as pl
import pytest
from click.shell_completion import get_completion_class
from click.testing import CliRunner

import forebay.cli.main
from forebay.cli.main import main
from forebay.flows.schemas import PRESETS
from forebay.flows.settings import ENV_PREFIX, NO_SETTINGS, Settings
from forebay.query.receipt import _PARTITION_SCHEMA
from forebay.query.tables import TABLES
from forebay.serve.amplitude.endpoints import ENDPOINTS, NOT_SERVED
from forebay.serve.front import OTHERS, PATHS
from forebay.serve.metrics import Metrics
from forebay.serve.routes import FILE, OFFER, SCAN
from forebay.storage.base import errors
from forebay.storage.formats.frame import REJECT_SCHEMA
from forebay.storage.formats.schema import OFFSET, PARTITION, RAW, UPLOAD_TIME
from forebay.verify.stories import STORIES
from tests import engine
from tests.broker import _free_port
from tests.image import ROOT, services
from tests.manual import REFERENCE, commands, page, settings
from tests.samples import BROKER, FORMS, Form
from tests.stranger import Block, Stranger, blocks

README, DOCKER, ARCHITECTURE = "README.md", "docker/README.md", "ARCHITECTURE.md"
SERVING = "docs/decisions/serving.md"
CONTRIBUTING, GUARANTEES = "CONTRIBUTING.md", "docs/guarantees.md"
SIZING, BENCHMARKS = "docs/sizing.md", "docs/benchmarks.md"
DOCS = sorted(page.relative_to(ROOT).as_posix() for page in (ROOT / "docs").rglob("*.md"))
PAGES = (README, DOCKER, ARCHITECTURE, CONTRIBUTING, "CHANGELOG.md", REFERENCE.name, *DOCS)
TEXT = {name: (ROOT / name).read_text() for name in PAGES}
WITHOUT_KAFKA = (
    README,
    "docs/run.md",
    "docs/query.md",
    "docs/analytics.md",
    "docs/serve.md",
    "docs/amplitude.md",
    "docs/nodes.md",
    "docs/batch-layer.md",
    "docs/counters.md",
    GUARANTEES,
    SIZING,
    CONTRIBUTING,
)
"""Pages that a stranger follows one after the other, in one terminal."""
TUTORIAL = "docs/tutorial.md"
"""Which begins with an empty folder."""
ON_KAFKA = ("docs/kafka.md",)
CLIENTS = "docs/clients.md"
"""`tests/test_clients.py` runs its blocks."""
PATIENT_S = 1200
"""For dozens of commands, each a process that loads what it needs."""
GUIDE = "\n\n".join(TEXT[name] for name in PAGES if name == README or name.startswith("docs/"))


# What a block's commands must have said or done, by the command's beginning.


def _generated(stranger: Stranger, told: str) -> None:
    stranger.counted |= json.loads(told)


def _as_generated(stranger: Stranger, _: str) -> None:
    """The totals are those that `generate` printed, and what was sent again is dropped again."""
    totals, expected = stranger.status()["totals"], stranger.counted
    again = expected.get("again", 0)
    names = ("accepted", "late") if again else ("accepted", "duplicates", "rejects", "late")
    assert {n: totals[n] for n in names} == {n: expected[n] for n in names}
    dropped = totals["duplicates"] + totals["rejects"]
    assert dropped == expected["duplicates"] + expected["rejects"] + again


def _sent_again(stranger: Stranger, _: str) -> None:
    again = (stranger.folder / "again").read_bytes().splitlines(keepends=True)
    lines = (stranger.folder / "events" / "part-00000.ndjson").read_bytes().splitlines(True)
    assert lines[: len(again)] == lines[-len(again) :] == again
    stranger.counted["again"] = len(again)


def _charted(stranger: Stranger, _: str) -> None:
    """By the block of Python before."""
    page = (stranger.folder / "purchases.html").read_text()
    assert "vega" in page
    assert not re.search(r"<(?:script|link)[^>]+(?:src|href)=", page)


def _handed_over(stranger: Stranger, told: str) -> None:
    """The first of May, which is over; the second is not."""
    found = re.fullmatch(r"2024-05-01: batch 1, ([\d,]+) events, 0 duplicates.*, 0 late\n", told)
    assert found, told
    stranger.counted["day"] = int(found[1].replace(",", ""))


def _exported(stranger: Stranger, _: str) -> None:
    """The same day, taken in steps."""
    assert pl.read_parquet(stranger.folder / "day.parquet").height == stranger.counted["day"]


def _all_exported(stranger: Stranger, _: str) -> None:
    exported = pl.read_parquet(stranger.folder / "events.parquet")
    assert exported.select("_partition", "_offset").n_unique() == stranger.counted["accepted"]
    assert exported.height == stranger.counted["accepted"]


def _says(*patterns: str) -> Callable[[Stranger, str], None]:
    def check(_: Stranger, told: str) -> None:
        for pattern in patterns:
            assert re.search(pattern, told), f"expected {pattern!r} in:\n{told}"

    return check


CLAIMS: dict[str, Callable[[Stranger, str], None]] = {
    "forebay generate": _generated,
    "head -n 1000": _sent_again,
    "forebay --version": _says(re.escape(forebay.__version__)),
    "forebay sql \"select event_type, count(*) as n, sum": _says(r"purchase +\d{4} +\d{5}"),
    "forebay sql \"select date_trunc('hour'": _says("2024-05-01 08:00:00", "15:00:00"),
    "forebay sql \"select count(*) as n, raw->>": _says(r"\d+  usb-c\n"),
    "forebay segment purchase --by platform --interval": _says(r"iOS +2024-05-01 15:00 +[1-9]"),
    "forebay config check": _says("no faults"),
    "forebay status": _as_generated,
    "python -m bytewax.run": _as_generated,
    "forebay sql \"select event_type": _says("page_view"),
    "forebay sql --nodes http://localhost:8080": _says(r"n +users\n *[1-9]\d+ +[1-9]\d+\n"),
    "forebay sql \"select count(*) from events where upload": _says(r"^count_star\(\)\s+0\s"),
    "forebay sql \"select time_bucket": _says("2024-05-01 23:30:00", "2024-05-02 00:20:00"),
    "forebay sql \"select raw->>": _says("platform", r"\n\w+ +\d+\n"),
    "forebay sql \"select count(*) from events where event_type": _says(r"\n *[1-9]\d+\n"),
    "forebay sql \"from events where event_type": _says(r"rows in views.parquet"),
    "forebay sql --format ndjson": _says(r'\{"_partition":"part-'),
    "forebay sql \"describe events": _says("upload_time", "TIMESTAMP WITH TIME ZONE", "JSON"),
    "forebay sql \"select count(*) from events_all": _says("200000"),
    "forebay sql \"select reason": _says("bad json", "absurd upload time"),
    "forebay sql \"select plan": _says("pro"),
    "forebay batch run --catch-up": _handed_over,
    "forebay sql --format parquet": _exported,
    "forebay batch show": _says(r"batch number +1", r"covered until +2024-05-02T00:00:00Z"),
    "forebay batch seal": _says("sealed until 2024-05-02T00:00:00Z"),
    "forebay batch complete": _says("batch 1, covered until 2024-05-02T00:00:00Z"),
    "forebay batch late": _says("0 late events"),
    "forebay tail -n 3": _says(r"upload_time +event_type +user_id\n(2024-05-0.*\n){3}"),
    "forebay tail --where": _says(r"upload_time +event_type +country", r"purchase|search"),
    "forebay funnel": _says(r"2 +search +[1-9]", r"3 +purchase +\d"),
    "forebay retention": _says(r"from_day", r"0 +1 +[1-9]"),
    "forebay segment purchase --measure": _says(r"answer = store\.segmentation\(", r"by='country'"),
    "forebay token add": _says(r"^forebay_[\w-]{43}\n"),
    "forebay token list": _says(r"dashboards +read"),
    "curl -s 'http://localhost:8080/v1/funnel": _says(r'^\{"steps":\[', '"event":"search"'),
    "curl -s 'http://localhost:8080/v1/sql": _says(r"^n\n[1-9]\d+\n"),
    "curl -s http://localhost:8080/v1/partitions": _says('"partition":"part-00000.ndjson"'),
    "curl -sg -u key:secret 'http://localhost:8080/api/2/users": _says(r'"series":\[\[[1-9]'),
    "curl -sg -u key:secret 'http://localhost:8080/api/2/events/segmentation": _says(
        r'"series":\[\[[1-9]\d*,[1-9]\d*\]\]'
    ),
    "curl -sg -u key:secret 'http://localhost:8080/api/2/funnels": _says('"events":\\["search"'),
    "forebay disk": _says(r"goes: [\d,.]+ "),
    "forebay rejects list": _says("bad json"),
    "forebay rejects replay": _says("no rejects to replay"),
    "forebay rejects delete": _says("no rejects to delete"),
    "forebay why": _says("kept: partition part-00000"),
    "forebay check": _says("all as written"),
    "forebay config check --connect": _says("no faults"),
    "forebay export": _all_exported,
    "forebay files": _says("part-00000"),
    "forebay run": _as_generated,
    "forebay verify": _says(r"(?:torn log|an hour ago) +[\d,]+ +\d+ +0 +0 "),
    "FOREBAY_CONFIG=secure.toml forebay config check": _says("secure.toml.*no faults"),
    "forebay config show": _says("data_dir = "),
}  # fmt: skip


# Commands that go on until they are stopped: what is awaited of each, and how it is stopped.


def _broker_answers(stranger: Stranger) -> None:
    stranger.start("make kafka").until(rf"127\.0\.0\.1:{stranger.port}")


def _job_takes_all(stranger: Stranger) -> None:
    """It goes on while the blocks after it run."""
    stranger.start("forebay run --workers 2").until("INFO started 2 workers")
    expected = stranger.counted["messages"]
    taken = 0
    while taken < expected:
        totals = stranger.status()["totals"]
        taken = sum(totals[name] for name in ("accepted", "duplicates", "rejects"))
        assert stranger.terminals[-1].process.poll() is None, stranger.terminals[-1].told
    _as_generated(stranger, "")


def _watch_shows_totals(stranger: Stranger) -> None:
    watch = stranger.start("forebay status --watch")
    watch.until("accepted 200,000")
    watch.until("messages/s")
    watch.stop(signal.SIGINT)


def _server_answers(stranger: Stranger) -> None:
    """It goes on while the blocks after it run."""
    stranger.start("forebay serve").until("is served at http://127.0.0.1:8080")


def _installed(stranger: Stranger) -> None:
    """What it needs is that of this process: `tests/test_packaging.py` has pip get all of it."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    (Path(stranger.run(f'python -c "{code}"').strip()) / "ours.pth").write_text(
        f"{sysconfig.get_path('purelib')}\n"
    )
    stranger.run("pip install --quiet --no-deps --no-build-isolation --no-index '.[serve,charts]'")


def _server_of_the_tutorial(stranger: Stranger) -> None:
    served = stranger.start("forebay serve --port 8093")
    served.until("is served at http://127.0.0.1:8093")
    with urllib.request.urlopen("http://127.0.0.1:8093/") as answer:
        assert b"<title>" in answer.read()
    served.stop(signal.SIGINT)


LASTING: dict[str, Callable[[Stranger], None]] = {
    "pip install '.[serve,charts]'": _installed,
    "forebay serve --port 8093": _server_of_the_tutorial,
    "forebay serve": _server_answers,
    "make kafka": _broker_answers,
    "forebay run --workers 2": _job_takes_all,
    "forebay status --watch": _watch_shows_totals,
}


# Blocks that can't be run here: why, and what is checked of each in place of that.


def _in_ci(block: Block) -> None:
    """They are what CI runs: here they would run within one of them."""
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert set(block.commands) <= set(lines)


def _developing(block: Block) -> None:
    """They would run the tests within a test: targets, files and folders exist, and commands of
    ours parse."""
    targets = (ROOT / "Makefile").read_text()
    for command in block.commands:
        words = [word for word in shlex.split(command) if "=" not in word]
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", targets, re.MULTILINE), command
        else:
            assert words[:3] == ["python", "-m", "pytest"] or words[0] in ("source", "git"), command
            files = [word for word in words if word.startswith("tests/")]
            assert all((ROOT / file).exists() for file in files), command


def _composed(block: Block) -> None:
    """There is no Docker engine here: services, profiles and variables are those of compose.yaml,
    and what a service is told to run is a command of ours. (`tests/test_image.py` runs them.)"""
    for line in block.commands:
        for command in line.split(" && "):
            check_compose(command)


def _several_hosts(block: Block) -> None:
    """There is one host here: the commands are of ours, or the engine's, with options that they
    have. (`tests/test_hosts.py` runs both ways.)"""
    for command in block.commands:
        words = shlex.split(command, comments=True)
        if words[0] == "forebay":
            assert_parses(words[1:])
        else:
            assert words[:2] == ["python", "-m"]
            assert words[2] in ("bytewax.recovery", "bytewax.run")


def _model_host(block: Block) -> None:
    """There is no such host here: the command that it would start is ours. (`tests/test_mcp.py`
    starts it as one.)"""
    for one in json.loads(block.text)["mcpServers"].values():
        assert one["command"] == "forebay"
        assert_parses(one["args"])


def _picture(block: Block) -> None:
    """A picture of the data flow: each step is a module."""
    steps = {"decode", "blocks", "chunks"}
    assert steps <= set(re.findall(r"\w+", block.text))
    assert all((ROOT / "operators" / f"{step}.py").exists() for step in steps)


def _tables(block: Block) -> None:
    """The same for a newcomer: tables are named as queries name them."""
    assert set(re.findall(r"events\w*", block.text)) <= set(TABLES)


def _processes(block: Block) -> None:
    """A picture of a server: each of its parts is a module."""
    for part in ("front", "worker", "feed", "files", "asked"):
        assert part in block.text
        assert (ROOT / "serve" / f"{part}.py").exists()


def _layout(block: Block) -> None:
    """What is on disk: checked when README.md has been followed, see `assert_layout`."""
    assert all(line.startswith("DATA/") for line in block.text.splitlines())


def _help(block: Block) -> None:
    """Made from the code, and compared with it below."""
    assert block.text.startswith("Usage: forebay")


def _settings(block: Block) -> None:
    with NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(block.text)
        file.flush()
        found = CliRunner().invoke(main, ["config", "check"], env={"FOREBAY_CONFIG": file.name})
    assert found.exit_code == 0, found.output
    assert "no faults" in found.stdout


CHECKED: dict[tuple[str, str], Callable[[Block], None]] = {
    (README, "Kafka ─► decode"): _tables,
    (README, "make demo"): _in_ci,
    (CONTRIBUTING, "make setup"): _developing,
    (CONTRIBUTING, "python -m pytest"): _developing,
    (CONTRIBUTING, "REWRITE_GOLDEN"): _developing,
    ("docs/hosts.md", "forebay run --hosts"): _several_hosts,
    ("docs/hosts.md", "python -m bytewax.recovery store"): _several_hosts,
    ("docs/mcp.md", '{"mcpServers"'): _model_host,
    ("docs/schemas.md", 'schema = "segment"'): _settings,
    ("docs/schemas.md", 'schema = "none"'): _settings,
    (DOCKER, "docker compose up"): _composed,
    (DOCKER, "WORKERS=4 JOB_MEMORY=8g docker compose"): _composed,
    (ARCHITECTURE, "Kafka ─► source"): _picture,
    (SERVING, "client ─HTTP─► front"): _processes,
    (ARCHITECTURE, "DATA/lock"): _layout,
    (REFERENCE.name, "Usage: forebay"): _help,
}


def check_of(block: Block) -> Callable[[Block], None] | None:
    """The check that stands for running the block."""
    found = [
        check
        for (name, start), check in CHECKED.items()
        if name == block.page and block.text.startswith(start)
    ]
    return found[0] if found else None


def check_compose(command: str) -> None:
    """A `docker compose` command: VARIABLE=… docker compose [--profile P] VERB … [SERVICE ARGS]."""
    words = shlex.split(command)
    found = services({})
    taken = set(re.findall(r"\$\{(\w+):-", (ROOT / "docker" / "compose.yaml").read_text()))
    while "=" in words[0]:
        assert words.pop(0).split("=")[0] in taken, command
    assert words[:2] == ["docker", "compose"], command
    rest = words[2:]
    if rest[0] == "--profile":
        assert any(rest[1] in service.get("profiles", ()) for service in found.values()), command
        rest = rest[2:]
    verb, *rest = rest
    assert verb in ("up", "run", "stop", "start", "logs", "down"), command
    while rest and rest[0].startswith("-"):
        assert rest.pop(0) in ("--build", "--detach", "--rm", "--volumes"), command
    if rest:
        service, *arguments = rest
        assert service in found, command
        if verb == "run":
            assert_parses(arguments or found[service]["command"])


def assert_parses(arguments: list[str]) -> None:
    """A command of ours with options that it has."""
    done = CliRunner().invoke(main, [*arguments, "--help"])
    assert done.exit_code == 0, f"forebay {' '.join(arguments)}: {done.output}"


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stranger]:
    engine.need()
    made = Stranger(tmp_path_factory.mktemp("stranger"), _free_port())
    yield made
    made.close()


def follow(stranger: Stranger, found: list[Block]) -> None:
    """Do what each block says, in order; one of text has what the command before it printed."""
    for block in found:
        if check := check_of(block):
            check(block)
        elif block.language == "text":
            assert not set(block.text.splitlines()) - _lines(stranger.told), f"{block}: not printed"
        elif block.language == "toml":
            stranger.write(block)
        elif block.language == "python":
            stranger.python(block.text)
        else:
            assert block.language == "sh", f"{block}: expected a language, or a check of its own"
            for command in block.commands:
                do(stranger, block, command)


def _lines(told: str) -> set[str]:
    """Of what was printed, each line, and its beginnings up to a gap between two columns."""
    lines = told.replace("\r", "").splitlines()
    ends = [(line, found.start()) for line in lines for found in re.finditer("  +|$", line)]
    return {line[:end] for line, end in ends}


def do(stranger: Stranger, block: Block, command: str) -> None:
    if command in LASTING:
        LASTING[command](stranger)
        return
    told = stranger.told = stranger.run(command)
    claims = [claim for start, claim in CLAIMS.items() if command.startswith(start)]
    ours = re.search(r"\bforebay [a-z]", command)
    assert claims or not ours, f"{block}: expected a claim about {command!r} in CLAIMS"
    for claim in claims:
        claim(stranger, told)


@pytest.mark.long
@pytest.mark.timeout(PATIENT_S)
def test_the_guide_works_word_for_word_without_kafka(stranger: Stranger) -> None:
    for name in WITHOUT_KAFKA:
        follow(stranger, list(blocks(name)))
    assert_layout(stranger.folder / "data")


@pytest.mark.long
@pytest.mark.timeout(PATIENT_S)
def test_the_tutorial_works_word_for_word(tmp_path: Path) -> None:
    engine.need()
    stranger = Stranger(tmp_path, _free_port())
    try:
        follow(stranger, list(blocks(TUTORIAL)))
        _charted(stranger, "")
        assert_layout(stranger.folder / "data")
    finally:
        stranger.close()


@pytest.mark.long
@pytest.mark.timeout(PATIENT_S)
@pytest.mark.kafka
def test_the_guide_works_word_for_word_on_kafka(tmp_path: Path) -> None:
    stranger = Stranger(tmp_path, _free_port())
    try:
        stranger.have_jars()
        stranger.run("source .venv/bin/activate")
        for name in ON_KAFKA:
            follow(stranger, list(blocks(name)))
        kafka, job, _ = stranger.terminals
        assert job.stop(signal.SIGTERM) == 0, job.told
        assert_layout(stranger.folder / "data")
        kafka.stop(signal.SIGINT)
    finally:
        stranger.close()


def assert_layout(data: Path) -> None:
    """Every file of a data directory is one that ARCHITECTURE.md names."""
    [block] = [b for b in blocks(ARCHITECTURE) if check_of(b) is _layout]
    names = [line.split()[0].removeprefix("DATA/") for line in block.text.splitlines()]
    parts = {"PARTITION": r"[^/]+", "TOPIC": r"[^/]+", "BLOCK": r"[\w-]+", "FIRST-LAST": r"[\w-]+"}
    patterns = []
    for name in names:
        pattern = re.escape(name).replace(r"\-", "-").replace("rejects-N", r"rejects-\d+")
        pattern = pattern.replace("drops-N", r"drops-\d+").replace("replay/N", r"replay/\d+")
        for word, one in parts.items():
            pattern = pattern.replace(word, one)
        pattern = re.sub(r"\bRUN\b", r"\\d+", pattern).replace(".cN", r".c\d+")
        pattern = pattern.replace("date=D", r"date=[\d-]+").replace("hour=H", r"hour=\d+")
        patterns.append(pattern + (".*" if name.endswith("/") else ""))
    found = [p.relative_to(data).as_posix() for p in data.rglob("*") if p.is_file()]
    assert found
    unknown = [name for name in found if not any(re.fullmatch(p, name) for p in patterns)]
    assert not unknown, f"{ARCHITECTURE}: expected every file to be named there, got {unknown[:3]}"


@pytest.mark.parametrize("name", sorted({*PAGES} - {*WITHOUT_KAFKA, TUTORIAL, *ON_KAFKA, CLIENTS}))
def test_each_block_that_is_not_run_has_a_check_of_its_own(name: str) -> None:
    for block in blocks(name):
        check = check_of(block)
        assert check, f"{block}: expected a check in CHECKED, for no test runs this page"
        check(block)


@pytest.mark.parametrize("name", PAGES)
def test_each_command_that_a_page_names_exists(name: str) -> None:
    known = {" ".join(words) for words in commands()}
    groups = {words[0] for words in commands() if len(words) > 1}
    for text in re.findall(r"`([^`\n]*)`", re.sub(r"```.*?```", "", TEXT[name], flags=re.S)):
        if "docker compose" in text:
            check_compose(text)
        for words in re.findall(r"\bforebay ([a-z][a-z |]*)", text):
            first, *rest = words.split()
            assert first.split("|")[0] in known, f"{name}: forebay {words}"
            if first in groups and rest:
                for one in rest[0].split("|"):
                    assert f"{first} {one}" in known, f"{name}: forebay {words}"


@pytest.mark.parametrize("name", PAGES)
def test_each_link_of_a_page_leads_somewhere(name: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", TEXT[name], flags=re.S)):
        path, _, heading = target.partition("#")
        if "://" in target:
            continue
        page = (ROOT / name).parent / path if path else ROOT / name
        assert page.exists(), f"{name}: {target}"
        if heading:
            assert heading in map(_anchor, _headings(page)), f"{name}: {target}"


def _headings(page: Path) -> list[str]:
    return re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)


def _anchor(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.casefold()).replace(" ", "-")


def test_each_page_of_docs_is_linked_by_another() -> None:
    linked = set()
    for name in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)", TEXT[name]):
            linked.add(((ROOT / name).parent / target).resolve())
    assert {(ROOT / name).resolve() for name in DOCS} <= linked


@pytest.mark.parametrize("name", PAGES)
def test_each_target_of_make_that_a_page_names_exists(name: str) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)", TEXT[name], re.MULTILINE)) <= set(targets)


def test_each_command_and_setting_is_in_the_reference_as_the_code_has_it() -> None:
    assert REFERENCE.read_text() == page(), "REFERENCE.md is not what the code says: make reference"


def _example(words: tuple[str, ...]) -> str:
    """The one in the help of a command."""
    command: click.Command = main
    for word in words:
        assert isinstance(command, click.Group)
        found = command.get_command(click.Context(command), word)
        assert found is not None
        command = found
    heading, line = str(command.epilog).removeprefix("\b\n").split("\n")
    assert heading == "Example:", words
    return line.strip()


def test_each_command_has_an_example_of_itself_in_its_help() -> None:
    for words in commands():
        assert_parses(shlex.split(_example(words))[1:])
        assert _example(words).startswith(f"forebay {' '.join(words)}"), words


@pytest.mark.long
@pytest.mark.timeout(PATIENT_S)
def test_each_example_does_what_it_says(tmp_path: Path) -> None:
    """One after the other, in one folder."""
    engine.need()
    stranger = Stranger(tmp_path, _free_port())
    stranger.run("source .venv/bin/activate && mkdir ~/examples && cd ~/examples && mkdir events")
    stranger.run("forebay generate --out events --events 20000 --start 2024-05-01T23:30")
    stranger.run("forebay run && forebay tail -n 1 --format json > tail.json")
    last = json.loads((stranger.folder / "tail.json").read_text())
    [reject, *_] = stranger.run("forebay rejects list --json").splitlines()
    found = json.loads(reject)
    meant = {
        "d1": last["device_id"],
        "i1": last["insert_id"],
        "u42": last["user_id"],
        "part-00000.ndjson 17": f"{found['_partition']} {found['_offset']}",
        "tail -f": "tail",  # it would go on
    }
    order = [*(words for words in commands() if words[:1] == ("generate",)), *commands()]
    groups = {words[:-1] for words in commands()}
    for words in order:
        if words in groups or words == ("generate",):
            continue
        line = _example(words)
        if words in (("serve",), ("mcp",)):  # which end with their reader
            told = stranger.run(f"timeout --signal INT 30 {line} </dev/null || true")
            assert ("is served at" in told) == (words == ("serve",)), told
            continue
        for text, value in meant.items():
            line = line.replace(text, value)
        assert stranger.run(line) or words == ("tail",), line


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_tab_completes_in_each_shell_that_the_guide_names(shell: str) -> None:
    assert f"{shell}_source" in TEXT[README]
    made = get_completion_class(shell)
    assert made is not None
    completed = made(main, {}, "forebay", f"_{ENV_PREFIX}COMPLETE")
    assert "forebay" in completed.source_vars().values()
    assert [one.value for one in completed.get_completions([], "ver")] == ["verify"]
    assert "--story" in [one.value for one in completed.get_completions(["verify"], "--st")]


@pytest.mark.parametrize("name", PAGES)
def test_each_setting_that_a_page_names_exists(name: str) -> None:
    known = {setting for setting, _, _ in settings()}
    tops = {setting.split(".")[0] for setting in known} | {*map(str.lower, NO_SETTINGS)}
    inner = {setting.split(".")[-1] for setting in known}
    for variable in re.findall(rf"(?<!_){ENV_PREFIX}([A-Z_]+[A-Z])", TEXT[name]):
        setting = variable.lower().replace("__", ".")
        assert setting in known | tops, f"{name}: {ENV_PREFIX}{variable}"
    for setting in re.findall(r"`((?:[a-z_]+\.)?[a-z_]+) = ", TEXT[name]):
        assert setting in known | inner, f"{name}: {setting}"


def test_tables_and_columns_are_those_that_the_guide_has() -> None:
    found = _rows("table")
    assert found == list(TABLES)
    system = _rows("column of events")
    assert system == [PARTITION, OFFSET, UPLOAD_TIME, RAW]
    assert _rows("column of rejects") == REJECT_SCHEMA.names
    assert sorted(_rows("column")) == sorted(_PARTITION_SCHEMA)


def test_metrics_of_a_server_are_those_that_the_guide_has() -> None:
    """Those of the job: `tests/test_metrics.py` compares what it scrapes."""
    text = Metrics().text().decode()
    assert set(_rows("metric of a server")) == set(re.findall(r"^# TYPE (\S+)", text, re.M))


def test_paths_of_a_server_are_those_that_the_guide_has() -> None:
    apart = {"page": "/", "file": FILE, **ENDPOINTS}
    ours = {path for name, path in PATHS.items() if name not in apart} | {OFFER, SCAN, *OTHERS}
    told = {path.replace("ID", "{user}") for path in _paths(TEXT["docs/serve.md"])}
    assert told == ours | {"/api/2/…"}


def test_endpoints_of_amplitude_are_those_that_the_guide_has() -> None:
    paths = {path.removesuffix("/…") for path in _paths(TEXT["docs/amplitude.md"])}
    assert {path for path in paths if path.startswith("/api/")} == {
        *ENDPOINTS.values(),
        *NOT_SERVED,
    }


def _paths(page: str) -> set[str]:
    """Those in the first cells of its tables; `…/x` is beside the one before."""
    found: list[str] = []
    for cell in re.findall(r"^\| ([^|]*`/[^|]*)\|", page, re.MULTILINE):
        for path in re.findall(r"`([/…][^`]*)`", cell):
            beside = path.startswith("…")
            found.append(f"{found[-1].rpartition('/')[0]}{path[1:]}" if beside else path)
    return set(found)


def test_schemas_are_those_that_the_guide_has() -> None:
    forms: dict[str, list[str]] = {}
    for name in FORMS:
        preset, _, form = name.partition(".")
        forms.setdefault(preset, []).append(form)
    rows = {}
    for line in _table("schema").splitlines()[2:]:
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        rows[name.strip("`")] = tuple(cells[:3])
    assert list(rows) == list(PRESETS)
    for name, schema in PRESETS.items():
        taken = [form for form in forms[name] if _accepted(f"{name}.{form}")]
        key = [f"`{one}?`" if one in schema.optional else f"`{one}`" for one in schema.key]
        upload = schema.upload_time.path[0] if schema.upload_time else "broker"
        assert rows[name] == (", ".join(taken), ", ".join(key), f"`{upload}`")
        for form in taken:
            of_broker = schema.upload_time is not None and form in ("sdk", "tracker")
            assert FORMS[f"{name}.{form}"] == (BROKER if of_broker else {})


def _accepted(name: str) -> bool:
    return any("event" in one for one in Form(name).expected)


def test_exit_codes_are_those_that_the_guide_has() -> None:
    ours = {
        code
        for module in (errors, forebay.cli.main)
        for name, code in vars(module).items()
        if name.isupper() and type(code) is int
    }
    assert len(ours) > 1
    rows = re.findall(r"^\| (\d+) \|", _table("exit code"), re.MULTILINE)
    assert {int(row) for row in rows} == {0, 1, 2, *ours}


def test_the_guarantees_name_as_many_stories_as_there_are() -> None:
    assert re.findall(r"(\d+) stories", TEXT[GUARANTEES]) == [str(len(STORIES))]


def test_sizes_are_computed_from_figures_that_benchmarks_have() -> None:
    rows = re.findall(r"^\| [^|]+ \| ([^|]+) \| `make bench BENCH=(\w+)` \|$", TEXT[SIZING], re.M)
    assert rows
    for figure, name in rows:
        assert figure.partition(" (")[0] in TEXT[BENCHMARKS], figure
        assert f"| `{name}` |" in TEXT[BENCHMARKS]


def test_secrets_in_the_guide_are_settings_that_take_them() -> None:
    assert "librdkafka" in type(Settings.model_fields["kafka"].default).model_fields


def _table(heading: str) -> str:
    """The one table of the guide whose first heading this is."""
    _, found = GUIDE.split(f"\n| {heading} |")
    return found.split("\n\n", 1)[0]


def _rows(heading: str) -> list[str]:
    """What the first cells name, in order."""
    cells = [line.split("|")[1] for line in _table(heading).splitlines()[2:]]
    return [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]
