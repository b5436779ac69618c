"""The parameters of questions, made from the signatures of the functions that answer them.

A parameter has the same name, type and default as in the signature. If its type is a Python class,
it is given as text or as a JSON object: an event and filters in the grammar of the command line, a
period as START/END, a duration as 30m. In the query of an address all values are texts: a list is a
repeated name or JSON, an object is JSON.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, timedelta
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import orjson
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, WithJsonSchema
from pydantic_core import ErrorDetails

from forebay.query.analytics.events import Event, Operator, Roles, Where, parse_filters
from forebay.query.analytics.funnel import Exclusion
from forebay.query.analytics.grammar import parsed_event, parsed_filters
from forebay.query.analytics.period import Interval, Period
from forebay.query.tables import Parameters
from forebay.serve.problems import Problem
from forebay.storage.base.errors import BadInput
from forebay.storage.base.text import did_you_mean, shortened
from forebay.storage.base.times import duration_ms

CAME_CHARACTERS = 200
ROLES = ("user", "event", "time", "session")
Json = dict[str, Any]
Scalar = str | int | float | bool | None


def _object(value: object) -> object:
    """A text that is a JSON object, as that object."""
    if not isinstance(value, str) or not value.lstrip().startswith("{"):
        return value
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise BadInput(f"expected a JSON object, got {value!r}: {error}") from error


def _event(value: object) -> Event:
    return parsed_event(value) if isinstance(value, str) else Event.parse(value)


def _filters(value: object) -> tuple[Where, ...]:
    given = [value] if isinstance(value, str | Mapping) else value
    if not isinstance(given, list):
        raise BadInput(f"expected filters, got {value!r}")
    found: list[Where] = []
    for one in given:
        if one == "":
            raise BadInput("expected a filter such as price > 10, got empty text")
        plain = _object(one)
        found += parsed_filters(plain) if isinstance(plain, str) else parse_filters([plain])
    return tuple(found)


def _moment(value: object) -> datetime:
    try:
        found = datetime.fromisoformat(re.sub(r"[zZ]\Z", "+00:00", str(value)))
    except ValueError:
        found = None
    if not isinstance(value, str) or found is None or found.tzinfo is None:
        raise BadInput(f"expected a time such as 2024-05-01T12:00Z, got {value!r}")
    return found


def _day(value: object) -> date:
    if isinstance(value, str) and re.fullmatch(r"\d{4}-\d\d-\d\d", value):
        try:
            return date.fromisoformat(value)
        except ValueError as error:
            raise BadInput(f"expected a day such as 2024-05-01, got {value!r}") from error
    return _moment(value)


def _period(value: object) -> Period:
    given = _object(value)
    if isinstance(given, str):
        start, found, end = given.partition("/")
        if not found:
            raise BadInput(f"expected START/END such as 2024-05-01/2024-05-08, got {given!r}")
        given = {"start": start, "end": end}
    known = inspect.signature(Period).parameters
    if not isinstance(given, Mapping) or not {"start", "end"} <= given.keys() <= known.keys():
        raise BadInput(f"expected an object with {', '.join(known)}; got {value!r}")
    bounds = {name: _day(given[name]) for name in ("start", "end")}
    zone = given.get("zone", "UTC")
    if not isinstance(zone, str):
        raise BadInput(f"zone: expected a name such as Europe/Berlin, got {zone!r}")
    return Period(**{**given, **bounds})


def _length(value: object) -> timedelta:
    if not isinstance(value, str) or not value[-1:].isalpha():
        raise BadInput(f"expected a length of time with its unit, such as 30m, got {value!r}")
    try:
        return timedelta(milliseconds=duration_ms(value))
    except OverflowError as error:
        raise BadInput(f"expected a length of time such as 30m, got {value!r}") from error


def _exclusion(value: object) -> Exclusion:
    given = _object(value)
    if not isinstance(given, Mapping):
        return Exclusion(_event(given))
    if not {"event"} <= given.keys() <= {"event", "after", "before"}:
        raise BadInput(f"expected an object with event, after and before; got {value!r}")
    for name in ("after", "before"):
        if type(given.get(name, 1)) not in (int, NoneType):
            raise BadInput(f"{name}: expected the number of a step, got {given[name]!r}")
    return Exclusion(**{**given, "event": _event(given["event"])})


def _roles(value: object) -> dict[str, str]:
    given = _object(value)
    named = isinstance(given, Mapping) and given.keys() <= set(ROLES)
    if not isinstance(given, Mapping) or not named or not _texts(given.values()):
        raise BadInput(f"expected an object with columns as {', '.join(ROLES)}; got {value!r}")
    return dict(given)


def _texts(values: Any) -> bool:
    return all(isinstance(one, str) for one in values)


_TEXT: Json = {"type": "string", "minLength": 1}
_FILTER: Json = {
    "type": "object",
    "properties": {
        "property": _TEXT,
        "op": {"enum": list(get_args(Operator))},
        "values": {"type": "array", "items": {"type": ["string", "number", "boolean"]}},
    },
    "required": ["property", "op"],
    "additionalProperties": False,
}
_FILTERS: Json = {
    "anyOf": [_TEXT, {"type": "array", "items": {"anyOf": [_TEXT, _FILTER]}}],
    "description": "Such as: price > 10 and country = DE,NL",
}
_EVENT: Json = {
    "anyOf": [
        {**_TEXT, "description": "NAME, or NAME where PROPERTY > VALUE; * is any event."},
        {
            "type": "object",
            "properties": {
                "event": {"type": ["string", "null"]},
                "where": {"type": "array", "items": _FILTER},
                "first": {"type": "boolean"},
            },
            "additionalProperties": False,
        },
    ],
}
_PERIOD: Json = {
    "anyOf": [
        {**_TEXT, "description": "START/END, days or times; the end is not included."},
        {
            "type": "object",
            "properties": {
                "start": _TEXT,
                "end": _TEXT,
                "interval": {"enum": list(get_args(Interval))},
                "zone": {**_TEXT, "description": "Such as Europe/Berlin."},
                "week_start": {"type": "integer", "minimum": 0, "maximum": 6},
            },
            "required": ["start", "end"],
            "additionalProperties": False,
        },
    ],
}
_EXCLUSION: Json = {
    "anyOf": [
        _EVENT,
        {
            "type": "object",
            "properties": {
                "event": _EVENT,
                "after": {"type": "integer"},
                "before": {"type": ["integer", "null"]},
            },
            "required": ["event"],
            "additionalProperties": False,
        },
    ],
}
_LENGTH: Json = {"type": "string", "pattern": r"^\d{1,9}(ms|s|m|h|d)$", "example": "30m"}
_MOMENT: Json = {"type": "string", "format": "date-time"}
_THROUGH: Json = {
    "anyOf": [{"type": "string", "format": "date"}, _MOMENT],
    "description": "Up to which, not included: 2024-05-02 is the end of the 1st (UTC).",
}
_ROLES: Json = {
    "type": "object",
    "properties": dict.fromkeys(ROLES, _TEXT),
    "additionalProperties": False,
}


def _asked_as(read: Callable[[object], object], schema: Json) -> Any:
    return Annotated[Any, PlainValidator(read), WithJsonSchema(schema)]


KINDS: dict[Any, Any] = {
    Event: _asked_as(_event, _EVENT),
    Period: _asked_as(_period, _PERIOD),
    Exclusion: _asked_as(_exclusion, _EXCLUSION),
    Roles: _asked_as(_roles, _ROLES),
    timedelta: _asked_as(_length, _LENGTH),
    datetime: _asked_as(_moment, _MOMENT),
    date | datetime: _asked_as(_day, _THROUGH),
    Sequence[Where]: _asked_as(_filters, _FILTERS),
    Parameters: list[Scalar] | dict[str, Scalar] | None,
}
"""How values of a type are given."""


def _asked(hint: Any) -> Any:
    """The type in which a value of type `hint` is given."""
    if hint in KINDS:
        return KINDS[hint]
    of = get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        rest = [one for one in of if not (one is str and Event in of)]
        many = [one for one in rest if get_origin(one) is Sequence]
        if Event in of and many:  # one or several: a list
            return _one_or_more(_asked(many[0]))
        return Union[tuple(map(_asked, rest))]  # noqa: UP007  # of a tuple
    if get_origin(hint) is Sequence or (get_origin(hint) is tuple and of[1:] == (...,)):
        return list[_asked(of[0])]  # type: ignore[misc]
    return hint


def _one_or_more(kind: Any) -> Any:
    from pydantic import BeforeValidator

    return Annotated[kind, BeforeValidator(lambda v: v if isinstance(v, list) else [v])]


def _is_list(kind: Any) -> bool:
    """Whether its name may be repeated."""
    while get_origin(kind) is Annotated:
        if kind is KINDS[Sequence[Where]]:
            return True
        kind = get_args(kind)[0]
    return get_origin(kind) is list or (
        get_origin(kind) in (Union, UnionType)
        and any(get_origin(one) is list for one in get_args(kind))
    )


class Form:
    """The parameters of one question, read with `model`."""

    def __init__(
        self,
        name: str,
        function: Callable[..., object],
        more: Mapping[str, tuple[Any, object]] | None = None,
        path: Sequence[str] = (),
    ) -> None:
        """From the named `function`; `more` are parameters that it does not have, and `path` those
        in the address."""
        from pydantic import create_model

        hints = get_type_hints(function)
        known = {
            one.name: (hints[one.name], one.default)
            for one in inspect.signature(function).parameters.values()
            if one.name in hints and one.name != "return"
        }
        fields: dict[str, Any] = {}
        self._lists: set[str] = set()
        self._texts: set[str] = set()
        for own, (hint, default) in {**known, **(more or {})}.items():
            kind = _asked(hint)
            fields[own] = (kind, _default(default))
            if _is_list(kind) and hint != Parameters:
                self._lists.add(own)
            if hint in (str, str | None) or (hint in KINDS and hint != Parameters):
                self._texts.add(own)
        config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
        self.path = tuple(path)
        self.model: type[BaseModel] = create_model(name, __config__=config, **fields)

    def read(
        self, given: Mapping[str, Sequence[str]], body: str | None, path: Mapping[str, str]
    ) -> dict[str, Any]:
        """The values that were given, by name. Raises Problem."""
        try:
            if body is None:
                read = self.model.model_validate({**self._texts_of(given), **path})
            elif path:
                whole = orjson.dumps({**orjson.loads(body), **path})
                read = self.model.model_validate_json(whole, strict=True)
            else:
                read = self.model.model_validate_json(body, strict=True)
        except ValidationError as error:
            told = map(self._fault, error.errors(include_url=False))
            raise Problem(422, "\n".join(dict.fromkeys(told))) from error
        return {name: getattr(read, name) for name in sorted(read.model_fields_set)}

    def _texts_of(self, given: Mapping[str, Sequence[str]]) -> dict[str, object]:
        found: dict[str, object] = {}
        for name, texts in given.items():
            if name in self._lists:
                single = len(texts) == 1 and texts[0].lstrip().startswith("[")
                found[name] = _parsed(name, texts[0]) if single else list(texts)
            elif len(texts) > 1:
                raise Problem(422, f"{name}: expected it once, got it {len(texts)} times")
            elif name not in self._texts and texts[0].lstrip()[:1] in ("{", "["):
                found[name] = _parsed(name, texts[0])
            else:
                found[name] = texts[0]
        return found

    def _fault(self, error: ErrorDetails) -> str:
        place = [str(one) for one in error["loc"]]
        name = place[0] if place else "body"
        kind = error["type"]
        if kind == "extra_forbidden":
            known = list(self.model.model_fields)
            near = did_you_mean(name, known)
            return f"{name}: expected one of {', '.join(known)}; got an unknown name{near}"
        if kind == "missing":
            return f"{name}: expected a value, got none"
        told = str(error["msg"]).removeprefix("Value error, ")
        if kind == "value_error":
            return f"{name}: {told}"
        told = told.removeprefix("Input should be ")
        came = shortened(repr(error["input"]), CAME_CHARACTERS)
        return f"{name}: expected {told}, got {came}"


def _parsed(name: str, text: str) -> object:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        came = shortened(repr(text), CAME_CHARACTERS)
        raise Problem(422, f"{name}: expected JSON, got {came}: {error}") from error


def _default(value: object) -> Any:
    """The default to show, if JSON has such a value."""
    if value is inspect.Parameter.empty:
        return ...
    if value is None or isinstance(value, str | int | float):
        return value
    return Field(default_factory=lambda: value)
