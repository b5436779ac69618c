"""Single messages as Python's JSON readers see them: what the fast reader refuses, or loses."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import orjson

from forebay.storage.decoding.json_reader import misread

INT_DIGITS_MAX = 30
"""More than any integer that a column holds."""


@dataclass(frozen=True)
class NotJson:
    """A message that is not a JSON document, and what its reader says about it."""

    said: str


@dataclass(frozen=True)
class NotAnObject:
    """A message that is a JSON document, but not an object."""

    document: object


Refusal = NotJson | NotAnObject


def kind_of(message: bytes, suspect: bool) -> Literal["object", "other", "unclear"]:
    """What orjson makes of a message: an object, another document, or neither. If `suspect`, a
    message that the fast reader may misread does not count as an object."""
    try:
        document = orjson.loads(message)
    except orjson.JSONDecodeError:
        return "unclear"
    if not isinstance(document, dict) or (suspect and b"\\u" in message and misread(message)):
        return "other"
    return "object"


def object_of(message: bytes) -> dict[str, object] | Refusal:
    """A message as orjson reads it; as `json` does, if it has a number too large for orjson: that
    number is then infinite, and valid in no column."""
    try:
        document = _document(message)
    except ValueError as error:
        return NotJson(str(error))
    return document if isinstance(document, dict) else NotAnObject(document)


def _document(message: bytes) -> object:
    """Raises ValueError."""
    try:
        return orjson.loads(message)
    except orjson.JSONDecodeError as refused:
        if not refused.msg.startswith("number is infinity"):
            raise
    try:
        document = json.loads(message.decode(), parse_int=_parse_int, parse_constant=_refuse)
        json.dumps(document, ensure_ascii=False).encode()  # which half of a surrogate pair fails
    except RecursionError as error:
        raise ValueError(str(error)) from error
    return document


def _parse_int(text: str) -> int | float:
    """Python refuses to read some thousand digits."""
    return int(text) if len(text) <= INT_DIGITS_MAX else math.inf


def _refuse(constant: str) -> None:
    raise ValueError(f"expected JSON, got {constant}")


def dig(document: object, path: Sequence[str]) -> object:
    """The value at `path`: None if there is none; a list, which is valid in no column, if the path
    meets something that is not an object."""
    for key in path:
        if document is None:
            return None
        if not isinstance(document, dict):
            return []
        document = document.get(key)
    return document


def dig_text(message: bytes, path: Sequence[str]) -> str | None:
    """The text at `path`, None if there is none."""
    try:
        document = json.loads(message.decode(), strict=False)
    except (ValueError, RecursionError):
        return None
    found = dig(document, path)
    return found if isinstance(found, str) else None


def dig_digits(message: bytes, path: Sequence[str]) -> object:
    """The whole number at `path` as its digits; any other value as it is.

    SUBTLE: orjson turns a number beyond 64 bits into a double, and two of them could become one.
    """
    try:
        document = json.loads(message.decode(), strict=False, parse_int=_Digits)
    except (ValueError, RecursionError):
        return []
    found = dig(document, path)
    return found.text if isinstance(found, _Digits) else found


class _Digits:
    """A whole number as it is written; -0 is 0."""

    def __init__(self, text: str) -> None:
        self.text = "0" if text == "-0" else text
