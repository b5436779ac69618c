"""Every hostile value on the whole way: message, decode, dedup, conflict, log, query in each
format, chunk, handoff, and the Iceberg table as pyiceberg, DuckDB and Polars read it.

One real job for each schema: the presets, columns of every type, and columns whose names belong to
someone else. Each column gets each value in a message of its own, in a second one of the same key
with another payload, and in one that is a copy. What must come out is told by `tests.reference`.
"""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import orjson
import polars as pl
import pytest
from duckdb_extensions import import_extension
from pyiceberg.table import StaticTable

import forebay
from forebay.flows.batch import run_day
from forebay.flows.sections import BatchSettings
from forebay.flows.settings import load
from forebay.storage.base.disk import Disk
from forebay.storage.base.layout import Layout
from forebay.storage.formats.boundary import read_boundary
from forebay.storage.formats.schema import OFFSET, RAW, UPLOAD_TIME, Column, Schema
from tests import reference
from tests.job import Job

DAY = date(2024, 5, 1)
START_MS = 1_714_521_600_000
HOUR_MS = 3_600_000
NEVER_MS = 4_000_000_000_000
"""No upload time of a feed is between now and then."""
LATER_MS = START_MS + 50 * HOUR_MS
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

NUMBERS = [
    *("0", "-0.0", "1.5", "-0.7", "1e3", "1e400", "-1e400", "1e-400", "9" * 400),
    *("9007199254740993.0", "9007199254740993", "4503599627370496.3", "1e18", "1e19"),
    *(str(2**63 - 1), str(2**63), str(-(2**63)), str(-(2**63) - 1), str(2**60), str(-(2**60))),
    *("1714564800000", "1714564800000000", "1714564800000000000", "1714564800"),
    *("253402300799", "253402300799999", "253402300800000", "-62135596800000", "-62135596800001"),
]
TEXTS = [
    *("", " ", "a", "null", "NaN", "inf", "1", "+1", "012", "1.5", "-9223372036854775808"),
    *("\ud7ff" * 16, "\U0010ffff" * 16, "\ufeff", "a\0b", "é" * 3000, "x" * 5000, "\u202egnp.exe"),
    *("'; drop table events; --", '"', "\\", "=1+1", "\x1b[31m", "a\nb\r\n", "a,b;c\td", "{}"),
    *("0000-01-01T00:00:00Z", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z"),
    *("9999-12-31T23:59:59.9999999-08:00", "10000-01-01T00:00:00Z", "2024-02-30T00:00:00Z"),
    *("2024-05-01", "2024-05-01 12:00:00.123456", "2024-05-01T12:00:00+14:00"),
]
OTHERS = ["null", "true", "false", "[]", "{}", '{"a":1}', "[" * 300 + "]" * 300]
ESCAPED = [json.dumps(text) for text in TEXTS]
PLAIN = [json.dumps(text, ensure_ascii=False) for text in TEXTS if not text.isascii()]
VALUES = [*NUMBERS, *ESCAPED, *PLAIN, *OTHERS]

TYPED: list[dict[str, Any]] = [
    {"name": "id", "path": "id"},
    {"name": "text", "path": "a.text"},
    {"name": "n", "path": "a.n", "type": "int"},
    {"name": "f", "path": "f", "type": "float"},
    {"name": "b", "path": "b", "type": "bool"},
    {"name": "t", "path": "t", "type": "time"},
    {"name": "ts", "path": "ts", "type": "time_s"},
    {"name": "tu", "path": "tu", "type": "time_us"},
    {"name": "who", "paths": ["who", "a.who"], "type": "id"},
    {"name": "ta", "path": "ta", "type": "time_auto"},
]
COLLIDING = [
    *({"name": name, "path": name} for name in ("place", "fresh", "select", "order", "Row")),
    *({"name": name, "path": name, "type": "int"} for name in ("count", "n", "known", "sealed")),
    *({"name": name, "path": name, "type": "time"} for name in ("k0", "start", "duplicates")),
    *({"name": name, "path": name, "type": "float"} for name in ("offset", "_x", "events")),
]
NUMERIC_KEY: list[dict[str, Any]] = [
    {"name": "n", "path": "n", "type": "int"},
    {"name": "t", "path": "t", "type": "time_us"},
    {"name": "ok", "path": "ok", "type": "bool"},
    {"name": "v", "path": "v"},
    {"name": "who", "paths": ["who", "a.who"], "type": "id"},
]


@dataclass(frozen=True)
class World:
    """Settings of a job, beside those that all have."""

    settings: dict[str, str]

    @property
    def schema(self) -> Schema:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.settings.items():
                patch.setenv(f"FOREBAY_{name}", value)
            return load().schema_of_events


def own(columns: Sequence[dict[str, Any]], key: Sequence[str], **more: str) -> World:
    settings = {
        "SCHEMA": "none",
        "COLUMNS": orjson.dumps(columns).decode(),
        "DEDUP_KEY": orjson.dumps(key).decode(),
        "UPLOAD_TIME": "at",
    }
    return World({**settings, **more})


PRESETS = ("amplitude", "segment", "posthog", "snowplow", "mixpanel", "cloudevents", "github")
WORLDS = {
    **{name: World({"SCHEMA": name}) for name in PRESETS},
    "typed": own(TYPED, ["id"]),
    "typed, no raw": own(TYPED, ["id"], RAW="false"),
    "colliding names": own(COLLIDING, ["place", "fresh", "Row"]),
    "numeric key": own(NUMERIC_KEY, ["n", "t", "ok", "who?"]),
    "seconds": own(NUMERIC_KEY, ["n", "ok"], UPLOAD_TIME_TYPE="time_s"),
}


@dataclass
class Feed:
    """Messages that have each value in each place."""

    schema: Schema
    messages: list[bytes] = field(default_factory=list)

    def fill(self) -> Feed:
        for column in self.schema.decoded:
            for value in VALUES:
                event = self._event()
                self.messages.append(_with(event, column, value))
                self.messages.append(_with(_again(event, self.schema), column, value))
                self.messages.append(_with(event, column, value))
        return self

    def _event(self) -> dict[str, Any]:
        """An ordinary event, a second after the last one."""
        number = len(self.messages)
        event: dict[str, Any] = {}
        for column in self.schema.columns:
            values: dict[str, object] = {
                "string": f"v{number}", "int": number, "float": number / 4, "bool": number % 2 == 0,
            }  # fmt: skip
            _put(event, column.path, values.get(column.type, START_MS // 1000 + number))
        if self.schema.upload_time:
            _put(event, self.schema.upload_time.path, self._upload(START_MS + number))
        return event

    def _upload(self, ms: int) -> int:
        unit = self.schema.upload_time.type if self.schema.upload_time else "time"
        return ms // 1000 if unit == "time_s" else ms

    def later(self) -> bytes:
        """An event that evicts all others, on the day after the next."""
        event = self._event()
        if self.schema.upload_time:
            path = self.schema.upload_time.path
            _put(event, path, self._upload(LATER_MS))
        return orjson.dumps(event)


def _put(document: dict[str, Any], path: Sequence[str], value: object) -> None:
    for name in path[:-1]:
        document = document.setdefault(name, {})
    document[path[-1]] = value


def _again(event: dict[str, Any], schema: Schema) -> dict[str, Any]:
    """The event once more, with another payload."""
    copy: dict[str, Any] = orjson.loads(orjson.dumps(event))
    for column in schema.columns:
        if column.name not in schema.key and column.type == "string":
            _put(copy, column.path, "another")
    return copy


def _with(event: dict[str, Any], column: Column, value: str) -> bytes:
    """The event with this JSON text as the value of a column."""
    copy: dict[str, Any] = orjson.loads(orjson.dumps(event))
    _put(copy, column.path, "\x07here\x07")
    return json.dumps(copy).replace('"\\u0007here\\u0007"', value).encode()


@dataclass
class Expected:
    """The events that are kept, by offset, and the counts."""

    schema: Schema
    events: dict[int, tuple[reference.Value, ...]] = field(default_factory=dict)
    duplicates: int = 0
    rejects: int = 0
    nulled: int = 0

    @classmethod
    def of(cls, schema: Schema, messages: Sequence[bytes], broker_ms: int) -> Expected:
        found = cls(schema)
        seen: set[tuple[reference.Value, ...]] = set()
        names = found.names
        for offset, message in enumerate(messages):
            one = reference.read(message, schema, NEVER_MS, 1 << 20, broker_ms)
            if one.reason is not None:
                found.rejects += 1
                continue
            row = dict(zip([*names, RAW], one.columns, strict=True))
            key = tuple(row[name] for name in schema.key)
            found.nulled += one.nulled
            if key in seen:
                found.duplicates += 1
                continue
            seen.add(key)
            found.events[offset] = one.columns if schema.raw else one.columns[:-1]
        return found

    @property
    def names(self) -> list[str]:
        """Columns in the order in which the reference gives them."""
        return [UPLOAD_TIME, *(column.name for column in self.schema.columns)]

    @property
    def stored(self) -> list[str]:
        return [*self.names, *([RAW] if self.schema.raw else [])]


QUICK = ("amplitude",)


@pytest.fixture(
    params=[
        name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in WORLDS
    ]
)
def world(request: pytest.FixtureRequest) -> World:
    return WORLDS[request.param]


def test_every_value_comes_out_as_it_went_in_or_null_on_the_whole_way(
    world: World, tmp_path: Path
) -> None:
    job = Job(tmp_path / "job", {**world.settings, "DEDUP_WINDOW": "24h", "GRACE": "1s"})
    job.settings |= {"FILES__PATH": str(job.folder / "events"), "BLOCKS_PER_CHUNK": "1"}
    feed = Feed(world.schema).fill()
    path = job.folder / "events" / "a.ndjson"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\n".join(feed.messages) + b"\n")
    _touch(path, START_MS)
    assert job.ends(job.run()) == 0, job.told()
    expected = Expected.of(world.schema, feed.messages, START_MS)
    assert len(expected.events) > len(world.schema.decoded)
    assert_counted(job, expected)
    assert_same(forebay.open(job.data).scan().collect(), expected)
    assert_printed(job, expected)
    with path.open("ab") as file:
        file.write(feed.later() + b"\n")
    _touch(path, LATER_MS)
    assert job.ends(job.run()) == 0, job.told()
    (row,) = job.partitions().to_dicts()
    assert row["cold_events"] == len(expected.events)
    store = forebay.open(job.data)
    assert_same(store.scan().filter(pl.col(OFFSET) < len(feed.messages)).collect(), expected)
    earlier = {o: r for o, r in expected.events.items() if upload_ms(r) < START_MS + 24 * HOUR_MS}
    report = run_day([job.data], BatchSettings(memory=64 << 20), DAY)
    assert (report.rows, report.duplicates) == (len(earlier), 0)
    expected.events = earlier
    for rows in tables(job):
        assert_same(rows, expected)


def _touch(path: Path, ms: int) -> None:
    """A file's time stands for the broker's."""
    os.utime(path, ns=(ms * 10**6, ms * 10**6))


def upload_ms(row: tuple[reference.Value, ...]) -> int:
    assert isinstance(row[0], int)
    return row[0]


def assert_counted(job: Job, expected: Expected) -> None:
    (row,) = job.partitions().to_dicts()
    found = {name: row[name] for name in ("accepted", "duplicates", "rejects", "nulled")}
    assert found == {
        "accepted": len(expected.events),
        "duplicates": expected.duplicates,
        "rejects": expected.rejects,
        "nulled": expected.nulled,
    }


def assert_same(rows: pl.DataFrame, expected: Expected) -> None:
    """By offset, times as numbers of the column's unit."""
    types = {column.name: column.type for column in expected.schema.columns}
    units = {"time": 1000, "time_us": 1, "time_s": 10**6, "time_auto": 1}
    columns = []
    for name in expected.stored:
        column = rows[name]
        if isinstance(column.dtype, pl.Datetime):
            column = (
                column.cast(pl.Datetime("us", "UTC")).to_physical()
                // units[types.get(name, "time")]
            )
        columns.append(column.to_list())
    offsets = rows[OFFSET].to_list()
    assert len(set(offsets)) == len(offsets)
    found = dict(zip(offsets, zip(*columns, strict=True), strict=True))
    assert found.keys() == expected.events.keys()
    for offset, row in expected.events.items():
        assert repr(found[offset]) == repr(row), offset


def assert_printed(job: Job, expected: Expected) -> None:
    """Each format has every row, and what reads that format has each value back."""
    text = f"select * from events order by {OFFSET}"
    found = {
        kind: subprocess.run(
            [sys.executable, "-m", "forebay", "sql", text, "--format", kind],
            env=job.environment, capture_output=True, check=True,
        ).stdout
        for kind in ("json", "csv", "parquet", "table")
    }  # fmt: skip
    wanted = dict(sorted(expected.events.items()))
    printed = pl.read_parquet(io.BytesIO(found["parquet"]))
    if RAW in expected.stored:  # as JSON, or null if it is none that the engine reads
        raws = [row[expected.stored.index(RAW)] for row in wanted.values()]
        texts = printed[RAW].to_list()
        assert any(texts)
        for text, raw in zip(texts, raws, strict=True):
            assert isinstance(raw, bytes)
            assert text in (None, raw.decode())
        printed = printed.with_columns(pl.Series(RAW, raws))
    assert_same(printed, expected)
    rows = json.loads(found["json"], parse_constant=_no_constant)
    assert [row[OFFSET] for row in rows] == list(wanted)
    strings = [c.name for c in expected.schema.columns if c.type in ("string", "id", "int", "bool")]
    at = [expected.stored.index(name) for name in strings]
    assert [[row[name] for name in strings] for row in rows] == [
        [row[i] for i in at] for row in wanted.values()
    ]
    csv.field_size_limit(1 << 30)
    lines = list(csv.DictReader(io.StringIO(found["csv"].decode(), newline="")))
    assert [int(line[OFFSET]) for line in lines] == list(wanted)
    assert [[line[name] for name in strings] for line in lines] == [
        [_in_csv(row[i]) for i in at] for row in wanted.values()
    ]
    assert b"\x1b" not in found["table"]


def _in_csv(value: reference.Value) -> str:
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _no_constant(text: str) -> None:
    raise ValueError(f"expected JSON, got {text}")


def tables(job: Job) -> Iterator[pl.DataFrame]:
    """The table as each reader has it."""
    metadata = read_boundary(Disk(), Layout(job.data)).table
    assert metadata is not None
    yield pl.DataFrame(StaticTable.from_metadata(metadata).scan().to_arrow())
    import_extension("avro")
    import_extension("iceberg")
    with duckdb.connect() as connection:
        connection.execute("load avro; load iceberg; set timezone = 'UTC'")
        found = connection.execute("select * from iceberg_scan(?)", [metadata]).to_arrow_table()
        yield pl.DataFrame(found)
    until = EPOCH + timedelta(milliseconds=START_MS + 24 * HOUR_MS)
    every = forebay.open(job.data).scan("all")
    yield every.filter(pl.col(UPLOAD_TIME) < until).collect()
