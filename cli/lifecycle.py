"""`forebay lifecycle`: new, returning, resurrected and dormant users."""

import click

from forebay.cli.analytics import Question, Table, question
from forebay.cli.event import events
from forebay.cli.example import example
from forebay.query.analytics import Event

EXAMPLE = "forebay lifecycle purchase --interval week"


@click.command(epilog=example(EXAMPLE))
@click.argument("kind", metavar="[EVENT]", default="*", callback=events)
@question({"over_time": Table("returning")})
def lifecycle(asked: Question, kind: Event) -> None:
    """In each interval, how many users who did EVENT (by default any) are new, returning,
    resurrected or dormant. The bars show returning users."""
    asked.answer("lifecycle", asked.period, event=kind if kind != Event() else None)
