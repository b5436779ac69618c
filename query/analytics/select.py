"""A segmentation as SQL, to continue from in the prompt or elsewhere.

It gives the table `over_time`, except that empty buckets are missing and all groups are named. If
SQL would answer differently (a user's first events, hours of a zone whose clocks change, weeks that
do not begin on Monday, shares of active users, numbers of times), there is no SQL.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import cast

from forebay.query.analytics.events import Event, Roles, Value, Where
from forebay.query.analytics.period import PARTS_MS, Period
from forebay.storage.base.errors import BadInput
from forebay.storage.base.times import time_of

VALUES = {
    "uniques": "count(distinct {user})",
    "totals": "count(*)",
    "average": "count(*) / count(distinct {user})",
    "sum": "sum({of})",
    "mean": "avg({of})",
    "median": "median({of})",
    "percentile": "quantile_cont({of}, {quantile})",
    "distinct": "count(distinct {of})",
}
_COMPARED = {"less": "<", "less or equal": "<=", "greater": ">", "greater or equal": ">="}


def select(question: Mapping[str, object], roles: Roles, columns: Collection[str]) -> str:
    """The SQL of a question of `segmentation`, given by its parameters (defaults may be left out),
    over a table with these columns. Raises BadInput if there is none."""
    events = [Event.parse(one) for one in cast("Sequence[object]", question["events"])]
    measure = str(question.get("measure") or "uniques")
    period, by, of = question.get("period"), question.get("by"), question.get("of")
    if not isinstance(period, Period) or measure not in VALUES or any(one.first for one in events):
        raise _none("a period, a measure of values or users, and no first events")
    value = VALUES[measure].format(
        user=_name(roles.user),
        of=None if of is None else _of(str(of), columns, number=measure != "distinct"),
        quantile=float(str(question.get("percentile", 90))) / 100,
    )
    times = f"{_name(roles.time)} >= {_time(period.start_ms)} and {_name(roles.time)} <"
    held = [f"{_name(roles.user)} is not null", f"{times} {_time(period.end_ms)}"]
    held += [_filter(one, columns) for one in cast("Sequence[Where]", question.get("segment", ()))]
    kinds = [_kind(one, roles, columns) for one in events]
    if len(events) == 1:
        held += [kinds[0]] if kinds[0] else []
        values = [f"{value} as value"]
    else:
        values = [
            f"{value} filter ({kind or 'true'}) as {_name(f'{chr(65 + n)} {event.label}')}"
            for n, (event, kind) in enumerate(zip(events, kinds, strict=True))
        ]
        if measure == "average":
            raise _none("one event of the measure average")
    group = [] if by is None else [f'{_property(str(by), columns)}::varchar as "group"']
    table = "events" if question.get("layers", "realtime") == "realtime" else "events_all"
    listed = ",\n  ".join([f"{_bucket(period, _name(roles.time))} as bucket", *group, *values])
    where = "\n  and ".join(held)
    return f"select\n  {listed}\nfrom {table}\nwhere {where}\ngroup by all\norder by all\n"


def _none(expected: str) -> BadInput:
    return BadInput(f"sql: expected {expected}; of others there is no SQL that asks the same")


def _bucket(period: Period, time: str) -> str:
    if period.interval in PARTS_MS:
        if period.zone != "UTC":
            raise _none("hours of UTC")
        return f"time_bucket(interval '{PARTS_MS[period.interval] // 60_000} minutes', {time})"
    if period.interval == "week" and period.week_start:
        raise _none("weeks that begin on Monday")
    return f"date_trunc('{period.interval}', {time} at time zone {_literal(period.zone)})"


def _kind(event: Event, roles: Roles, columns: Collection[str]) -> str:
    name = [] if event.name is None else [f"{_name(roles.event)} = {_literal(event.name)}"]
    return " and ".join([*name, *(_filter(one, columns) for one in event.where)])


def _filter(where: Where, columns: Collection[str]) -> str:
    """Whether the filter holds, as in `Where.expr`."""
    held = _property(where.property, columns)
    numbers = not any(isinstance(one, str) for one in where.values)
    if where.property not in columns and numbers and where.op in (*_COMPARED, "between"):
        held = f"try_cast({held} as double)"
    values = [_literal(one) for one in where.values]
    match where.op:
        case "set":
            return f"{held} is not null"
        case "not set":
            return f"{held} is null"
        case "is":
            return f"{held} in ({', '.join(values)})"
        case "is not":
            return f"({held} not in ({', '.join(values)}) or {held} is null)"
        case "contains" | "does not contain":
            found = " or ".join(f"contains({held}::varchar, {_text(v)})" for v in where.values)
            return f"({found})" if where.op == "contains" else f"not coalesce({found}, false)"
        case "between":
            return f"{held} between {values[0]} and {values[1]}"
    return f"({' or '.join(f'{held} {_COMPARED[where.op]} {one}' for one in values)})"


def _of(name: str, columns: Collection[str], *, number: bool) -> str:
    held = _property(name, columns)
    return f"try_cast({held} as double)" if number else held


def _property(name: str, columns: Collection[str]) -> str:
    if name in columns:
        return _name(name)
    keys = "".join(f".{_name(key)}" for key in name.removeprefix("$.").split("."))
    return f"(raw->>{_text(f'${keys}')})"


def _name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(value: object) -> str:
    return "'" + str(value).replace("'", "''") + "'"


def _literal(value: Value) -> str:
    """Text, which takes the type of what it is compared with."""
    if isinstance(value, bool):
        return _text(value).lower()
    if isinstance(value, datetime):
        return f"timestamptz {_text(value.isoformat(' '))}"
    return _text(value) if isinstance(value, str) else repr(value)


def _time(ms: int) -> str:
    return f"timestamptz '{time_of(ms):%Y-%m-%d %H:%M:%S.%f}+00'"
