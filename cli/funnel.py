"""`forebay funnel`: how many users go from one step to the next."""

import re
from datetime import timedelta
from typing import Any

import click

from forebay.cli.analytics import Question, Table, by_options, choice, length, question
from forebay.cli.event import events, where_option
from forebay.cli.example import example
from forebay.query.analytics import Event, Exclusion
from forebay.query.analytics.funnel import Order, Reentry
from forebay.query.analytics.grammar import parsed_event

TABLES = {
    "steps": Table("count"),
    "over_time": Table("count"),
    "whole": Table(),
    "distribution": Table("count"),
}
EXAMPLE = "forebay funnel search 'item_view where event_properties.price > 10' --window 1h"
ATTRIBUTIONS = ("entry", "first touch", "last touch", "all steps")


def attribution(_context: click.Context, _option: click.Parameter, text: str) -> str | int:
    return int(text) if text.isdecimal() else text


def exclusions(
    _context: click.Context, _option: click.Parameter, given: tuple[str, ...]
) -> list[Exclusion]:
    """Exclusions given as EVENT, or 1-2:EVENT."""
    found = []
    for text in given:
        steps = re.match(r"\s*(\d+)-(\d+):", text)
        event = parsed_event(text[steps.end() :] if steps else text)
        found.append(Exclusion(event, int(steps[1]), int(steps[2])) if steps else Exclusion(event))
    return found


@click.command(epilog=example(EXAMPLE))
@click.argument("steps", metavar="EVENT...", nargs=-1, required=True, callback=events)
@click.option("--order", **choice(Order))
@click.option(
    "--window",
    metavar="DURATION",
    default="1d",
    callback=length,
    show_default=True,
    help="The time from the first to the last step.",
)
@click.option(
    "--count", type=click.Choice(("uniques", "totals")), default="uniques", show_default=True
)
@click.option("--reentry", **choice(Reentry), help="Which entry a path begins with.")
@click.option(
    "--resolution", metavar="DURATION", default="1s", callback=length, show_default=True,
    help="Events at most this far apart are simultaneous.",
)  # fmt: skip
@where_option("A filter on the first step only.", "segment")
@click.option(
    "--hold", metavar="PROPERTY", help="A property that must have the same value at each step."
)
@click.option(
    "--exclude",
    multiple=True,
    callback=exclusions,
    metavar="[N-M:]EVENT",
    help="No such event between the steps, or between steps N and M.",
)
@click.option(
    "--exclusion", type=click.Choice(("break", "drop")), default="break", show_default=True,
    help="What an excluded event does: ends a path, or drops its user.",
)  # fmt: skip
@click.option(
    "--attribution", metavar="STEP", default="entry", callback=attribution, show_default=True,
    help=f"Of --by: {', '.join(ATTRIBUTIONS)}, or the number of a step.",
)  # fmt: skip
@by_options
@question(TABLES)
def funnel(asked: Question, steps: list[Event], window: timedelta, **options: Any) -> None:
    """Count the users who do these EVENTs in order, and tell how long it takes them.

    An EVENT is NAME, or 'NAME where PROPERTY > VALUE and PROPERTY is VALUE,VALUE'.
    """
    asked.answer("funnel", steps, asked.period, window=window, **options)
