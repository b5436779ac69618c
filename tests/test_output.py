"""What commands print: at terminals and in pipes, of hostile data, and when nobody reads it."""

from __future__ import annotations

import csv
import io
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import polars as pl
import pyarrow as pa
import pytest
from click.testing import CliRunner, Result

from forebay.cli.main import main
from forebay.cli.output import text_table
from forebay.storage.base.disk import Disk
from forebay.storage.base.layout import Layout
from forebay.storage.formats.columns import arrow_schema
from forebay.storage.formats.frame import REJECT_SCHEMA, Frame
from tests import engine
from tests.lane import SCHEMA, Lane, filled
from tests.partition import START_MS
from tests.terminal import ROOT, WAIT_S, at_terminal, errors_of, started

ESCAPES = "\x1b[31m\x1b]0;title\x07\r\n\t\x00\x7f\x9b\u202e\u2066\u200b"
UNSEEN = {*map(chr, range(32)), *map(chr, range(127, 160)), "\u202e", "\u2066", "\u200b"} - {"\n"}


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(one) for one in arguments])


def answered(*arguments: str | Path) -> str:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    lane = filled(Lane(tmp_path / "data", "events-with-a-long-name-00000").start())
    yield lane.root
    lane.files.close()


@pytest.fixture
def hostile(tmp_path: Path) -> Iterator[Path]:
    """Events and rejects of one partition whose every value may be anything."""
    lane = Lane(tmp_path / "data").start()
    schema = arrow_schema(SCHEMA)
    far = [2**62, -(2**62), 253_402_300_800_000, None]
    values: dict[str, list[Any]] = {
        "_partition": ["p00"] * 4,
        "_offset": [0, 1, 2, 3],
        "upload_time": [START_MS] * 4,
        "id": [f"a{ESCAPES}", '","', "=1+1", "d"],
        "part": [1, 2, 3, 4],
        "text": [f'{ESCAPES}"quoted"', "a,b\nc", "", None],
        "number": [math.nan, math.inf, -math.inf, 1.5],
        "raw": [ESCAPES.encode(), b"\xff\xfe", b"", None],
        "at": far,
        "at_s": far,
        "at_us": far,
    }
    columns = []
    for field in schema:
        of = values.get(field.name, [None] * 4)
        if pa.types.is_timestamp(field.type):
            columns.append(pa.array(of, pa.int64()).cast(field.type))
        else:
            columns.append(pa.array(of, field.type))
    rejects = pa.RecordBatch.from_arrays(
        [
            pa.array(["p00"] * 3),
            pa.array([4, 5, 6]),
            pa.array([2**62, -(2**62), START_MS]).cast(REJECT_SCHEMA.field("broker_time").type),
            pa.array(["bad json"] * 3),
            pa.array([ESCAPES, None, "x"]),
            pa.array([ESCAPES.encode(), b"\xff", None], pa.binary()),
        ],
        schema=REJECT_SCHEMA,
    )
    events = pa.RecordBatch.from_arrays(columns, schema=schema)
    lane.blocks.append(Frame("p00", "p00", 0, 7, events, rejects), 0)
    lane.blocks.publish()
    yield lane.root
    lane.files.close()


# -- tables -------------------------------------------------------------------------------------


def test_a_table_is_aligned_and_no_cell_is_ever_cut() -> None:
    rows = [("a", "1"), ("x" * 300, "12,345")]
    assert text_table(("name", "rows"), rows, right=("rows",)) == [
        f"name{' ' * 296}    rows",
        f"a{' ' * 299}       1",
        f"{'x' * 300}  12,345",
    ]


def test_where_a_row_does_not_fit_each_value_has_a_line() -> None:
    rows = [("a" * 20, "1"), ("b", "2")]
    assert text_table(("name", "rows"), rows, width=26) == [f"name{' ' * 18}rows", *rows_as(rows)]
    assert text_table(("name", "rows"), rows, width=25) == [
        "name  " + "a" * 20, "rows  1", "", "name  b", "rows  2",
    ]  # fmt: skip


def rows_as(rows: list[tuple[str, str]]) -> list[str]:
    return [f"{name:<20}  {count}" for name, count in rows]


def test_wide_and_combining_characters_are_as_wide_as_a_terminal_shows_them() -> None:
    texts = ("abc", "日本", "e\u0301", "é")
    assert [len(text_table(("-",), [(text,)], right=("-",))[0]) for text in texts] == [3, 4, 1, 1]
    lines = text_table(("a", "b"), [("日本", "x"), ("ab", "y")])
    assert lines == ["a     b", "日本  x", "ab    y"]


@pytest.mark.parametrize("command", ["status", "disk", "rejects list"])
def test_a_pipe_has_no_width_and_no_colours(command: str, data: Path) -> None:
    printed = answered(*command.split(), "--data-dir", data)
    rows = [
        line for line in printed.splitlines() if line.startswith("events-with-a-long-name-00000")
    ]
    assert rows
    assert "…" not in "".join(line for line in rows if "raw" not in line)
    assert "\x1b" not in printed


@pytest.mark.few(4)
@pytest.mark.parametrize("columns", [40, 80, 300])
@pytest.mark.parametrize("command", ["status", "disk", "disk --dry-run", "rejects list"])
def test_no_cell_is_cut_at_a_terminal(command: str, columns: int, data: Path) -> None:
    lines = at_terminal(columns, *command.split(), "--data-dir", data)
    joined = "\n".join(lines)
    assert "\x1b" not in joined
    assert "events-with-a-long-name-00000" in joined or "nothing goes now" in joined
    assert "events-with-a-…" not in joined
    if command == "status":
        blocks = columns < 100
        assert [line.split() for line in lines if line.startswith("stream_time")] == (
            [["stream_time", "2023-11-14", "22:13:21"]] if blocks else []
        )


# -- status -------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [40, 80, 300])
def test_totals_break_between_two_of_them_only(columns: int, data: Path) -> None:
    whole = answered("status", "--data-dir", data).splitlines()[0]
    lines = at_terminal(columns, "status", "--data-dir", data)
    first = lines[: lines.index("batch 0")]
    assert "  ".join(first) == whole
    assert max(map(len, first)) <= columns
    assert (len(first) > 1) == (len(whole) > columns)


def test_status_watch_in_a_pipe_gives_a_block_a_second_and_ends_with_0(data: Path) -> None:
    with started("status", "--watch", "--data-dir", data) as process:
        assert process.stdout is not None
        blocks = 0
        while blocks < 2:
            line = process.stdout.readline()
            assert line, errors_of(process)
            blocks += line == "\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=WAIT_S)
        assert (process.returncode, errors) == (0, "")


def test_status_watch_json_gives_an_object_a_line(data: Path) -> None:
    with started("status", "--watch", "--json", "--data-dir", data) as process:
        assert process.stdout is not None
        found = [orjson.loads(process.stdout.readline()) for _ in range(2)]
        assert [one["totals"]["accepted"] for one in found] == [found[0]["totals"]["accepted"]] * 2
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=WAIT_S)
        assert (process.returncode, errors) == (0, "")


def test_status_says_whether_a_job_runs_and_when_something_new_was_published(data: Path) -> None:
    Layout(data).writers.unlink(missing_ok=True)
    assert "\nno job runs; the newest data was published 20" in answered(
        "status", "--data-dir", data
    )
    with Disk().lock(Layout(data).lock):
        assert "\na job runs; " in answered("status", "--data-dir", data)
        found = orjson.loads(answered("status", "--json", "--data-dir", data))
    assert found["nodes"] == [{"node": str(data), "job_runs": True}]
    assert found["quiet_since"].startswith("20")


def test_status_names_partitions_of_which_no_message_was_read_yet(data: Path) -> None:
    sources = Layout(data).sources
    sources.mkdir()
    for name in ("events-with-a-long-name-00000", "events-00007"):
        (sources / name).touch()
    found = orjson.loads(answered("status", "--json", "--data-dir", data))
    assert found["unread_partitions"] == ["events-00007"]
    (line,) = [
        line
        for line in answered("status", "--data-dir", data).splitlines()
        if "events-00007" in line
    ]
    assert "no message yet" in line


# -- nobody reads it ----------------------------------------------------------------------------


@pytest.mark.few(2)
@pytest.mark.parametrize(
    "command", ["status --watch", "sql --format csv", "sql --format parquet", "sql", "rejects list"]
)
def test_a_reader_that_goes_ends_a_command_quietly(command: str, data: Path) -> None:
    """Whether a write into a pipe whose reader goes meanwhile is an error is up to the system."""
    name, *options = command.split()
    query = ["select * from events"] if name == "sql" else []
    with started(name, *options, *query, "--data-dir", data) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert errors_of(process) == ""
        assert process.wait(WAIT_S) in (0, 141)


@pytest.mark.parametrize(
    "command",
    [pytest.param(("status",), marks=pytest.mark.long), ("sql", "select 1 as n from events")],
)
def test_a_closed_standard_output_is_no_traceback(command: tuple[str, ...], data: Path) -> None:
    arguments = " ".join(f"'{one}'" for one in (*command, "--data-dir", str(data)))
    done = subprocess.run(
        ["sh", "-c", f"exec {sys.executable} -m forebay {arguments} >&-"], cwd=ROOT,
        capture_output=True, text=True, timeout=WAIT_S,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_ctrl_c_ends_a_command_quietly_with_130(tmp_path: Path) -> None:
    code = (
        "import os, signal, forebay.query, forebay.cli.main\n"
        "forebay.query.open = lambda *_, **__: os.kill(os.getpid(), signal.SIGINT)\n"
        "forebay.cli.main.main(['sql', 'select 1', '--data-dir', '.'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=WAIT_S,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.executed
@pytest.mark.parametrize(
    ("module", "command"), [("click", "status"), ("polars", "sql"), ("pydantic", "run")]
)
def test_ctrl_c_while_a_command_is_imported_ends_it_as_quietly(
    module: str, command: str, tmp_path: Path
) -> None:
    """It comes in the midst of an import; nothing has begun. Of the job it is a stop as asked."""
    (tmp_path / f"{module}.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)")
    done = subprocess.run(
        [sys.executable, "-m", "forebay", command], cwd=tmp_path, capture_output=True, text=True,
        timeout=WAIT_S, env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
    )  # fmt: skip
    code = 0 if command == "run" else 130
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")
    assert [path.name for path in tmp_path.iterdir() if path.name != "__pycache__"] == [
        f"{module}.py"
    ]


def test_a_reader_that_goes_ends_the_demo_quietly(tmp_path: Path) -> None:
    engine.need()
    reads, writes = os.pipe()
    os.close(reads)
    asked = ("demo", "--dir", tmp_path / "demo", "--events", "1000", "--github", tmp_path / "none")
    with started(*asked, stdout=writes) as process:
        os.close(writes)
        assert errors_of(process) == ""
        assert process.wait(WAIT_S) == 141


# -- hostile values -----------------------------------------------------------------------------

ALL = "select * from events order by _offset"


@pytest.mark.parametrize(
    "command",
    [("sql", ALL), ("sql", "select * from rejects"), ("status",), ("rejects", "list"),
     ("rejects", "show", "p00", "4"), ("rejects", "show", "p00", "5"), ("disk",),
     ("why", f"a{ESCAPES}".replace("\0", ""), "1")],
    ids=" ".join,
)  # fmt: skip
def test_no_value_steers_a_terminal(command: tuple[str, ...], hostile: Path) -> None:
    result = invoke(*command, "--data-dir", hostile)
    assert result.exit_code == 0, result.output
    assert not UNSEEN & set(result.output)
    if command[0] == "sql":
        assert len(result.output.splitlines()) == (5 if command[1] == ALL else 4)


def test_json_of_hostile_values_is_json(hostile: Path) -> None:
    rows = orjson.loads(answered("sql", ALL, "--format", "json", "--data-dir", hostile))
    assert [row["number"] for row in rows] == [None, None, None, 1.5]
    assert rows[0]["text"] == f'{ESCAPES}"quoted"'
    assert [row["at"] for row in rows] == [None] * 4
    rejects = "select * from rejects order by _offset"
    rows = orjson.loads(answered("sql", rejects, "--format", "json", "--data-dir", hostile))
    assert [row["broker_time"] is None for row in rows] == [True, True, False]


def test_csv_of_hostile_values_reads_back(hostile: Path) -> None:
    query = "select id, part, text, number from events order by _offset"
    printed = invoke("sql", query, "--format", "csv", "--data-dir", hostile).stdout_bytes.decode()
    rows = list(csv.reader(io.StringIO(printed, newline="")))
    assert rows[1][0] == f"a{ESCAPES}"
    assert rows[1][2] == f'{ESCAPES}"quoted"'
    assert [row[3] for row in rows[1:]] == ["NaN", "inf", "-inf", "1.5"]
    assert rows[2][2] == "a,b\nc"


def test_parquet_of_hostile_values_reads_back(hostile: Path) -> None:
    result = invoke("sql", ALL, "--format", "parquet", "--data-dir", hostile)
    found = pl.read_parquet(io.BytesIO(result.stdout_bytes))
    assert found["id"].to_list()[0] == f"a{ESCAPES}"
    assert np.isnan(found["number"][0])
    assert found["at"].null_count() == 4


@pytest.mark.parametrize("kind", ["table", "json", "csv", "parquet"])
def test_times_that_a_query_makes_outside_the_calendar_are_null(kind: str, data: Path) -> None:
    far = "make_timestamp(part * 0 + 900000000000000000)"
    query = f"select {far} as t, [{far}] as l, {far}::date as d, _offset from events limit 3"
    result = invoke("sql", query, "--format", kind, "--data-dir", data)
    assert result.exit_code == 0, result.output
    if kind == "parquet":
        found = pl.read_parquet(io.BytesIO(result.stdout_bytes))
        assert found["t"].null_count() == found["d"].null_count() == found.height == 3
    elif kind == "json":
        rows = orjson.loads(result.stdout)
        assert [(row["t"], row["l"], row["d"]) for row in rows] == [(None, [None], None)] * 3


NESTED = f"select {'(' * 50_000}1{')' * 50_000}"
ADDED = f"select {'-'.join(['1'] * 50_000)}"


@pytest.mark.few(3)
@pytest.mark.parametrize("text", ["", "   ", "\n", ";", "select", "(" * 100_000, NESTED, ADDED])
def test_what_is_no_query_is_a_line_or_a_few(text: str, data: Path) -> None:
    result = invoke("sql", text, "--data-dir", data)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: query: ")
    assert result.stderr.count("\n") == (1 if "LINE 1: " not in result.stderr else 3)
    assert len(result.stderr) < 500


def test_an_unknown_table_is_told_with_the_known_one(data: Path) -> None:
    result = invoke("sql", "select * from event_late", "--data-dir", data)
    first, *place = result.stderr.splitlines()
    assert first.endswith("; did you mean 'events_late'?")
    assert place == ["LINE 1: select * from event_late", " " * 22 + "^"]


@pytest.mark.parametrize(
    ("time", "fine"),
    [
        ("0001-01-01", True), ("9999-12-31T23:59:59", True), ("9999-12-31T23:59:59-01:00", False),
        ("0001-01-01T00:00+01:00", False), ("10000-01-01", False), ("0000-01-01", False),
        ("-2024-01-01", False), ("2024-05-01T12:00z", True), ("yesterday", False),
    ],
)  # fmt: skip
def test_times_to_look_for_are_of_the_calendar(time: str, fine: bool, data: Path) -> None:
    result = invoke("rejects", "list", f"--since={time}", "--data-dir", data)
    assert result.exit_code == (0 if fine else 2), result.output
    assert fine or "expected a time" in result.stderr


# -- no data directory --------------------------------------------------------------------------

COMMANDS = (
    ("sql", "select 1 from events"), ("status",), ("status", "--watch"), ("disk",), ("check",),
    ("tail",),
    ("rejects", "list"), ("rejects", "show", "p", "1"), ("rejects", "replay"), ("why", "x"),
    ("rejects", "export", "out.ndjson"), ("files",), ("export", "out.parquet"),
    ("batch", "seal", "--through", "2024-05-02"), ("batch", "complete", "--through", "2024-05-02"),
    ("batch", "show"), ("batch", "late"), ("batch", "late", "--export", "out.parquet"),
    ("batch", "run", "--catch-up"),
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("what", ["nothing", "a file", "a folder of another's", "locked away"])
def test_a_command_without_a_data_directory_is_one_line(
    command: tuple[str, ...], what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "somewhere"
    if what == "a file":
        path.write_text("x")
    elif what == "a folder of another's":
        path.mkdir()
        (path / "photos").mkdir()
    elif what == "locked away":
        path.mkdir()

        def refuse(_: object) -> None:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr("forebay.storage.base.directory.os.scandir", refuse)
    result = invoke(*command, "--data-dir", path)
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert result.stderr.startswith(f"Error: {path}: expected a ")
    assert result.stderr.count("\n") == 1
    left = {found.relative_to(tmp_path).as_posix() for found in tmp_path.rglob("*")}
    assert left <= {"somewhere", "somewhere/photos"}


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_an_empty_data_directory_is_no_traceback(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    if "--watch" in command:
        return
    result = invoke(*command, "--data-dir", "data")
    wanted = command[:2] == ("rejects", "show") or command[0] == "why" or "--through" in command
    assert result.exit_code == (1 if wanted else 0), result.output
    assert isinstance(result.exception, SystemExit | type(None))
