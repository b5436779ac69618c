"""`forebay sql`: each format with each kind of value, where queries and parameters come from, where
answers go, how one is ended, and the prompt at a real terminal.
"""

from __future__ import annotations

import csv
import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import polars as pl
import pyarrow as pa
import pytest
from click.testing import CliRunner, Result

from forebay.cli.main import main
from forebay.cli.sql import FORMATS, SUFFIXES
from forebay.query.rows import WRITERS
from tests.lane import Lane, filled

ROOT = Path(__file__).parent.parent
WAIT_S = 60
FORMULA = "=1+1"
ENDLESS = "select count(*) from range(1000000) a, range(1000000) b, range(1000) c"

pytestmark = pytest.mark.usefixtures("alone")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    lane = filled(Lane(tmp_path_factory.mktemp("sql") / "data").start())
    yield lane.root
    lane.files.close()


def invoke(*arguments: str | Path, given: str | bytes | None = None) -> Result:
    return CliRunner().invoke(main, ["sql", *map(str, arguments)], input=given)


def answered(*arguments: str | Path, given: str | bytes | None = None) -> Result:
    result = invoke(*arguments, given=given)
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    return result


def refused(*arguments: str | Path, code: int = 1) -> str:
    result = invoke(*arguments)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    return result.stderr


# -- formats ------------------------------------------------------------------------------------

# An expression; its JSON; its cell in CSV, if that is not the JSON; its cell in a table, if that is
# not the one in CSV.
VALUES: list[tuple[str, object, str | None, str | None]] = [
    ("42::tinyint", 42, "42", None),
    ("18446744073709551615::ubigint", 2**64 - 1, "18446744073709551615", None),
    ("sum(_offset) - sum(_offset) + 7", 7, "7", None),
    ("170141183460469231731687303715884105727::hugeint", 2.0**127, str(2**127 - 1), None),
    ("1.50::decimal(10, 2)", 1.5, "1.50", None),
    ("1.5::double", 1.5, "1.5", None),
    ("'nan'::double", None, "NaN", "nan"),
    ("'-inf'::double", None, "-inf", None),
    ("true", True, "true", None),
    ("null", None, "", "null"),
    ("'é,\"x\"'", 'é,"x"', 'é,"x"', None),
    ("'a' || chr(10) || chr(27)", "a\n\x1b", "a\n\x1b", r"a\n\x1b"),
    ("'abc'::blob", "abc", "abc", None),
    (r"'\xC3'::blob", "\ufffd", "\ufffd", None),
    ("date '2024-01-02'", "2024-01-02", "2024-01-02", None),
    ("time '12:34:56'", "12:34:56", "12:34:56.000000000", "12:34:56"),
    ("timestamp '2024-01-02 03:04:05.006'", "2024-01-02T03:04:05.006000",
     "2024-01-02T03:04:05.006000", "2024-01-02 03:04:05.006"),
    ("timestamptz '2024-01-02 03:04:05+01'", "2024-01-02T02:04:05Z",
     "2024-01-02T02:04:05.000000+0000", "2024-01-02 02:04:05"),
    ("timestamptz 'infinity'", None, "", "null"),
    ("interval '1 month 2 days 3.5 seconds'", "P1M2DT3.5S", "P1M2DT3.5S", None),
    ("interval '-90 minutes'", "PT-5400S", "PT-5400S", None),
    ("uuid '6b8fe8a1-0f1c-4f0e-9a5c-0e1a5a5a5a5a'",
     "6b8fe8a1-0f1c-4f0e-9a5c-0e1a5a5a5a5a", "6b8fe8a1-0f1c-4f0e-9a5c-0e1a5a5a5a5a", None),
    ("'b'::enum('a', 'b')", "b", "b", None),
    ("union_value(k := 1)", "1", "1", None),
    ("'{\"a\": [1]}'::json", '{"a": [1]}', '{"a": [1]}', None),
    ("[1, null, 3]", [1, None, 3], None, None),
    ("[]", [], None, None),
    ("[[1], [2, 3]]", [[1], [2, 3]], None, None),
    ("[1, 2]::int[2]", [1, 2], None, None),
    ("['nan'::double, 1]", [None, 1.0], None, None),
    (r"['\xC3'::blob]", ["\ufffd"], None, None),
    ("[interval '1 day', null]", ["P1D", None], None, None),
    ("[date '290000-01-01', date '2024-01-02']", [None, "2024-01-02"], None, None),
    ("[1.50::decimal(5, 2)]", [1.5], None, None),
    ("['b'::enum('a', 'b')]", ["b"], None, None),
    ("{'a': 1, 'b': {'c': ['x']}}", {"a": 1, "b": {"c": ["x"]}}, None, None),
    ("{'t': timestamptz '2024-01-02 00:00:00Z', 'u': timestamp 'infinity'}",
     {"t": "2024-01-02T00:00:00Z", "u": None}, None, None),
    ("row(1, 'x')", {"": 1, "_1": "x"}, None, None),
    ("map {'a': 1, 'b': 2}", {"a": 1, "b": 2}, None, None),
    ("map {1: 'x'}", {"1": "x"}, None, None),
    ("map {date '2024-01-02': 1}", {"2024-01-02": 1}, None, None),
    ("map {[1]: 2}", [{"key": [1], "value": 2}], None, None),
]  # fmt: skip


def cells(number: int) -> tuple[object, str, str]:
    """What a value is in JSON, CSV and a table."""
    _, value, in_csv, in_table = VALUES[number]
    in_csv = orjson.dumps(value).decode() if in_csv is None else in_csv
    return value, in_csv, in_csv if in_table is None else in_table


def frame(kind: str, data: bytes) -> pl.DataFrame:
    if kind == "arrow":
        return pl.DataFrame(pa.ipc.open_stream(data).read_all())
    return pl.read_parquet(io.BytesIO(data))


EVERY = f"select {', '.join(f'{one} as v{n}' for n, (one, *_) in enumerate(VALUES))} from events"


@pytest.mark.parametrize("kind", FORMATS)
def test_each_format_has_each_kind_of_value(kind: str, data: Path) -> None:
    printed = answered(EVERY, "--format", kind, "--data-dir", data)
    expected = [cells(number) for number in range(len(VALUES))]
    if kind in ("json", "ndjson"):
        found = orjson.loads(printed.stdout)
        [row] = found if kind == "json" else [found]
        assert list(row.values()) == [value for value, _, _ in expected]
    elif kind == "csv":
        text = printed.stdout_bytes.decode()
        [names, row] = list(csv.reader(io.StringIO(text, newline="")))
        assert names == [f"v{number}" for number in range(len(VALUES))]
        assert row == [cell for _, cell, _ in expected]
    elif kind in ("parquet", "arrow"):
        found = frame(kind, printed.stdout_bytes)
        assert found.shape == (1, len(VALUES))
        assert found["v2"].item() == 7
        assert str(found["v4"].item()) == "1.50"
        assert found["v13"].item() == b"\xc3"
        assert found["v9"].item() is None
    elif kind == "markdown":
        head, rule, line = printed.stdout.splitlines()
        assert head.startswith("| v0 | v1 | ")
        assert rule.startswith("| ---: | ---: |")
        assert line == f"| {' | '.join(cell for _, _, cell in expected)} |"
    else:
        _, line = printed.stdout.splitlines()
        assert re.split(r" {2,}", line.strip()) == [cell for _, _, cell in expected]


@pytest.mark.parametrize("kind", FORMATS)
def test_an_answer_without_rows_has_its_columns(kind: str, data: Path) -> None:
    text = "select _offset, [1] as l, union_value(k := 1) as u, row(1, 2) as r from events limit 0"
    printed = answered(text, "--format", kind, "--data-dir", data)
    if kind in ("parquet", "arrow"):
        assert frame(kind, printed.stdout_bytes).shape == (0, 4)
    elif kind == "json":
        assert orjson.loads(printed.stdout) == []
    else:
        assert (
            printed.stdout.splitlines()[:1]
            == {
                "table": ["_offset  l  u  r"],
                "markdown": ["| _offset | l | u | r |"],
                "csv": ["_offset,l,u,r"],
                "ndjson": [],
            }[kind]
        )


def test_markdown_of_a_bar_is_one_cell(data: Path) -> None:
    printed = answered("select 'a|b' as \"x|y\"", "--format", "markdown", "--data-dir", data).stdout
    assert printed == "| x\\|y |\n| --- |\n| a\\|b |\n"


def test_columns_of_one_name_are_told_apart(data: Path) -> None:
    printed = answered("select 1 as a, 2 as a", "--format", "csv", "--data-dir", data).stdout
    assert printed == "a,a_1\n1,2\n"


@pytest.mark.long
def test_many_batches_are_one_answer(data: Path) -> None:
    text = "select range as n, [range] as l from range(300000)"
    for kind in WRITERS:
        printed = answered(text, "--format", kind, "--data-dir", data).stdout_bytes
        if kind in ("parquet", "arrow"):
            assert frame(kind, printed)["n"].to_list() == list(range(300_000))
        elif kind == "json":
            assert [row["n"] for row in orjson.loads(printed)] == list(range(300_000))
        else:
            lines = printed.splitlines()
            assert len(lines) == 300_000 + (kind == "csv")
            assert lines[-1] in (b'{"n":299999,"l":[299999]}', b"299999,[299999]")


def test_a_spreadsheet_finds_no_formula_and_numbers_stay(data: Path) -> None:
    texts = [FORMULA, "+1", "-1", "@x", "\tx", "\rx", "x=1", "1", ""]
    listed = ", ".join("'" + one.replace("\t", "' || chr(9) || '") + "'" for one in texts)
    listed = listed.replace("\r", "' || chr(13) || '")
    text = f"select unnest([{listed}]) as t, -1 as n, ['=1'] as l"
    printed = answered(text, "--spreadsheet", "--data-dir", data).stdout_bytes.decode()
    head, *rows = csv.reader(io.StringIO(printed, newline=""))
    assert head == ["t", "n", "l"]
    assert [row[0] for row in rows] == [f"'{one}" for one in texts[:6]] + texts[6:]
    assert {(row[1], row[2]) for row in rows} == {("-1", '["=1"]')}
    named = answered(f'select 1 as "{FORMULA}"', "--spreadsheet", "--data-dir", data).stdout
    assert named.startswith(f"'{FORMULA}\n")
    for kind in ("json", "table"):
        said = refused(text, "--spreadsheet", "--format", kind, "--data-dir", data)
        assert said == f"Error: --spreadsheet: expected --format csv, got {kind}\n"


# -- where it goes ------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_name_of_the_file_chooses_the_format(suffix: str, data: Path, tmp_path: Path) -> None:
    path = tmp_path / f"out{suffix}"
    result = invoke("select 1 as n", "--output", path, "--data-dir", data)
    assert (result.exit_code, result.stdout) == (0, "")
    assert re.fullmatch(rf"1 row in {re.escape(str(path))}, \d+\.\d\d s\n", result.stderr)
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
    if suffix in (".parquet", ".arrow"):
        assert frame(SUFFIXES[suffix], path.read_bytes())["n"].to_list() == [1]
    else:
        assert (
            path.read_text()
            == answered("select 1 as n", "--format", SUFFIXES[suffix], "--data-dir", data).stdout
        )


def test_a_file_that_is_there_stays_without_force(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    path.write_text("mine")
    said = refused(ENDLESS, "--output", path, "--data-dir", data)  # before the query begins
    assert "--force overwrites it" in said
    assert path.read_text() == "mine"
    assert invoke("select 1 as n", "--output", path, "--force", "--data-dir", data).exit_code == 0
    assert path.read_text() == "n\n1\n"


def test_a_query_that_fails_leaves_no_file(data: Path, tmp_path: Path) -> None:
    late = "select error('mine') from range(1000000) where range = 999999"
    for text in ("select nope from events", late):
        said = refused(text, "--output", tmp_path / "out.csv", "--data-dir", data)
        assert said.startswith("Error: query: ")
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_says_nothing_needs_a_format(data: Path, tmp_path: Path) -> None:
    said = refused("select 1", "--output", tmp_path / "out.xlsx", "--data-dir", data)
    assert (
        "expected a name that ends in .json, .ndjson, .jsonl, .csv, .parquet, .arrow, .md, .txt"
        in said
    )
    path = tmp_path / "out.dat"
    asked = ("select 1 as n", "--output", path, "--format", "csv", "--data-dir", data)
    assert invoke(*asked).exit_code == 0
    assert path.read_text() == "n\n1\n"


def test_what_a_table_leaves_out_is_reported(data: Path) -> None:
    for kind in ("table", "markdown"):
        text = ("select range as n from range(1001)", "--format", kind, "--data-dir", data)
        result = invoke(*text)
        assert len(result.stdout.splitlines()) == 1000 + (1 if kind == "table" else 2)
        assert result.stderr == "the first 1,000 rows; --rows shows more, --format csv all\n"
        assert invoke(*text, "--rows", "1001").stderr == ""
        assert invoke(*text, "--rows", "1").stderr.startswith("the first 1 rows; ")
    assert refused("select 1", "--rows", "0", "--data-dir", data, code=2)


# -- where it comes from ------------------------------------------------------------------------


def test_a_query_comes_from_a_file_or_standard_input(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "query.sql"
    text = "-- how many\nselect 'é' as n\n;\n"
    path.write_text(text)
    expected = "n\né\n"
    csv_there = ("--format", "csv", "--data-dir", data)
    assert answered("--file", path, *csv_there).stdout == expected
    assert answered("-", *csv_there, given=text).stdout == expected
    assert answered(*csv_there, given=text).stdout == expected
    assert answered(*csv_there, given="\ufeff" + text).stdout == expected
    assert "got both" in refused("select 1", "--file", path, *csv_there)
    assert "--file: expected a query in UTF-8" in refused("--file", tmp_path / "no", *csv_there)
    path.write_bytes(b"select '\xff'")
    assert "--file: expected a query in UTF-8" in refused("--file", path, *csv_there)
    result = invoke("-", *csv_there, given=b"select '\xff'")
    assert "standard input: expected a query in UTF-8" in result.stderr
    assert invoke(*csv_there, given="").stderr == "Error: query: expected a SQL query, got ''\n"


def test_without_standard_input_there_is_no_query(data: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", f"exec {sys.executable} -m forebay sql --data-dir '{data}' <&-"], cwd=ROOT,
        capture_output=True, text=True, timeout=WAIT_S,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "Error: query: expected a SQL query, got ''\n"


@pytest.mark.few(6)
@pytest.mark.parametrize(
    ("given", "value"),
    [
        ("7", 7), ("-7", -7), ("1.5", 1.5), ("1e3", 1000.0), ("true", True), ("null", None),
        ("abc", "abc"), ("", ""), ('"7"', "7"), ('"a=b"', "a=b"), ("007", "007"), ("a=b", "a=b"),
        ("True", "True"), ("NaN", "NaN"), ("[1]", "[1]"), ('{"a":1}', '{"a":1}'), ("'x'", "'x'"),
        ("99999999999999999999", 99999999999999999999), ("'; drop table events; --",) * 2,
        ("é 1=2", "é 1=2"), ('"open', '"open'), ("2024-05-01", "2024-05-01"),
    ],
)  # fmt: skip
def test_a_parameter_is_a_number_a_flag_null_or_text(given: str, value: object, data: Path) -> None:
    there = ("--format", "csv", "--data-dir", data)
    kinds = {int: "BIGINT", float: "DOUBLE", bool: "BOOLEAN", str: "VARCHAR"}
    by_place = answered("select ? as v, typeof(?) as t", "--param", given, "--param", given, *there)
    by_name = answered("select $x as v, typeof($x) as t", "--param", f"x={given}", *there)
    [_, row] = csv.reader(io.StringIO(by_place.stdout))
    assert by_name.stdout == by_place.stdout
    if value is None:
        assert row == ["", '"NULL"']
        return
    written = {True: "true"}.get(value, str(value)) if isinstance(value, bool) else str(value)
    assert row[0] == written
    assert row[1] == kinds[type(value)] or (row[1], type(value)) in (
        ("INTEGER", int),
        ("HUGEINT", int),
    )


@pytest.mark.parametrize(
    ("text", "given", "said"),
    [
        ("select ?, $x", ("1", "x=2"), "--param: expected all with a name or none, got both"),
        ("select $x", ("x=1", "x=2"), "--param: expected each name once, got x again"),
        ("select ?", (), "parameter"),
        ("select ?", ("1", "2"), "parameter"),
        ("select $x", ("y=1",), "parameter"),
        ("select 1", ("1",), "parameter"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(
    text: str, given: tuple[str, ...], said: str, data: Path
) -> None:
    options = [part for one in given for part in ("--param", one)]
    assert said in refused(text, *options, "--data-dir", data)


def test_days_are_those_of_the_time_zone(data: Path) -> None:
    text = "select date_trunc('day', timestamptz '2024-03-31 22:30:00Z') as d"
    asked = ("--time-zone", "Europe/Berlin", "--data-dir", data)
    assert (
        answered(text, "--format", "csv", *asked).stdout == "d\n2024-04-01T00:00:00.000000+0200\n"
    )
    [row] = orjson.loads(answered(text, "--format", "json", *asked).stdout)
    assert row["d"] == "2024-04-01T00:00:00+02:00"
    assert "2024-04-01 00:00:00+02:00" in answered(text, *asked).stdout
    said = refused("select 1", "--time-zone", "Europe/Berlim", "--data-dir", data)
    assert "time_zone: expected a name such as Europe/Berlin, got 'Europe/Berlim'" in said


def test_a_query_ends_when_its_seconds_are_over(data: Path) -> None:
    began = time.monotonic()
    said = refused(ENDLESS, "--seconds", "0.3", "--data-dir", data)
    assert said == "Error: query: expected an answer within 0.3 s, got none\n"
    assert time.monotonic() - began < WAIT_S
    assert refused("select 1", "--seconds", "0", "--data-dir", data, code=2)


# -- real processes -----------------------------------------------------------------------------


def until_at_work(pid: int, cpu_s: float) -> None:
    """Until a process has taken so much CPU time more: a query has no other sign of being asked."""

    def taken() -> float:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    enough, end = taken() + cpu_s, time.monotonic() + WAIT_S
    while taken() < enough:
        assert time.monotonic() < end, f"no {cpu_s} s of CPU in {WAIT_S} s"
        time.sleep(0.05)


def started(*arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "forebay", "sql", *map(str, arguments)], cwd=ROOT, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


STUBBORN = "select levenshtein(repeat('a', 300000), repeat('b', 300000))"
"""One value that takes minutes, in which the engine does not look up."""


def test_one_value_that_takes_minutes_ends_at_the_deadline(data: Path) -> None:
    with started(STUBBORN, "--seconds", "1", "--data-dir", data) as process:
        told, error = process.communicate(timeout=WAIT_S)
    assert (process.returncode, told) == (1, "")
    assert error == "Error: query: expected an answer within 1 s, got none\n"


@pytest.mark.parametrize(
    "text",
    [ENDLESS, STUBBORN,
     pytest.param("select range from range(100000000000)", marks=pytest.mark.long)],
)  # fmt: skip
def test_ctrl_c_ends_a_query_with_130_within_a_moment(text: str, data: Path) -> None:
    """While the engine works, and while rows are written."""
    with started(text, "--format", "csv", "--data-dir", data) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        if text in (ENDLESS, STUBBORN):
            until_at_work(process.pid, 3.0)
        else:
            process.stdout.read(1 << 20)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        while process.stdout.read(1 << 20):
            pass
        assert process.wait(WAIT_S) == 130
        assert time.monotonic() - began < 5
        assert process.stderr.read() == ""


@pytest.mark.parametrize("kind", WRITERS)
def test_a_reader_that_goes_in_the_midst_ends_it_with_141(kind: str, data: Path) -> None:
    text = "select range, md5(range::varchar) as m from range(3000000)"
    with started(text, "--format", kind, "--data-dir", data) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        os.read(process.stdout.fileno(), 100)
        process.stdout.close()
        assert process.wait(WAIT_S) == 141
        assert process.stderr.read() == ""


class Screen:
    """A prompt at a terminal of its own, whose home is `home`."""

    def __init__(self, data: Path, home: Path, *options: str) -> None:
        self._ours, theirs = pty.openpty()
        environment = {
            name: text for name, text in os.environ.items() if not name.startswith("XDG_")
        } | {"XDG_STATE_HOME": str(home), "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "forebay", "sql", *options, "--data-dir", str(data)], cwd=ROOT,
            stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self._told = ""

    def type(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def until(self, pattern: str) -> str:
        """What it has shown since the last call, up to the first `pattern` in it."""
        while not (found := re.search(pattern, self._told)):
            ready, _, _ = select.select([self._ours], [], [], WAIT_S)
            assert ready, f"silent before {pattern!r}: {self._told!r}"
            try:
                more = os.read(self._ours, 65536)
            except OSError:
                more = b""
            assert more, f"ended before {pattern!r}: {self._told!r}"
            self._told += re.sub(r"\x1b[\[\]][\d;?]*\w", "", more.decode(errors="replace"))
        told, self._told = self._told[: found.end()], self._told[found.end() :]
        return told

    def end(self) -> int:
        try:
            while os.read(self._ours, 65536):
                pass
        except OSError:
            pass
        os.close(self._ours)
        return self.process.wait(WAIT_S)


PROMPT = "forebay>"


@pytest.fixture
def screen(data: Path, tmp_path: Path) -> Iterator[Screen]:
    made = Screen(data, tmp_path)
    made.until(PROMPT)
    yield made
    made.process.kill()
    made.process.wait(WAIT_S)


def test_a_prompt_answers_until_ctrl_d_and_keeps_its_history(
    screen: Screen, data: Path, tmp_path: Path
) -> None:
    screen.type("select 'one' ||\r")
    screen.until("->")
    screen.type("' line' as x;\r")
    told = screen.until(r"1 row, \d+\.\d\d s")
    assert "one line" in told
    screen.until(PROMPT)
    screen.type("select nope from events;\r")
    told = screen.until(r"raw->>'\$\.nope'")
    assert 'Error: query: Referenced column "nope" not found' in told
    assert "LINE 1: select nope from events" in told
    screen.until(PROMPT)
    screen.type("select 40 + 2 as n;\r")
    screen.until("42")
    screen.until(PROMPT)
    screen.type("\x04")
    assert screen.end() == 0
    history = tmp_path / "forebay" / "sql-history"
    assert "+select 40 + 2 as n;" in history.read_text()
    assert history.stat().st_mode & 0o077 == 0
    again = Screen(data, tmp_path)
    again.until(PROMPT)
    again.type("\x1b[A\r")  # up: the last query
    again.until("42")
    again.until(PROMPT)
    again.type("exit\r")
    assert again.end() == 0


def test_tab_completes_a_table_and_a_column(screen: Screen) -> None:
    screen.type("select count(*) as n from events_l\t")
    screen.until("events_late")
    screen.type(";\r")
    screen.until(r"1 row, ")
    screen.until(PROMPT)
    screen.type("describe rejects;\r")
    assert "broker_time" in screen.until("broker_time")


def test_ctrl_c_clears_the_line_and_ends_a_running_query_only(screen: Screen) -> None:
    screen.type("selec nonsense")
    screen.until("nonsense")
    screen.type("\x03")
    screen.until(PROMPT)
    screen.type("select 1 as n;\r")  # what is imported for the first query is there then
    screen.until("1 row, ")
    screen.until(PROMPT)
    screen.type(f"{ENDLESS};\r")
    until_at_work(screen.process.pid, 1.0)
    began = time.monotonic()
    screen.process.send_signal(signal.SIGINT)  # as a terminal that controls it does
    screen.until("ended")
    screen.until(PROMPT)
    assert time.monotonic() - began < 5
    screen.type("select 40 + 2 as n;\r")
    screen.until("42")
    screen.until(PROMPT)
    screen.type("\x04")
    assert screen.end() == 0


def test_at_a_terminal_what_needs_a_query_says_so(data: Path, tmp_path: Path) -> None:
    for options in (("--param", "1"), ("--output", str(tmp_path / "out.csv"))):
        asked = Screen(data, tmp_path, *options)
        asked.until("expected a query: as TEXT, with --file, or - for standard input")
        assert asked.end() == 2
