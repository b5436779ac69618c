"""The sections of the settings, and the kinds of values that they are made of.

A value is checked as far as it can be without the others: brokers, topic, paths, names of columns.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
)
from pydantic_core import PydanticCustomError, PydanticKnownError

from forebay.flows.schemas import parse_path
from forebay.storage.base.text import size_text
from forebay.storage.base.times import duration_ms, duration_text
from forebay.storage.formats.schema import RESERVED, RESERVED_ELSEWHERE, Column, ColumnType

MIB = 1 << 20
BROKER = "broker"
OWNED = (
    "bootstrap.servers", "group.id", "enable.auto.commit", "enable.auto.offset.store",
    "auto.offset.reset", "enable.partition.eof",
)  # fmt: skip
"""What Forebay must decide itself for its promise to hold."""
_TIME_TYPES = {"ms": "time", "s": "time_s", "us": "time_us"}
_BROKER = re.compile(
    r"(?:(?:PLAINTEXT|SSL|SASL_PLAINTEXT|SASL_SSL)://)?"
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,253})|\[[0-9A-Fa-f:.%]+\]):(?P<port>[0-9]{1,5})"
)


Duration = Annotated[int, BeforeValidator(duration_ms), PlainSerializer(duration_text)]
"""Text such as "500ms", "90s", "10m", kept as whole milliseconds."""


def at_least(least_ms: int, *, or_none: bool = False) -> AfterValidator:
    """A lower bound of a duration; with `or_none`, it may also be 0."""

    def check(value: int) -> int:
        if value < least_ms and (value or not or_none):
            among = "0s, or " if or_none else ""
            raise ValueError(f"expected {among}at least {duration_text(least_ms)}")
        return value

    return AfterValidator(check)


def _no_flag(value: object) -> object:
    if isinstance(value, bool):  # which Python takes for 0 or 1
        raise PydanticKnownError("int_type")
    return value


Number = Annotated[int, BeforeValidator(_no_flag)]
"""A whole number."""


def _no_number_of_another_kind(value: object) -> object:
    if isinstance(value, bool | float):  # which would be cut to a whole number
        raise PydanticCustomError("byte_size", "a size")
    return value


Size = Annotated[ByteSize, BeforeValidator(_no_number_of_another_kind)]
"""Bytes, or text such as "64MiB"."""


def size_within(least: int, most: int | None = None, *, or_none: bool = False) -> AfterValidator:
    """Of a size; with `or_none`, 0 is taken too."""
    among = "0, or " if or_none else ""

    def check(value: ByteSize) -> ByteSize:
        if value < least and not (or_none and value == 0):
            raise ValueError(f"expected {among}at least {size_text(least)}")
        if most is not None and value > most:
            raise ValueError(f"expected {among}at most {size_text(most)}")
        return value

    return AfterValidator(check)


def _path(value: object) -> object:
    if not isinstance(value, str):
        return value
    path = parse_path(value)
    if not all(path):
        raise ValueError("expected a path such as a.b.c, or a list of keys")
    return path


JsonPath = Annotated[tuple[str, ...], BeforeValidator(_path), Field(min_length=1)]


def _named(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,127}", text):
        raise ValueError("expected letters, digits and _, at most 128, not beginning with a digit")
    if text.casefold() in RESERVED:
        raise ValueError(f"expected a name other than {', '.join(sorted(RESERVED))}")
    if by := RESERVED_ELSEWHERE.get(text.casefold()):
        raise ValueError(f"expected another name, as it is {by}; got {text!r}")
    return text


def _upload_path(text: str) -> str:
    if text != BROKER:
        _path(text)
    return text


def _with_broker_alone(paths: tuple[str, ...]) -> tuple[str, ...]:
    if len(paths) > 1 and BROKER in paths:
        raise ValueError(f'expected paths, or "{BROKER}" alone')
    return paths


def _brokers(text: str) -> str:
    for one in text.split(","):
        found = _BROKER.fullmatch(one.strip())
        if not found or not 0 < int(found["port"]) < 65536:
            raise ValueError("expected brokers as HOST:PORT, separated by commas")
    return text


def _topic(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,249}", text) or text in (".", ".."):
        raise ValueError("expected a topic's name: letters, digits, . _ -, from 1 to 249 of them")
    return text


def _table(text: str) -> str:
    if not re.fullmatch(r"\w+(\.\w+)+", text):
        raise ValueError("expected NAMESPACE.NAME of letters, digits and _")
    return text


UploadPaths = Annotated[
    tuple[Annotated[str, AfterValidator(_upload_path)], ...],
    BeforeValidator(lambda one: (one,) if isinstance(one, str) else one),
    AfterValidator(_with_broker_alone),
]
"""One path, or several of which the first that holds a value counts; or the broker."""
TimeType = Annotated[
    Literal["time", "time_s", "time_us"],
    BeforeValidator(lambda one: _TIME_TYPES.get(one, one) if isinstance(one, str) else one),
]
"""The unit of a time, which may be given for the type that a column of it has."""


class Section(BaseModel):
    """Settings. What is said below one is its description, in a line."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        for field in cls.model_fields.values():
            field.description = field.description and " ".join(field.description.split())


class ColumnSettings(Section):
    """A column of your own; `path` is "a.b.c", or a list of keys where a key contains a dot.
    `paths` is a list of such, in its place: the first that holds a value counts."""

    name: Annotated[str, AfterValidator(_named)]
    paths: tuple[JsonPath, ...] = Field((), min_length=1)
    path: JsonPath = Field((), validate_default=True)
    type: ColumnType = "string"

    @field_validator("path", mode="wrap")
    @classmethod
    def _one_of_both(
        cls, value: object, check: ValidatorFunctionWrapHandler, info: ValidationInfo
    ) -> tuple[str, ...]:
        paths = info.data.get("paths")
        if value == () and paths is None:  # which is the fault
            return ()
        if value == () and not paths:
            raise PydanticKnownError("missing")
        if value != () and paths:
            raise ValueError("expected either path or paths, got both")
        return () if value == () else check(value)

    @property
    def column(self) -> Column:
        first, *others = self.paths or (self.path,)
        return Column(self.name, first, self.type, tuple(others))


class FilesSettings(Section):
    path: Path = Path("events")
    """An NDJSON file (plain, .gz or .zst), or a folder of them: a partition each."""


class KafkaSettings(Section):
    bootstrap: Annotated[str, AfterValidator(_brokers)] = "localhost:9092"
    """Brokers as HOST:PORT, separated by commas."""
    topic: Annotated[str, AfterValidator(_topic)] = "events"
    """The one topic this job reads."""
    group: str = Field("forebay", min_length=1)
    """Consumer group shown to lag tools; nothing is read from it."""
    start: Literal["earliest", "latest"] = "earliest"
    """Where to start reading a partition that has no offset yet."""
    on_gap: Literal["stop", "skip"] = "stop"
    """If the broker no longer has the next offset: stop with an error, or continue at the first
    available offset, and count and log the gap."""
    linger: Duration = 50
    """How long a batch may wait to fill up. Shorter: fresher; longer: cheaper. If messages of
    several partitions wait in a worker, at least 10 ms for each, unless the backlog is large."""
    librdkafka: dict[str, str | int | float | bool] = Field(default_factory=dict)
    """Passed through as it is: security.protocol, sasl.*, ssl.*, fetch.*"""

    @field_validator("librdkafka")
    @classmethod
    def _not_owned(cls, value: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(set(value) & set(OWNED)):
            raise ValueError(f"expected none of the properties Forebay sets itself, got {taken}")
        return value


class BatchSettings(Section):
    table: Annotated[str, AfterValidator(_table)] = "forebay.events"
    """The Iceberg table of the reference batch layer, NAMESPACE.NAME."""
    catalog: dict[str, str] = Field(default_factory=dict)
    """pyiceberg's properties of the catalog: type, uri, warehouse, s3.*. Default: a SQLite catalog
    and a warehouse in data_dir."""
    memory: Annotated[Size, size_within(64 << 20)] = ByteSize(1 << 30)
    """Memory for finding duplicates. Less: more is spilled to disk."""


class RolesSettings(Section):
    """Which columns analytics asks for, where they are others than the preset's."""

    user: str = ""
    """The column that names the user. Default, as for the other roles: the preset's column."""
    event: str = ""
    """The column with the name of the event."""
    time: str = ""
    """The column with the time of the event; or upload_time."""
    session: str = ""
    """The column with the session's id, a whole number; -1 means no session."""
