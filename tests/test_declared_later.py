"""Columns declared later: what an event of before is worth in them, wherever it is by then.

The oracle is the decoder of a job that had all columns from the start.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from polars.testing import assert_frame_equal

import forebay
from forebay.operators.decode import DecodeConfig, Decoder
from forebay.operators.sources.messages import Messages
from forebay.query.statement import parse
from forebay.query.tail import Tail
from forebay.storage.decoding.from_raw import CALL_ROWS, FromRaw
from forebay.storage.formats.columns import arrow_schema
from forebay.storage.formats.frame import Frame
from forebay.storage.formats.schema import OFFSET, UPLOAD_TIME, Column, Schema
from forebay.storage.partition.rules import Rules
from tests.partition import GRACE_MS, NAME, SPAN_MS, START_MS, WINDOW_MS, Partition

BEFORE = Schema((Column("id", ("id",)),), ("id",), Column(UPLOAD_TIME, ("up",), "time"))
ADDED = (
    Column("user", ("u",), "id", (("p", "u"), ("p", "q", "u"))),
    Column("n", ("p", "n"), "int"),
    Column("real", ("f",), "float"),
    Column("flag", ("b",), "bool"),
    Column("said", ("s",), "string", (("p", "s"),)),
    Column("at", ("t",), "time"),
    Column("at_s", ("ts",), "time_s"),
    Column("at_us", ("tu",), "time_us"),
    Column("at_auto", ("ta",), "time_auto"),
    Column("written", ("p",), "text", (("other",),)),
)
AFTER = replace(BEFORE, columns=(*BEFORE.columns, *ADDED))
NAMES = [column.name for column in ADDED]
IDS = ["7", '"7"', "18446744073709551617", "1.0", '"\\ud800"', "null", '""', "[]"]
NUMBERS = ["9007199254740993", "9007199254740993.0", "1.5", "1e3", '"12"', "1e19", "true", "-0"]
TEXTS = ['"a"', '"\\u00e9\\u0000"', '"\\ud83d\\ude00"', '""', "1", "null", '{"s":"x"}']
TIMES = [
    "1714564799", "1714564799123", "1714564799123456", "1714564799.123456", "1e400", "-1",
    '"2024-05-01T11:59:59.123456Z"', '"2024-05-01 12:00:00"', '"noon"', "99999999999999999",
]  # fmt: skip
VALUES = {
    "u": IDS, "f": NUMBERS, "b": ["true", "false", "1", '"true"', "null"], "s": TEXTS,
    "t": TIMES, "ts": TIMES, "tu": TIMES, "ta": TIMES, "other": TEXTS,
}  # fmt: skip
NESTED = {"u": IDS, "n": NUMBERS, "s": TEXTS, "q": ['{"u":5}', '{"u":5,"u":"6"}', "1", "null"]}
MESSAGES, RESTART = 200, 125


def _object(rng: random.Random, values: dict[str, list[str]], fields: Sequence[str] = ()) -> str:
    """Some fields in any order, some of them twice."""
    names = rng.choices(list(values), k=rng.randrange(len(values) + 2))
    found = [*fields, *(f'"{name}":{rng.choice(values[name])}' for name in names)]
    rng.shuffle(found)
    return "{" + ",".join(found) + "}"


@cache
def messages() -> list[bytes]:
    rng = random.Random(7)
    found = []
    for n in range(MESSAGES):
        nested = rng.choice([_object(rng, NESTED), _object(rng, NESTED), "null", "[1]", '"p"'])
        fields = [f'"id":"k{n}"', f'"up":{START_MS + 8 * n}', f'"p":{nested}']
        found.append(_object(rng, VALUES, fields).encode())
    return found


def decoded(schema: Schema, values: Sequence[bytes], first: int = 0) -> Frame:
    offsets = np.arange(first, first + len(values), dtype=np.int64)
    item = Messages(NAME, list(values), offsets, offsets + START_MS, first + len(values))
    (frame,) = Decoder(DecodeConfig(schema, 60_000, 1 << 20)).decode([item])
    return frame


@cache
def rows() -> pl.DataFrame:
    """What a job that had all columns from the start has of all messages."""
    return pl.DataFrame(decoded(AFTER, messages()).events).sort(OFFSET)


class Job:
    """A partition whose schema changes from one to another when it is started again."""

    def __init__(self, root: Path, before: Schema, after: Schema) -> None:
        self.partition = Partition(root, Rules(before, SPAN_MS, WINDOW_MS, GRACE_MS)).start()
        self._take(messages()[:RESTART], 0)
        self.partition.merge()
        self.restart(after)

    def restart(self, schema: Schema) -> None:
        snapshot = self.partition.blocks.snapshot()
        self.partition.crash()
        self.partition.config = Rules(schema, SPAN_MS, WINDOW_MS, GRACE_MS)
        self.partition.start(snapshot)
        self.partition.blocks.publish()

    def go_on(self) -> None:
        """Read the rest, of which what was hot is evicted and merged."""
        self._take(messages()[RESTART:], RESTART)
        self.partition.merge()

    def _take(self, values: Sequence[bytes], first: int) -> None:
        for low in range(0, len(values), 25):
            schema = self.partition.config.schema
            frame = decoded(schema, values[low : low + 25], first + low)
            self.partition.take(replace(frame, partition=NAME))
        self.partition.blocks.publish()


Jobs = Callable[[Schema, Schema], Job]


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    made: list[Job] = []

    def make(before: Schema, after: Schema) -> Job:
        made.append(Job(tmp_path / "data", before, after))
        return made[-1]

    yield make
    for job in made:
        job.partition.crash()


@pytest.fixture(scope="module", params=["old chunks and logs", "merged since, and new ones"])
def store(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[forebay.Store, pl.DataFrame]]:
    """The store, and the rows that it must have."""
    job = Job(tmp_path_factory.mktemp("later") / "data", BEFORE, AFTER)
    expected = rows().head(RESTART)
    if "since" in request.param:
        job.go_on()
        expected = rows()
    opened = forebay.open(job.partition.root)
    assert min(opened.receipt().hot_rows, opened.receipt().cold_rows) > 20
    lacking = [file for file in opened.last_view.chunk_files if file.lacking]
    assert lacking
    assert ("since" in request.param) == (len(lacking) < len(opened.last_view.chunk_files))
    yield opened, expected
    job.partition.crash()


Stored = tuple[forebay.Store, pl.DataFrame]


def test_older_events_have_what_they_would_have_had(store: Stored) -> None:
    opened, expected = store
    assert_frame_equal(opened.scan().sort(OFFSET).collect(), expected)
    assert expected.select(NAMES).null_count().row(0) != (0,) * len(NAMES)
    assert min(expected.select(pl.col(NAMES).n_unique()).row(0)) > 2


@pytest.mark.parametrize("engine", ["in-memory", "streaming"])
def test_a_filter_sees_what_was_decoded(store: Stored, engine: str) -> None:
    opened, expected = store
    wanted = (pl.col("user") == "7") & (pl.col(UPLOAD_TIME) < expected[UPLOAD_TIME][100])
    narrow = opened.scan().filter(wanted).select(OFFSET, "said")
    found = narrow.collect(engine=engine)  # type: ignore[call-overload]
    assert_frame_equal(
        found.sort(OFFSET), expected.filter(wanted).select(OFFSET, "said").sort(OFFSET)
    )
    assert 0 < found.height < 100
    assert opened.scan().select(pl.len()).collect().item() == expected.height
    assert opened.scan().filter(pl.col("n").is_null()).head(3).collect().height == 3


def test_a_filter_with_few_rows_sees_what_was_decoded(
    store: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forebay.query.hot.FEW", 1)
    expected = store[1]
    opened = forebay.open(store[0].last_view.nodes[0].root)
    for offset in expected[OFFSET].sample(20, seed=1):
        said = expected.filter(pl.col(OFFSET) == offset)["said"].item()
        wanted = (pl.col(OFFSET) == offset) & pl.col("said").eq_missing(said)
        found = opened.scan().filter(wanted).collect()
        assert_frame_equal(found, expected.filter(wanted))


def test_groups_are_the_same_in_sql_and_polars_over_old_and_new(store: Stored) -> None:
    opened, expected = store
    counted = expected.group_by("user").agg(n=pl.len().cast(pl.Int64), sum=pl.col("real").sum())
    by_polars = (
        opened.scan().group_by("user").agg(n=pl.len().cast(pl.Int64), sum=pl.col("real").sum())
    )
    assert_frame_equal(by_polars.collect().sort("user"), counted.sort("user"))
    by_sql = opened.sql('select "user", count(*) as n from events group by 1')
    assert_frame_equal(by_sql.sort("user"), counted.select("user", "n").sort("user"))


def test_sql_has_the_same_values_with_a_filter_and_without(store: Stored) -> None:
    opened, expected = store
    columns = ", ".join(f'"{name}"' for name in (OFFSET, *NAMES))

    def same(where: str, wanted: pl.Expr) -> int:
        found = opened.sql(f"select {columns} from events {where} order by _offset")
        mine = expected.filter(wanted).select(OFFSET, *NAMES)
        assert_frame_equal(found.cast(dict(mine.schema)), mine)  # type: ignore[arg-type]
        return found.height

    assert same("", pl.lit(True)) == expected.height
    half = expected[UPLOAD_TIME][60]
    assert 0 < same("where n > 5", pl.col("n") > 5) < expected.height
    assert same(
        f"where n is null and upload_time < timestamptz '{half:%F %H:%M:%S.%f}+00'",
        pl.col("n").is_null() & (pl.col(UPLOAD_TIME) < half),
    )


@pytest.mark.few(6)
@pytest.mark.parametrize("store", ["old chunks and logs"], indirect=True)
@pytest.mark.parametrize(
    "text",
    [
        "from events", "select e from events e", "select * exclude (id) from events",
        "select columns('us.*') from events", "table events", "summarize events",
        "select id from events natural join events_late", "select count(columns(*)) from events",
        'select events."USER" from events',
        'select events.id from events join events_late using ("user")',
        "pivot events on flag using count(*)", "pivot (from events) on flag in (true)",
        "select max_by(events, id) from events", "select (select min(USER) from events)",
        "select distinct on (id) events.user from events",
        "from events select id where \"user\" = '7'",
    ],
)  # fmt: skip
def test_whatever_reads_a_column_is_seen_to_ask_for_it(store: Stored, text: str) -> None:
    assert parse(text).asks_for("user")
    store[0].sql(text)


def test_chunks_are_read_by_the_engine_where_nothing_asks_for_what_they_lack(
    store: Stored,
) -> None:
    opened, expected = store
    text = "select count(*) as n, max(raw->>'$.u') from events where id > 'k1' order by n"
    assert not parse(text).asks_for("user")
    assert opened.sql(text)["n"].item() == expected.filter(pl.col("id") > "k1").height
    assert opened.sql("select count(*) from events").item() == expected.height


def test_streams_and_the_dataset_have_the_same(store: Stored) -> None:
    opened, expected = store
    streamed = pl.DataFrame(opened.stream().read_all())
    assert_frame_equal(streamed.sort(OFFSET), expected)
    where = (pc.field("user") == "7") & (pc.field(OFFSET) < 100)
    found = pl.DataFrame(opened.to_table(columns=["said"], filter=where))
    mine = expected.filter((pl.col("user") == "7") & (pl.col(OFFSET) < 100)).select("said")
    assert_frame_equal(found.sort("said"), mine.sort("said"))


def test_row_groups_are_still_chosen_by_what_a_chunk_has(store: Stored) -> None:
    file = next(file for file in store[0].last_view.chunk_files if file.lacking)
    beyond = pc.field(OFFSET) > MESSAGES
    assert file._groups((pc.field("user") == "7") & beyond) == []
    assert file._groups(pc.field("user") == "7") != []


def test_a_chunk_merged_since_has_the_column(jobs: Jobs) -> None:
    job = jobs(BEFORE, AFTER)
    before = {chunk.file for chunk in job.partition.catalog().chunks}
    job.go_on()
    made = [chunk for chunk in job.partition.catalog().chunks if chunk.file not in before]
    tables = [pq.ParquetFile(job.partition.layout.chunks(NAME) / c.file).read() for c in made]
    found = pl.DataFrame(pa.concat_tables(tables)).sort(OFFSET)
    mine = rows().join(found.select(OFFSET), on=OFFSET)
    assert found[OFFSET].min() < RESTART  # type: ignore[operator]
    assert_frame_equal(found.cast(dict(mine.schema)), mine)  # type: ignore[arg-type]
    assert {tuple(chunk.schema) for chunk in made} == {tuple(arrow_schema(AFTER).names)}


def test_a_column_that_is_declared_no_more_answers_as_before(jobs: Jobs) -> None:
    job = jobs(BEFORE, AFTER)
    job.restart(BEFORE)
    job.go_on()
    assert_frame_equal(forebay.open(job.partition.root).scan().sort(OFFSET).collect(), rows())


def test_without_raw_a_column_is_null_before_it_was_declared(jobs: Jobs) -> None:
    job = jobs(replace(BEFORE, raw=False), replace(AFTER, raw=False))
    job.go_on()
    opened = forebay.open(job.partition.root)
    old = opened.scan().filter(pl.col(OFFSET) < RESTART).select(NAMES).collect()
    assert old.null_count().row(0) == (RESTART,) * len(NAMES)
    sql = opened.sql(f'select count("user") from events where {OFFSET} < {RESTART}')
    assert sql.item() == 0
    new = opened.scan().filter(pl.col(OFFSET) >= RESTART).sort(OFFSET).select(NAMES)
    assert_frame_equal(new.collect(), rows().tail(-RESTART).select(NAMES))


def test_raw_is_read_in_bounded_calls_and_never_fails() -> None:
    good = messages()[:3]
    odd = [None, b"", b"\xff", b"[1]", b'{"p":', *good, b'{"u":1}' + b"\0"]
    raw = pa.array([*odd, *[b'{"u":3}'] * (2 * CALL_ROWS)], pa.large_binary())
    (user,) = FromRaw(ADDED).decode(raw, ["user"])
    expected = pl.DataFrame(decoded(AFTER, good).events)["user"].to_list()
    assert user.to_pylist() == [*[None] * 5, *expected, None, *["3"] * (2 * CALL_ROWS)]


def test_columns_that_say_otherwise_what_is_at_a_place_are_read_apart() -> None:
    columns = (
        Column("p", ("p",)), Column("p_u", ("p", "u"), "int"), Column("same", ("p",), "int"),
    )  # fmt: skip
    raw = pa.array([b'{"p":{"u":1}}', b'{"p":"x"}', b'{"p":2}'])
    found = FromRaw(columns).decode(raw, ["p", "p_u", "same"])
    assert [one.to_pylist() for one in found] == [
        [None, "x", None],
        [1, None, None],
        [None, None, 2],
    ]


@pytest.mark.parametrize("raw", [True, False], ids=["raw", "no raw"])
def test_the_tail_has_them_too(raw: bool, jobs: Jobs) -> None:
    job = jobs(replace(BEFORE, raw=raw), replace(AFTER, raw=raw))
    began = Tail([job.partition.root])
    last = began.last(MESSAGES)
    assert 0 < last.height <= RESTART
    expected = rows().join(last.select(OFFSET), on=OFFSET, how="semi")
    if not raw:
        expected = expected.with_columns(pl.lit(None, rows().schema[n]).alias(n) for n in NAMES)
    assert_frame_equal(last.select(OFFSET, *NAMES).sort(OFFSET), expected.select(OFFSET, *NAMES))
    job.go_on()
    came = pl.concat(began.look(), how="diagonal").sort(OFFSET)
    assert_frame_equal(
        came.select(OFFSET, *NAMES), rows().tail(MESSAGES - RESTART).select(OFFSET, *NAMES)
    )
