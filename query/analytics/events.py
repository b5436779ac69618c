"""Which events a question is about: the columns for its roles, events by name, and filters.

    Event("purchase", where=(Where("country", "is", ("DE", "NL")), Where("a.b", "greater", (5,))))

A property is a column of the frame or, if no column has that name, a path such as
`user_properties.plan` into the JSON of the column `raw`: its value is then text, and null where a
message is not JSON or has nothing at that path. Everything compiles to Polars expressions over
columns, so that projection and predicates reach the scan.

The operators are those of Amplitude's charts: several values of one filter are alternatives,
several filters must all hold, and `is not` and `does not contain` hold for events without a value.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import reduce
from operator import and_, or_
from typing import Literal, get_args

import polars as pl

from forebay.storage.base.errors import BadInput
from forebay.storage.base.text import did_you_mean
from forebay.storage.formats.schema import RAW

Operator = Literal[
    "is", "is not", "contains", "does not contain", "less", "less or equal", "greater",
    "greater or equal", "between", "set", "not set",
]  # fmt: skip
Value = str | int | float | bool | datetime
_COMPARED = {
    "less": pl.Expr.lt,
    "less or equal": pl.Expr.le,
    "greater": pl.Expr.gt,
    "greater or equal": pl.Expr.ge,
}
_VALUES = {"set": (0, 0), "not set": (0, 0), "between": (2, 2)}
"""How many values an operator takes, minimum and maximum; others take one or more."""


@dataclass(frozen=True)
class Roles:
    """Names of columns: `user`, `event`, its `time` (Datetime in UTC), and `session` if there are
    sessions (a whole number; -1 is none). Rows without a user or a time don't count."""

    user: str
    event: str
    time: str
    session: str | None = None


@dataclass(frozen=True)
class Where:
    """A filter on one `property`. The `op` "set" and "not set" take no `values`, "between" two
    (inclusive), others one or more, of which one must match. Raises BadInput."""

    property: str
    op: Operator
    values: tuple[Value, ...] = ()

    def __post_init__(self) -> None:
        if self.op not in get_args(Operator):
            near = did_you_mean(str(self.op), get_args(Operator))
            raise BadInput(
                f"filter on {self.property}: expected an operator among"
                f" {', '.join(get_args(Operator))}; got {self.op!r}{near}"
            )
        for value in self.values:
            if not isinstance(value, Value):
                raise BadInput(
                    f"filter on {self.property}: expected text, numbers, booleans or times as"
                    f" values, got {value!r}"
                )
        least, most = _VALUES.get(self.op, (1, None))
        if len(self.values) < least or (most is not None and len(self.values) > most):
            wanted = f"{least}" if least == most else "at least one"
            raise BadInput(
                f"filter on {self.property}: expected {wanted} values of {self.op!r},"
                f" got {len(self.values)}"
            )

    def expr(self, schema: pl.Schema) -> pl.Expr:
        """Whether the filter holds: true or false for every row of a frame of this `schema`. Raises
        BadInput for a value that the property's type can't have, or a property that the frame can't
        have."""
        value = property_of(self.property, schema)
        dtype = schema.get(self.property, pl.String())
        if self.op in ("set", "not set"):
            return value.is_not_null() if self.op == "set" else value.is_null()
        if self.op in ("contains", "does not contain"):
            text = value.cast(pl.String)
            found = _any(text.str.contains(str(one), literal=True) for one in self.values)
            found = found.fill_null(False)
            return found if self.op == "contains" else ~found
        if self.op in ("is", "is not"):
            held = [_typed(one, dtype, self.property) for one in self.values]
            same = _any(value == one for one in held).fill_null(False)
            return same if self.op == "is" else ~same
        if self.property not in schema and not any(isinstance(v, str) for v in self.values):
            value, dtype = value.cast(pl.Float64, strict=False), pl.Float64()
        held = [_typed(one, dtype, self.property) for one in self.values]
        if self.op == "between":
            return value.is_between(held[0], held[1]).fill_null(False)
        return _any(_COMPARED[self.op](value, one) for one in held).fill_null(False)


@dataclass(frozen=True)
class Event:
    """Events of one `name` (None: any) that pass all filters of `where`. With `first`, only each
    user's first such events in the frame (of any name: new users), all simultaneous ones."""

    name: str | None = None
    where: tuple[Where, ...] = ()
    first: bool = False

    @property
    def label(self) -> str:
        """Its name in tables."""
        return self.name if self.name is not None else "(any)"

    @classmethod
    def parse(cls, given: object) -> Event:
        """An event `given` as a name, or in JSON types:
        {"event": NAME, "where": [{"property": …, "op": …, "values": […]}], "first": false}.
        Raises BadInput."""
        if isinstance(given, Event):
            return given
        if isinstance(given, str):
            return cls(given)
        if not isinstance(given, Mapping) or not given.keys() <= {"event", "where", "first"}:
            raise BadInput(
                f"event: expected a name, or an object with event, where and first; got {given!r}"
            )
        name, first = given.get("event"), given.get("first", False)
        if not isinstance(name, str | None) or not isinstance(first, bool):
            raise BadInput(f"event: expected text as event, and a boolean first; got {given!r}")
        return cls(name, parse_filters(given.get("where", ())), first)

    def expr(self, schema: pl.Schema, roles: Roles) -> pl.Expr:
        """Whether a row of a frame of this `schema` and `roles` is such an event: true or false.
        The name is tested first, so that Polars can prune by it."""
        held = [where.expr(schema) for where in self.where]
        if self.name is not None:
            held.insert(0, (pl.col(roles.event) == self.name).fill_null(False))
        found = reduce(and_, held) if held else pl.lit(True)
        if self.first:
            time = pl.col(roles.time)
            earliest = pl.when(found).then(time).min().over(roles.user)
            return found & (time == earliest).fill_null(False)
        return found


def any_of(kinds: Sequence[Event], schema: pl.Schema, roles: Roles | None) -> pl.Expr:
    """Whether a row is of any of the kinds, regardless of other rows; roles are needed if a kind
    has a name. Raises BadInput for a kind with `first`."""
    if any(kind.first for kind in kinds):
        raise BadInput("event: expected one that a row tells by itself, got a user's first")
    return _any(kind.expr(schema, roles or Roles("", "", "")) for kind in kinds)


def labels_of(question: Mapping[str, object]) -> list[str]:
    """The names of a question's events, in the order of their roles in it; or its user."""
    found: list[str] = []
    for name in ("steps", "events", "start", "back", "event", "user"):
        value = question.get(name)
        given = value if isinstance(value, list | tuple) else [value]
        found += [one.label for one in given if isinstance(one, Event)]
        found += [value] if name == "user" and isinstance(value, str) else []
    return found


def filtered(event: Event, where: Sequence[Where]) -> Event:
    """The event with more filters."""
    return replace(event, where=(*event.where, *where))


def parse_filters(given: object) -> tuple[Where, ...]:
    """Filters from JSON types: a list of {"property": …, "op": …, "values": […]}."""
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise BadInput(f"filters: expected a list, got {given!r}")
    return tuple(map(_parse_filter, given))


def _parse_filter(given: object) -> Where:
    if isinstance(given, Where):
        return given
    if not isinstance(given, Mapping) or not {"property", "op"} <= given.keys() <= _KEYS:
        raise BadInput(f"filter: expected an object with property, op and values; got {given!r}")
    values = given.get("values", ())
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise BadInput(f"filter on {given['property']}: expected a list of values, got {values!r}")
    return Where(str(given["property"]), given["op"], tuple(values))


_KEYS = {"property", "op", "values"}


def property_of(name: str, schema: pl.Schema) -> pl.Expr:
    """The values of a property: a column, or text at a path in the JSON of `raw`. Raises BadInput
    where the frame has neither."""
    if name in schema:
        return pl.col(name)
    if RAW not in schema:
        near = did_you_mean(name, schema.names())
        raise BadInput(
            f"property {name}: expected a column among {', '.join(schema.names())}, as there is"
            f" no column {RAW} with whole messages{near}"
        )
    path = "".join(f"[{_quoted(key)}]" for key in name.removeprefix("$.").split("."))
    if schema[RAW] == pl.String:
        return pl.col(RAW).str.json_path_match(f"${path}")
    # SUBTLE: `pl.col(RAW).map_batches` has a closure, which can't be sent to a scan fed by Python.
    text = pl.map_batches([RAW], _text, pl.String, is_elementwise=True)
    return text.str.json_path_match(f"${path}")


def _text(columns: Sequence[pl.Series]) -> pl.Series:
    """Bytes as text, null where they are not UTF-8; a cast of the whole column would fail."""
    (messages,) = columns
    try:
        return messages.cast(pl.String)
    except pl.exceptions.ComputeError:
        return pl.Series(messages.name, map(_decoded, messages), dtype=pl.String)


def _decoded(message: bytes | None) -> str | None:
    try:
        return None if message is None else message.decode()
    except UnicodeDecodeError:
        return None


def _quoted(key: str) -> str:
    if not key or re.search(r"['\"\\\x00-\x1f]", key):
        raise BadInput(f"property: expected a path such as a.b, without quotes; got key {key!r}")
    return f"'{key}'"


def _any(found: Iterable[pl.Expr]) -> pl.Expr:
    return reduce(or_, found)


def _typed(value: Value, dtype: pl.DataType, name: str) -> pl.Expr:
    """The value as a literal of the column's type."""
    if isinstance(value, bool) and dtype == pl.String:
        value = "true" if value else "false"
    try:
        if isinstance(dtype, pl.Datetime) and isinstance(value, str):
            value = datetime.fromisoformat(value)
        if dtype == pl.Boolean and isinstance(value, str):
            value = {"true": True, "false": False}[value.casefold()]
        if dtype.is_integer() and not isinstance(value, datetime):
            return pl.lit(float(value) if float(value) % 1 else int(value))
        if dtype.is_float() and not isinstance(value, datetime):
            return pl.lit(float(value))
        return pl.lit(pl.Series([value]).cast(dtype)[0], dtype)
    except (ValueError, KeyError, TypeError, OverflowError, pl.exceptions.PolarsError) as error:
        raise BadInput(f"property {name}: expected a value of {dtype}, got {value!r}") from error
