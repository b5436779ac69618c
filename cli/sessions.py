"""`forebay sessions`: how many sessions there are, and how long they last."""

from datetime import timedelta
from typing import Any

import click

from forebay.cli.analytics import Question, Table, by_options, length, question
from forebay.cli.event import where_option
from forebay.cli.example import example

TABLES = {"over_time": Table("sessions"), "overall": Table(), "lengths": Table("sessions")}
EXAMPLE = "forebay sessions --gap 30m --by platform --table overall"


def bins(context: click.Context, option: click.Parameter, text: str | None) -> list[int] | None:
    """Lengths in milliseconds."""
    if text is None:
        return None
    lengths = [length(context, option, one.strip()) for one in text.split(",")]
    return [one // timedelta(milliseconds=1) for one in lengths if one is not None]


@click.command(epilog=example(EXAMPLE))
@click.option(
    "--gap",
    metavar="DURATION",
    callback=length,
    help="The pause after which a new session begins.  [default: sessions by their ids]",
)
@click.option("--to-midnight", is_flag=True, help="With --gap, a day of the zone ends them.")
@click.option(
    "--longest", metavar="DURATION", default="1d", callback=length, show_default=True,
    help="How far outside the period their events are looked for.",
)  # fmt: skip
@click.option(
    "--bins", "bins_ms", metavar="LENGTH,...", callback=bins,
    help="Lower ends of the table lengths, such as 0s,1m,10m.",
)  # fmt: skip
@where_option("A filter on their events.")
@by_options
@question(TABLES)
def sessions(asked: Question, **options: Any) -> None:
    """How many sessions begin in each interval, their length, and their events."""
    asked.answer("sessions", asked.period, **options)
