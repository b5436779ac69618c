"""DuckDB: INSERT OR IGNORE into a table keyed by the dedup key, in a durable file.

Decoded by arro3, which costs no more CPU time than DuckDB's own JSON functions. One thread; a
transaction a second, so that its cost is shared by as many events as in Forebay (one for each
batch takes 40 % more).
"""

from __future__ import annotations

import time
from pathlib import Path

import duckdb

from benchmarks.peers.columns import COLUMNS, INTEGERS, KEY, TEXTS, TIMES
from benchmarks.peers.decode import table
from benchmarks.peers.source import EPOCH_S, Source

_TYPES = {
    **dict.fromkeys(TIMES, "timestamptz"),
    **dict.fromkeys(INTEGERS, "bigint"),
    **dict.fromkeys(TEXTS, "varchar"),
}


def ingest(source: Source, folder: Path) -> None:
    connection = duckdb.connect(folder / "events.duckdb", config={"threads": 1})
    columns = ", ".join(f"{name} {_TYPES[name]}" for name in COLUMNS)
    connection.execute(f"create table events ({columns}, raw blob, primary key ({', '.join(KEY)}))")
    connection.begin()
    commit_due = time.monotonic() + EPOCH_S
    for values in source.batches():
        connection.register("batch", table(values))
        connection.execute("insert or ignore into events select * from batch")
        if time.monotonic() >= commit_due:
            connection.commit()
            connection.begin()
            commit_due = time.monotonic() + EPOCH_S
    connection.commit()
    connection.close()


def count(folder: Path) -> int:
    with duckdb.connect(folder / "events.duckdb", read_only=True) as connection:
        return int(connection.execute("select count(*) from events").fetchall()[0][0])
