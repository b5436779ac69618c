"""The engines that answer the same questions: Forebay over its data directory, by frames
("forebay") and by SQL ("sql"); and Polars, DuckDB and ClickHouse (chdb) over one sorted Parquet
dataset of the same events.

    python -m benchmarks.engines NAME FOLDER

Each is a long-lived process with all cores. A line in is a question's name, a line out its answer
as JSON: {"wall_s": …, "rows": [[…], …]}. Each has its own modules only, in its own environment.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

FIRST_MS, MINUTES_10_MS = 1_714_525_200_000, 600_000
"""The ten minutes after the load's first hour."""
USER = "u100"
QUESTIONS = ("count by type", "users by hour", "top 10", "filter", "one user", "export")
Rows = list[list[Any]]
Ask = Callable[[str], Rows]

_SQL = {
    "count by type": "select event_type, count(*) as n from events group by event_type order by 1",
    "users by hour": "select {hour} as hour, count(distinct user_id) as n from events"
    " group by 1 order by 1",
    "top 10": "select city, count(*) as n from events group by city order by n desc, city limit 10",
    "filter": "select count(*) as n, count(distinct device_id) as devices from events"
    " where upload_time >= {low} and upload_time < {high}"
    " and event_type = 'purchase' and country = 'DE'",
    "one user": "select {ms} as ms, event_type, insert_id from events"
    f" where user_id = '{USER}' order by 1, 3",
}
_DUCKDB = {
    "hour": "epoch_ms(date_trunc('hour', upload_time))",
    "ms": "epoch_ms(upload_time)",
    "low": f"to_timestamp({FIRST_MS} / 1000)",
    "high": f"to_timestamp({FIRST_MS + MINUTES_10_MS} / 1000)",
}


def polars_like(scan: Callable[[], Any], export: Callable[[Any], Rows]) -> Ask:
    """Over lazy frames, a fresh one for each question."""
    import polars as pl

    low = pl.lit(FIRST_MS).cast(pl.Datetime("ms", "UTC"))
    high = pl.lit(FIRST_MS + MINUTES_10_MS).cast(pl.Datetime("ms", "UTC"))
    time = pl.col("upload_time")
    questions: dict[str, Callable[[pl.LazyFrame], pl.LazyFrame]] = {
        "count by type": lambda e: (
            e.group_by("event_type").agg(pl.len().alias("n")).sort("event_type")
        ),
        "users by hour": lambda e: (
            e.group_by(time.dt.truncate("1h").dt.epoch("ms").alias("hour"))
            .agg(pl.col("user_id").drop_nulls().n_unique().alias("n"))
            .sort("hour")
        ),
        "top 10": lambda e: (
            e.group_by("city")
            .agg(pl.len().alias("n"))
            .sort("n", "city", descending=[True, False], nulls_last=True)
            .head(10)
        ),
        "filter": lambda e: e.filter(
            (time >= low)
            & (time < high)
            & (pl.col("event_type") == "purchase")
            & (pl.col("country") == "DE")
        ).select(pl.len().alias("n"), pl.col("device_id").n_unique().alias("devices")),
        "one user": lambda e: (
            e.filter(pl.col("user_id") == USER)
            .select(time.dt.epoch("ms").alias("ms"), "event_type", "insert_id")
            .sort("ms", "insert_id")
        ),
    }

    def ask(question: str) -> Rows:
        if question == "export":
            return export(scan())
        return [list(row) for row in questions[question](scan()).collect().rows()]

    return ask


def invoke(folder: str) -> Ask:
    import forebay
    from forebay.query.store import stream

    store = forebay.open(folder)
    return polars_like(store.scan, lambda rows: [[sum(b.num_rows for b in stream(rows))]])


def sql(folder: str) -> Ask:
    import forebay

    store = forebay.open(folder)

    def ask(question: str) -> Rows:
        if question == "export":
            return [[sum(batch.num_rows for batch in store.sql_stream("from events"))]]
        return [list(row) for row in store.sql(_SQL[question].format(**_DUCKDB)).rows()]

    return ask


def polars(folder: str) -> Ask:
    import polars as pl

    def export(rows: pl.LazyFrame) -> Rows:
        parts = rows.collect_batches(lazy=True)
        return [[sum(part.to_arrow().num_rows for part in parts)]]

    return polars_like(lambda: pl.scan_parquet(f"{folder}/*.parquet"), export)


def duckdb(folder: str) -> Ask:
    import duckdb

    connection = duckdb.connect()
    connection.execute("set timezone = 'UTC'")
    connection.execute(f"create view events as from read_parquet('{folder}/*.parquet')")

    def ask(question: str) -> Rows:
        if question == "export":
            reader = connection.sql("from events").to_arrow_reader()
            return [[sum(batch.num_rows for batch in reader)]]
        text = _SQL[question].format(**_DUCKDB)
        return [list(row) for row in connection.execute(text).fetchall()]

    return ask


def chdb(folder: str) -> Ask:
    import json

    from chdb.session import Session

    session = Session()
    session.query("create database bench")
    session.query(f"create view bench.events as select * from file('{folder}/*.parquet')")
    session.query("use bench")
    words = {
        "hour": "toUnixTimestamp(toStartOfHour(upload_time)) * 1000",
        "ms": "toUnixTimestamp64Milli(upload_time)",
        "low": f"fromUnixTimestamp64Milli({FIRST_MS}, 'UTC')",
        "high": f"fromUnixTimestamp64Milli({FIRST_MS + MINUTES_10_MS}, 'UTC')",
    }
    settings = " settings output_format_json_quote_64bit_integers = 0"

    def ask(question: str) -> Rows:
        if question == "export":
            with session.send_query("select * from events", "ArrowStream") as parts:
                return [[sum(part.rows_read() for part in parts)]]
        text = _SQL[question].format(**words) + settings
        lines = str(session.query(text, "JSONCompactEachRow")).splitlines()
        return [json.loads(line) for line in lines]

    return ask


def serve(engine: Callable[[str], Ask], folder: str) -> int:
    """Answer questions until there are no more."""
    import json

    ask: Ask | None = None
    for line in sys.stdin:
        started_s = time.perf_counter()
        ask = ask or engine(folder)
        rows = ask(line.strip())
        wall_s = time.perf_counter() - started_s
        print(json.dumps({"wall_s": wall_s, "rows": rows}), flush=True)
    return 0


def main(name: str, folder: str) -> int:
    engines = {"forebay": invoke, "sql": sql, "polars": polars, "duckdb": duckdb, "chdb": chdb}
    return serve(engines[name], folder)


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
