"""A fault in the settings as one sentence: the name, what was expected, and what came, unless that
may be a secret.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from forebay.flows.secrets import HIDDEN, masked
from forebay.storage.base.text import did_you_mean, plain, shortened

CAME_CHARACTERS = 120
Known = Callable[[tuple[str, ...]], Iterable[str]]
NAMED = "named"
"""Type of an error of which the context has the name that it belongs to."""

_EXPECTED: dict[str, str | Callable[[Mapping[str, Any]], str]] = {
    "missing": "a value",
    "literal_error": lambda ctx: str(ctx["expected"]),
    "string_type": "text",
    "string_unicode": "UTF-8 text",
    "string_too_short": "text that is not empty",
    **dict.fromkeys(
        ("int_type", "int_parsing", "int_parsing_size", "int_from_float"), "a whole number"
    ),
    **dict.fromkeys(("float_type", "float_parsing", "finite_number"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    "greater_than_equal": lambda ctx: f"at least {ctx['ge']}",
    "less_than_equal": lambda ctx: f"at most {ctx['le']}",
    **dict.fromkeys(("tuple_type", "list_type"), "a list"),
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "a table"),
    "path_type": "a path",
    **dict.fromkeys(("byte_size", "byte_size_unit"), "a size such as 65536, 512KiB or 4MiB"),
    "too_short": lambda ctx: f"at least {ctx['min_length']} entry",
}
"""What each kind of error of pydantic's expects."""


def faults(errors: Iterable[Mapping[str, Any]], known: Known, columns: object) -> list[str]:
    """A sentence for each error. `known` gives the names that a section has; `columns` is what was
    declared as columns, whose entries are named by it."""
    found = [_fault(error, known, columns) for error in errors]
    return list(dict.fromkeys(found))  # a value that may be one of several types is one fault


def sections_with(name: str, known: Known) -> list[str]:
    """The sections that have such a name, which may have been given without its section."""
    return [section for section in ("files", "kafka", "batch") if name in known((section,))]


def _fault(error: Mapping[str, Any], known: Known, columns: object) -> str:
    place = tuple(map(str, error["loc"]))
    passed_through = place[:2] == ("kafka", "librdkafka") and len(place) > 2
    name = ".".join(place[:3] if passed_through else place)
    name = error.get("ctx", {}).get("name", name) if error["type"] == NAMED else name
    name = plain(f"{name}{_column(error['loc'], columns)}")
    if error["type"] == "extra_forbidden":
        where = f"of [{'.'.join(place[:-1])}]" if place[:-1] else "of the settings"
        near = did_you_mean(place[-1], known(place[:-1]))
        if len(place) == 1 and (sections := sections_with(place[0], known)):
            near = f"; it belongs below [{sections[0]}]"
        return f"{name}: expected one {where}, got an unknown name{plain(near)}"
    expected = "text, a number or a boolean" if passed_through else _expected(error, place)
    if " got " in f"{expected} ":
        return masked(f"{name}: expected {expected}")
    return f"{name}: expected {expected}, got {_came(error, place)}"


def _expected(error: Mapping[str, Any], place: tuple[str, ...]) -> str:
    if error["type"] in ("value_error", NAMED):
        told = str(error["msg"]).removeprefix("Value error, ").removeprefix("expected ")
        return plain(told)
    if error["type"] == "tuple_type" and place == ("columns",):
        return "a list of tables, each below [[columns]] (with two brackets)"
    if error["type"] == "tuple_type" and place == ("upload_time",):
        return "a path such as a.b.c, or a list of paths"
    if error["type"] == "tuple_type" and place[-1] == "path":
        return "a path such as a.b.c, or a list of keys"
    found = _EXPECTED.get(error["type"])
    if found is None:
        told = str(error["msg"])
        return plain(told[:1].lower() + told[1:])
    return found if isinstance(found, str) else found(error.get("ctx", {}))


def _came(error: Mapping[str, Any], place: tuple[str, ...]) -> str:
    if error["type"] == "missing":
        return "none"
    if _secret(place):
        return HIDDEN
    value = error["input"]
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


def _secret(place: tuple[str, ...]) -> bool:
    """Whether what came could hold a secret: the whole of [kafka] or of what is passed through."""
    return place in (("kafka",), ("batch",)) or "librdkafka" in place or "catalog" in place
