"""Three days of events and the start of a fourth, in two files, for the tests of a batch layer.

`keys` says which events a day has, of which shared ones are in both files. Whatever happens, the
table has each key of a day that was handed over once, and a query over all layers has each key ever
sent once: shared ones once a file before the handoff.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path
from typing import Any
from zlib import crc32

import orjson
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from confluent_kafka import Producer
from pyiceberg.catalog import load_catalog
from pyiceberg.table import StaticTable
from pyiceberg.transforms import DayTransform

import forebay
from forebay.flows.batch import run_day
from forebay.flows.sections import BatchSettings
from forebay.storage.base.disk import Disk
from forebay.storage.base.layout import Layout
from forebay.storage.base.times import DAY_MS
from forebay.storage.formats.boundary import Boundary, read_boundary
from forebay.storage.formats.schema import OFFSET, PARTITION, UPLOAD_TIME
from forebay.storage.handoff import Handoff
from tests.batch_run import STOPPED
from tests.broker import Broker
from tests.job import Job

MakeJob = Callable[..., Job]
FIRST = date(2024, 5, 1)
START_MS = 1_714_521_600_000
HOUR_MS = 3_600_000
DAYS = range(3)
CONFIG = BatchSettings(memory=64 << 20)
SETTINGS = {
    "SCHEMA": "none",
    "COLUMNS": '[{"name": "id", "path": "id"}]',
    "DEDUP_KEY": '["id"]',
    "UPLOAD_TIME": "at",
    "RAW": "false",
    "BLOCK_SPAN": "1h",
    "DEDUP_WINDOW": "2h",
    "BLOCKS_PER_CHUNK": "3",
    "EPOCH_INTERVAL": "100ms",
    "TICK_INTERVAL": "100ms",
    "GRACE": "1s",
}


def event(key: str, at_ms: int, **more: object) -> bytes:
    return orjson.dumps({"id": key, "at": at_ms, **more})


def day(number: int) -> date:
    return FIRST + timedelta(days=number)


def starts_ms(number: int) -> int:
    return START_MS + number * DAY_MS


PER_DAY, SHARED = 240, 20


def keys(number: int) -> set[str]:
    """All keys of a day."""
    own = {f"{part}-{number}-{n}" for part in "ab" for n in range(PER_DAY)}
    return own | {f"s-{number}-{n}" for n in range(SHARED)}


EVER = {key for number in DAYS for key in keys(number)} | {"a-3", "b-3"}


def messages(part: str) -> Iterator[bytes]:
    """What a file has: in order, some events twice, and some that the other file has too."""
    for number in DAYS:
        step_ms = DAY_MS // PER_DAY
        for n in range(PER_DAY):
            at_ms = starts_ms(number) + n * step_ms
            yield from [event(f"{part}-{number}-{n}", at_ms)] * (2 if n % 10 == 0 else 1)
            if n < SHARED:
                yield event(f"s-{number}-{n}", at_ms)
    yield event(f"{part}-3", starts_ms(3) + HOUR_MS)


def feed(job: Job, part: str, lines: Iterable[bytes]) -> None:
    """Append to a file that no job reads now."""
    folder = job.folder / "events"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{part}.ndjson").open("ab") as file:
        file.writelines(line + b"\n" for line in lines)


def run_job(job: Job) -> None:
    assert job.ends(job.run()) == 0, job.told()


def a_job(make_job: MakeJob, **settings: str) -> Job:
    job = make_job(**{**SETTINGS, **settings})
    job.settings.setdefault("FILES__PATH", str(job.folder / "events"))
    return job


def fill(folder: Path) -> Path:
    """The folder of a job that has read the load to its end."""
    job = Job(folder, dict(SETTINGS))
    job.settings["FILES__PATH"] = str(job.folder / "events")
    for part in "ab":
        feed(job, part, messages(part))
    run_job(job)
    return job.folder


def invoke(job: Job, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "tests.batch_run", *arguments],
        env=job.environment,
        capture_output=True,
        text=True,
        check=False,
    )


@contextmanager
def stopped(job: Job, step: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A batch run that has come to a step and waits there; it is killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.batch_run", "batch", "run", *arguments],
        env={**job.environment, "BATCH_STOP": step, "BATCH_SLICE_ROWS": "100"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        assert process.stdout.readline().strip() == STOPPED
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        process.stdin.close()


def hand_over(job: Job, *days: int) -> None:
    for number in days:
        run_day([job.data], CONFIG, day(number))


def hand_over_as_before(job: Job) -> None:
    """The first day, into a table whose column is named `_partition`, with retries and bounds as
    pyiceberg has them by default."""
    folder = (job.data / "batch").resolve()
    folder.mkdir()
    place = {
        "type": "sql",
        "uri": f"sqlite:///{folder / 'catalog.db'}",
        "warehouse": f"file://{folder / 'warehouse'}",
    }
    with Handoff([job.data]) as handoff:
        (sealed,) = handoff.seal(starts_ms(1))
        assert sealed.seal is not None
        rows = forebay.open(job.data).sealed().unique("id", keep="any").collect()
        sorted_by = [UPLOAD_TIME, PARTITION, OFFSET]
        schema = pa.schema(
            [(PARTITION, pa.string()), (OFFSET, pa.int64()),
             (UPLOAD_TIME, pa.timestamp("us", "UTC")), ("id", pa.string())]
        )  # fmt: skip
        catalog = load_catalog("forebay", **place)
        catalog.create_namespace_if_not_exists("forebay")
        made = catalog.create_table("forebay.events", schema=schema)
        with made.update_spec() as spec:
            spec.add_field(UPLOAD_TIME, DayTransform(), "upload_time_day")
        path = f"{made.location()}/data/upload_time_day={day(0)}/{sealed.seal.id}-00000.parquet"
        columns = pq.SortingColumn.from_ordering(schema, [(one, "ascending") for one in sorted_by])
        out = made.io.new_output(path).create()
        with pq.ParquetWriter(out, schema, compression="zstd", sorting_columns=columns) as writer:
            arrow = rows.select(schema.names).sort(sorted_by).to_arrow()
            writer.write_table(arrow.cast(schema))
        out.close()
        with made.transaction() as change:
            change.add_files(
                [path],
                snapshot_properties={
                    "forebay.seal": sealed.seal.id,
                    "forebay.batch-number": "1",
                    "forebay.rows": str(len(rows)),
                    "forebay.duplicates": str(SHARED),
                    "forebay.late": "0",
                },
            )
        handoff.complete(0, late=True, table=made.metadata_location)


def batch(job: Job) -> Boundary:
    return read_boundary(Disk(), Layout(job.data))


def in_table(job: Job) -> pl.DataFrame:
    """The rows of the table that the boundary is at."""
    found = batch(job).table
    return pl.DataFrame() if found is None else pl.DataFrame(static(found).scan().to_arrow())


def static(metadata: str) -> StaticTable:
    """The table as it is read from its metadata file alone."""
    return StaticTable.from_metadata(metadata)


def ids(rows: pl.LazyFrame | pl.DataFrame) -> Counter[str]:
    return Counter(rows.lazy().select("id").collect()["id"])


def once(found: Iterable[str]) -> Counter[str]:
    return Counter(dict.fromkeys(found, 1))


def everything(through: int, *more: str) -> Counter[str]:
    """What all layers have once the days up to this one are handed over."""
    found = once({*EVER, *more})
    found.update(k for n in DAYS if n > through for k in keys(n) if k.startswith("s"))
    return found


def assert_handed_over(job: Job, through: int) -> None:
    """The table has all days up to this one and nothing else, and all layers have all, once."""
    below = {key for number in range(through + 1) for key in keys(number)}
    assert ids(in_table(job)) == once(below)
    store = forebay.open(job.data)
    assert ids(store.scan("all")) == everything(through)
    assert batch(job).covered_until_ms == starts_ms(through + 1)
    assert set(ids(store.scan())) == EVER - below


class Topic:
    """What is sent to a topic, and read by a job."""

    def __init__(self, broker: Broker, make_job: MakeJob, **settings: str) -> None:
        self.name = f"t{uuid.uuid4().hex[:8]}"
        broker.create_topic(self.name, 2)
        kafka = {"BOOTSTRAP": broker.address, "TOPIC": self.name, "GROUP": self.name}
        own = {f"KAFKA__{name}": value for name, value in kafka.items()}
        self.job = make_job(**{**SETTINGS, **own, "SOURCE": "kafka", **settings})
        self.sent = 0
        self._producer = Producer({"bootstrap.servers": broker.address})

    def send(self, events: Iterable[tuple[str, int]]) -> None:
        """Keys with their upload times; a key has one partition."""
        for key, at_ms in events:
            part = crc32(key.encode()) % 2
            self._producer.produce(self.name, event(key, at_ms), partition=part)
            self.sent += 1
        assert self._producer.flush(60) == 0

    def read(self, process: Any) -> None:
        """Wait until the job has published all of it."""
        self.job.until(process, lambda found: int(found["next_offset"].sum()) == self.sent)
