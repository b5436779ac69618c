"""Spark Structured Streaming: dropDuplicatesWithinWatermark to Parquet, on one core.

Micro-batches of as many messages as arrive in a second at Forebay's rate; the state store in memory
with its changelog in the checkpoint folder; one shuffle partition. An event behind the watermark
would be dropped, so the load has none.
"""

from __future__ import annotations

from pathlib import Path

from pyspark.sql import SparkSession
from pyspark.sql import functions as f

from benchmarks.peers.columns import COLUMNS, INTEGERS, KEY, TIMES, UPLOAD_TIME, json_name
from benchmarks.peers.source import EPOCH_ROWS, Source

WINDOW = "10 minutes"


def ingest(source: Source, folder: Path) -> None:
    jars = Path("build/bench/jars-spark")
    spark = (
        SparkSession.builder.master("local[1]")
        .config("spark.jars", ",".join(str(path) for path in jars.glob("*.jar")))
        .config("spark.sql.shuffle.partitions", "1")
        .config("spark.driver.memory", "4g")
        .config("spark.ui.enabled", "false")
        .config("spark.sql.session.timeZone", "UTC")
        .getOrCreate()
    )
    messages = (
        spark.readStream.format("kafka")
        .option("kafka.bootstrap.servers", source.bootstrap)
        .option("subscribe", source.topic)
        .option("startingOffsets", "earliest")
        .option("maxOffsetsPerTrigger", EPOCH_ROWS)
        .load()
    )
    types = {
        **dict.fromkeys(TIMES, "timestamp"),
        **dict.fromkeys(INTEGERS, "bigint"),
    }
    schema = ", ".join(f"`{json_name(name)}` {types.get(name, 'string')}" for name in COLUMNS)
    text = f.col("value").cast("string")
    parsed = messages.select(text.alias("raw"), f.from_json(text, schema).alias("event"))
    events = parsed.select(
        *(f.col(f"event.`{json_name(name)}`").alias(name) for name in COLUMNS), "raw"
    )
    unique = events.withWatermark(UPLOAD_TIME, WINDOW).dropDuplicatesWithinWatermark(list(KEY))
    query = (
        unique.writeStream.format("parquet")
        .option("checkpointLocation", str(folder / "checkpoint"))
        .trigger(availableNow=True)
        .start(str(folder / "events"))
    )
    query.awaitTermination()
    spark.stop()


def count(folder: Path) -> int:
    spark = SparkSession.builder.master("local[1]").getOrCreate()
    return int(spark.read.parquet(str(folder / "events")).count())
