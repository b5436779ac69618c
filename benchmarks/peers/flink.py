"""Flink SQL: the first row of each key by ROW_NUMBER, to Parquet, on one task slot.

It reads up to the end that the topic has at the start; a checkpoint a second, state on the heap. It
never forgets an id.
"""

from __future__ import annotations

from pathlib import Path

from pyflink.common import Configuration
from pyflink.table import EnvironmentSettings, TableEnvironment

from benchmarks.peers.columns import COLUMNS, INTEGERS, KEY, TIMES, json_name
from benchmarks.peers.source import Source


def ingest(source: Source, folder: Path) -> None:
    configuration = Configuration()
    jars = Path("build/bench/jars-flink").resolve()
    for name, value in {
        "pipeline.jars": ";".join(path.as_uri() for path in jars.glob("*.jar")),
        "parallelism.default": "1",
        "execution.checkpointing.interval": "1 s",
        "execution.checkpointing.dir": (folder / "checkpoints").resolve().as_uri(),
        "table.local-time-zone": "UTC",
    }.items():
        configuration.set_string(name, value)
    settings = EnvironmentSettings.new_instance().in_streaming_mode()
    table = TableEnvironment.create(settings.with_configuration(configuration).build())
    types = {**dict.fromkeys(TIMES, "timestamp(6)"), **dict.fromkeys(INTEGERS, "bigint")}
    declared = ", ".join(f"`{json_name(name)}` {types.get(name, 'string')}" for name in COLUMNS)
    table.execute_sql(
        f"create table messages ({declared}, arrived as proctime()) with ("
        f" 'connector' = 'kafka', 'topic' = '{source.topic}',"
        f" 'properties.bootstrap.servers' = '{source.bootstrap}',"
        f" 'properties.group.id' = '{folder.name}',"
        " 'scan.startup.mode' = 'earliest-offset', 'scan.bounded.mode' = 'latest-offset',"
        " 'format' = 'json', 'json.timestamp-format.standard' = 'SQL')"
    )
    columns = ", ".join(f"`{name}` {types.get(name, 'string')}" for name in COLUMNS)
    table.execute_sql(
        f"create table events ({columns}) with ("
        f" 'connector' = 'filesystem', 'path' = '{(folder / 'events').resolve().as_uri()}',"
        " 'format' = 'parquet')"
    )
    chosen = ", ".join(f"`{json_name(name)}`" for name in COLUMNS)
    key = ", ".join(f"`{json_name(name)}`" for name in KEY)
    table.execute_sql(
        f"insert into events select {chosen} from (select *, row_number() over"
        f" (partition by {key} order by arrived asc) as place from messages) where place = 1"
    ).wait()


def count(folder: Path) -> int:
    import pyarrow.parquet as pq

    paths = [path for path in (folder / "events").rglob("*") if path.is_file()]
    return sum(pq.ParquetFile(path).metadata.num_rows for path in paths if path.name[0] == "p")
