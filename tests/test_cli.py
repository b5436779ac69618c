"""The `forebay` command: what it prints and how it ends, over real files."""

from __future__ import annotations

import gzip
import io
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import orjson
import polars as pl
import pytest
import zstandard
from click.testing import CliRunner, Result

from forebay.cli.load import Load, LoadSpec
from forebay.cli.main import main
from forebay.cli.options import time_ms
from forebay.cli.outlet import SUFFIXES, device_of
from forebay.flows.settings import Settings, load, shown
from forebay.storage.base.errors import PERMANENT
from forebay.storage.base.layout import Layout
from forebay.storage.formats.boundary import Boundary
from tests.partition import NAME, START_MS, Message, Partition, event, frame

ROOT = Path(__file__).parent.parent
TOTALS = {
    "accepted": 5,
    "duplicates": 1,
    "conflicts": 1,
    "rejects": 1,
    "rejects_expired": 0,
    "late": 1,
    "after_seal": 0,
    "nulled": 0,
    "skipped": 0,
    "handed_off": 0,
    "expired": 0,
    "hot_events": 2,
    "cold_events": 3,
    "hot_blocks": 1,
    "chunks": 1,
}


pytestmark = pytest.mark.usefixtures("alone")


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    """A data directory: three blocks in a chunk, one hot, a duplicate, a late event, a reject."""
    partition = Partition(tmp_path / "data", blocks_per_chunk=3).start()
    partition.append(event(0, 0, 1_000), event(1, 0, 1_001), event(2, 1, 1_300))
    partition.append(Message(("s0", 3), None))
    partition.append(event(4, 2, 1_000))
    partition.append(event(5, 3, 5_000))
    partition.take(replace(frame([event(6, 4, 5_001)]), end_offset=10))
    partition.merge()
    partition.blocks.publish()
    yield partition.root
    partition.crash()


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(one) for one in arguments])


def answered(*arguments: str | Path) -> Result:
    result = invoke(*arguments)
    assert (result.exit_code, result.stderr) == (0, "")
    return result


def as_json(result: Result) -> Any:
    return orjson.loads(result.stdout)


# -- config -------------------------------------------------------------------------------------

CONFIG = """
schema = "github"
grace = "90s"
cache_bytes = "3MiB"
raw = false
columns = [{ name = "size", path = ["payload", "a.b \\"c\\""], type = "int" }]
[kafka]
group = "gh \\u00e9"
librdkafka = { "fetch.min.bytes" = 5, "check.crcs" = true }
"""


@pytest.mark.parametrize("text", ["", CONFIG], ids=["defaults", "own"])
def test_config_show_prints_a_file_that_gives_the_same_settings(text: str, tmp_path: Path) -> None:
    (tmp_path / "forebay.toml").write_text(text)
    before = load()
    printed = answered("config", "show").stdout
    told = set(re.findall(r"^\[?(\w+)", printed, re.MULTILINE))
    assert told >= {field.alias or name for name, field in Settings.model_fields.items()}
    (tmp_path / "forebay.toml").write_text(printed)
    assert shown(load()) == shown(before)
    assert answered("config", "show").stdout == printed


def test_config_show_tells_the_reason_and_the_default_of_every_setting() -> None:
    printed = answered("config", "show").stdout
    assert '[default: "10m"]\ndedup_window = ' in printed
    assert '[default: "50ms"]\nlinger = ' in printed
    for field in Settings.model_fields.values():
        assert field.description is None or field.description in printed


def test_config_show_json_is_what_is_in_effect_with_secrets_hidden(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FOREBAY_KAFKA__LIBRDKAFKA", '{"sasl.password": "hunter2"}')
    monkeypatch.setenv("FOREBAY_DEDUP_WINDOW", "90s")
    values = as_json(answered("config", "show", "--json"))
    assert values["dedup_window"] == "90s"
    assert values["kafka"]["librdkafka"] == {"sasl.password": "********"}
    assert "hunter2" not in answered("config", "show").stdout


def test_config_check_passes_a_configuration_that_can_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "events").mkdir()
    (tmp_path / "events" / "a.ndjson").touch()
    assert "no faults" in answered("config", "check").stdout
    monkeypatch.setenv("FOREBAY_SOURCE", "kafka")
    assert "no faults" in answered("config", "check").stdout


def test_config_check_tells_every_fault_a_line_and_ends_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "forebay.toml").write_text('source = "udp"\n[kafka]\nlinger = "soon"\n')
    monkeypatch.setenv("FOREBAY_NOPE", "1")
    result = invoke("config", "check")
    assert result.exit_code == 1
    assert result.stdout == ""
    lines = result.stderr.removeprefix("Error: ").splitlines()
    assert [line.split(":")[0] for line in lines] == ["FOREBAY_NOPE", "source", "kafka.linger"]


def test_config_check_has_librdkafka_try_its_properties(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOREBAY_SOURCE", "kafka")
    monkeypatch.setenv("FOREBAY_KAFKA__LIBRDKAFKA", '{"no.such.property": "1"}')
    error = told(invoke("config", "check"))
    assert error.startswith("kafka.librdkafka: ")
    assert "no.such.property" in error


# -- sql ----------------------------------------------------------------------------------------

QUERY = "select id, part, upload_time from events where part = 1 order by _offset"
ROWS = [("k0", 1, START_MS + 1_300), ("k1", 1, START_MS + 5_000)]


def _rows(answer: pl.DataFrame) -> list[tuple[object, ...]]:
    return answer.with_columns(pl.col("upload_time").dt.epoch("ms")).rows()


def test_sql_prints_a_table(data: Path) -> None:
    printed = answered("sql", QUERY, "--data-dir", data).stdout
    assert printed.splitlines() == [
        "id  part  upload_time",
        "k0     1  2023-11-14 22:13:21.300",
        "k1     1  2023-11-14 22:13:25",
    ]


def test_sql_prints_csv(data: Path) -> None:
    printed = answered("sql", QUERY, "--format", "csv", "--data-dir", data).stdout
    assert printed.splitlines()[0] == "id,part,upload_time"
    assert _rows(pl.read_csv(io.StringIO(printed), try_parse_dates=True)) == ROWS


def test_sql_prints_json(data: Path) -> None:
    printed = answered("sql", QUERY, "--format", "json", "--data-dir", data)
    assert [(row["id"], row["part"]) for row in as_json(printed)] == [("k0", 1), ("k1", 1)]


def test_sql_prints_parquet(data: Path) -> None:
    printed = answered("sql", QUERY, "--format", "parquet", "--data-dir", data).stdout_bytes
    assert _rows(pl.read_parquet(io.BytesIO(printed))) == ROWS


@pytest.mark.parametrize("kind", ["table", "csv", "json"])
def test_sql_prints_messages_as_text_even_if_they_are_no_utf8(kind: str, data: Path) -> None:
    text = "select id::blob as id, '\\xC3'::blob as broken from events where part = 1"
    printed = answered("sql", text, "--format", kind, "--data-dir", data).stdout
    assert "k0" in printed
    assert "\ufffd" in printed


def test_sql_verify_tells_a_flipped_byte_that_a_query_would_not_meet(data: Path) -> None:
    (path,) = Layout(data).chunks(NAME).rglob("*.parquet")
    whole = bytearray(path.read_bytes())
    whole[40] ^= 1
    path.write_bytes(whole)
    query = ("sql", "select count(*) as n from events", "--format", "csv", "--data-dir", data)
    assert answered(*query).stdout == "n\n5\n"
    assert f"{path}: checksum" in told(invoke(*query, "--verify"))


def test_sql_asks_the_data_directory_of_the_settings(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOREBAY_DATA_DIR", str(data))
    printed = answered("sql", "select count(*) as n from events", "--format", "json")
    assert as_json(printed) == [{"n": 5}]


def test_a_real_process_writes_the_bytes_of_a_parquet_file_and_no_others(data: Path) -> None:
    command = [sys.executable, "-m", "forebay", "sql", QUERY]
    command += ["--format", "parquet", "--data-dir", str(data)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    assert _rows(pl.read_parquet(io.BytesIO(done.stdout))) == ROWS
    assert done.stderr == b""


# -- status -------------------------------------------------------------------------------------


def test_status_json_has_totals_and_the_progress_of_every_partition(data: Path) -> None:
    Layout(data).batch.write_bytes(Boundary(3, START_MS).encode())
    found = as_json(answered("status", "--json", "--data-dir", data))
    assert found["totals"] == TOTALS
    assert found["batch_number"] == 3
    assert found["covered_until"] == "2023-11-14T22:13:20+00:00"
    assert found["silent_nodes"] == []
    (partition,) = found["partitions"]
    assert partition == {
        **TOTALS,
        "node": str(data),
        "partition": NAME,
        "stream_time": "2023-11-14T22:13:25.001000+00:00",
        "next_offset": 7,
        "lag": 3,
    }


def test_status_names_a_node_that_does_not_answer(data: Path, tmp_path: Path) -> None:
    away = tmp_path / "away"
    nodes = ("--data-dir", data, "--data-dir", away)
    result = invoke("status", "--json", *nodes)
    found = as_json(result)
    assert result.exit_code == 1
    assert found["silent_nodes"] == [str(away)]
    assert found["totals"] == TOTALS
    assert "did not answer" in " ".join(invoke("status", *nodes).stdout.split())


def test_status_names_a_partition_that_cannot_be_read(data: Path) -> None:
    _spoil_manifest(data)
    result = invoke("status", "--json", "--data-dir", data)
    assert result.exit_code == 1
    found = as_json(result)
    (silent,) = found["silent_partitions"]
    assert (silent["node"], silent["partition"]) == (str(data), NAME)
    assert str(Layout(data).manifest(NAME)) in silent["reason"]
    assert found["silent_nodes"] == []
    printed = " ".join(invoke("status", "--data-dir", data).stdout.split())
    assert f"{NAME} can't be read" in printed


def test_status_for_people_names_totals_partition_and_batch(data: Path) -> None:
    printed = answered("status", "--data-dir", data).stdout
    assert "accepted 5" in printed
    assert NAME in printed
    assert "batch 0" in printed


def test_status_before_the_first_event_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    assert as_json(answered("status", "--json"))["totals"] == dict.fromkeys(TOTALS, 0)
    assert "no events yet" in answered("status").stdout


# -- errors -------------------------------------------------------------------------------------


def told(result: Result, lines: int = 1) -> str:
    """The error, if it is one line, or so many, and no traceback."""
    assert result.exit_code in (1, PERMANENT)
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == lines
    return result.stderr.removeprefix("Error: ").strip()


Spoil = Callable[[Path], None]


def _spoil_manifest(data: Path) -> None:
    path = Layout(data).manifest(NAME)
    path.write_bytes(path.read_bytes().replace(b'"accepted"', b'"acc3pted"'))


def _spoil_log(data: Path) -> None:
    (path,) = Layout(data).hot(NAME).glob("*-000004.*.arrows")
    whole = bytearray(path.read_bytes())
    whole[-20] ^= 1
    path.write_bytes(whole)


def _spoil_chunk(data: Path) -> None:
    (path,) = Layout(data).chunks(NAME).rglob("*.parquet")
    path.write_bytes(b"\0" * path.stat().st_size)


def _remove_chunk(data: Path) -> None:
    (path,) = Layout(data).chunks(NAME).rglob("*.parquet")
    path.unlink()


def _raise_version(data: Path) -> None:
    path = Layout(data).manifest(NAME)
    path.write_bytes(re.sub(rb'"version":\d+', b'"version":99', path.read_bytes(), count=1))


@pytest.mark.parametrize(
    ("text", "names", "lines", "at"),
    [
        ("select", "query: ", 1, ""),
        ("select nope from events", '"nope"', 5, "nope"),
        ("select * from elsewhere", "'elsewhere'", 3, "elsewhere"),
        ("select count(* from events group", 'near "from"', 3, "from"),
        ("select id + 1 from events", "more", 8, "+ 1"),
    ],
)
def test_a_query_that_cannot_be_answered_is_a_few_lines(
    text: str, names: str, lines: int, at: str, data: Path
) -> None:
    found = told(invoke("sql", text, "--data-dir", data), lines)
    assert names in found
    assert found.startswith("query: ")
    if at:
        pointed = f"\nLINE 1: {text}\n{' ' * (len('LINE 1: ') + text.index(at))}^"
        assert pointed in found


@pytest.mark.parametrize(
    ("spoil", "names"),
    [
        (_spoil_manifest, "checksum"),
        (_spoil_log, "checksum"),
        (_spoil_chunk, ".parquet"),
        (_remove_chunk, "missing"),
        (_raise_version, "version 99"),
    ],
)
def test_a_damaged_data_directory_is_one_line_that_names_the_file(
    spoil: Spoil, names: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forebay.query.view.PAUSE_S", 0)
    spoil(data)
    error = told(invoke("sql", "select * from events", "--data-dir", data))
    assert names in error
    assert str(data) in error
    assert not error.startswith("query: ")


@pytest.mark.parametrize(
    "arguments",
    [
        ("sql", "select 1 from events", "--data-dir", "away"),
        ("sql", "select 1 from events", "--data-dir", "data", "--data-dir", "data/."),
        ("status", "--data-dir", "data", "--data-dir", "data"),
    ],
)
def test_what_is_not_there_or_there_twice_is_one_line(
    arguments: tuple[str, ...], data: Path
) -> None:
    assert "expected" in told(invoke(*arguments))


def test_what_is_not_there_and_what_the_data_were_not_made_with_is_a_line_each(data: Path) -> None:
    result = invoke("config", "check")
    assert result.exit_code == 1
    lines = result.stderr.removeprefix("Error: ").splitlines()
    assert [line.partition(":")[0] for line in lines] == ["files.path", "block_span", "dedup_key"]
    assert all(": expected " in line for line in lines)


@pytest.mark.parametrize(
    "command", [("run",), ("sql", "select 1"), ("status",), ("config", "show")]
)
def test_a_fault_in_the_settings_stops_every_command(
    command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOREBAY_SOURCE", "udp")
    assert told(invoke(*command)) == "source: expected 'files' or 'kafka', got 'udp'"


def test_a_real_process_ends_with_1_and_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "forebay", "sql", "select 1", "--data-dir", "away"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: away: expected a readable data directory")


# -- generate -----------------------------------------------------------------------------------

SPEC = LoadSpec(events=500, partitions=2, seed=9)
GENERATE = ("generate", "--out", "out", "--events", "500", "--partitions", "2", "--seed", "9")


def _unpacked(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".gz":
        return gzip.decompress(data)
    if path.suffix == ".zst":
        return zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data)).read()
    return data


@pytest.mark.parametrize("compress", SUFFIXES)
def test_generate_writes_the_load_a_file_a_partition_and_prints_its_totals(compress: str) -> None:
    totals = as_json(answered(*GENERATE, "--compress", compress))
    load = Load(SPEC)
    (parts,) = load.slices()
    assert totals == load.totals
    written = {path.name: _unpacked(path) for path in Path("out").iterdir()}
    assert written == {
        f"part-{n:05d}.ndjson{SUFFIXES[compress]}": b"".join(m + b"\n" for m in part)
        for n, part in enumerate(parts)
    }


@pytest.mark.parametrize("compress", SUFFIXES)
def test_generate_writes_the_same_bytes_again(compress: str) -> None:
    answered(*GENERATE, "--compress", compress)
    first = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    if compress == "gzip":
        assert all(data[4:8] == bytes(4) for data in first.values()), "a time is in the header"
    Path("out").rename("before")
    answered(*GENERATE, "--compress", compress)
    assert {path.name: path.read_bytes() for path in Path("out").iterdir()} == first


def test_generate_never_mixes_its_files_with_those_of_an_earlier_run() -> None:
    answered(*GENERATE)
    before = {path: path.read_bytes() for path in Path("out").iterdir()}
    assert "expected no part-* files" in told(invoke(*GENERATE, "--compress", "gzip"))
    assert {path: path.read_bytes() for path in Path("out").iterdir()} == before


def test_generate_takes_times_sizes_and_shares(tmp_path: Path) -> None:
    totals = as_json(
        answered(
            *GENERATE, "--start", "2024-02-29T12:00:00+02:00", "--span", "30m", "--bytes", "900",
            "--duplicates", "0.1", "--late", "0.1", "--broken", "0.1", "--disorder", "5s",
            "--window", "20m", "--redeliver-span", "1m",
        )
    )  # fmt: skip
    load = Load(
        replace(
            SPEC, start_ms=1_709_200_800_000, span_ms=1_800_000, bytes=900, duplicates=0.1,
            late=0.1, broken=0.1, disorder_ms=5_000, window_ms=1_200_000, redeliver_ms=60_000,
        )
    )  # fmt: skip
    for _ in load.slices():
        pass
    assert totals == load.totals


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "--events", "5"),
        ("generate", "--events", "5", "--out", "out", "--bootstrap", "b", "--topic", "t"),
        ("generate", "--events", "5", "--bootstrap", "b"),
        (*GENERATE, "--now"),
        (*GENERATE, "--span", "soon"),
        (*GENERATE, "--span", "0s"),
        (*GENERATE, "--start", "yesterday"),
        (*GENERATE, "--start", "1970-01-01T00:00:00Z"),
        (*GENERATE, "--duplicates", "0.9"),
        (*GENERATE, "--partitions", "0"),
    ],
)
def test_generate_refuses_what_it_cannot_do_and_says_what_it_expected(
    arguments: tuple[str, ...],
) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert "expected" in result.stderr
    assert result.stdout == ""
    assert isinstance(result.exception, SystemExit)


def test_a_directory_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    assert "out" in told(invoke(*GENERATE, "--out", "out/below"))


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("2024-05-01T00:00:00Z", 1_714_521_600_000),
        ("2024-05-01", 1_714_521_600_000),
        ("2024-05-01T02:00:00.250+02:00", 1_714_521_600_250),
    ],
)
def test_a_moment_is_utc_unless_it_says_otherwise(text: str, ms: int) -> None:
    assert time_ms(text) == ms


def test_a_moment_that_is_none_is_a_bad_parameter() -> None:
    with pytest.raises(click.BadParameter, match="expected a time such as"):
        time_ms("noon")


def test_a_messages_kafka_key_is_its_device_id() -> None:
    load = Load(replace(SPEC, broken=0))
    for part in next(iter(load.slices())):
        for message in part:
            assert device_of(message) == orjson.loads(message)["device_id"].encode()


@pytest.mark.parametrize("message", [b"", b"[]", b"{" * 200, b"\xff" * 300])
def test_a_message_too_broken_to_have_a_device_id_has_no_key(message: bytes) -> None:
    assert device_of(message) is None
