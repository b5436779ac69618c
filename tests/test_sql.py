"""SQL over a store: what it answers is what DuckDB answers over an export of the same rows, and
nothing but the tables of the store can be reached.
"""

from __future__ import annotations

import math
import re
import shutil
import time as clock
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pytest

import forebay
from forebay.query.sql import GONE_MAX
from forebay.query.statement import TABLE_FUNCTIONS, parse
from forebay.storage.base.errors import BadInput, Corruption, MissingFile
from forebay.storage.formats.chunk import ChunkReader
from forebay.storage.formats.schema import RAW, UPLOAD_TIME
from tests.lane import Lane, Lanes, collected, events, filled, hand_off, in_memory
from tests.partition import START_MS

SCRIPT = (Path(__file__).parent / "sql" / "statements.sql").read_text()
STATEMENTS = [one for one in re.split(r";\n", SCRIPT.partition("\n")[2]) if one.strip()]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[forebay.Store]:
    """Two nodes, hot and cold, with a late table, rejects, and a boundary."""
    base = tmp_path_factory.mktemp("sql")
    lanes = [
        filled(Lane(base / node, name).start(), name)
        for node, name in (("a", "p00"), ("a", "p01"), ("b", "p02"))
    ]
    hand_off(base / "a", 1, START_MS + 300)
    yield forebay.open(base / "a", base / "b")
    for lane in lanes:
        lane.files.close()


@pytest.fixture(scope="module")
def reference(store: forebay.Store) -> Iterator[duckdb.DuckDBPyConnection]:
    """The rows of all tables, exported, in a database that knows nothing of the store."""
    with duckdb.connect() as connection:
        connection.execute("set timezone = 'UTC'")
        for name in ("events", "events_all", "events_late", "rejects"):
            exported = store.stream(name).read_all()
            assert exported.num_rows or name == "events_late"
            json = (
                "" if name == "rejects" else "replace (try_cast(try(decode(raw)) as json) as raw)"
            )
            connection.execute(f"create table {name} as select * {json} from exported")
        connection.execute("create table events_sealed as from events limit 0")
        yield connection


def plain(value: Any) -> Any:
    """A value as both sides have it: of decimals, intervals and NaN there are several forms."""
    if isinstance(value, Decimal):
        value = int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, float):
        return "NaN" if math.isnan(value) else f"{value:.9g}"
    if isinstance(value, datetime) and value.tzinfo:
        return value.astimezone(UTC)
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list | tuple) else value


def test_there_are_statements_enough() -> None:
    assert len(STATEMENTS) > 150


@pytest.mark.few(80)
@pytest.mark.parametrize("text", STATEMENTS)
def test_an_answer_is_what_duckdb_answers_over_an_export(
    store: forebay.Store, reference: duckdb.DuckDBPyConnection, text: str
) -> None:
    try:
        cursor = reference.execute(text)
    except duckdb.Error:
        with pytest.raises(BadInput):
            store.sql(text)
        return
    expected = cursor.fetchall()
    found = store.sql(text)
    assert plain(found.rows()) == plain(expected)


def test_a_stream_has_the_same_rows_batch_by_batch(store: forebay.Store) -> None:
    text = "select _partition, _offset from events order by all"
    batches = store.sql_stream(text)
    assert pl.DataFrame(batches.read_all()).rows() == store.sql(text).rows()


def test_parameters_stand_for_values_by_place_or_name(store: forebay.Store) -> None:
    known = store.sql("select count(*) from events where _offset >= 7 and part = 1").item()
    assert known
    by_place = "select count(*) from events where _offset >= ? and part = ?"
    by_name = "select count(*) from events where _offset >= $least and part = $part"
    assert store.sql(by_place, [7, 1]).item() == known
    assert store.sql(by_name, {"part": 1, "least": 7}).item() == known
    hostile = "'; drop table events; --"
    assert store.sql("select ? as text", [hostile]).item() == hostile
    with pytest.raises(BadInput, match="parameter"):
        store.sql(by_place, [7])
    with pytest.raises(BadInput, match="parameter"):
        store.sql("select 1", [7])


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("select sum(_offset) from events", pl.Int64, None),
        ("select 170141183460469231731687303715884105727 as n", pl.Decimal, None),
        ("select interval '36 hours' as d", pl.Duration, timedelta(hours=36)),
        ("select interval '2 months 3 days' as d", pl.String, "P2M3D"),
        ("select timestamptz 'infinity' as t", pl.Datetime, None),
        ("select timestamp '290000-01-01' as t", pl.Datetime, None),
        ("select 'a'::enum('a', 'b') as e", pl.Categorical, "a"),
        ("select union_value(k := 1) as u", pl.String, "1"),
        ("select row(1, 2) as r", pl.Struct, {"": 1, "_1": 2}),
        ("select [timestamp '290000-01-01', null] as l", pl.List, None),
        (
            "select {'t': timestamptz 'infinity', 'd': date '290000-01-01'} as s",
            pl.Struct,
            {"t": None, "d": None},
        ),
        ("select [interval '1 month'] as l", pl.List, None),
        ("select 'x'::blob as b", pl.Binary, b"x"),
    ],
)
def test_each_type_arrives_as_one_that_polars_has(
    store: forebay.Store, text: str, kind: type[pl.DataType], value: object
) -> None:
    found = store.sql(text)
    assert isinstance(found.dtypes[0], kind)
    if value is not None:
        assert found.item() == value


@pytest.mark.parametrize(
    "value", ["1::uhugeint", "bignum '1'", "'01'::bit", "'12:00:00+02'::timetz", "['01'::bit]"]
)
def test_a_type_that_arrow_would_get_wrong_is_refused(store: forebay.Store, value: str) -> None:
    with pytest.raises(BadInput, match="v: expected a type that Arrow has, got"):
        store.sql(f"select {value} as v")
    assert store.sql(f"select ({value})::varchar as v").height == 1


def test_columns_of_one_name_get_others(store: forebay.Store) -> None:
    assert store.sql("select 1 as a, 2 as a, 3 as a_1").rows(named=True) == [
        {"a": 1, "a_1": 2, "a_1_1": 3}
    ]


def test_times_are_utc_unless_another_zone_is_named(store: forebay.Store) -> None:
    roots = [node.root for node in store.view().nodes]
    berlin = forebay.open(*roots, time_zone="Europe/Berlin")
    day = "select date_trunc('day', timestamptz '2024-03-31 21:30:00Z')::varchar"
    assert store.sql(day).item().startswith("2024-03-31 00:00:00")
    after = "select date_trunc('day', timestamptz '2024-03-31 22:30:00Z')::varchar"
    assert berlin.sql(after).item() == "2024-04-01 00:00:00+02"
    with pytest.raises(BadInput, match="time_zone: expected a name such as"):
        forebay.open(*roots, time_zone="Europe/Berlim")


# -- the fence ----------------------------------------------------------------------------------

REFUSED = [
    "insert into events values (1)", "update events set text = 'x'", "delete from events",
    "delete from events returning *", "truncate events", "drop table events", "drop view events",
    "create table t as from events", "create temp table t (n int)", "create view v as select 1",
    "create or replace view events as select 1", "create macro f() as 1", "create schema s",
    "create type t as enum ('a')", "create sequence s", "create index i on events (id)",
    "create secret (type s3)", "alter table events add column x int",
    "alter view events rename to e",
    "merge into events using rejects on false when matched then delete",
    "copy events to 'x.csv'", "copy (select 1) to 'x.parquet'", "copy events from 'x.csv'",
    "export database 'x'", "import database 'x'", "attach 'x.db'", "attach ':memory:' as m",
    "detach memory", "use memory", "install httpfs", "load httpfs", "force install spatial",
    "set threads = 1", "set global memory_limit = '1TB'", "reset threads", "pragma version",
    "pragma database_list", "pragma enable_profiling", "call pragma_version()",
    "call duckdb_settings()", "set variable x = 1", "prepare p as select 1", "execute p(1)",
    "deallocate p", "begin", "commit", "rollback", "checkpoint", "vacuum", "analyze",
    "explain insert into events values (1)", "explain analyze insert into events values (1)",
    "explain analyze create table t as select 1", "explain analyze copy events to 'x.csv'",
    "explain explain select 1", "select 1; drop table events", "select 1; select 2",
    "from read_csv('{file}')", "from read_csv_auto('{file}')", "from read_text('{file}')",
    "from read_blob('{file}')", "from read_json('{file}')", "from read_ndjson('{file}')",
    "from read_parquet('{chunk}')", "from parquet_scan('{chunk}')", "from '{chunk}'",
    'from "{chunk}"', "from parquet_metadata('{chunk}')", "from parquet_schema('{chunk}')",
    "from parquet_kv_metadata('{chunk}')", "from parquet_file_metadata('{chunk}')",
    "from read_duckdb('{file}')", "from sniff_csv('{file}')", "from glob('{folder}/*')",
    "from '{file}'", "select * from events, read_parquet('{chunk}')",
    "select (select count(*) from read_parquet('{chunk}'))",
    "with c as (from read_parquet('{chunk}')) from c",
    'with "{chunk}" as (select 1) from "{chunk}"',
    'select * from (with "{chunk}" as (select 1) from "{chunk}"), "{chunk}"',
    "select * from events where exists (from '{chunk}')",
    "describe read_parquet('{chunk}')", "describe '{chunk}'", "summarize '{chunk}'",
    "explain from '{chunk}'", "explain analyze from read_csv('{file}')",
    "pivot '{chunk}' on text using count(*)", "pivot read_parquet('{chunk}') on text",
    "pivot (from read_csv('{file}')) on text using count(*)",
    "pivot (from \"{chunk}\") on text using count(*)",
    "pivot (select current_setting('threads') as text) on text",
    "pivot duckdb_settings on name", "pivot (from information_schema.tables) on table_name",
    "from (pivot '{chunk}' on text using count(*))",
    "from query('select 1')", "from query_table('events')", "from query_table(['{chunk}'])",
    "from json_execute_serialized_sql(json_serialize_sql('select 1'))",
    "select current_setting('temp_directory')", "select getvariable('x')", "select nextval('s')",
    "select write_log('x')", "select getenv('HOME')",
    "from duckdb_settings()", "from duckdb_settings", "from duckdb_views()",
    "from duckdb_secrets()",
    "from duckdb_logs", "from duckdb_temporary_files()", "from which_secret('s3://x', 's3')",
    "from information_schema.tables", "from pg_catalog.pg_class", "from pg_class",
    "from sqlite_master", "from pragma_table_info('events')", "show databases",
    "show all tables from x",
    "from \"events hot 0\"", "from temp.events", "from memory.main.events",
    "from system.main.events",
    "from store", "from lanes", "from os", "from pl", "from enable_logging()",
    "from test_all_types()",
    "from seq_scan('events')", "from pandas_scan(1)", "from arrow_scan(1, 2, 3)",
    "from python_map_function(1)", "from events at (version => 1)",
    "from summary((from '{chunk}'))",
    "select * from (show tables), events", "", "  ", ";", "-- nothing", "select", "selec 1",
    "from events where", "select \ud800", "select ${x}",
    "create table memory.main.t as select 1; select 1", "create temp table t (n int); from events",
    "create or replace macro main.decode(x) as null; select count(raw) from events",
    "create temp table t (n int); pragma functions", "create sequence s; select 1",
    "create temp table t (n int); from '{chunk}'", "create temporary secret (type s3); select 1",
    "pivot events on text using count(*); pivot events on text using count(*)",
    "pivot (from '{folder}/*/*.parquet') on text using count(*)",
    "pivot (from $${folder}/*/*.parquet$$) on text using count(*)",
    "pivot (from e'{chunk}\\x41') on text using count(*)",
    "pivot chunks.parquet on text using count(*)",
    'pivot "events hot 0" on text using count(*)',
    'select (with "events hot 0" as (select 1) select 1), (select count(*) from "events hot 0")',
    "pragma import_database('{folder}')", "import database 'https://127.0.0.1:1/x'",
    "from histogram(duckdb_settings, name)", "from histogram('{chunk}', text)",
    "select " + " || ".join(["'a'"] * 900),
]  # fmt: skip


@pytest.mark.few(50)
@pytest.mark.parametrize("text", REFUSED)
def test_nothing_but_the_tables_can_be_reached(
    store: forebay.Store, tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "secret.csv"
    file.write_text("secret\n1\n")
    chunk = store.view().chunk_files[0].path
    asked = text.replace("{chunk}", str(chunk)).replace("{file}", str(file))
    before = sorted(tmp_path.iterdir()), chunk.read_bytes()
    with pytest.raises(BadInput) as refused:
        store.sql(asked.replace("{folder}", str(tmp_path)))
    assert str(refused.value).startswith("query: ")
    assert (sorted(tmp_path.iterdir()), chunk.read_bytes()) == before
    assert store.sql("select count(*) from events").item()


@pytest.mark.parametrize(
    "text",
    [
        "from read_csv('{file}')", "from '{file}'", "from read_text('{file}')",
        "copy (select 1) to '{file}'", "attach '{file}.db'", "install httpfs", "load httpfs",
        "from glob('{folder}/*')", "set threads = 3", "set enable_external_access = true",
        "export database '{folder}/x'", "from duckdb_secrets()", "from read_parquet('{outside}')",
        "from file", "set allowed_directories = ['/']", "reset lock_configuration",
    ],
)  # fmt: skip
def test_the_engine_itself_can_open_nothing_else(
    store: forebay.Store, tmp_path: Path, text: str
) -> None:
    """What would get past the first fence does not get past the second."""
    file = tmp_path / "secret.csv"
    file.write_text("secret\n1\n")
    outside = tmp_path / "outside.parquet"
    pl.DataFrame({"n": [1]}).write_parquet(outside)
    asked = text.format(file=file, folder=tmp_path, outside=outside)
    with pytest.raises(duckdb.Error):
        store._engine._cursor().execute(asked)
    assert file.read_text() == "secret\n1\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outside.parquet", "secret.csv"]


def test_table_functions_that_are_let_through_read_nothing_from_outside() -> None:
    with duckdb.connect() as connection:
        rows = connection.execute(
            "select function_name, parameters from duckdb_functions()"
            " where function_type in ('table', 'table_macro')"
        ).fetchall()
    known = {name for name, _ in rows} | {"unnest"}
    assert known >= TABLE_FUNCTIONS
    assert not {name for name, names in rows if name in TABLE_FUNCTIONS and "path" in names}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("select fro from events", "LINE 1: select fro from events\n               ^"),
        ("select *\nfrom evnts", "LINE 2: from evnts\n             ^"),
        (
            "select 'é' as x, * from evnts",
            "'é' as x, * from evnts\n                                ^",
        ),
        ("from evnts", "did you mean 'events'?"),
        ("select city from events", "raw->>'$.city'"),
        ("delete from events", "got DELETE: events go by handoff and retention"),
        ("create table t as select 1", "got CREATE: name a query with WITH"),
        ("set threads = 1", "got SET: limits and time zone are options"),
        ("select text::int from events", "Could not convert string 't"),
        ("select error('mine')", "mine"),
    ],
)
def test_an_error_says_where_and_what_to_do(store: forebay.Store, text: str, said: str) -> None:
    with pytest.raises(BadInput) as refused:
        store.sql(text)
    assert said in str(refused.value)


def test_which_tables_a_text_reads_is_known_from_its_tree() -> None:
    assert parse("select 'rejects' as x from Events").tables == {"events"}
    assert parse("with events as (select 1) from events, rejects").tables >= {"rejects"}
    assert parse("pivot events_all on text using count(*)").tables == {"events_all"}
    assert parse("explain analyze from events_late").tables == {"events_late"}
    assert parse("show tables").tables == frozenset()


# -- limits -------------------------------------------------------------------------------------

ENDLESS = "select count(*) from range(1000000) as a, range(1000000) as b, range(1000) as c"


def limited(store: forebay.Store, **limits: Any) -> forebay.Store:
    roots = [node.root for node in store.view().nodes]
    return forebay.open(*roots, limits=forebay.Limits(**limits))


def test_a_query_ends_at_its_deadline(store: forebay.Store) -> None:
    short = limited(store, seconds=0.2)
    with pytest.raises(BadInput, match=r"expected an answer within 0.2 s, got none"):
        short.sql(ENDLESS)
    with pytest.raises(BadInput, match=r"expected an answer within 0.2 s, got none"):
        short.sql_stream(ENDLESS)
    assert short.sql("select 1").item() == 1


def test_a_stream_whose_reader_dawdles_ends_at_the_deadline(store: forebay.Store) -> None:
    batches = limited(store, seconds=0.5).sql_stream("from range(100000000)")
    with pytest.raises(
        (BadInput, pa.ArrowException, OSError), match=r"expected an answer within 0.5 s"
    ):
        deque(_slowly(batches), maxlen=0)


def _slowly(batches: pa.RecordBatchReader) -> Iterator[None]:
    """A reader that takes longer for them than a query may."""
    for _ in batches:
        clock.sleep(0.01)
        yield


def test_an_answer_has_as_many_rows_as_allowed(store: forebay.Store) -> None:
    few = limited(store, rows=10)
    assert few.sql("from range(10)").height == 10
    with pytest.raises(BadInput, match="expected at most 10 rows, got more"):
        few.sql("from range(11)")
    assert few.sql_stream("from range(11)").read_all().num_rows == 11


def test_memory_and_disk_are_bounded(store: forebay.Store) -> None:
    small = limited(store, memory_bytes=64 << 20, disk_bytes=1 << 20)
    with pytest.raises(BadInput, match="aggregate or filter more"):
        small.sql("select list(md5(range::varchar)) from range(20000000) group by range % 2")


def test_what_exceeds_memory_goes_to_disk_and_leaves_nothing(
    store: forebay.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forebay.query.sql.gettempdir", lambda: str(tmp_path))
    spilling = limited(store, memory_bytes=96 << 20)
    text = "select md5(range::varchar) as m from range(3000000) order by m limit 1 offset 2999999"
    assert spilling.sql(text).item().startswith("fffff")
    del spilling
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [0, -1])
@pytest.mark.parametrize("name", ["seconds", "rows", "memory_bytes", "disk_bytes"])
def test_a_limit_is_above_0(name: str, value: int) -> None:
    with pytest.raises(BadInput, match=f"limits: {name}: expected a number above 0"):
        forebay.Limits(**{name: value})


# -- what is stored -----------------------------------------------------------------------------


def test_files_that_went_are_noticed_and_asked_for_again(lane: Lanes) -> None:
    one = filled(lane())
    store = forebay.open(one.root)
    expected = collected(store)
    view, taken = store.view(), []
    gone = view.chunk_files[0].path

    def stale() -> Any:
        taken.append(1)
        if len(taken) == 1:
            gone.rename(gone.with_suffix(".away"))
        else:
            gone.with_suffix(".away").rename(gone)
        return view

    store.view = stale  # type: ignore[method-assign]
    found = store.sql("select count(number) from events").item()
    assert len(taken) == 2
    assert found == expected["number"].count()


def test_a_damaged_chunk_is_named(lane: Lanes) -> None:
    one = filled(lane())
    store = forebay.open(one.root)
    store.view()
    path = store.last_view.chunk_files[0].path
    data = bytearray(path.read_bytes())
    data[8:-600] = bytes(len(data) - 608)
    path.write_bytes(bytes(data))
    with pytest.raises(Corruption, match=re.escape(str(path))):
        store.sql("select * from events")


def test_a_data_directory_may_have_any_name(tmp_path: Path) -> None:
    root = tmp_path / "it's [a] *data* {dir}? é"
    one = filled(Lane(root).start())
    try:
        assert collected(forebay.open(root)).height
        assert forebay.open(root).view().chunk_files
    finally:
        one.files.close()


def test_bytes_that_are_no_json_are_null(store: forebay.Store) -> None:
    found = store.sql("select raw, _offset from events")
    odd = found.filter(pl.col("_offset") % 2 == 1)
    even = found.filter(pl.col("_offset") % 2 == 0)
    assert odd.height
    assert odd[RAW].null_count() == 0
    assert even.height
    assert even[RAW].null_count() == even.height


# -- the store as a dataset ---------------------------------------------------------------------


def test_pyarrow_chooses_columns_and_rows(lane: Lanes) -> None:
    one = filled(lane())
    store = forebay.open(one.root)
    rows = in_memory(one.published)
    wanted = pc.field("part") == 1
    found = store.to_table(["_offset"], wanted)
    assert found.column_names == ["_offset"]
    expected = rows.filter(pl.col("part") == 1)["_offset"].to_list()
    assert sorted(found["_offset"].to_pylist()) == expected
    assert store.count_rows() == rows.height
    assert store.count_rows(wanted) == len(expected)
    assert store.head(3).num_rows == 3
    assert sum(batch.num_rows for batch in store.to_batches(["id"])) == rows.height
    assert pl.scan_pyarrow_dataset(store).select(pl.len()).collect().item() == rows.height
    with pytest.raises(BadInput, match="expected one of"):
        store.to_table(["no"])
    with pytest.raises(BadInput, match="expected scanner"):
        store.filter(wanted)


def test_row_groups_that_can_not_match_are_not_read(
    lane: Lanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = filled(lane())
    store = forebay.open(one.root)
    read: list[str] = []
    own = ChunkReader.batches

    def watched(self: Any, *args: Any) -> Any:
        read.append(str(self._path))
        return own(self, *args)

    monkeypatch.setattr(ChunkReader, "batches", watched)
    assert store.count_rows(pc.field(UPLOAD_TIME) < pa.scalar(0, pa.timestamp("ms", "UTC"))) == 0
    assert read == []
    assert store.count_rows()  # `_partition` is the same in a whole row group: from the footer
    assert read == []
    assert store.count_rows(pc.field("text") == "t1 é")
    assert read


def test_duckdb_asks_only_for_the_columns_it_needs(
    lane: Lanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = lane().take(*events(0, 9, 0)).publish()
    store = forebay.open(one.root)
    asked: list[Any] = []
    own = store._rows

    def watched(columns: Any, where: Any) -> Any:
        asked.append(list(columns))
        return own(columns, where)

    monkeypatch.setattr(store, "_rows", watched)
    with duckdb.connect() as connection:
        assert connection.sql("select max(_offset) from store").fetchall() == [(8,)]
    assert asked == [["_offset"]]


def test_what_the_engine_knows_of_chunks_is_forgotten_if_the_directory_is_made_anew(
    lane: Lanes,
) -> None:
    one = filled(lane())
    store = forebay.open(one.root)
    collected(store)
    footers = "select current_setting('parquet_metadata_cache')"
    assert store._engine._cursor().execute(footers).fetchall() == [(True,)]
    before = [file.path for file in store.view().chunk_files]
    engine = store._engine._instance
    store.sql("select 1 from events")
    assert store._engine._instance is engine
    shutil.rmtree(one.root)
    other = lane(name="p00")
    for n in range(8):
        other.take(*events(20 * n, 19, 130 * n, 5))
    other.publish().merge()
    assert {file.path for file in store.view().chunk_files} & set(before)
    assert collected(store).height == len(other.published)


def test_what_the_engine_knows_of_chunks_that_are_gone_is_forgotten_in_time(lane: Lanes) -> None:
    one = filled(lane())
    store = forebay.open(one.root)
    collected(store)
    engine, file = store._engine, store.view().chunk_files[0]
    before, files = engine._instance, len(store.view().chunk_files)
    while len(engine._known) < 2 * files + GONE_MAX:
        engine._known[Path(f"gone-{len(engine._known)}")] = file.chunk.checksum
    collected(store)
    assert engine._instance is before
    engine._known[Path("one more")] = file.chunk.checksum
    assert collected(store).height == len(one.published)
    assert engine._instance is not before
    assert len(engine._known) == files


def test_a_file_that_stays_away_is_missing(lane: Lanes) -> None:
    one = filled(lane())
    store = forebay.open(one.root)
    view = store.view()
    view.chunk_files[0].path.unlink()
    store.view = lambda: view  # type: ignore[method-assign]
    with pytest.raises(MissingFile):
        store.sql("select count(number) from events")
