"""DuckDB: INSERT OR IGNORE into a table keyed by the dedup key, in a durable file.

Decoded by arro3, which costs no more CPU time than DuckDB's own JSON functions. One thread; an
insert, and so a transaction, has as many events as arrive in a second at full rate. Checkpoints are
deferred to the end: at the default size of 16 MB a million events took half as much again.
"""

from __future__ import annotations

from pathlib import Path

import duckdb

from benchmarks.peers.columns import COLUMNS, INTEGERS, KEY, TEXTS, TIMES
from benchmarks.peers.decode import table
from benchmarks.peers.source import Source

_TYPES = {
    **dict.fromkeys(TIMES, "timestamptz"),
    **dict.fromkeys(INTEGERS, "bigint"),
    **dict.fromkeys(TEXTS, "varchar"),
}


def ingest(source: Source, folder: Path) -> None:
    connection = duckdb.connect(
        folder / "events.duckdb", config={"threads": 1, "checkpoint_threshold": "1GB"}
    )
    columns = ", ".join(f"{name} {_TYPES[name]}" for name in COLUMNS)
    connection.execute(f"create table events ({columns}, raw blob, primary key ({', '.join(KEY)}))")
    for values in source.epochs():
        connection.register("batch", table(values))
        connection.execute("insert or ignore into events select * from batch")
    connection.close()


def count(folder: Path) -> int:
    with duckdb.connect(folder / "events.duckdb", read_only=True) as connection:
        return int(connection.execute("select count(*) from events").fetchall()[0][0])
