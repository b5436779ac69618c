"""`forebay stickiness`: on how many days of a week or month users are active."""

from typing import Any

import click

from forebay.cli.analytics import Question, Table, by_options, question
from forebay.cli.event import events
from forebay.cli.example import example
from forebay.query.analytics import Event

TABLES = {"overall": Table("users"), "over_time": Table("users")}
EXAMPLE = "forebay stickiness purchase --interval month --at-least"


@click.command(epilog=example(EXAMPLE))
@click.argument("kind", metavar="[EVENT]", default="*", callback=events)
@click.option("--at-least", is_flag=True, help="At least that many days, not exactly as many.")
@by_options
@question(TABLES, interval="week")
def stickiness(asked: Question, kind: Event, **options: Any) -> None:
    """On how many days of a week (or month) users did EVENT, by default any."""
    asked.answer("stickiness", kind, asked.period, **options)
