"""The ceiling: consume and decode as Forebay does, and throw the result away. A process of its own.

With FOLDER nothing is thrown away: what was decoded is written once to a log that is synced every
second, and MERGED_SHARE of it to Parquet, as in a job whose load is of an hour. That is what the
libraries alone cost for durable columns, without engine, dedup, blocks, commits or readers.

Nothing in it makes reference cycles, so it runs without Python's cycle collector.

python -m benchmarks.ceiling BOOTSTRAP TOPIC MESSAGES SCHEMA [FOLDER]
"""

from __future__ import annotations

import gc
import sys
import time
from pathlib import Path

import polars as pl
import pyarrow as pa
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

from forebay.flows.settings import Settings
from forebay.operators.decode import DecodeConfig, Decoder
from forebay.operators.sources.kafka import POLL_MESSAGES, Piece
from forebay.operators.sources.messages import Messages
from forebay.operators.sources.topic import Broker, KafkaConfig
from forebay.storage.base.disk import Disk
from forebay.storage.formats.columns import arrow_schema
from forebay.storage.formats.log_writer import GrowingLog
from forebay.storage.formats.merge import ZSTD_LEVEL

SYNC_S = 1.0
MERGED_SHARE = 0.4
CHUNK_ROWS = 100_000


class Written:
    """Takes decoded batches, and writes them."""

    def __init__(self, folder: Path, schema: pa.Schema, events: int) -> None:
        self._log = GrowingLog(Disk(), folder, "log.arrows", schema)
        self._folder = folder
        self._to_merge = int(events * MERGED_SHARE)
        self._chunk: list[pa.RecordBatch] = []
        self._chunks = self._rows = 0
        self._due_s = time.monotonic() + SYNC_S

    def add(self, batch: pa.RecordBatch) -> None:
        self._log.append(batch)
        if self._log.full:
            self._log.flush()
        if time.monotonic() >= self._due_s:
            self.sync()
        if self._to_merge > 0:
            self._to_merge -= batch.num_rows
            self._chunk.append(batch)
            self._rows += batch.num_rows
            if self._rows >= CHUNK_ROWS or self._to_merge <= 0:
                self._write_chunk()

    def sync(self) -> None:
        self._log.flush()
        self._log.sync()
        self._due_s = time.monotonic() + SYNC_S

    def _write_chunk(self) -> None:
        pl.DataFrame(pa.Table.from_batches(self._chunk)).write_parquet(
            self._folder / f"{self._chunks}.parquet",
            compression="zstd",
            compression_level=ZSTD_LEVEL,
        )
        self._chunks, self._chunk, self._rows = self._chunks + 1, [], 0


def main(bootstrap: str, topic: str, messages: int, schema: str, folder: str | None = None) -> int:
    gc.disable()
    settings = Settings(event_schema=schema)
    config = KafkaConfig(bootstrap=bootstrap, topic=topic, group="ceiling")
    columns = settings.schema_of_events
    decoder = Decoder(DecodeConfig(columns, settings.future_skew, int(settings.message_bytes_max)))
    written = Written(Path(folder), arrow_schema(columns), messages) if folder else None
    consumer = Consumer({**config.consumer(), "enable.partition.eof": False})
    found = Broker(config).topic(None, 1)
    partitions = range(found.partitions if found else 0)
    consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in partitions])
    left, events = messages, 0
    while left > 0:
        arrived = consumer.consume(POLL_MESSAGES, 1.0)
        if not arrived:
            continue
        piece = Piece.of(arrived, 0.0)
        item = Messages(topic, piece.values, piece.offsets, piece.times_ms, next_offset=0)
        for frame in decoder.decode([item]):
            events += frame.events.num_rows
            if written:
                written.add(frame.events)
        left -= len(arrived)
    if written:
        written.sync()
    consumer.close()
    print(f"{events} events")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), *sys.argv[4:]))
