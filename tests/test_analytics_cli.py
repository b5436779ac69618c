"""The commands of product analytics over a small data directory: what they print is what the
functions answer."""

from __future__ import annotations

import os
import pty
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner, Result
from rich.cells import cell_len

from forebay.cli.answer import bars
from forebay.cli.export import readable
from forebay.cli.main import main
from forebay.query.analytics import Event, Period, Where
from forebay.query.analytics.code import written
from forebay.query.analytics.grammar import parsed_event
from forebay.storage.base.compiled import COMPILING
from forebay.storage.base.errors import BadInput
from forebay.storage.base.text import length_text
from tests.shop import taken
from tests.terminal import at_terminal

QUESTIONS = {
    "funnel": "search 'purchase where price > 1' --by country --window 2h --exclude signup",
    "retention": "search '*' --days 2 --mode 'on or after'",
    "segment": "search 'signup where user_properties.plan is pro' --interval hour --by country",
    "segment ": "search purchase --formula 'UNIQUES(B) / UNIQUES(A)' --where 'country = DE'",
    "sessions": "--gap 30m --zone Europe/Berlin --to-midnight",
    "stickiness": "search --interval month --at-least",
    "paths": "search --steps 2 --among purchase --among 'signup where price is not set'",
    "lifecycle": "search --from -1d --to 2024-05-04",
    "user": "u2 --from 2024-05-01T00:00 --to -1h --limit 3",
}
"""Of each command; the space makes another of one."""

pytestmark = pytest.mark.usefixtures("alone")


@pytest.fixture(autouse=True)
def data(tmp_path: Path) -> Iterator[Path]:
    """In `data`, where commands look for it."""
    partition = taken(tmp_path / "data")
    yield partition.root
    partition.crash()


def invoke(line: str) -> Result:
    return CliRunner().invoke(main, shlex.split(line))


def answered(line: str) -> str:
    result = invoke(line)
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    return result.stdout


def as_json(line: str) -> Any:
    return orjson.loads(answered(f"{line} --json"))


@pytest.mark.few(4)
@pytest.mark.parametrize(("command", "words"), QUESTIONS.items())
def test_the_program_that_is_shown_runs_and_answers_the_same(command: str, words: str) -> None:
    found: dict[str, Any] = {}
    exec(answered(f"{command} {words} --show-code"), found)
    tables = as_json(f"{command} {words}")
    assert any(tables.values())
    for name, table in tables.items():
        shown = readable(getattr(found["answer"], name)).to_dicts()
        assert table == orjson.loads(orjson.dumps(shown))


def test_a_funnel_counts_users_and_names_groups() -> None:
    lines = answered("funnel search 'purchase where price>=2' --by country").splitlines()
    assert [line.split() for line in lines] == [
        ["group", "step", "event", "count", "of_first", "of_previous", "mean", "median"],
        ["DE", "1", "search", "3", "100.0%", "100.0%", "-", "-"],
        ["DE", "2", "purchase", "2", "66.7%", "66.7%", "10m", "10m"],
        ["NL", "1", "search", "3", "100.0%", "100.0%", "-", "-"],
        ["NL", "2", "purchase", "0", "0.0%", "0.0%", "-", "-"],
    ]


def test_retention_has_a_row_a_cohort_with_the_share_of_each_day() -> None:
    lines = answered("retention search purchase --days 1 --table cohorts").splitlines()
    assert [line.split() for line in lines] == [
        ["cohort", "out_of", "0", "1"],
        ["2024-05-01", "6", "50.0%", "50.0%"],
        ["2024-05-02", "6", "50.0%", "50.0%"],
        ["2024-05-03", "6", "50.0%"],
    ]


def test_days_can_be_taken_together_and_exclusions_lie_between_two_steps() -> None:
    brackets = as_json("retention search purchase --brackets 0,1-2")["overall"]
    assert [(one["from_day"], one["to_day"]) for one in brackets] == [(0, 1), (1, 3)]
    steps = "funnel search signup search --window 1d"
    excluded = {
        more: [step["count"] for step in as_json(f"{steps} {more}")["steps"]]
        for more in ("--exclude 2-3:purchase", "--exclude 1-2:purchase",
                     "--exclude 1-2:purchase --exclusion drop")
    }  # fmt: skip
    assert [*excluded.values()] == [[6, 6, 4], [6, 3, 2], [3, 3, 2]]
    lengths = as_json("sessions --gap 30m --bins 0s,1m,10m --longest 2h")["lengths"]
    assert [one["from_ms"] for one in lengths] == [0, 60_000, 600_000]


def test_a_period_is_compared_with_the_one_before() -> None:
    line = "segment search --from 2024-05-02 --to 2024-05-03"
    assert as_json(f"{line} --compare")["before"][0]["bucket"].startswith("2024-05-01")
    assert "2024-05-01" in answered(f"{line} --table before")
    assert "before" not in as_json(line)


def test_several_events_are_named_by_the_letters_of_formulas() -> None:
    lines = answered("segment search purchase --interval month").splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["A", "search", "2024-05-01", "6"],
        ["B", "purchase", "2024-05-01", "3"],
    ]


@pytest.mark.parametrize(
    ("words", "first", "last"),
    [
        ("", "2024-05-01T00:00:00+00:00", "2024-05-03T00:00:00+00:00"),
        ("--zone America/New_York", "2024-04-30T00:00:00-04:00", "2024-05-03T00:00:00-04:00"),
        ("--from -1d", "2024-05-03T00:00:00+00:00", "2024-05-03T00:00:00+00:00"),
        ("--from 2024-05-02", "2024-05-02T00:00:00+00:00", "2024-05-03T00:00:00+00:00"),
        ("--to 2024-05-02", "2024-05-01T00:00:00+00:00", "2024-05-01T00:00:00+00:00"),
        ("--interval hour", "2024-05-01T00:00:00+00:00", "2024-05-03T05:00:00+00:00"),
        ("--interval hour --from -2h", "2024-05-03T03:00:00+00:00", "2024-05-03T05:00:00+00:00"),
        (
            "--interval hour --from 2024-05-01T02:30 --to 2024-05-01T04:00Z --zone Europe/Berlin",
            "2024-05-01T02:00:00+02:00",
            "2024-05-01T05:00:00+02:00",
        ),
    ],
)
def test_the_period_is_the_one_asked_for(words: str, first: str, last: str) -> None:
    found = as_json(f"segment {words}")["over_time"]
    assert (found[0]["bucket"], found[-1]["bucket"]) == (first, last)


def test_roles_can_be_named() -> None:
    overall = as_json("segment search --user device")["overall"]
    assert [row["value"] for row in overall] == [2]


def test_both_layers_can_be_asked() -> None:
    assert as_json("segment --layers all") == as_json("segment")
    assert "layers='all'" in answered("segment --layers all --show-code")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("funnel serch", "event: expected one that exists, got 'serch'; did you mean 'search'?"),
        ("funnel xyz", "there are purchase, search, signup"),
        ("segment --by contry", "got 'contry'; did you mean 'country'?"),
        ("segment --where 'user_properties.pln = 1'", "did you mean 'user_properties.plan'?"),
        ("segment 'search where price >> 1'", "such as price > 10; got 'price >> 1'"),
        ("segment 'search where price is'", "expected at least one values of 'is', got 0"),
        ("segment --zone Mars", "zone: expected a time zone such as Europe/Berlin, got 'Mars'"),
        ("segment --from yesterday", "or -7d; got 'yesterday'"),
        ("segment --from 2024-05-03 --to 2024-05-02", "period: expected an end after its start"),
        ("segment --user whom", "role user: expected a column among"),
        ("segment '{\"event\": 1}'", "event: expected text as event"),
        ("segment '{'", "event: expected a JSON object, got '{'"),
        ("retention search --interval hour", "interval: expected"),
    ],
)
def test_a_fault_is_a_sentence(line: str, said: str) -> None:
    result = invoke(line)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("funnel search --window 3", "expected a time with its unit"),
        ("funnel", "Missing argument"),
        ("segment --formula 'UNIQUES(A)' --measure sum", "leave --measure out"),
        ("segment --measure sums", "'sums' is not one of"),
        ("cohorts search", "no such command 'cohorts'"),
        ("retention search --brackets 0,x", "expected days such as 0,1-3,4-7; got '0,x'"),
        ("sessions --gap 30m --bins 1m,x", "expected a time such as"),
        ("segment search --formula 'UNIQUES(A)' --compare", "leave --compare out"),
    ],
)
def test_a_command_line_that_is_not_valid_ends_with_2(line: str, said: str) -> None:
    result = invoke(line)
    assert result.exit_code == 2
    assert said in result.stderr


def test_an_event_that_is_not_in_the_period_is_warned_of() -> None:
    result = invoke("segment search purchase --from 2024-05-01T01:00 --to 2024-05-01T02:00")
    assert result.exit_code == 0
    assert result.stderr == "Warning: no event 'purchase' in the period\n"


def test_a_user_who_is_not_there_is_said_to_be_none() -> None:
    result = invoke("user nobody")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "nothing was found\n"


def test_a_timeline_is_in_order_and_has_no_messages() -> None:
    lines = answered("user u2 --limit 2").splitlines()
    assert [re.findall("search|purchase|signup", line) for line in lines[1:]] == [
        ["purchase"],
        ["signup"],
    ]
    assert "user_properties" not in "".join(lines)


def test_a_chart_is_drawn_where_it_is_asked_for() -> None:
    assert "█" not in answered("segment search --interval month")
    assert "2024-05-01  ████████" in answered("segment search --interval month --chart")
    printed = CliRunner(charset="ascii").invoke(main, shlex.split("stickiness --chart"))
    assert printed.exit_code == 0
    assert re.search(r"^3  #+  6$", printed.stdout, re.MULTILINE)


@pytest.mark.parametrize("width", [60, 130])
def test_a_chart_is_as_wide_as_the_terminal(width: int, data: Path) -> None:
    lines = [line.rstrip() for line in at_terminal(width, "paths", "search", "--data-dir", data)]
    drawn = [cell_len(line) for line in lines if "█" in line]
    assert drawn
    assert max(drawn) == width


def test_bars_are_in_proportion_to_an_eighth_of_a_cell() -> None:
    found = bars(["a", "b", "c"], [16, 4.25, 0], ["16", "4.25", "0"], 25, blocks=True)
    assert found == [f"a  {'█' * 16}  16", f"b  ████▎{' ' * 11}  4.25", f"c  {' ' * 16}  0"]
    assert bars(["a"], [0], ["0"], 20, blocks=False) == ["a    0"]


@pytest.mark.parametrize(
    ("ms", "text"),
    [(0, "0s"), (1500, "1.5s"), (61_000, "1m 1s"), (3_600_000, "1h"), (93_784_000, "1d 2h")],
)
def test_lengths_of_time_have_two_units(ms: int, text: str) -> None:
    assert length_text(ms) == text


@pytest.mark.parametrize(
    ("text", "name", "where"),
    [
        ("purchase", "purchase", []),
        ("*", None, []),
        ('"*"', "*", []),
        ("add to cart", "add to cart", []),
        ('"a where b"', "a where b", []),
        ("a where b>10", "a", [Where("b", "greater", (10,))]),
        ("a where b <= 1.5", "a", [Where("b", "less or equal", (1.5,))]),
        ("a where b = 10", "a", [Where("b", "is", ("10",))]),
        ("a where b is not x,y", "a", [Where("b", "is not", ("x", "y"))]),
        ("a where b is settled", "a", [Where("b", "is", ("settled",))]),
        ('a where b is "x, y and z",w', "a", [Where("b", "is", ("x, y and z", "w"))]),
        (
            "a where b is not set and c.d between 1,2 and e contains f g",
            "a",
            [
                Where("b", "not set"),
                Where("c.d", "between", (1, 2)),
                Where("e", "contains", ("f g",)),
            ],
        ),
    ],
)
def test_events_are_written_as_people_say_them(text: str, name: str, where: list[Where]) -> None:
    assert parsed_event(text) == Event(name, tuple(where))


def test_an_event_may_be_the_object_that_the_functions_take() -> None:
    assert parsed_event('{"event": "a", "first": true}') == Event("a", first=True)


@pytest.mark.parametrize("text", ["", " where a = 1", "a where", "a where b", "a where b = "])
def test_what_is_no_event_is_refused(text: str) -> None:
    with pytest.raises(BadInput):
        parsed_event(text)


@pytest.mark.parametrize(
    "value",
    [
        [Event("a", (Where("b", "is", ("'\"\\",)),), first=True), Event()],
        Period(date(2024, 5, 1), datetime(2024, 5, 2, tzinfo=UTC), "hour", "Europe/Berlin", 3),
        (timedelta(minutes=1), (1,), 2.5, None),
    ],
)
def test_what_is_written_is_the_value_that_it_was_made_of(value: object) -> None:
    import datetime as module

    names = {"datetime": module, "Event": Event, "Where": Where, "Period": Period}
    assert eval(written(value), names) == value


@pytest.mark.long
@pytest.mark.executed
def test_a_terminal_is_told_that_functions_are_compiled_which_happens_once(
    data: Path, tmp_path: Path
) -> None:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "forebay", "funnel", "search", "--data-dir", str(data)]

    def said() -> bytes:
        ours, theirs = pty.openpty()
        with subprocess.Popen(command, env=environment, stdout=-1, stderr=theirs) as process:
            os.close(theirs)
            assert b"search" in process.communicate()[0]
            assert process.returncode == 0
        os.set_blocking(ours, False)
        try:
            return os.read(ours, 65_536)
        except OSError:  # nothing was, and nobody is there who could
            return b""
        finally:
            os.close(ours)

    assert said() == f"{COMPILING}\r\n".encode()
    assert said() == b""
