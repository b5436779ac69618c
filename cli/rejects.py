"""`forebay rejects`: the messages that could not become events, and another try for them."""

from __future__ import annotations

import base64
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import orjson
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from forebay import query
from forebay.cli.filters import filtered, wanted
from forebay.cli.roots import data_dirs_option, roots_of
from forebay.cli.table import echo_table
from forebay.cli.target import force_option, new_file
from forebay.flows.recovery import job_runs
from forebay.operators.routing import is_hash_partition
from forebay.query.view import View, take_view
from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import BadInput
from forebay.storage.base.layout import Layout
from forebay.storage.base.text import did_you_mean, plain, plain_lines, shortened
from forebay.storage.formats.frame import REJECT_SCHEMA
from forebay.storage.formats.rejects import RejectFilter
from forebay.storage.formats.replay_request import ask

SHOWN_CHARACTERS = 60

Feed = Callable[[Callable[[pa.RecordBatch], None]], None]

one_dir = click.option(
    "--data-dir", type=click.Path(path_type=Path), help="[default: that of the settings]"
)


@click.group()
def rejects() -> None:
    """List, show, export or replay the messages that could not become events."""


@rejects.command(name="list")
@filtered
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="As NDJSON, as `export` writes it.")
@data_dirs_option
def list_(limit: int, as_json: bool, data_dirs: tuple[Path, ...], **options: Any) -> None:
    """One line a reject, by partition and offset."""
    roots = roots_of(data_dirs)
    meant = _meant(take_view(Disk(), roots), options)
    found = query.open(*roots).rejects(meant).sort("_partition", "_offset")
    first = found.head(limit + 1).collect()
    shown = first.head(limit)
    if as_json:
        for row in shown.iter_rows(named=True):
            click.echo(_line(row), nl=False)
    else:
        _print_table(shown)
    if first.height > limit:
        click.echo(f"the first {limit}; --limit shows more", err=True)


def _print_table(shown: pl.DataFrame) -> None:
    rows = [
        (
            row["_partition"], str(row["_offset"]), _time(row["broker_time"]), _reason(row),
            _beginning(row["message"] or b""),
        )
        for row in shown.iter_rows(named=True)
    ]  # fmt: skip
    if rows:
        headings = ("partition", "offset", "broker time", "reason", "message")
        echo_table(headings, rows, right=("offset",))
    else:
        click.echo("no rejects")


@rejects.command()
@click.argument("partition")
@click.argument("offset", type=int)
@click.option("--raw", is_flag=True, help="The message alone, byte for byte.")
@data_dirs_option
def show(partition: str, offset: int, raw: bool, data_dirs: tuple[Path, ...]) -> None:
    """The reject at an offset: why it is one, and the whole message."""
    meant = RejectFilter(partitions=(partition,), offsets=(offset,))
    rows = query.open(*roots_of(data_dirs)).rejects(meant).collect().to_dicts()
    if not rows:
        raise BadInput(f"rejects show: expected a reject at {partition} {offset}, none is there")
    for row in rows:
        if raw:
            sys.stdout.buffer.write(row["message"] or b"")
            continue
        click.echo(f"partition    {plain(row['_partition'])}\noffset       {row['_offset']}")
        click.echo(f"broker time  {_time(row['broker_time'])}\nreason       {_reason(row)}")
        click.echo(f"bytes        {len(row['message'] or b'')}\n\n{_text(row['message'])}")


@rejects.command()
@filtered
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@force_option
@data_dirs_option
def export(file: Path, force: bool, data_dirs: tuple[Path, ...], **options: Any) -> None:
    """Write rejects to FILE.ndjson or FILE.parquet.

    NDJSON has a message that is UTF-8 as `message`, another as `message_base64`.
    """
    writers: dict[str, Callable[[Path, Feed], int]]
    writers = {".ndjson": _lines, ".jsonl": _lines, ".parquet": _parquet}
    if file.suffix not in writers:
        raise BadInput(f"rejects export: expected {', '.join(writers)}; got {file.name!r}")
    roots = roots_of(data_dirs)
    meant, store = _meant(take_view(Disk(), roots), options), query.open(*roots)
    with new_file(file, force=force) as temporary:
        rows = writers[file.suffix](temporary, lambda write: store.export_rejects(meant, write))
    click.echo(f"{rows} rejects in {file}")


@rejects.command()
@filtered
@one_dir
def replay(data_dir: Path | None, **options: Any) -> None:
    """Have rejects decoded again by the job, under the configuration that it runs with.

    What passes becomes an event, or a duplicate, exactly once; what fails stays a reject. The job
    does it within seconds if it runs, else when it is started.
    """
    files, layout = Disk(), Layout(*roots_of([data_dir] if data_dir else []))
    view = take_view(files, [layout.root])
    names = [partition.state.partition for partition in view.partitions]
    if any(map(is_hash_partition, names)):
        raise BadInput(
            "rejects replay: expected partitions that are the source's own, got hash partitions"
            " (hash_partitions): export the rejects and send them again instead"
        )
    meant, store = _meant(view, options), query.open(layout.root)
    count = store.rejects(meant).select(pl.len()).collect().item()
    if not count:
        click.echo("no rejects to replay")
        return
    runs = {p.state.partition: p.state.incarnation for p in view.partitions}
    request = ask(files, layout, meant, runs)
    if all(partition.state.replays >= request.number for partition in view.partitions):
        click.echo(
            f"request {request.number} was carried out in this run; {count} rejects fail yet"
        )
    elif job_runs(files, layout):
        click.echo(f"request {request.number}: {count} rejects; the job takes it up within seconds")
    else:
        click.echo(f"request {request.number}: {count} rejects; no job runs, the next one does it")


def _meant(view: View, options: dict[str, Any]) -> RejectFilter:
    """Raises BadInput on a partition that nothing was read from: that it has no rejects would be
    true, and mislead who mistyped it."""
    meant = wanted(options)
    states = [partition.state for partition in view.partitions]
    known = {name for state in states for name in (state.partition, *state.next_offsets)}
    for name in meant.partitions:
        if name not in known:
            raise BadInput(
                "partition: expected one that messages were read from,"
                f" got {name!r}{did_you_mean(name, known)}"
            )
    return meant


def _lines(file: Path, feed: Feed) -> int:
    rows = 0
    with file.open("wb") as out:

        def write(batch: pa.RecordBatch) -> None:
            nonlocal rows
            rows += batch.num_rows
            out.writelines(map(_line, batch.to_pylist()))

        feed(write)
    return rows


def _parquet(file: Path, feed: Feed) -> int:
    with pq.ParquetWriter(file, REJECT_SCHEMA, compression="zstd") as out:
        feed(out.write_batch)
    return int(pq.read_metadata(file).num_rows)


def _line(row: dict[str, Any]) -> bytes:
    """A reject as a line of JSON from which its message can be had back byte for byte."""
    message = row.pop("message")
    try:
        row["message"] = None if message is None else message.decode()
    except UnicodeDecodeError:
        row["message"], row["message_base64"] = None, base64.b64encode(message).decode()
    return orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z)


def _reason(row: dict[str, Any]) -> str:
    return ": ".join(plain(part) for part in (row["reason"], row["detail"]) if part)


def _beginning(message: bytes) -> str:
    text = plain(message[: 4 * SHOWN_CHARACTERS].decode(errors="backslashreplace"))
    return shortened(text, SHOWN_CHARACTERS)


def _text(message: bytes | None) -> str:
    """For people: bytes that are no UTF-8, and control characters, as escapes."""
    return plain_lines((message or b"").decode(errors="backslashreplace"))


def _time(time: Any) -> str:
    return "-" if time is None else f"{time:%Y-%m-%d %H:%M:%S.%f}"[:-3]
