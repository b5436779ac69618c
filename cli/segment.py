"""`forebay segment`: a measure of one or several events over time, such as users."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import click
import polars as pl

from forebay.cli.analytics import Question, Table, by_options, choice, question
from forebay.cli.event import events, where_option
from forebay.cli.example import example
from forebay.query.analytics import Event
from forebay.query.analytics.segmentation import Measure


def _named(kinds: list[Event]) -> Callable[[pl.DataFrame], pl.DataFrame]:
    """With the letter and name of each event in place of its number, if there are several."""
    names = {number: f"{chr(65 + number)} {kind.label}" for number, kind in enumerate(kinds)}

    def shape(frame: pl.DataFrame) -> pl.DataFrame:
        if len(kinds) == 1 or "event" not in frame.columns:
            return frame.drop("event", strict=False)
        return frame.with_columns(pl.col("event").replace_strict(names, return_dtype=pl.String))

    return shape


TABLES = {"over_time": Table("value"), "overall": Table("value"), "before": Table("value")}
EXAMPLE = "forebay segment item_view --measure sum --of event_properties.price --by country"


@click.command(epilog=example(EXAMPLE))
@click.argument("kinds", metavar="[EVENT]...", nargs=-1, callback=events)
@click.option("--measure", **choice(Measure))
@click.option("--of", metavar="PROPERTY", help="Of sum, mean, median, percentile, distinct.")
@click.option("--percentile", type=click.FloatRange(0, 100), default=90.0, show_default=True)
@click.option(
    "--formula", metavar="FORMULA", help='In place of a measure, such as "UNIQUES(B) / UNIQUES(A)".'
)
@click.option("--compare", is_flag=True, help="Add the table `before`: the preceding period.")
@where_option("A filter on all events.", "segment")
@by_options
@question(TABLES)
def segment(asked: Question, kinds: list[Event], formula: str | None, **options: Any) -> None:
    """Measure each EVENT (by default all together) in each interval, such as its users.

    An EVENT is NAME, or 'NAME where PROPERTY > VALUE and PROPERTY is VALUE,VALUE'; `*` is any.
    """
    options["compare"] |= asked.table == "before"
    kinds = kinds or [Event()]
    shaped = {name: replace(table, shape=_named(kinds)) for name, table in TABLES.items()}
    asked = replace(asked, tables=shaped)
    if formula is None:
        asked.answer("segmentation", kinds, asked.period, **options)
        return
    if options.pop("measure") != "uniques":
        raise click.UsageError("--formula has measures of its own: leave --measure out")
    if options.pop("compare"):
        raise click.UsageError("--formula is of this period alone: leave --compare out")
    asked.answer("formula", kinds, formula, asked.period, **options)
