"""The engines that answer questions of product analytics: Forebay's functions, DuckDB and
ClickHouse (chdb), all over the same Parquet files.

    python -m benchmarks.analysts NAME FOLDER

Processes as in `engines`. The questions are such that each engine can answer them exactly: no two
events have the same time, and days are those of UTC.
"""

from __future__ import annotations

import sys
from datetime import UTC, date, datetime, timedelta

from benchmarks.engines import Ask, Rows, serve

FIRST, DAYS = date(2024, 5, 1), 30
STEPS = ("view", "search", "purchase")
WINDOW_MS, DAY_MS, RETURN_DAYS = 86_400_000, 86_400_000, 7
QUESTIONS = ("funnel", "retention", "segmentation")

_AFTER = "over (partition by user_id order by ms rows between 1 following and unbounded following)"
_SQL = {
    "funnel in windows": f"""
        with steps as (
          select user_id, {{ms}} as ms, event_type from events
          where event_type in ('view', 'search', 'purchase')
        ), thirds as (
          select *, min(case when event_type = 'purchase' then ms end) {_AFTER} as third from steps
        ), seconds as (
          select *, min(case when event_type = 'search' then ms end) {_AFTER} as second,
            min(case when event_type = 'search' then third end) {_AFTER} as last from thirds
        )
        select count(distinct user_id),
          count(distinct case when second - ms <= {WINDOW_MS} then user_id end),
          count(distinct case when last - ms <= {WINDOW_MS} then user_id end)
        from seconds where event_type = 'view'""",
    "funnel": f"""
        select countIf(n >= 1), countIf(n >= 2), countIf(n >= 3) from (
          select windowFunnel({WINDOW_MS})(
            toUInt64({{ms}}), event_type = 'view', event_type = 'search', event_type = 'purchase'
          ) as n from events where event_type in ('view', 'search', 'purchase') group by user_id
        )""",
    "retention": f"""
        with started as (
          select user_id, {{ms}} // {DAY_MS} as day, min({{ms}}) as first from events
          where event_type = 'view' group by 1, 2
        ), came as (
          select user_id, {{ms}} // {DAY_MS} as day, max({{ms}}) as last from events
          where event_type = 'search' group by 1, 2
        )
        select came.day - started.day as day, count(*) as n
        from started join came on started.user_id = came.user_id
        where came.day between started.day and started.day + {RETURN_DAYS} and last >= first
        group by 1 order by 1""",
    "segmentation": f"""
        select {{ms}} // {DAY_MS} as day, count(distinct user_id) as n from events
        group by 1 order by 1""",
}


def forebay(folder: str) -> Ask:
    import polars as pl

    from forebay.query.analytics import Event, Period, Roles, funnel, retention, segmentation

    roles = Roles("user_id", "event_type", "event_time")
    period = Period(FIRST, FIRST + timedelta(days=DAYS))
    view, search, purchase = map(Event, STEPS)

    def ask(question: str) -> Rows:
        events = pl.scan_parquet(f"{folder}/*.parquet")
        if question == "funnel":
            window = timedelta(milliseconds=WINDOW_MS)
            found = funnel(
                events, roles, [view, search, purchase], period,
                window=window, resolution=timedelta(0),
            )  # fmt: skip
            return [found.steps["count"].to_list()]
        if question == "retention":
            back = retention(
                events, roles, view, search, period,
                days=RETURN_DAYS, calendar=True, now=datetime(2025, 1, 1, tzinfo=UTC),
            )  # fmt: skip
            return [list(row) for row in back.overall.select("from_day", "count").rows()]
        days = segmentation(events, roles, [Event()], period).over_time
        return [
            [round(day.timestamp() * 1000) // DAY_MS, round(value)]
            for day, value in days.select("bucket", "value").rows()
        ]

    return ask


def duckdb(folder: str) -> Ask:
    import duckdb

    connection = duckdb.connect()
    connection.execute(f"create view events as from read_parquet('{folder}/*.parquet')")

    def ask(question: str) -> Rows:
        text = _SQL["funnel in windows" if question == "funnel" else question]
        answer = connection.execute(text.format(ms="epoch_ms(event_time)"))
        return [list(row) for row in answer.fetchall()]

    return ask


def chdb(folder: str) -> Ask:
    import json

    from chdb.session import Session

    session = Session()
    session.query("create database bench")
    session.query(f"create view bench.events as select * from file('{folder}/*.parquet')")
    session.query("use bench")
    settings = " settings output_format_json_quote_64bit_integers = 0"

    def ask(question: str) -> Rows:
        text = _SQL[question].replace("//", "div").format(ms="toUnixTimestamp64Milli(event_time)")
        lines = str(session.query(text + settings, "JSONCompactEachRow")).splitlines()
        return [json.loads(line) for line in lines]

    return ask


def main(name: str, folder: str) -> int:
    return serve({"forebay": forebay, "duckdb": duckdb, "chdb": chdb}[name], folder)


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
