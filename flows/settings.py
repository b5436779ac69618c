"""Settings: one frozen value, from `forebay.toml` and `FOREBAY_*`, all faults reported together.

The environment wins over the file, the file over the defaults. FOREBAY_CONFIG names another file;
`FOREBAY_KAFKA__TOPIC` sets `topic` in `[kafka]`. An unknown name is a fault, not a surprise.
Times are text such as "500ms", "90s", "10m", "1h" (a bare number counts seconds) and are kept as
whole milliseconds; sizes are bytes, or text such as "512MiB".
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import (
    BaseModel,
    BeforeValidator,
    ByteSize,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from forebay.flows.fault import NAMED, faults, sections_with
from forebay.flows.schemas import PRESETS, Preset, parse_key, parse_path
from forebay.flows.secrets import without_secrets
from forebay.flows.sections import (
    BROKER,
    DAY_MS,
    HOUR_MS,
    MINUTE_MS,
    TIME_TYPES,
    BatchSettings,
    ColumnSettings,
    Duration,
    FilesSettings,
    KafkaSettings,
    UploadPaths,
    at_least,
    duration_text,
)
from forebay.flows.toml import read_toml
from forebay.storage.base.errors import BadInput
from forebay.storage.base.layout import Layout
from forebay.storage.base.text import did_you_mean, plain
from forebay.storage.formats.schema import (
    TEXT,
    UPLOAD_TIME,
    Column,
    ColumnType,
    Schema,
    path_faults,
)

CONFIG_FILE = "forebay.toml"
ENV_PREFIX = "FOREBAY_"
NO_SOURCE = 'source: expected source = "kafka" beside [kafka], got none; the default is files'


class _Environment(EnvSettingsSource):
    """Leaves text that is no JSON to the validators, so that it is a fault among the others."""

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        try:
            return super().decode_complex_value(field_name, field, value)
        except (ValueError, RecursionError):
            return value


class Settings(BaseSettings):
    """Every knob with its default and its trade-off."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=False,
        env_prefix=ENV_PREFIX,
        env_prefix_target="all",
        env_nested_delimiter="__",
        populate_by_name=True,
    )

    data_dir: Path = Field(Path("data"), description="Everything Forebay keeps; one job a folder.")
    source: Literal["files", "kafka"] = Field("files", description="Where events come from.")
    files: FilesSettings = FilesSettings()
    kafka: KafkaSettings = KafkaSettings()
    batch: BatchSettings = BatchSettings()
    event_schema: str = Field(
        "amplitude",
        alias="schema",
        description=f"A preset: {', '.join(PRESETS)}; or none, for your own columns only.",
    )
    columns: tuple[ColumnSettings, ...] = Field(
        (),
        description="More columns: name, path (or paths, of which the first that holds a value"
        " counts), type. New ones may be added at any time.",
    )
    dedup_key: tuple[str, ...] = Field(
        (),
        validate_default=True,
        description='Columns that together name an event; "name?" may have no value, and is empty'
        " text then. Default: the preset's. Fixed for the life of a data directory.",
    )
    upload_time: UploadPaths = Field(
        (),
        description="JSON path of the upload time, or a list of paths, of which the first that"
        f' holds a value counts, or "{BROKER}" for the broker\'s timestamp. Default: that of the'
        " preset.",
    )
    upload_time_type: Annotated[
        Literal["time", "time_s", "time_us"],
        BeforeValidator(lambda v: TIME_TYPES.get(v, v) if isinstance(v, str) else v),
    ] = Field(
        "time",
        validate_default=True,
        description="The unit of a numeric upload_time: time (or ms), time_s (s), time_us (us)."
        " Text is read by itself.",
    )
    raw: bool = Field(
        True,
        description="Keep the whole message beside the columns. Off: about half the disk, but what"
        " was not declared is gone.",
    )
    volatile: tuple[str, ...] = Field(
        (),
        description="Columns that may differ between copies of one event, such as when it was sent:"
        " not compared for conflicts. Default: the preset's.",
    )
    conflicts: bool = Field(
        True,
        description="Count duplicates whose declared columns, upload_time and volatile ones left"
        " out, are not those of the event kept. Off: saves about 2 % of the CPU.",
    )
    drops_bytes: ByteSize = Field(
        ByteSize(16 << 20),
        description="What a partition keeps to explain dropped and late events (`forebay why`)."
        " More: explains older ones; 0: explains none.",
    )
    block_span: Annotated[Duration, at_least(1000)] = Field(
        5 * MINUTE_MS,
        description="Upload time that a block holds. Shorter: more files, finer eviction. Fixed for"
        " the life of a data directory.",
    )
    dedup_window: Annotated[Duration, at_least(1000)] = Field(
        10 * MINUTE_MS,
        description="How long after its last update a block stays in the cache, in stream time."
        " Longer: catches later retries, more memory.",
    )
    blocks_per_chunk: int = Field(
        6,
        ge=1,
        le=1000,
        description="Evicted blocks merged into one file. More: fewer, larger files.",
    )
    cache_bytes: ByteSize = Field(
        ByteSize(384 << 20),
        ge=1 << 20,
        description="Dedup indexes and keys kept in memory by a worker. Less costs reads from disk,"
        " never exactness.",
    )
    epoch_interval: Annotated[Duration, at_least(50)] = Field(
        1000, description="Time between commits. Longer: fewer fsyncs, more to replay."
    )
    publish_interval: Annotated[Duration, at_least(10)] = Field(
        100,
        description="Time until readers see new events; up to 1s where many more wait to be read."
        " Shorter: fresher, smaller writes.",
    )
    future_skew: Duration = Field(
        MINUTE_MS,
        description="How far an upload time may be ahead of the broker's timestamp. Beyond it the"
        " message is a reject, for it would evict blocks too early.",
    )
    grace: Annotated[Duration, at_least(1000)] = Field(
        10 * MINUTE_MS,
        description="How long replaced files are kept. Must exceed the longest query and epoch.",
    )
    tick_interval: Annotated[Duration, at_least(100)] = Field(
        HOUR_MS,
        description="How often what may go is deleted. It also is whenever a day was handed over.",
    )
    retention: Duration = Field(
        0,
        description="Not 0: delete what is older, in stream time, though no batch layer took it."
        " 0s keeps everything until it is handed over.",
    )
    batch_late: Duration = Field(
        36 * HOUR_MS,
        description="Warn when data has waited so long for the batch layer.",
    )
    batch_rows: int = Field(
        5000, ge=1, le=100_000, description="Messages in a batch. More: cheaper; fewer: fresher."
    )
    message_bytes_max: ByteSize = Field(
        ByteSize(1 << 20), ge=1, description="A larger message is a reject."
    )
    hash_partitions: int = Field(
        0,
        ge=0,
        le=4096,
        validate_default=True,
        description="Not 0: divide events by a hash of the dedup key, for topics whose producers"
        " don't key. Costs a copy of each batch between workers.",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (
            init_settings,
            _Environment(settings_cls),
            InitSettingsSource(settings_cls, read_toml(config_file())),
        )

    @field_validator("event_schema")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in (*PRESETS, "none"):
            near = did_you_mean(value, (*PRESETS, "none"))
            raise ValueError(f"expected one of {', '.join(PRESETS)}, or none; got {value!r}{near}")
        return value

    @field_validator("columns")
    @classmethod
    def _once(
        cls, value: tuple[ColumnSettings, ...], info: ValidationInfo
    ) -> tuple[ColumnSettings, ...]:
        preset = _preset(info.data.get("event_schema", "none"))
        if preset.former is not None:  # data that was begun under it may have one added since
            preset = preset.former
        seen = {column.name.casefold(): column.name for column in preset.columns}
        for column in value:
            known = seen.get(column.name.casefold())
            seen[column.name.casefold()] = column.name
            if known == column.name:
                raise ValueError(f"expected each column once, got {column.name!r} again")
            if known:
                raise ValueError(
                    f"expected names that differ by more than case, got {column.name!r} beside"
                    f" {known!r}: SQL takes them for one"
                )
        return value

    @field_validator("dedup_key")
    @classmethod
    def _declared(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        types = _declared_types(info)
        if types is None:
            return value
        if not value and not _preset(info.data["event_schema"]).key:
            raise ValueError("expected at least one column, for no preset gives a key")
        names, optional = parse_key(value)
        _require_columns(names, types)
        if len(set(names)) < len(names):
            raise ValueError("expected each column once")
        if floats := [name for name in names if types[name] == "float"]:
            raise ValueError(
                f"expected no float, for equality of floats is not exact; got {floats}"
            )
        if others := [name for name in optional if types[name] not in TEXT]:
            raise ValueError(f"expected columns of text before '?', got {others}")
        return value

    @field_validator("volatile")
    @classmethod
    def _columns_of(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        types = _declared_types(info)
        if types is not None:
            _require_columns(value, types)
        return value

    @field_validator("upload_time_type")
    @classmethod
    def _one_type_a_path(cls, value: ColumnType, info: ValidationInfo) -> ColumnType:
        """Checked here, when all that declares a path is known."""
        if not {"event_schema", "columns", "upload_time"} <= set(info.data):
            return value
        upload_time = info.data["upload_time"]
        preset = _preset(info.data["event_schema"])
        faults = [
            path_faults(_schema(form, info.data["columns"], upload_time, value).decoded)
            for form in (preset, preset.former)
            if form is not None  # which of the two is in force, the data tells
        ]
        if all(faults):
            raise ValueError("; ".join(faults[0]))
        return value

    @field_validator("hash_partitions")
    @classmethod
    def _together(cls, value: int, info: ValidationInfo) -> int:
        """Checked here, when all that must fit together is known."""
        grace_ms = info.data.get("grace")
        for name in ("epoch_interval", "publish_interval"):
            ms = info.data.get(name)
            if grace_ms is not None and ms is not None and grace_ms < ms:
                least, came = duration_text(ms), duration_text(grace_ms)
                raise PydanticCustomError(
                    NAMED, f"expected at least {name} ({least}), got '{came}'", {"name": "grace"}
                )
        return value

    @property
    def schema_of_events(self) -> Schema:
        """The schema that these settings declare; data may have been begun under an earlier one
        (see `flows.in_force`)."""
        return self.schema_under(self.preset)

    @property
    def preset(self) -> Preset:
        return _preset(self.event_schema)

    def schema_under(self, preset: Preset) -> Schema:
        """The schema that these settings declare with this preset."""
        declared = _schema(preset, self.columns, self.upload_time, self.upload_time_type)
        key, optional = parse_key(self.dedup_key) if self.dedup_key else (declared.key, None)
        return replace(
            declared,
            key=key,
            raw=self.raw,
            volatile=self.volatile or preset.volatile,
            roles=preset.roles,
            optional=preset.optional if optional is None else optional,
        )


def _preset(name: str) -> Preset:
    """That of the schema of this name, an empty one for "none"."""
    return PRESETS.get(name, Preset((), ()))


def _declared_types(info: ValidationInfo) -> dict[str, ColumnType] | None:
    """The types of all columns by name; None where what declares them has a fault."""
    if not {"event_schema", "columns"} <= set(info.data):
        return None
    columns = (*_preset(info.data["event_schema"]).columns, *info.data["columns"])  # own ones win
    return {column.name: column.type for column in columns}


def _schema(
    preset: Preset,
    own: tuple[ColumnSettings, ...],
    upload_paths: tuple[str, ...],
    upload_type: ColumnType,
) -> Schema:
    """The preset with the columns of one's own and another upload time, if there is one. A column
    of one's own takes the place of one that was added to the preset later."""
    upload_time = preset.upload_time
    if upload_paths == (BROKER,):
        upload_time = None
    elif upload_paths:
        first, *others = map(parse_path, upload_paths)
        upload_time = Column(UPLOAD_TIME, first, upload_type, tuple(others))
    elif upload_time is not None:
        upload_time = replace(upload_time, type=upload_type)
    names = {column.name.casefold() for column in own}
    kept = (column for column in preset.columns if column.name.casefold() not in names)
    return Schema((*kept, *(column.column for column in own)), preset.key, upload_time)


def config_file() -> Path:
    return Path(os.environ.get(f"{ENV_PREFIX}CONFIG", CONFIG_FILE))


def load(**overrides: Any) -> Settings:
    """The effective settings. Raises BadInput that lists every fault, one a line."""
    found = [*_unknown_environment(os.environ)]
    named = os.environ.get(f"{ENV_PREFIX}CONFIG")
    if named and not Path(named).is_file():
        found.append(f"{ENV_PREFIX}CONFIG: expected a file, got {plain(repr(named))}")
    settings = None
    try:
        settings = Settings(**overrides)
        found += _span_faults(settings)
    except ValidationError as error:
        errors = [cast(Mapping[str, Any], one) for one in error.errors()]
        found += faults(errors, _names, declared("columns", ()))
    except BadInput as error:
        found += [] if str(error).startswith(f"{named}: ") and found else [str(error)]
    if found or settings is None:
        raise BadInput("\n".join(found))
    return settings


def _span_faults(settings: Settings) -> list[str]:
    """A block span that does not divide a day would let `batch run` hand over few days only. It is
    fixed for the life of the data, so data that was made with one is still read."""
    span_ms = settings.block_span
    if DAY_MS % span_ms == 0 or Layout(settings.data_dir).partitions():
        return []
    return [
        "block_span: expected a time that divides a day, such as 1m, 5m or 1h, for days are handed"
        f" over whole; got {duration_text(span_ms)!r}"
    ]


def _names(section: tuple[str, ...]) -> Iterable[str]:
    """The names that a section has."""
    fields = {field.alias or name: field for name, field in Settings.model_fields.items()}
    if not section:
        return fields
    if section[0] == "columns":
        return ColumnSettings.model_fields
    default = fields[section[0]].default if section[0] in fields else None
    return type(default).model_fields if isinstance(default, BaseModel) else ()


def declared(name: str, default: Any) -> Any:
    """What file and environment say of a top-level name, though other names have faults."""
    environment = _Environment(Settings)()
    if name in environment:
        return environment[name]
    try:
        return read_toml(config_file()).get(name, default)
    except BadInput:
        return default


def require_source(settings: Settings) -> None:
    """Raise BadInput where the files are meant only because nothing says otherwise: there is
    [kafka], and there are none."""
    named = declared("source", None) or declared("files", None)
    if not named and declared("kafka", None) is not None and not settings.files.path.exists():
        raise BadInput(NO_SOURCE)


def shown(settings: Settings, schema: Schema | None = None) -> dict[str, Any]:
    """The effective values as JSON types, secrets hidden; `schema` is the one in force, if that is
    another than these declare."""
    schema = schema or settings.schema_of_events
    values = settings.model_dump(mode="json", by_alias=True)
    for column in values["columns"]:
        del column["path" if column["paths"] else "paths"]
    values["dedup_key"] = [f"{n}?" if n in schema.optional else n for n in schema.key]
    paths = [BROKER] if schema.upload_time is None else map(".".join, schema.upload_time.paths)
    first, *others = paths
    values["upload_time"] = [first, *others] if others else first
    return without_secrets(values)


def _require_columns(names: Iterable[str], known: Collection[str]) -> None:
    if unknown := [name for name in names if name not in known]:
        near = did_you_mean(unknown[0], known)
        raise ValueError(f"expected columns among {', '.join(known)}; got {unknown}{near}")


def _unknown_environment(environment: Mapping[str, str]) -> list[str]:
    known = {"CONFIG", *(name.upper() for name in _names(()))}
    found = []
    for name in sorted(name for name in environment if name.startswith(ENV_PREFIX)):
        text = name.removeprefix(ENV_PREFIX)
        if text.split("__")[0] not in known:
            near = did_you_mean(text, _variables())
            for section in sections_with(text.casefold(), _names):
                near = f"; did you mean '{section.upper()}__{text}'?"
            near = near.replace("mean '", f"mean '{ENV_PREFIX}")
            found.append(plain(f"{name}: expected one of the settings, got an unknown name{near}"))
    return found


def _variables() -> Iterable[str]:
    """All names that may follow FOREBAY_."""
    yield "CONFIG"
    for name in _names(()):
        yield name.upper()
        yield from (f"{name}__{inner}".upper() for inner in _names((name,)))
