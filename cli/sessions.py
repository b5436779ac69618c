"""`forebay sessions`: how many sessions there are, and how long they take."""

from typing import Any

import click

from forebay.cli.analytics import Question, Table, by_options, example, length, question
from forebay.cli.event import filters

TABLES = {"over_time": Table("sessions"), "overall": Table(), "lengths": Table("sessions")}
EXAMPLE = "forebay sessions --gap 30m --by platform --table overall"


@click.command(epilog=example(EXAMPLE))
@click.option(
    "--gap", callback=length, help="After such a pause a new one begins.  [default: by their ids]"
)
@click.option("--to-midnight", is_flag=True, help="With --gap, a day of the zone ends them.")
@click.option("--where", multiple=True, callback=filters, help="Of their events.")
@by_options
@question(TABLES)
def sessions(asked: Question, **options: Any) -> None:
    """How many sessions begin in each interval, their length, and their events."""
    asked.answer("sessions", asked.period, **options)
