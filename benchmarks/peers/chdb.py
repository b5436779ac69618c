"""ClickHouse, in process (chdb): a ReplacingMergeTree ordered by the dedup key.

Decoded by arro3. One thread; each insert has as many events as arrive in a second at full rate,
because an insert of 5,000 takes 30 % more. Copies are dropped when parts are merged, and until then
by each query (FINAL): that later cost is not in the figure.
"""

from __future__ import annotations

from pathlib import Path

from chdb.session import Session

from benchmarks.peers.columns import COLUMNS, INTEGERS, KEY, TEXTS, TIMES
from benchmarks.peers.decode import table
from benchmarks.peers.source import Source

_TYPES = {
    **dict.fromkeys(TIMES, "DateTime64(3, 'UTC')"),
    **dict.fromkeys(INTEGERS, "Nullable(Int64)"),
    **dict.fromkeys(TEXTS, "Nullable(String)"),
    **dict.fromkeys(KEY, "String"),
}


def ingest(source: Source, folder: Path) -> None:
    session = Session(str(folder / "clickhouse"))
    session.query("set max_threads = 1")
    session.query("set max_insert_threads = 1")
    columns = ", ".join(f"{name} {_TYPES[name]}" for name in COLUMNS)
    session.query("create database forebay")
    session.query(
        f"create table forebay.events ({columns}, raw String) engine ReplacingMergeTree"
        f" order by ({', '.join(KEY)}) settings fsync_after_insert = 1, fsync_part_directory = 1"
    )
    for values in source.epochs():
        batch = table(values)  # noqa: F841  (the query reads it by its name)
        session.query("insert into forebay.events select * from Python(batch)")
    session.close()


def count(folder: Path) -> int:
    session = Session(str(folder / "clickhouse"))
    return int(str(session.query("select count() from forebay.events final", "TSV")))
