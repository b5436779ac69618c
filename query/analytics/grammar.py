"""The text form of events and filters.

    EVENT   NAME [where FILTER [and FILTER]...]     `*` is any event
            {"event": NAME, "where": [...], "first": true}
    FILTER  PROPERTY OPERATOR [VALUE[,VALUE]...]    price > 10   country = DE,NL   plan is set

Operators are those of the charts, in words or as = != < <= > >=. Text with a comma, a quote or a
word of this grammar is quoted: "a, b". An unquoted number is a number if it is compared by size.
"""

import re
from contextlib import suppress
from typing import Any, get_args

import orjson

from forebay.query.analytics.events import Event, Operator, Value, Where
from forebay.storage.base.errors import BadInput

SIGNS: dict[str, Operator] = {
    "!=": "is not", "<=": "less or equal", ">=": "greater or equal", "=": "is", "<": "less",
    ">": "greater", "is set": "set", "is not set": "not set",
}  # fmt: skip
BY_SIZE = {"less", "less or equal", "greater", "greater or equal", "between"}
_QUOTED = r'"(?:[^"\\]|\\.)*"'
_OPERATORS = "|".join(
    re.escape(one) + (r"(?!\w)" if one[-1].isalpha() else "")
    for one in sorted((*SIGNS, *get_args(Operator)), key=len, reverse=True)
)
_VALUE = rf'{_QUOTED}|(?!and\s|[<>=!\s])(?:(?!\s+and\s)[^",])+'
_NAME = rf"{_QUOTED}|(?:(?!\bwhere\b).)+?"
_FILTER = re.compile(
    rf"\s*(?P<property>{_QUOTED}|[^\s\"=<>!]+)\s*(?P<op>{_OPERATORS})\s*"
    rf"(?P<values>(?:{_VALUE})(?:,\s*(?:{_VALUE}))*)?\s*(?:\band\s|$)"
)


def parsed_event(text: str) -> Event:
    """Raises BadInput."""
    if text.lstrip().startswith("{"):
        try:
            return Event.parse(orjson.loads(text))
        except orjson.JSONDecodeError as error:
            raise BadInput(f"event: expected a JSON object, got {text!r}: {error}") from error
    found = re.fullmatch(rf"\s*({_NAME})(?:\s+where\s(.*))?", text, re.DOTALL)
    if found is None or not (name := _text(found[1].strip())):
        raise BadInput(f"event: expected a name, or NAME where PROPERTY > VALUE; got {text!r}")
    where = parsed_filters(found[2]) if found[2] is not None else ()
    return Event(None if found[1] == "*" else name, where)


def parsed_filters(text: str) -> tuple[Where, ...]:
    """Filters joined by `and`. Raises BadInput."""
    filters, at = [], 0
    while at < len(text):
        found = _FILTER.match(text, at)
        if found is None:
            raise BadInput(
                f"filter: expected PROPERTY OPERATOR VALUE, such as price > 10; got {text[at:]!r}"
            )
        at = found.end()
        op: Any = SIGNS.get(found["op"], found["op"])
        values = re.findall(_VALUE, found["values"] or "")
        held = tuple(_value(one.strip(), op in BY_SIZE) for one in values)
        filters.append(Where(_text(found["property"]), op, held))
    return tuple(filters)


def _text(written: str) -> str:
    return re.sub(r"\\(.)", r"\1", written[1:-1]) if written.startswith('"') else written


def _value(written: str, by_size: bool) -> Value:
    for number in (int, float) if by_size else ():
        with suppress(ValueError):
            return number(written)
    return _text(written)
