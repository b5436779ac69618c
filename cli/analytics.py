"""What the commands of product analytics have in common: the data they ask, the period, and how the
answer is shown.

Unless given, the period ends with the newest event that is not in the future (or its day, if
intervals are days or more), and begins 30 days before, or with the first event if that is later.
Days and times without a zone are those of `--zone`. A name that no event has is an error; a name
without an event in the period is a warning.
"""

import inspect
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import cached_property, wraps
from typing import Any, get_args

import click
import orjson
import polars as pl

from forebay import query
from forebay.cli.answer import echo_answer
from forebay.cli.export import readable
from forebay.cli.nodes import Places, places_option
from forebay.cli.options import json_option, settings
from forebay.cli.output import echo_json
from forebay.query.analytics import Event, Period, Roles, Where
from forebay.query.analytics.code import parts, python
from forebay.query.analytics.events import property_of
from forebay.query.analytics.groups import DAYS, GROUPS_MAX, require_roles
from forebay.query.analytics.period import PARTS_MS, Interval, zone_of
from forebay.query.questions import Layers
from forebay.storage.base.errors import BadInput
from forebay.storage.base.text import did_you_mean
from forebay.storage.base.times import duration_ms, now_ms, time_of
from forebay.storage.formats.schema import RAW

SAMPLED = 1000
"""Number of messages whose keys are suggested in place of an unknown property."""
ROLES = ("user", "event", "time", "session")


def _say_what_takes_long() -> None:
    """At a terminal, that the first question of its kind has its functions compiled."""
    if sys.stderr.isatty():
        log = logging.getLogger("forebay.compiled")
        log.setLevel(logging.INFO)
        log.addHandler(logging.StreamHandler())


@dataclass(frozen=True)
class Table:
    """A frame of an answer: the column that its chart shows, the shape in which it is printed, and
    what is said if it has no row."""

    measure: str | None = None
    shape: Callable[[pl.DataFrame], pl.DataFrame] = lambda frame: frame
    empty: str = "nothing was found"


@dataclass(frozen=True)
class Question:
    """The options common to all these commands; `tables` are the frames of the answer, the first of
    which is shown by default."""

    tables: Mapping[str, Table]
    places: Places
    layers: Layers
    user: str | None
    event: str | None
    time: str | None
    session: str | None
    since: str | None
    until: str | None
    interval: Interval
    zone: str
    week_start: int
    as_json: bool
    show_code: bool
    table: str = ""
    chart: bool | None = None

    def __post_init__(self) -> None:
        if not self.table:
            object.__setattr__(self, "table", next(iter(self.tables)))

    def answer(self, name: str, *arguments: object, **options: object) -> None:
        """Call the named method of the store, and print the answer (or a program that asks the
        same). Options with their default value are left out. Raises BadInput."""
        method = getattr(self.store, name)
        known = inspect.signature(method).parameters
        defaults = {name: parameter.default for name, parameter in known.items()}
        given = {
            name: value for name, value in options.items()
            if value not in (None, []) and (name not in defaults or value != defaults[name])
        }  # fmt: skip
        self._check(
            [*arguments, *given.values()], [given.get(name) for name in ("by", "of", "hold")]
        )
        if self.show_code:
            if self.layers != "realtime":
                given["layers"] = self.layers
            code = python(
                self.places.names, self._named, name, arguments, given, self.table,
                partial=self.places.partial,
            )  # fmt: skip
            click.echo(code, nl=False)
            return
        _say_what_takes_long()
        found = method(*arguments, **given, roles=self.roles, layers=self.layers)
        self.places.tell_missing(self.store)
        if self.as_json:
            frames = {name: getattr(found, name) for name in self.tables}
            echo_json({n: readable(f).to_dicts() for n, f in frames.items() if f is not None})
            return
        shown = self.tables[self.table]
        table = shown.shape(getattr(found, self.table))
        echo_answer(table, shown.measure, shown.empty, chart=self.chart)

    @cached_property
    def store(self) -> query.Store:
        return self.places.open(iceberg=settings().batch.catalog)

    @cached_property
    def frame(self) -> pl.LazyFrame:
        """The events in which periods and names are looked up."""
        return self.store.scan(self.layers)

    @property
    def _named(self) -> dict[str, str]:
        return {role: getattr(self, role) for role in ROLES if getattr(self, role) is not None}

    @cached_property
    def roles(self) -> Roles:
        roles = self.store.roles(**self._named)
        require_roles(self.frame.collect_schema(), roles)
        return roles

    @cached_property
    def period(self) -> Period:
        end = self._bound(self.until or ("-0h" if self.interval in PARTS_MS else "-0d"))
        if self.since is not None:
            start = self._bound(self.since)
        else:
            oldest, start = self._ends[0], end - timedelta(days=DAYS)
            start = max(start, oldest if isinstance(start, datetime) else self._day(oldest))
        return Period(start, end, self.interval, self.zone, self.week_start)

    def instant(self, text: str | None) -> datetime | None:
        """The instant of --from or --to; for a day, its beginning in the zone."""
        found = None if text is None else self._bound(text)
        if found is None or isinstance(found, datetime):
            return found
        return datetime.combine(found, time(), zone_of(self.zone)).astimezone(UTC)

    def _bound(self, text: str) -> date | datetime:
        """A day, an instant, or a time before the newest event (-7d: whole days before its day)."""
        if found := re.fullmatch(r"-(\d{1,6})([wdhm])", text):
            unit = {"w": "weeks", "d": "days", "h": "hours", "m": "minutes"}[found[2]]
            back, newest = timedelta(**{unit: int(found[1])}), self._ends[1]
            if found[2] in "hm":
                return newest + timedelta(milliseconds=1) - back
            return self._day(newest) + timedelta(days=1) - back
        try:
            if re.fullmatch(r"\d{4}-\d\d-\d\d", text):
                return date.fromisoformat(text)
            moment = datetime.fromisoformat(re.sub(r"[zZ]\Z", "+00:00", text))
        except ValueError as error:
            raise BadInput(
                f"time: expected one such as 2024-05-01, 2024-05-01T12:00 or -7d; got {text!r}"
            ) from error
        zone = zone_of(self.zone)
        return (moment if moment.tzinfo else moment.replace(tzinfo=zone)).astimezone(UTC)

    def _day(self, moment: datetime) -> date:
        return moment.astimezone(zone_of(self.zone)).date()

    @cached_property
    def _kinds(self) -> pl.DataFrame:
        """The names of events, with the times of the first and last event of each that is not in
        the future."""
        time, event = pl.col(self.roles.time), pl.col(self.roles.event)
        past = self.frame.filter(time <= time_of(now_ms()), pl.col(self.roles.user).is_not_null())
        found = past.group_by(event.alias("event")).agg(first=time.min(), last=time.max())
        return found.collect(engine="streaming")

    @property
    def _ends(self) -> tuple[datetime, datetime]:
        """The times of the first and the newest event."""
        first, newest = self._kinds["first"].min(), self._kinds["last"].max()
        if not isinstance(first, datetime) or not isinstance(newest, datetime):
            raise BadInput(f"expected events with a user and a time, got none in {self.places}")
        return first.astimezone(UTC), newest.astimezone(UTC)

    def _check(self, given: list[object], properties: list[object]) -> None:
        found = [*parts(given)]
        names = {one.name for one in found if isinstance(one, Event) and one.name is not None}
        kinds = self._kinds["event"].drop_nulls().sort().to_list() if names else []
        for name in sorted(names.difference(kinds)):
            near = did_you_mean(name, kinds) or f"; there are {', '.join(kinds[:10])}"
            raise BadInput(f"event: expected one that exists, got {name!r}{near}")
        for period in (one for one in found if isinstance(one, Period)):
            self._warn(names, period)
        wanted = {one.property for one in found if isinstance(one, Where)}
        for name in sorted(wanted.union(filter(None, map(_text, properties)))):
            self._require(name)

    def _warn(self, names: set[str], period: Period) -> None:
        """Warn of requested events that did not occur in the period."""
        event = pl.col(self.roles.event)
        within = self.frame.filter(event.is_in(sorted(names)), period.within(self.roles.time))
        there = within.select(event.unique()).collect(engine="streaming") if names else None
        for name in sorted(names.difference(there.to_series()) if there is not None else ()):
            click.echo(f"Warning: no event {name!r} in the period", err=True)

    def _require(self, name: str) -> None:
        """Raise BadInput for a property that no event has."""
        schema = self.frame.collect_schema()
        held = self.frame.select(property_of(name, schema).alias("held"))
        if name in schema or held.drop_nulls().head(1).collect(engine="streaming").height:
            return
        sample = self.frame.head(SAMPLED).collect(engine="streaming")
        near = did_you_mean(name, properties(sample))
        raise BadInput(f"property: expected one that an event has, got {name!r}{near}")


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def properties(events: pl.DataFrame) -> list[str]:
    """The properties of these events: columns, and paths in their messages, to the second level."""
    found = set(events.columns)
    for message in events[RAW] if RAW in found else ():
        found.update(_keys(message))
    return sorted(found)


def _keys(message: bytes | None) -> Iterator[str]:
    """The paths of a JSON object, to the second level."""
    try:
        found = orjson.loads(message or b"null")
    except orjson.JSONDecodeError:
        return
    for key, value in found.items() if isinstance(found, dict) else ():
        yield key
        yield from (f"{key}.{inner}" for inner in value) if isinstance(value, dict) else ()


def question(
    tables: Mapping[str, Table], *, interval: Interval | None = "day", ends: bool = True
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The command's first parameter is the Question. Without an `interval` its period has no
    buckets; unless it `ends`, a bound that is not given is open."""

    def made(function: Callable[..., None]) -> Callable[..., None]:
        @wraps(function)
        def command(**given: Any) -> None:
            common = {name: given.pop(name) for name in _NAMES if name in given}
            if interval is None:
                common |= {"interval": "day", "week_start": 0}
            function(Question(tables, **common), **given)

        wrapped: Callable[..., None] = command
        for option in _options(tables, interval, ends):
            wrapped = option(wrapped)
        return wrapped

    return made


_NAMES = {name for name in Question.__dataclass_fields__ if name != "tables"}


def _options(tables: Mapping[str, Table], interval: Interval | None, ends: bool) -> Iterator[Any]:
    """The options, in reverse order of the help."""
    yield click.option("--show-code", is_flag=True, help="Print the Python that asks the same.")
    yield json_option("All tables of the answer, as JSON.")
    if any(table.measure for table in tables.values()):
        bars = "Bars below the table.  [default: at a terminal]"
        yield click.option("--chart/--no-chart", default=None, help=bars)
    if len(tables) > 1:
        names = click.Choice([*tables])
        yield click.option("--table", type=names, default=names.choices[0], show_default=True)
    for role in reversed(ROLES):
        yield click.option(f"--{role}", metavar="COLUMN", help=f"In place of the role {role}.")
    yield places_option()
    both = "all: with the batch layer's."
    yield click.option("--layers", **choice(Layers), help=both)
    if interval is not None:
        days = click.IntRange(0, 6)
        yield click.option("--week-start", type=days, default=0, help="0, the default, is Monday.")
        yield click.option("--interval", **choice(Interval, default=interval))
    yield click.option(
        "--zone",
        metavar="ZONE",
        default="UTC",
        show_default=True,
        help="A time zone, such as Europe/Berlin.",
    )
    first = f"  [default: {DAYS} days before, or of the first event]" if ends else ""
    last = "  [default: after the newest event]" if ends else ""
    yield click.option("--to", "until", metavar="TIME", help=f"The same, not included.{last}")
    times = "2024-05-01, 2024-05-01T12:00, or before the newest event: -7d, -6h."
    yield click.option("--from", "since", metavar="TIME", help=times + first)


def by_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command takes `by` and `limit`."""
    named = click.IntRange(1, GROUPS_MAX)
    for option in (
        click.option(
            "--limit",
            type=named,
            default=100,
            show_default=True,
            help="How many groups are named; the rest is one group.",
        ),
        click.option("--by", metavar="PROPERTY", help="Group by its values."),
    ):
        command = option(command)
    return command


def length(_context: click.Context, _option: click.Parameter, text: str | None) -> timedelta | None:
    """The duration of an option such as 30m."""
    try:
        return None if text is None else timedelta(milliseconds=duration_ms(text))
    except (ValueError, OverflowError) as error:
        raise click.BadParameter(str(error)) from error


def choice(literal: Any, **attributes: Any) -> dict[str, Any]:
    """The attributes of an option whose values are those of a Literal; the first is the default."""
    known = get_args(literal)
    return {"type": click.Choice(known), "default": known[0], "show_default": True, **attributes}
