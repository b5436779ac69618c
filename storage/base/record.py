"""The envelope of every small file and snapshot: JSON with kind, version and checksum.

    {"forebay":"KIND","version":2,"crc":"0f3a…8 hex digits","body":{…}}

The checksum is the CRC-32 (zlib) of the body's bytes as they stand. A record is data, read by a
JSON parser and checked field by field: nothing in it is ever executed. The types below are the
bounds of every number in any record; a value beyond them is Corruption.

A field declared OPTIONAL takes its default where it is missing, and unknown fields are ignored, so
a field may be added without a new version. Version 1 has no optional fields; it is read as version
2 is. A version stands for what readers must understand: a version that this build does not know is
refused.
"""

from __future__ import annotations

import re
from dataclasses import fields
from functools import cache
from typing import Annotated, Any, TypeVar

import orjson
from isal.isal_zlib import crc32
from pydantic import Field, TypeAdapter, ValidationError
from pydantic_core import SchemaValidator

from forebay.storage.base.errors import Corruption, FormatVersion
from forebay.storage.base.times import FIRST_MS, LAST_MS

T = TypeVar("T")


Count = Annotated[int, Field(ge=0, le=2**53 - 1)]
"""A number of things, bytes or milliseconds, or an offset: exact in any JSON."""
Crc = Annotated[int, Field(ge=0, le=2**32 - 1)]
SpanMs = Annotated[int, Field(ge=1, le=2**53 - 1)]
Seed = Annotated[str, Field(pattern=r"^([0-9a-f]{32})?$")]
"""128 random bits in hex digits, or nothing."""
TimeMs = Annotated[int, Field(ge=FIRST_MS, le=LAST_MS)]
"""Years 1 to 9999, which is what a datetime holds."""


OPTIONAL = {"optional": True}
"""Metadata of a dataclass field that a record may lack: its default is its value then."""
_HEAD = re.compile(rb'\{"forebay":"([a-z]+)","version":(\d{1,9}),"crc":"([0-9a-f]{8})","body":')


def encode(kind: str, version: int, body: object) -> bytes:
    """`body`, a mapping or a dataclass of JSON types, in its envelope.

    orjson writes everything in a dataclass's __dict__, cached properties too.
    """
    data = orjson.dumps(body)
    head = b'{"forebay":"%b","version":%d,"crc":"%08x","body":' % (
        kind.encode(),
        version,
        crc32(data),
    )
    return b"".join((head, data, b"}"))


def read(shape: type[T], kind: str, version: int, data: bytes, name: str) -> T:
    """The body of `data`, which `name` describes in errors, as a value of the dataclass `shape`:
    all of its fields except optional ones must be present, each of the right kind.

    Raises Corruption if it is not such a record, FormatVersion if its version is higher.
    """
    start, body = _body(kind, version, data, name)
    try:
        value: T = _validator(shape).validate_json(  # type: ignore[arg-type]
            body, strict=True
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        what = ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
        if first["type"] != "json_invalid":
            what = f"a field is missing or of the wrong kind: {what}"
        raise Corruption(f"{name}: {what}", start) from error
    return value


@cache
def _validator(shape: Any) -> SchemaValidator:
    """Pydantic's, with one difference: only an OPTIONAL field takes its default."""
    schema = TypeAdapter[Any](shape).core_schema
    optional = {one.name for one in fields(shape) if one.metadata == OPTIONAL}
    for field in _fields(schema):
        if field["name"] not in optional and field["schema"]["type"] == "default":
            field["schema"] = field["schema"]["schema"]
    return SchemaValidator(schema)


def _fields(schema: Any) -> list[dict[str, Any]]:
    """The schemas of a dataclass's fields, in the schema of the dataclass."""
    while schema["type"] != "dataclass-args":
        schema = schema["schema"]
    found: list[dict[str, Any]] = schema["fields"]
    return found


def _body(kind: str, version: int, data: bytes, name: str) -> tuple[int, bytes]:
    """Where the body begins, and its bytes, after all checks of the envelope."""
    match = _HEAD.match(data)
    if not match or not data.endswith(b"}"):
        raise Corruption(f"{name}: expected a forebay {kind} of JSON, got something else", 0)
    if match[1] != kind.encode():
        raise Corruption(f"{name}: expected a {kind}, got a {match[1].decode()}", match.start(1))
    if not 1 <= int(match[2]) <= version:
        raise FormatVersion(
            f"{name}: this build reads {kind} versions 1 to {version}, the file has version"
            f" {int(match[2])}"
        )
    body = data[match.end() : -1]
    if crc32(body) != int(match[3], 16):
        start, end = match.end(), len(data) - 1
        raise Corruption(f"{name}: checksum of bytes {start}..{end} does not match", start)
    return match.end(), body
