"""Amplitude's events and segments, converted to ours.

    event    {"event_type": T, "filters": [F], "group_by": [{"type": "event"|"user", "value": P}]}
    F        {"subprop_type": "event"|"user", "subprop_key": P, "subprop_op": OP,
              "subprop_value": [...]}
    segment  [{"prop": P, "op": OP, "values": [...]}]

Values of a filter are alternatives; filters, and the conditions of a segment, must all hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from forebay.query.analytics.events import Event, Operator, Value, Where
from forebay.serve.amplitude.parameters import Given, came, invalid, parsed, unsupported
from forebay.serve.amplitude.properties import NONE, Properties
from forebay.storage.base.text import did_you_mean

OPERATORS = (
    "is", "is not", "contains", "does not contain", "less", "less or equal", "greater",
    "greater or equal",
)  # fmt: skip
OF_SETS = ("set is", "set is not")
BY_SIZE = OPERATORS[4:]
ANY = ("_active", "_all")
NEW = "_new"
REFUSED = ("revenue_amount", "verified_revenue", "unverified_revenue")
CUSTOM = "ce:"
GROUPS_MAX = 2
SEGMENTS_MAX = 10
Segment = tuple[Where, ...]


@dataclass(frozen=True)
class Asked:
    """One event of a request: its `label` is its name there, `by` the property to group by, if
    any."""

    event: Event
    label: str
    by: str | None = None


def read_event(name: str, text: str, properties: Properties, *, new: bool = False) -> Asked:
    """The event in the named parameter; with `new`, it may be `_new`. Raises Problem."""
    given = _object(name, parsed(name, text), ("event_type", "filters", "group_by"))
    label = given.get("event_type")
    if not isinstance(label, str) or not label:
        raise invalid(f"{name}: expected an event_type, got {came(label)}")
    filters = _list(f"{name}: filters", given.get("filters"))
    where = tuple(one for each in filters for one in _filter(name, each, properties))
    groups = _list(f"{name}: group_by", given.get("group_by"))
    if len(groups) > 1:
        few = len(groups) <= GROUPS_MAX
        raise (unsupported if few else invalid)(
            f"{name}: expected at most one group_by, got {len(groups)}"
        )
    by = _group(name, groups[0], properties) if groups else None
    return Asked(_event(name, label, where, new), label, by)


def _event(name: str, label: str, where: Segment, new: bool) -> Event:
    if label.startswith(CUSTOM):
        raise unsupported(f"{name}: no custom events are kept here, got {came(label)}")
    if label in REFUSED:
        raise unsupported(f"{name}: no role has revenue, got {label!r}")
    if label == NEW:
        if not new:
            raise invalid(f"{name}: expected {NEW} as the start of retention only")
        if where:
            raise unsupported(f"{name}: expected no filters on {NEW}")
        return Event(None, first=True)
    return Event(None if label in ANY else label, where)


def _filter(name: str, given: object, properties: Properties) -> Segment:
    keys = ("subprop_type", "subprop_key", "subprop_op", "subprop_value")
    found = _object(f"{name}: filters", given, keys)
    kind, key, op = (found.get(one) for one in keys[:3])
    if kind not in ("event", "user"):
        raise invalid(f"{name}: subprop_type: expected event or user, got {came(kind)}")
    if not isinstance(key, str) or not key:
        raise invalid(f"{name}: subprop_key: expected a property, got {came(key)}")
    named = properties.user(key) if kind == "user" else properties.event(key)
    return conditions(f"{name}: {key}", named, op, found.get("subprop_value"), properties)


def _group(name: str, given: object, properties: Properties) -> str:
    found = _object(f"{name}: group_by", given, ("type", "value"))
    kind, value = found.get("type"), found.get("value")
    if kind not in ("event", "user") or not isinstance(value, str) or not value:
        raise invalid(
            f"{name}: group_by: expected a type (event or user) and the name of a property as"
            f" value, got {came(found)}"
        )
    return properties.user(value) if kind == "user" else properties.event(value)


def read_segments(given: Given, properties: Properties) -> list[Segment]:
    """The segments of a request; one of all users if it has none. Raises Problem."""
    texts = given.all("s")
    if len(texts) > SEGMENTS_MAX:
        raise invalid(f"s: expected at most {SEGMENTS_MAX} segments, got {len(texts)}")
    return [_segment(text, properties) for text in texts] or [()]


def _segment(text: str, properties: Properties) -> Segment:
    found: list[Where] = []
    for one in _list("s", parsed("s", text)):
        if isinstance(one, Mapping) and one.get("type") == "event":
            raise unsupported("s: expected conditions on properties, got who performed an event")
        plain = _object("s", one, ("prop", "op", "values", "type"))
        name, kind = plain.get("prop"), plain.get("type", "property")
        if not isinstance(name, str) or not name:
            raise invalid(f"s: prop: expected a property, got {came(name)}")
        if kind not in ("property", "user"):
            raise unsupported(f"s: type: expected property, got {came(kind)}")
        named = properties.user(name)
        found += conditions(f"s: {name}", named, plain.get("op"), plain.get("values"), properties)
    return tuple(found)


def read_group(given: Given, properties: Properties, segments: Sequence[object]) -> str | None:
    """The property to group by, from `g`. Raises Problem."""
    names = [*given.all("g"), *given.all("g2")]
    if len(names) > 1:
        raise unsupported("g: expected one property, got several")
    if names and len(segments) > 1:
        raise invalid(f"g: expected a single segment, got {len(segments)}")
    return properties.user(names[0].strip()) if names else None


def conditions(
    place: str, named: str, op: object, values: object, properties: Properties
) -> Segment:
    """A condition on the property `named` in the request. Raises Problem."""
    if op in OF_SETS:
        raise unsupported(f"{place}: expected an operator of single values, got {op!r}")
    if op not in OPERATORS:
        near = did_you_mean(str(op), OPERATORS)
        raise invalid(
            f"{place}: expected an operator among {', '.join(OPERATORS)}; got {came(op)}{near}"
        )
    held = _values(place, values)
    if op in BY_SIZE:
        if properties.is_text(named):
            raise unsupported(f"{place}: expected a property that has numbers for {op!r}")
        held = [_number(place, one) for one in held]
    rest = [one for one in held if one != NONE]
    if len(rest) == len(held):
        return (Where(named, cast(Operator, op), tuple(held)),)
    if op not in ("is", "is not"):
        raise unsupported(f"{place}: expected {NONE} with is or is not, got it with {op!r}")
    if op == "is" and rest:
        raise unsupported(f"{place}: expected {NONE} alone, or other values; got both")
    lacking = Where(named, "not set" if op == "is" else "set")
    return (lacking, *([Where(named, "is not", tuple(rest))] if rest else []))


def _values(place: str, given: object) -> list[Value]:
    found = given if isinstance(given, list) else [given]
    if not found or not all(isinstance(one, str | int | float | bool) for one in found):
        raise invalid(f"{place}: expected a list of values, got {came(given)}")
    return cast("list[Value]", found)


def _number(place: str, value: Value) -> Value:
    try:
        return value if isinstance(value, int) else float(str(value))
    except ValueError as error:
        raise invalid(f"{place}: expected a number, got {came(value)}") from error


def _object(name: str, given: object, known: Sequence[str]) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise invalid(f"{name}: expected an object with {', '.join(known)}; got {came(given)}")
    for key in given:
        if key not in known:
            raise unsupported(f"{name}: expected {', '.join(known)}; got {came(key)}")
    return given


def _list(name: str, given: object) -> list[object]:
    if given is None:
        return []
    if not isinstance(given, list):
        raise invalid(f"{name}: expected a list, got {came(given)}")
    return given
