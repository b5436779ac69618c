"""`forebay generate`: sends a seeded load to files or to a Kafka topic, and prints its totals.

What always holds:

- Copies of an event go to the partition of the original, after it: partitions are numbered
  explicitly, and the producer is idempotent, so that not even its own retries add a copy.
- Totals are printed only after everything is written or acknowledged; a failure prints none.
- Files of an earlier run are never overwritten nor mixed with new ones.

Files are DIR/part-00000.ndjson, with .gz or .zst if compressed: one message a line, and an event's
offset is its line number from 0. In Kafka, a message's key is its device id; a message too broken
to have one has no key.
"""

from __future__ import annotations

import gzip
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import BinaryIO, cast

import click
import orjson
import zstandard
from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewTopic
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from cli.load import VALUES, Load, LoadSpec
from flows.duration import duration_ms

START = "2024-05-01T00:00:00Z"
SPAN = "1h"
PARTITIONS = 4
SUFFIXES = {"none": "", "gzip": ".gz", "zstd": ".zst"}
SLICES_PER_S = 20
SLICE_EVENTS_MAX = 50_000
BROKER_TIMEOUT_S = 10.0
DELIVERY_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Outlet:
    """Where a slice goes, and what its partitions are called there."""

    names: list[str]
    send: Callable[[list[list[bytes]]], None]


@contextmanager
def files(directory: Path, partitions: int, compress: str) -> Iterator[Outlet]:
    """One file a partition; all are complete when the context is left."""
    directory.mkdir(parents=True, exist_ok=True)
    if found := sorted(path.name for path in directory.glob("part-*")):
        raise click.ClickException(f"{directory}: expected no part-* files, got {found[0]}")
    names = [f"part-{number:05d}" for number in range(partitions)]
    with ExitStack() as stack:
        outs = []
        for name in names:
            file = stack.enter_context(
                (directory / f"{name}.ndjson{SUFFIXES[compress]}").open("xb")
            )
            outs.append(stack.enter_context(_compressed(file, compress)))

        def send(parts: list[list[bytes]]) -> None:
            for out, messages in zip(outs, parts, strict=True):
                if messages:
                    out.write(b"\n".join(messages) + b"\n")
                    if compress == "none":
                        out.flush()

        yield Outlet(names, send)


def _compressed(file: BinaryIO, compress: str) -> BinaryIO:
    if compress == "gzip":
        # No name and no time in the header: the same load gives the same file.
        return cast(BinaryIO, gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0))
    if compress == "zstd":
        return cast(BinaryIO, zstandard.ZstdCompressor().stream_writer(file, closefd=False))
    return file


@contextmanager
def topic_of(bootstrap: str, topic: str, partitions: int | None, compress: str) -> Iterator[Outlet]:
    """A topic, made with so many partitions if there is none; all messages are acknowledged when
    the context is left."""
    failures: list[str] = []
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "enable.idempotence": True,
            "compression.type": compress,
            "linger.ms": 20,
            "queue.buffering.max.messages": 200_000,
            "queue.buffering.max.kbytes": 128 * 1024,
            "message.timeout.ms": int(1000 * DELIVERY_TIMEOUT_S),
            "delivery.report.only.error": True,
            "on_delivery": lambda error, _: failures.append(str(error)),
            "log_level": 2,
        }
    )
    count = _partitions(producer, bootstrap, topic) or _create(bootstrap, topic, partitions)
    if partitions not in (None, count):
        raise click.ClickException(
            f"topic {topic!r}: expected {partitions} partitions, got {count}"
        )

    def check() -> None:
        if failures:
            producer.purge()
            raise click.ClickException(
                f"topic {topic!r}: expected every message to be acknowledged, got: {failures[0]}"
            )

    def send(parts: list[list[bytes]]) -> None:
        for number, messages in enumerate(parts):
            for message in messages:
                _produce(producer, topic, number, message)
            producer.poll(0)
            check()

    yield Outlet([f"{topic}-{number:05d}" for number in range(count)], send)
    # By twice the time that a delivery may take, each has succeeded or failed.
    producer.flush(2 * DELIVERY_TIMEOUT_S)
    check()


def _partitions(producer: Producer, bootstrap: str, topic: str) -> int:
    """How many the topic has, 0 if there is none. All topics are listed: asking for one by name
    might make it."""
    try:
        topics = producer.list_topics(timeout=BROKER_TIMEOUT_S).topics
    except KafkaException as error:
        raise click.ClickException(
            f"expected a broker at {bootstrap}, got {error.args[0]}"
        ) from error
    return len(topics[topic].partitions) if topic in topics else 0


def _create(bootstrap: str, topic: str, partitions: int | None) -> int:
    count = PARTITIONS if partitions is None else partitions
    made = AdminClient({"bootstrap.servers": bootstrap}).create_topics([NewTopic(topic, count)])
    try:
        made[topic].result(BROKER_TIMEOUT_S)
    except (KafkaException, TimeoutError) as error:
        raise click.ClickException(f"topic {topic!r}: expected to make it, got {error}") from error
    return count


def _produce(producer: Producer, topic: str, partition: int, message: bytes) -> None:
    """Queue a message, waiting for room. A message that fails makes room as well, so this ends."""
    while True:
        try:
            producer.produce(topic, message, device_of(message), partition)
        except BufferError:
            producer.poll(0.1)
        else:
            return


def device_of(message: bytes) -> bytes | None:
    """The device id of a message of a load; None if it is too broken to tell."""
    at = VALUES["device_id"]
    opened = message[: at.start].endswith(b'"device_id":"')
    return message[at] if opened and message[at.stop : at.stop + 1] == b'"' else None


def _duration(text: str) -> int:
    try:
        return duration_ms(text)
    except ValueError as error:
        raise click.BadParameter(f"{error}, got {text!r}") from error


def moment_ms(text: str) -> int:
    """Milliseconds since 1970 of an ISO time, in UTC unless it says otherwise."""
    try:
        moment = datetime.fromisoformat(re.sub(r"[zZ]\Z", "+00:00", text))
    except ValueError as error:
        raise click.BadParameter(f"expected a time such as {START}, got {text!r}") from error
    moment = moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
    return round(moment.timestamp() * 1000)


def _send(load: Load, outlet: Outlet, rate: float) -> None:
    """Send all slices, each not before its share of the time at `rate` has passed."""
    spec, start_s = load.spec, time.monotonic()
    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("events", total=spec.events)
        for number, parts in enumerate(load.slices(), start=1):
            done = min(number * spec.slice_events, spec.events)
            if rate:
                time.sleep(max(0.0, start_s + done / rate - time.monotonic()))
            outlet.send(parts)
            progress.update(task, completed=done)


def _first(asked: int | None, default: int) -> int:
    return default if asked is None else asked


@click.command()
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Write files here.")
@click.option("--bootstrap", metavar="HOST:PORT", help="Send to Kafka instead.")
@click.option("--topic", help="The topic; made if there is none.")
@click.option("--compress", type=click.Choice(list(SUFFIXES)), default="none", show_default=True)
@click.option("--events", type=int, required=True, help="How many, each good and unique.")
@click.option("--partitions", type=int, help=f"[default: {PARTITIONS}, or as the topic has]")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--rate", type=click.FloatRange(0), default=0, help="Events/s; 0: no limit [default]")
@click.option("--start", type=moment_ms, help=f"The first upload time.  [default: {START}]")
@click.option("--span", type=_duration, help=f"How long uploads go on.  [default: {SPAN}]")
@click.option("--now", is_flag=True, help="Upload times are those of sending; needs --rate.")
@click.option("--bytes", type=int, default=440, show_default=True, help="Mean size of a message.")
@click.option("--duplicates", type=float, default=0.02, show_default=True, help="Share of copies.")
@click.option(
    "--redeliver-span", type=_duration, default="3m", show_default=True,
    help="A batch comes again within this.",
)  # fmt: skip
@click.option("--late", type=float, default=0.01, show_default=True, help="Share of late events.")
@click.option("--broken", type=float, default=0.002, show_default=True, help="Share of rejects.")
@click.option("--disorder", type=_duration, default="2s", show_default=True)
@click.option("--window", type=_duration, default="10m", show_default=True, help="For dedup.")
def generate(
    out: Path | None, bootstrap: str | None, topic: str | None, compress: str, events: int,
    partitions: int | None, seed: int, rate: float, start: int | None, span: int | None, now: bool,
    bytes: int, duplicates: float, redeliver_span: int, late: float, broken: float,
    disorder: int, window: int,
) -> None:  # fmt: skip
    """Make a load of events and print what an exact reader must count."""
    if (out is None) == (bootstrap is None) or (bootstrap is None) != (topic is None):
        raise click.UsageError("expected either --out, or --bootstrap and --topic")
    if now and (not rate or start is not None or span is not None):
        raise click.UsageError("--now: expected --rate, and neither --start nor --span")
    if out:
        target = files(out, PARTITIONS if partitions is None else partitions, compress)
    else:
        target = topic_of(str(bootstrap), str(topic), partitions, compress)
    try:
        with target as outlet:
            spec = LoadSpec(
                events=events,
                partitions=len(outlet.names),
                seed=seed,
                start_ms=_first(time.time_ns() // 10**6 if now else start, moment_ms(START)),
                span_ms=_first(
                    max(1, round(1000 * events / rate)) if now else span, duration_ms(SPAN)
                ),
                duplicates=duplicates,
                late=late,
                broken=broken,
                disorder_ms=disorder,
                window_ms=window,
                bytes=bytes,
                redeliver_ms=redeliver_span,
                slice_events=max(1, min(SLICE_EVENTS_MAX, int(rate / SLICES_PER_S or 10**9))),
            )
            load = Load(spec)
            _send(load, outlet, rate)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    except OSError as error:
        raise click.ClickException(str(error)) from error
    totals = load.totals
    totals["partitions"] = dict(zip(outlet.names, totals["partitions"].values(), strict=True))
    click.echo(orjson.dumps(totals, option=orjson.OPT_INDENT_2))
