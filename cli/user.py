"""`forebay user`: the timeline of one user."""

import click
import polars as pl

from forebay.cli.analytics import Question, Table, question
from forebay.cli.example import example
from forebay.cli.export import readable
from forebay.query.analytics.timeline import LIMIT_MAX
from forebay.storage.formats.schema import OFFSET, PARTITION, RAW


def _readable(events: pl.DataFrame) -> pl.DataFrame:
    """Without messages, their origin, and empty columns; ids are not formatted as numbers."""
    empty = [column.name for column in events if column.null_count() == events.height]
    shown = readable(events.drop(RAW, PARTITION, OFFSET, *empty, strict=False))
    return shown.with_columns(pl.col(pl.Int64).cast(pl.String))


@click.command(epilog=example("forebay user u42 --from -7d"))
@click.argument("who", metavar="ID")
@click.option("--limit", type=click.IntRange(1, LIMIT_MAX), default=100, show_default=True)
@click.option("--offset", type=click.IntRange(0), default=0, help="How many to skip first.")
@click.option("--earliest", is_flag=True, help="The earliest events instead of the newest.")
@question({"events": Table(shape=_readable)}, interval=None, ends=False)
def user(asked: Question, who: str, limit: int, offset: int, earliest: bool) -> None:
    """The newest events of the user ID, in order of time. --json includes whole messages."""
    asked.answer(
        "timeline", who, start=asked.instant(asked.since), end=asked.instant(asked.until),
        limit=limit, offset=offset, earliest=earliest,
    )  # fmt: skip
