"""A fault in the settings as one sentence: the name, what was expected, and what was found, unless
that may be a secret.
"""

import re
from collections.abc import Collection, Iterable, Mapping

from pydantic_core import ErrorDetails

from forebay.flows.secrets import HIDDEN, masked
from forebay.storage.base.text import did_you_mean, nearest, plain, shortened

CAME_CHARACTERS = 120
Names = Mapping[str, Collection[str]]
"""The names that each section has; those outside of one below ""."""
NAMED = "named"
"""Type of an error of which the context has the name that it belongs to."""

_EXPECTED = {
    "missing": "a value",
    "literal_error": "{expected}",
    "string_type": "text",
    "string_unicode": "UTF-8 text",
    "string_too_short": "text that is not empty",
    **dict.fromkeys(
        ("int_type", "int_parsing", "int_parsing_size", "int_from_float"), "a whole number"
    ),
    **dict.fromkeys(("float_type", "float_parsing", "finite_number"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
    **dict.fromkeys(("tuple_type", "list_type"), "a list"),
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "a table"),
    "path_type": "a path",
    **dict.fromkeys(("byte_size", "byte_size_unit"), "a size such as 65536, '512KiB' or '4MiB'"),
    "too_short": "at least {min_length} entry",
}
"""What each kind of error of pydantic's expects; its context fills the braces."""


def faults(errors: Iterable[ErrorDetails], names: Names, columns: object) -> list[str]:
    """A sentence for each error. `columns` is what was declared as columns, whose entries are named
    by it."""
    errors = list(errors)
    misspelt = {
        (*error["loc"][:-1], near)
        for error in errors
        if error["type"] == "extra_forbidden" and (near := _near(error, names))
    }
    found = [
        _fault(error, names, columns)
        for error in errors
        if not (error["type"] == "missing" and error["loc"] in misspelt)
    ]
    return list(dict.fromkeys(found))  # a value that may have several types is one fault


def sections_with(name: str, names: Names) -> list[str]:
    """The sections that have such a name: it may have been given without its section."""
    return [section for section in ("files", "kafka", "batch") if name in names[section]]


def _fault(error: ErrorDetails, names: Names, columns: object) -> str:
    place = tuple(map(str, error["loc"]))
    passed_through = place[:2] == ("kafka", "librdkafka") and len(place) > 2
    name = ".".join(place[:3] if passed_through else place)
    name = error.get("ctx", {}).get("name", name) if error["type"] == NAMED else name
    name = plain(f"{name}{_column(error['loc'], columns)}")
    if error["type"] == "extra_forbidden":
        section = "[columns]" if place[0] == "columns" else ".".join(place[:-1])
        where = f"of [{section}]" if place[:-1] else "of the settings"
        meant = _near(error, names)
        near = f"; did you mean {meant!r}?" if meant else ""
        if len(place) == 1 and (sections := sections_with(place[0], names)):
            near = f"; it belongs below [{sections[0]}]"
        return f"{name}: expected one {where}, got an unknown name{plain(near)}"
    expected = "text, a number or a boolean" if passed_through else _expected(error, place)
    if " got " in f"{expected} ":
        return masked(f"{name}: expected {expected}")
    near = ""
    if error["type"] == "literal_error":
        near = did_you_mean(str(error["input"]), re.findall("'([^']+)'", expected))
    return f"{name}: expected {expected}, got {_came(error, place)}{near}"


def _near(error: ErrorDetails, names: Names) -> str | None:
    """The name that an unknown one was perhaps meant to be."""
    place = tuple(map(str, error["loc"]))
    return nearest(place[-1], names.get(place[0] if place[1:] else "", ()))


def _expected(error: ErrorDetails, place: tuple[str, ...]) -> str:
    if error["type"] in ("value_error", NAMED):
        told = str(error["msg"]).removeprefix("Value error, ").removeprefix("expected ")
        return plain(told)
    if error["type"] == "tuple_type" and place == ("columns",):
        return "a list of tables, each below [[columns]] (with two brackets)"
    if error["type"] == "tuple_type" and place == ("upload_time",):
        return "a path such as a.b.c, or a list of paths"
    if error["type"] == "tuple_type" and (place[-1] == "path" or place[-2:-1] == ("paths",)):
        return "a path such as a.b.c, or a list of keys"
    if error["type"] == "tuple_type" and place[-1] == "paths":
        return "a list of paths"
    found = _EXPECTED.get(error["type"])
    if found is None:
        told = str(error["msg"])
        return plain(told[:1].lower() + told[1:])
    return found.format(**error.get("ctx", {}))


def _came(error: ErrorDetails, place: tuple[str, ...]) -> str:
    if error["type"] == "missing":
        return "none"
    if place in (("kafka",), ("batch",)) or "librdkafka" in place or "catalog" in place:
        return HIDDEN  # it may hold a secret
    value = error["input"]
    if value == ():  # the default
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a table"
    return shortened(plain(masked(repr(value))), CAME_CHARACTERS)


def _column(place: tuple[object, ...], columns: object) -> str:
    """The name of the column that a place is in."""
    at = place[1] if len(place) > 1 and place[0] == "columns" else None
    if not isinstance(at, int) or not isinstance(columns, list | tuple) or at >= len(columns):
        return ""
    name = columns[at].get("name") if isinstance(columns[at], dict) else None
    return f" (name {shortened(name, 64)!r})" if isinstance(name, str) else ""
