"""`forebay retention`: how many of those who did something come back."""

from typing import Any, Literal

import click
import polars as pl

from forebay.cli.analytics import Question, Table, by_options, choice, question
from forebay.cli.event import events, where_option
from forebay.cli.example import example
from forebay.query.analytics import Event


def _by_day(cohorts: pl.DataFrame) -> pl.DataFrame:
    """A row for each cohort, a column for each day: the share that came back."""
    keys = [name for name in ("group", "cohort", "out_of") if name in cohorts.columns]
    shares = pl.format("{}%", (pl.col("share") * 100).round(1))
    shown = pl.when(pl.col("complete") | (pl.col("count") > 0)).then(shares)
    days = cohorts.with_columns(shown.fill_null("").alias("share"))
    return days.pivot("from_day", index=keys, values="share", maintain_order=True)


def brackets(
    _context: click.Context, _option: click.Parameter, text: str | None
) -> list[tuple[int, int]] | None:
    """Ranges of days given as 0,1-3,4-7, the last day included."""
    if text is None:
        return None
    found = []
    for one in text.split(","):
        low, dash, high = one.strip().partition("-")
        if not low.isdecimal() or (dash and not high.isdecimal()):
            raise click.BadParameter(f"expected days such as 0,1-3,4-7; got {text!r}")
        found.append((int(low), int(high if dash else low) + 1))
    return found


def _with_cohorts(overall: pl.DataFrame) -> pl.DataFrame:
    """Without the days that no cohort has behind it; says how many those are, unless all."""
    shown = overall.filter(pl.col("out_of") > 0)
    if shown.height and (days := overall.height - shown.height):
        told = f"{days} of {overall.height} rows have no complete cohort yet"
        click.echo(f"{told}; --table cohorts shows all", err=True)
    return shown


NONE_YET = "no cohort is complete yet, as the data ends on its day; --table cohorts shows all"
TABLES = {"overall": Table("share", _with_cohorts, NONE_YET), "cohorts": Table(shape=_by_day)}
EXAMPLE = "forebay retention sign_in purchase --days 7 --table cohorts"


@click.command(epilog=example(EXAMPLE))
@click.argument("start", metavar="START", callback=events)
@click.argument("back", metavar="[RETURN]", default="*", callback=events)
@click.option(
    "--mode", **choice(Literal["on", "on or after"]), help="On that day, or on it or later."
)
@click.option("--days", type=click.IntRange(0), default=30, show_default=True)
@click.option(
    "--brackets", metavar="DAYS", callback=brackets, help="In place of --days, such as 0,1-3,4-7."
)
@click.option("--calendar", is_flag=True, help="Days of the zone, not 24 hours from the start.")
@where_option("A filter on START only.", "segment")
@by_options
@question(TABLES)
def retention(asked: Question, start: Event, back: Event, **options: Any) -> None:
    """How many of those who did START did RETURN (by default any event) on later days.

    An event is NAME, or 'NAME where PROPERTY > VALUE and PROPERTY is VALUE,VALUE'; `*` is any.
    """
    asked.answer("retention", start, back, asked.period, **options)
