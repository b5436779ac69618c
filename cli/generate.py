"""`forebay generate`: send a seeded load to files or to a Kafka topic, and print its totals.

What always holds:

- Copies of an event go to the same partition as the original, after it: partitions are numbered
  explicitly, and the producer is idempotent, so that not even its own retries add a copy.
- Totals are printed only after everything is written or acknowledged; a failure prints none.
- Files of an earlier run are never overwritten nor mixed with new ones.

Files are DIR/part-00000.ndjson, with .gz or .zst if compressed: one message per line; an event's
offset is its line number from 0. In Kafka, a message's key is its device id; a message too broken
to have one has no key.
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from forebay.cli.example import example
from forebay.cli.load import Load, LoadSpec
from forebay.cli.options import time_ms, time_option
from forebay.cli.outlet import PARTITIONS, SUFFIXES, Outlet, files, topic_of
from forebay.cli.output import echo_json
from forebay.storage.base.times import duration_ms, now_ms

START = "2024-05-01T00:00:00Z"
SPAN = "1h"
SLICES_PER_S = 20
SLICE_EVENTS_MAX = 50_000


def _duration(text: str) -> int:
    try:
        return duration_ms(text)
    except ValueError as error:
        raise click.BadParameter(f"{error}, got {text!r}") from error


def _send(load: Load, outlet: Outlet, rate: float) -> None:
    """Send all slices, each no earlier than `rate` allows."""
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


def _pairs(properties: tuple[str, ...]) -> dict[str, str]:
    """NAME=VALUE texts as a mapping."""
    found = {}
    for text in properties:
        name, equals, found[name] = text.partition("=")
        if not equals or not name:  # the value may be a secret
            raise click.UsageError(f"--property: expected NAME=VALUE, got {name!r}")
    return found


@click.command(epilog=example("forebay generate --out load --events 10000 --duplicates 0.1"))
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Write files here.")
@click.option("--bootstrap", metavar="HOST:PORT", help="Send to Kafka instead.")
@click.option("--topic", help="The topic; created if there is none.")
@click.option(
    "--property", "properties", multiple=True, metavar="NAME=VALUE",
    help="A property of librdkafka, such as security.protocol=SSL; repeat for more.",
)  # fmt: skip
@click.option("--compress", type=click.Choice(list(SUFFIXES)), default="none", show_default=True)
@click.option("--events", type=int, required=True, help="How many good, unique events.")
@click.option("--partitions", type=int, help=f"[default: {PARTITIONS}, or as the topic has]")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--rate", type=click.FloatRange(0), default=0, help="Events/s; 0: no limit [default]")
@time_option("--start", "start", metavar="TIME", help=f"The first upload time.  [default: {START}]")
@click.option(
    "--span",
    type=_duration,
    metavar="DURATION",
    help=f"The time that uploads span.  [default: {SPAN}]",
)
@click.option("--now", is_flag=True, help="Upload times are those of sending; needs --rate.")
@click.option("--bytes", type=int, default=440, show_default=True, help="Mean size of a message.")
@click.option("--duplicates", type=float, default=0.02, show_default=True, help="Share of copies.")
@click.option(
    "--redeliver-span", "redeliver_ms", type=_duration, metavar="DURATION", default="3m",
    show_default=True,
    help="A batch is redelivered within this.",
)  # fmt: skip
@click.option("--late", type=float, default=0.01, show_default=True, help="Share of late events.")
@click.option("--broken", type=float, default=0.002, show_default=True, help="Share of rejects.")
@click.option(
    "--disorder", "disorder_ms", type=_duration, metavar="DURATION", default="2s", show_default=True
)
@click.option(
    "--window",
    "window_ms",
    type=_duration,
    metavar="DURATION",
    default="10m",
    show_default=True,
    help="The dedup window that is assumed.",
)
def generate(
    out: Path | None, bootstrap: str | None, topic: str | None, properties: tuple[str, ...],
    compress: str, events: int, partitions: int | None, rate: float, start: int | None,
    span: int | None, now: bool, **shape: Any,
) -> None:  # fmt: skip
    """Make a load of events and print what an exact reader must count."""
    if (out is None) == (bootstrap is None) or (bootstrap is None) != (topic is None):
        raise click.UsageError("expected either --out, or --bootstrap and --topic")
    if now and (not rate or start is not None or span is not None):
        raise click.UsageError("--now: expected --rate, and neither --start nor --span")
    if properties and bootstrap is None:
        raise click.UsageError("--property: expected --bootstrap and --topic with it")
    if now:
        start, span = now_ms(), max(1, round(1000 * events / rate))
    try:
        spec = LoadSpec(
            events=events,
            partitions=PARTITIONS if partitions is None else partitions,
            start_ms=time_ms(START) if start is None else start,
            span_ms=duration_ms(SPAN) if span is None else span,
            slice_events=max(1, min(SLICE_EVENTS_MAX, int(rate / SLICES_PER_S or 10**9))),
            **shape,
        )
        target = (
            files(out, spec.partitions, compress)
            if out
            else topic_of(str(bootstrap), str(topic), partitions, compress, _pairs(properties))
        )
        with target as outlet:
            load = Load(replace(spec, partitions=len(outlet.names)))
            _send(load, outlet, rate)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    except KeyboardInterrupt:
        where = out or f"topic {topic}"
        click.echo(f"interrupted: {where} has a part of the load, of no known totals", err=True)
        raise
    totals = load.totals
    totals["partitions"] = dict(zip(outlet.names, totals["partitions"].values(), strict=True))
    echo_json(totals)
