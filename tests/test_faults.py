"""Faults of the settings, as a stranger meets them: a sentence each, whatever is wrong."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from pydantic import BaseModel

from forebay.flows.settings import Settings, load
from forebay.storage.base.errors import BadInput
from forebay.storage.base.layout import Layout
from forebay.storage.base.text import did_you_mean, plain
from forebay.storage.formats.schema import RESERVED_ELSEWHERE
from tests import engine
from tests.lane import Lanes, filled

ROOT = Path(__file__).parent.parent
SENTENCE = re.compile(r"[\w.\[\] ()'-]+: expected [^\x00-\x1f]+[ ,;]got [^\x00-\x1f]+")
NOT_OURS = re.compile(r"Input should|Value error|Field required|validation error|Unable to parse")


pytestmark = pytest.mark.usefixtures("alone")


def faults() -> list[str]:
    with pytest.raises(BadInput) as caught:
        load()
    return str(caught.value).splitlines()


def checked(folder: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """`forebay config check` as a process of its own."""
    own = {f"FOREBAY_{name}": value for name, value in settings.items()}
    return subprocess.run(
        [sys.executable, "-m", "forebay", "config", "check"], cwd=folder, capture_output=True,
        text=True, timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT), **own},
    )  # fmt: skip


# -- no TOML ------------------------------------------------------------------------------------

NO_TOML = {
    "a name twice": (b"a = 1\ngrace = '1h'\ngrace = '2h'\n", "line 3: expected each name once"),
    "a section twice": (b"[kafka]\n[batch]\n[kafka]\n", "line 3: expected [kafka] once"),
    "a section after its dotted name": (b"kafka.group = 'x'\n[kafka]", "line 2: expected [kafka]"),
    "a byte order mark": (b"\xef\xbb\xbfgrace = '1h'\n", "line 1: expected UTF-8 text without"),
    "an unclosed bracket": (b"source = 'files'\ncolumns = [{name = 'x'\n", "line 2: expected"),
    "an unclosed list": (b"dedup_key = ['a', 'b'\n\nraw = true\n", "line 3: expected ]"),
    "an open section": (b"[kafka\ntopic = 'x'\n", "line 1: expected"),
    "an open quote": (b"raw = true\nschema = 'github\n", "line 2: expected a quote"),
    "no quotes": (b"schema = github\n", "line 1: expected a value: text in quotes"),
    "a time without quotes": (b"raw = true\ngrace = 7d # days\n", "line 2: expected quotes around"),
    "a size without quotes": (b"batch = { memory = 64MiB }\n", "line 1: expected quotes around"),
    "no value": (b"schema\n", "line 1: expected NAME = VALUE"),
    "no UTF-8": (b"raw = true\nschema = '\xff'\n", "line 2: expected UTF-8 text, got byte 0xff"),
    "a NUL": (b"schema = 'a'\n\0\n", "line 2: expected"),
    "deep nesting": (b"columns = " + b"[" * 100_000, "expected TOML, got lists or tables nested"),
    "an endless number": (b"batch_rows = " + b"9" * 5000, "expected TOML"),
    "the end": (b"grace =", "line 1: expected"),
}  # fmt: skip


@pytest.mark.parametrize("what", NO_TOML)
def test_a_file_that_is_no_toml_is_one_line_with_file_and_place(what: str, tmp_path: Path) -> None:
    content, told = NO_TOML[what]
    (tmp_path / "forebay.toml").write_bytes(content)
    done = checked(tmp_path)
    first = done.stderr.splitlines()[0]
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert first.startswith(f"Error: forebay.toml: {told}")
    assert (done.stdout, done.stderr.count("\n")) == (
        "",
        1 if "files.path" not in done.stderr else 2,
    )


def test_a_folder_named_as_the_file_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "forebay.toml").mkdir()
    assert faults() == ["forebay.toml: expected a file that can be read, got Is a directory"]


def test_one_table_for_columns_is_told_to_need_two_brackets(tmp_path: Path) -> None:
    (tmp_path / "forebay.toml").write_text("[columns]\nname = 'x'\npath = 'x'\n")
    assert faults() == [
        "columns: expected a list of tables, each below [[columns]] (with two brackets), got a"
        " table"
    ]


# -- every kind of error ------------------------------------------------------------------------

VALUES: tuple[Any, ...] = (
    None, True, 5, -1, 1.5, 10**30, float("nan"), float("inf"), "", "x", "\x1b[31mred\n", "0",
    [], [1], ["a", "a"], [[]], {}, {"a": 1}, {"a": {"b": []}}, [{"name": 1}], [{"path": "x"}],
    [{"name": "ok", "path": 7}], [{"name": "ok", "path": []}], [{"name": "ok", "path": [1]}],
    [{"name": "ok", "path": "a", "type": "txt"}], [{"name": "ok", "path": "a", "typ": "int"}],
    [{"name": "ok", "path": "a..b"}], "\ud800",
)  # fmt: skip


def settings_with(name: str, value: object) -> list[str]:
    try:
        load(**{name: value})
    except BadInput as error:
        return str(error).split("\n")
    return []


def _names() -> Iterator[tuple[str, str]]:
    for name, field in Settings.model_fields.items():
        yield field.alias or name, ""
        if isinstance(field.default, BaseModel):
            for inner in type(field.default).model_fields:
                yield field.alias or name, inner


@pytest.mark.few(16)
@pytest.mark.parametrize(("section", "inner"), list(_names()))
def test_every_fault_that_a_setting_can_have_is_one_sentence_of_ours(
    section: str, inner: str
) -> None:
    found = []
    for value in VALUES:
        found += settings_with(section, {inner: value} if inner else value)
    assert found
    for fault in found:
        assert SENTENCE.fullmatch(fault), fault
        assert not NOT_OURS.search(fault), fault
        assert len(fault) < 500


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("batch_rows = 1.5", "batch_rows: expected a whole number, got 1.5"),
        ("raw = 'perhaps'", "raw: expected true or false, got 'perhaps'"),
        ("batch_rows = 0", "batch_rows: expected at least 1, got 0"),
        ("cache_bytes = '5 parsecs'", "cache_bytes: expected a size such as 65536, '512KiB' or"
         " '4MiB', got '5 parsecs'"),
        ("kafka = 5", "kafka: expected a table, got ********"),
        ("files.path = 5", "files.path: expected a path, got 5"),
        ("columns = [{name = 'a'}]", "columns.0.path (name 'a'): expected a value, got none"),
        ("columns = [{name = 'a', path = 'p'}, {name = 'plan', path = 5}]",
         "columns.1.path (name 'plan'): expected a path such as a.b.c, or a list of keys, got 5"),
        ("kafka.librdkafka = {'fetch.min.bytes' = [1]}",
         "kafka.librdkafka.fetch.min.bytes: expected text, a number or a boolean, got ********"),
    ],
)  # fmt: skip
def test_a_fault_says_what_was_expected_and_what_came(
    text: str, fault: str, tmp_path: Path
) -> None:
    (tmp_path / "forebay.toml").write_text(text)
    assert faults() == [fault]


# -- names that are almost right ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("graze = '1h'", "did you mean 'grace'?"),
        ("schem = 'x'", "did you mean 'schema'?"),
        ("topic = 'x'", "it belongs below [kafka]"),
        ("[kafka]\ntopik = 'x'", "did you mean 'topic'?"),
        ("[kafka]\nbootstrap_servers = 'x'", "got an unknown name"),
        ("[batch]\ncatalogue = {}", "did you mean 'catalog'?"),
        ("schema = 'amplitud'", "did you mean 'amplitude'?"),
        ("columns = [{name = 'a', pth = 'b', path = 'c'}]", "did you mean 'path'?"),
        ("dedup_key = ['device_ids']", "did you mean 'device_id'?"),
    ],
)
def test_an_unknown_name_is_told_with_the_known_one_that_is_most_like_it(
    text: str, near: str, tmp_path: Path
) -> None:
    (tmp_path / "forebay.toml").write_text(text)
    (fault,) = faults()
    assert fault.endswith(near)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("FOREBAY_DATADIR", "FOREBAY_DATA_DIR"),
        ("FOREBAY_TOPIC", "FOREBAY_KAFKA__TOPIC"),
        ("FOREBAY_KAFKA_BOOTSTRAP", "FOREBAY_KAFKA__BOOTSTRAP"),
        ("FOREBAY_SCEMA", "FOREBAY_SCHEMA"),
    ],
)
def test_a_variable_of_no_setting_is_told_with_the_one_that_was_meant(
    name: str, near: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "x")
    (fault,) = faults()
    assert fault.endswith(f"did you mean '{near}'?")


def test_nothing_is_suggested_that_is_not_like_it() -> None:
    assert did_you_mean("colour", ("columns", "cache_bytes")) == ""


@pytest.mark.parametrize(
    ("arguments", "near"),
    [(("sttus",), "status"), (("rejects", "lst"), "list"), (("status", "--jsn"), "--json")],
)
def test_an_unknown_command_or_option_is_told_with_the_known_one(
    arguments: tuple[str, ...], near: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "forebay", *arguments], cwd=ROOT, capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert re.search(rf"(?i)did you mean '{near}'\?", done.stderr)


def test_what_faults_quote_cannot_steer_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOREBAY_\x1b[2J", "x")
    (tmp_path / "forebay.toml").write_text(
        '"a\\nb\\u001b[31m" = 1\nschema = "\\u202e\\u001b]0;x"\n'
    )
    done = checked(tmp_path)
    assert done.returncode == 1
    assert not set(map(chr, (*range(10), *range(11, 32), 0x202E))) & set(done.stderr)
    assert len(done.stderr.splitlines()) == 4
    assert plain("a\tb\u202e\x9b") == "a\\tb\\u202e\\x9b"


# -- values that can't work together ------------------------------------------------------------


@pytest.mark.parametrize(
    "bootstrap",
    ["", "localhost", "http://localhost:9092", "a:9092,", "a:0", "a:99999", "a b:1",
     "a:9092;b:9092", ":9092", "a:port", "tcp://a:1"],
)  # fmt: skip
def test_brokers_that_are_no_host_and_port_are_a_fault(
    bootstrap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOREBAY_KAFKA__BOOTSTRAP", bootstrap)
    (fault,) = faults()
    assert fault.startswith(
        "kafka.bootstrap: expected brokers as HOST:PORT, separated by commas, got"
    )


@pytest.mark.parametrize(
    "bootstrap", ["localhost:9092", "a:1, b:2", "[::1]:9092", "10.0.0.1:65535", "SASL_SSL://k:9093"]
)
def test_brokers_as_host_and_port_are_none(bootstrap: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOREBAY_KAFKA__BOOTSTRAP", bootstrap)
    assert load().kafka.bootstrap == bootstrap


@pytest.mark.parametrize("topic", ["", ".", "..", "a b", "a/b", "é", "x" * 250, "^a.*", "a\n"])
def test_a_topic_that_kafka_would_not_have_is_a_fault(
    topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOREBAY_KAFKA__TOPIC", topic)
    (fault,) = faults()
    assert fault.startswith("kafka.topic: expected a topic's name")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("epoch_interval = '1h'", "grace: expected at least epoch_interval (1h), got '10m'"),
        ("grace = '1s'\nepoch_interval = '2s'",
         "grace: expected at least epoch_interval (2s), got '1s'"),
        ("grace = '1s'\npublish_interval = '5s'",
         "grace: expected at least publish_interval (5s), got '1s'"),
    ],
)  # fmt: skip
def test_a_grace_shorter_than_an_epoch_is_a_fault(text: str, fault: str, tmp_path: Path) -> None:
    (tmp_path / "forebay.toml").write_text(f"{text}\nbatch_rows = 0\n")
    assert faults() == ["batch_rows: expected at least 1, got 0", fault]


def test_a_block_span_that_does_not_divide_a_day_is_refused_for_new_data_only(
    tmp_path: Path,
) -> None:
    (tmp_path / "forebay.toml").write_text("block_span = '7m'\n")
    (tmp_path / "events").mkdir()
    (tmp_path / "events" / "a.ndjson").touch()
    (fault,) = faults()
    assert fault.startswith("block_span: expected a time that divides a day")
    manifest = Layout(tmp_path / "data").manifest("p00")
    manifest.parent.mkdir(parents=True)
    manifest.touch()
    assert load().block_span == 420_000
    done = checked(tmp_path)
    assert done.returncode == 0
    assert "note: block_span: 7m does not divide a day" in done.stdout


def test_a_topic_without_the_source_that_reads_it_is_told_as_that(tmp_path: Path) -> None:
    (tmp_path / "forebay.toml").write_text("[kafka]\ntopic = 'x'\n")
    done = checked(tmp_path)
    assert done.stderr == (
        'Error: source: expected source = "kafka" beside [kafka], got none; the default is files\n'
    )


def test_a_run_without_the_source_that_was_meant_ends_with_that(tmp_path: Path) -> None:
    engine.need()
    (tmp_path / "forebay.toml").write_text("[kafka]\ntopic = 'x'\n")
    done = subprocess.run(
        [sys.executable, "-m", "forebay", "run"], cwd=tmp_path, capture_output=True, text=True,
        timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (78, "")
    assert 'expected source = "kafka" beside [kafka]' in done.stderr


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("dedup_key = ['uuid']", "dedup_key: expected ['id', 'part'], as the data in data was"
         " made with, got ['uuid']"),
        ("block_span = '1m'", "block_span: expected '100ms', as the data in data was made with,"
         " got '1m'"),
        ("columns = [{name = 'number', path = 'n'}]", "columns: number: expected double, as the"
         " data in data has it, got string; a new type needs a new name"),
    ],
)  # fmt: skip
def test_settings_that_the_data_was_not_made_with_are_faults_before_a_job_starts(
    text: str, fault: str, tmp_path: Path, lane: Lanes
) -> None:
    filled(lane())
    (tmp_path / "events").mkdir()
    (tmp_path / "events" / "a.ndjson").touch()
    (tmp_path / "forebay.toml").write_text(text)
    done = checked(tmp_path)
    assert done.returncode == 1
    assert fault in done.stderr.removeprefix("Error: ").splitlines()


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("Plan", "plan"), "differ by more than case, got 'plan' beside 'Plan'"),
        (("CITY",), "differ by more than case, got 'CITY' beside 'city'"),
        (("RAW",), "expected a name other than"),
        (("Upload_Time",), "expected a name other than"),
        *(((name.upper(),), "expected another name, as it is") for name in RESERVED_ELSEWHERE),
    ],
)
def test_a_column_that_a_layer_below_could_not_tell_apart_is_refused(
    names: tuple[str, ...], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = [{"name": name, "path": name} for name in names]
    monkeypatch.setenv("FOREBAY_COLUMNS", orjson.dumps(columns).decode())
    (fault,) = faults()
    assert told in fault


@pytest.mark.parametrize(("unit", "type"), [("ms", "time"), ("s", "time_s"), ("us", "time_us")])
def test_the_unit_of_the_upload_time_has_two_spellings(
    unit: str, type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOREBAY_UPLOAD_TIME_TYPE", unit)
    assert load().upload_time_type == type
    monkeypatch.setenv("FOREBAY_UPLOAD_TIME_TYPE", type)
    assert load().upload_time_type == type


# -- no file ------------------------------------------------------------------------------------


def test_without_a_file_it_is_said_what_was_checked_and_where_a_file_would_be(
    tmp_path: Path,
) -> None:
    (tmp_path / "events").mkdir()
    (tmp_path / "events" / "a.ndjson").touch()
    done = checked(tmp_path, RAW="false")
    assert done.stdout == (
        "defaults and the environment (FOREBAY_RAW); there is no file at"
        f" {tmp_path}/forebay.toml: no faults\n"
    )
    (tmp_path / "forebay.toml").touch()
    assert "forebay.toml and the environment (no FOREBAY_*): no faults" in checked(tmp_path).stdout
