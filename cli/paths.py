"""`forebay paths`: what users do after an event, step by step."""

from datetime import timedelta
from typing import Any

import click

from forebay.cli.analytics import Question, Table, length, question
from forebay.cli.event import events
from forebay.cli.example import example
from forebay.query.analytics import Event
from forebay.query.analytics.paths import STEPS_MAX

TABLES = {"nodes": Table("users"), "links": Table("users")}
EXAMPLE = "forebay paths search --steps 3 --limit 5 --collapse"


@click.command(epilog=example(EXAMPLE))
@click.argument("start", metavar="EVENT", callback=events)
@click.option("--steps", type=click.IntRange(1, STEPS_MAX), default=5, show_default=True)
@click.option(
    "--limit",
    type=click.IntRange(1),
    default=10,
    show_default=True,
    help="How many events each step names.",
)
@click.option("--window", metavar="DURATION", default="1d", callback=length, show_default=True)
@click.option("--collapse", is_flag=True, help="Immediate repetitions of an event are one step.")
@click.option(
    "--among",
    metavar="EVENT",
    multiple=True,
    callback=events,
    help="Only these events are steps; repeatable.",
)
@question(TABLES, interval=None)
def paths(asked: Question, start: Event, window: timedelta, **options: Any) -> None:
    """What users do after their first EVENT in the period: the most frequent events of each step,
    the others, and how many have dropped off."""
    asked.answer("paths", start, asked.period, window=window, **options)
