"""Settings: one frozen value, from `forebay.toml` and `FOREBAY_*`, all faults reported together.

The environment wins over the file, the file over the defaults. FOREBAY_CONFIG names another file;
`FOREBAY_KAFKA__TOPIC` sets `topic` in `[kafka]`. An unknown name is a fault, not a surprise.
Times are text such as "500ms", "90s", "10m", "1h" (a bare number counts seconds) and are kept as
whole milliseconds; sizes are bytes, or text such as "512MiB".
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from flows.duration import HOUR_MS, MINUTE_MS, Duration, duration_text
from flows.fault import SECRET, fault
from flows.schemas import PRESETS, Preset, parse_path
from storage.errors import BadInput
from storage.schema import RESERVED, UPLOAD_TIME, Column, ColumnType, Schema, path_faults

CONFIG_FILE = "forebay.toml"
ENV_PREFIX = "FOREBAY_"
BROKER = "broker"
OWNED = (
    "bootstrap.servers", "group.id", "enable.auto.commit", "enable.auto.offset.store",
    "auto.offset.reset", "enable.partition.eof",
)  # fmt: skip
"""What Forebay must decide itself for its promise to hold."""


_LEAST_MS = {
    "block_span": 1000, "dedup_window": 1000, "epoch_interval": 50, "publish_interval": 10,
    "grace": 1000, "tick_interval": 100,
}  # fmt: skip

JsonPath = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda v: parse_path(v) if isinstance(v, str) else v),
    Field(min_length=1),
]


def _named(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,127}", text):
        raise ValueError("expected letters, digits and _")
    if text in RESERVED:
        raise ValueError(f"expected another name than {', '.join(sorted(RESERVED))}")
    return text


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ColumnSettings(_Section):
    """A column of your own; `path` is "a.b.c", or a list of keys where a key contains a dot."""

    name: Annotated[str, AfterValidator(_named)]
    path: JsonPath
    type: ColumnType = "string"


class FilesSettings(_Section):
    path: Path = Field(
        Path("events"),
        description="An NDJSON file (plain, .gz or .zst), or a folder of them: a partition each.",
    )


class KafkaSettings(_Section):
    bootstrap: str = Field("localhost:9092", description="Brokers as HOST:PORT, by comma.")
    topic: str = Field("events", description="The one topic this job reads.")
    group: str = Field(
        "forebay", description="Consumer group shown to lag tools; nothing is read from it."
    )
    start: Literal["earliest", "latest"] = Field(
        "earliest", description="Where a partition begins that has no offset yet."
    )
    on_gap: Literal["stop", "skip"] = Field(
        "stop",
        description="If the broker no longer has the next offset: stop with an error, or go on at"
        " the first one it has, count and log the gap.",
    )
    linger: Duration = Field(
        50,
        description="How long a batch may wait to fill up. Shorter: fresher; longer: cheaper. At"
        " least 10 ms for each partition of which messages wait in the worker, if not too many do.",
    )
    librdkafka: dict[str, str | int | float | bool] = Field(
        default_factory=dict,
        description="Passed through as it is: security.protocol, sasl.*, ssl.*, fetch.*",
    )

    @field_validator("librdkafka")
    @classmethod
    def _not_owned(cls, value: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(set(value) & set(OWNED)):
            raise ValueError(f"expected none of the properties Forebay sets itself, got {taken}")
        return value


class BatchSettings(_Section):
    table: str = Field(
        "forebay.events",
        pattern=r"^\w+(\.\w+)+$",
        description="The Iceberg table of the reference batch layer, NAMESPACE.NAME.",
    )
    catalog: dict[str, str] = Field(
        default_factory=dict,
        description="pyiceberg's properties of the catalog: type, uri, warehouse, s3.*. Default: a"
        " SQLite catalog and a warehouse in data_dir.",
    )
    memory: ByteSize = Field(
        ByteSize(1 << 30),
        ge=64 << 20,
        description="What finding duplicates may hold in memory. Less: more on disk.",
    )


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
        (), description="More columns: name, path, type. New ones may be added at any time."
    )
    dedup_key: tuple[str, ...] = Field(
        (),
        validate_default=True,
        description="Columns that together name an event. Default: the preset's. Fixed for the life"
        " of a data directory.",
    )
    upload_time: str = Field(
        "",
        description=f'JSON path of the upload time, or "{BROKER}" for the broker\'s timestamp.'
        " Default: the preset's.",
    )
    upload_time_type: Literal["time", "time_s", "time_us"] = Field(
        "time",
        validate_default=True,
        description="The unit of a numeric upload_time: ms, s or us. Text is read by itself.",
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
    block_span: Duration = Field(
        5 * MINUTE_MS,
        description="Upload time that a block holds. Shorter: more files, finer eviction. Fixed for"
        " the life of a data directory.",
    )
    dedup_window: Duration = Field(
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
    epoch_interval: Duration = Field(
        1000, description="Time between commits. Longer: fewer fsyncs, more to replay."
    )
    publish_interval: Duration = Field(
        100,
        description="Time until readers see new events; up to 1s where many more wait to be read."
        " Shorter: fresher, smaller writes.",
    )
    future_skew: Duration = Field(
        MINUTE_MS,
        description="How far an upload time may be ahead of the broker's timestamp. Beyond it the"
        " message is a reject, for it would evict blocks too early.",
    )
    grace: Duration = Field(
        10 * MINUTE_MS,
        description="How long replaced files are kept. Must exceed the longest query and epoch.",
    )
    tick_interval: Duration = Field(
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
            TomlConfigSettingsSource(settings_cls, toml_file=config_file()),
        )

    @field_validator("event_schema")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in (*PRESETS, "none"):
            raise ValueError(f"expected one of {', '.join(PRESETS)}, or none")
        return value

    @field_validator("columns")
    @classmethod
    def _once(
        cls, value: tuple[ColumnSettings, ...], info: ValidationInfo
    ) -> tuple[ColumnSettings, ...]:
        preset = PRESETS.get(info.data.get("event_schema", ""))
        seen = {column.name for column in preset.columns} if preset else set()
        for column in value:
            if column.name in seen:
                raise ValueError(f"expected each column once, got {column.name!r} again")
            seen.add(column.name)
        return value

    @field_validator("dedup_key")
    @classmethod
    def _declared(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if "event_schema" not in info.data or "columns" not in info.data:
            return value
        preset = PRESETS.get(info.data["event_schema"], Preset((), ()))
        names = [column.name for column in (*preset.columns, *info.data["columns"])]
        if not value and not preset.key:
            raise ValueError("expected at least one column, for no preset gives a key")
        if unknown := [name for name in value if name not in names]:
            raise ValueError(f"expected columns among {', '.join(names)}; got {unknown}")
        if len(set(value)) < len(value):
            raise ValueError("expected each column once")
        types = {column.name: column.type for column in (*preset.columns, *info.data["columns"])}
        if floats := [name for name in value if types[name] == "float"]:
            raise ValueError(
                f"expected no float, for equality of floats is not exact; got {floats}"
            )
        return value

    @field_validator("volatile")
    @classmethod
    def _columns_of(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if "event_schema" not in info.data or "columns" not in info.data:
            return value
        preset = PRESETS.get(info.data["event_schema"], Preset((), ()))
        names = [column.name for column in (*preset.columns, *info.data["columns"])]
        if unknown := [name for name in value if name not in names]:
            raise ValueError(f"expected columns among {', '.join(names)}; got {unknown}")
        return value

    @field_validator("upload_time_type")
    @classmethod
    def _one_type_a_path(cls, value: ColumnType, info: ValidationInfo) -> ColumnType:
        """Checked here, when all that declares a path is known."""
        if not {"event_schema", "columns", "upload_time"} <= set(info.data):
            return value
        upload_time = info.data["upload_time"]
        schema = _schema(info.data["event_schema"], info.data["columns"], upload_time, value)
        if faults := path_faults(schema.decoded):
            raise ValueError("; ".join(faults))
        return value

    @field_validator(*_LEAST_MS)
    @classmethod
    def _long_enough(cls, value: int, info: ValidationInfo) -> int:
        least_ms = _LEAST_MS[str(info.field_name)]
        if value < least_ms:
            raise ValueError(f"expected at least {duration_text(least_ms)}")
        return value

    @property
    def schema_of_events(self) -> Schema:
        """The schema that these settings declare."""
        declared = _schema(self.event_schema, self.columns, self.upload_time, self.upload_time_type)
        preset = PRESETS.get(self.event_schema, Preset((), ()))
        return replace(
            declared,
            key=self.dedup_key or declared.key,
            raw=self.raw,
            volatile=self.volatile or preset.volatile,
            roles=preset.roles,
        )


def _schema(
    preset_name: str,
    own: tuple[ColumnSettings, ...],
    upload_path: str,
    upload_type: ColumnType,
) -> Schema:
    """The preset with the columns of one's own and another upload time, if there is one."""
    preset = PRESETS.get(preset_name, Preset((), ()))
    upload_time = preset.upload_time
    if upload_path == BROKER:
        upload_time = None
    elif upload_path:
        upload_time = Column(UPLOAD_TIME, parse_path(upload_path), upload_type)
    elif upload_time is not None:
        upload_time = replace(upload_time, type=upload_type)
    columns = (Column(column.name, column.path, column.type) for column in own)
    return Schema((*preset.columns, *columns), preset.key, upload_time)


def config_file() -> Path:
    return Path(os.environ.get(f"{ENV_PREFIX}CONFIG", CONFIG_FILE))


def load(**overrides: Any) -> Settings:
    """The effective settings. Raises BadInput that lists every fault, one a line."""
    faults = [*_unknown_environment(os.environ)]
    named = os.environ.get(f"{ENV_PREFIX}CONFIG")
    if named and not Path(named).is_file():
        faults.append(f"{ENV_PREFIX}CONFIG: expected a file, got {named!r}")
    try:
        settings = Settings(**overrides)
    except ValidationError as error:
        faults += [fault(cast(Mapping[str, Any], one)) for one in error.errors()]
    except (ValueError, OSError) as error:  # no TOML, or a variable that is no JSON
        faults.append(f"{config_file()}: {error}")
    if faults:
        raise BadInput("\n".join(faults))
    return settings


def declared(name: str, default: Any) -> Any:
    """What file and environment say of a top-level name, though other names have faults."""
    for source in (_Environment(Settings), TomlConfigSettingsSource(Settings, config_file())):
        try:
            found = source()
        except (ValueError, OSError):
            continue
        if name in found:
            return found[name]
    return default


def shown(settings: Settings) -> dict[str, Any]:
    """The effective values as JSON types, secrets hidden."""
    values = settings.model_dump(mode="json", by_alias=True)
    values["dedup_key"] = list(settings.schema_of_events.key)
    values["upload_time"] = _upload_time_text(settings.schema_of_events)
    for passed in (values["kafka"]["librdkafka"], values["batch"]["catalog"]):
        for name in passed:
            if SECRET.search(name):
                passed[name] = "********"
    return values


def _upload_time_text(schema: Schema) -> str:
    return ".".join(schema.upload_time.path) if schema.upload_time else BROKER


def _unknown_environment(environment: Mapping[str, str]) -> list[str]:
    known = {"CONFIG", *(name.upper() for name in Settings.model_fields), "SCHEMA"}
    known -= {"EVENT_SCHEMA"}
    return [
        f"{name}: expected one of the settings, got an unknown name"
        for name in sorted(environment)
        if name.startswith(ENV_PREFIX) and name[len(ENV_PREFIX) :].split("__")[0] not in known
    ]
