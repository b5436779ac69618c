"""Settings: one frozen value, from `forebay.toml` and `FOREBAY_*`, all faults reported together.

The environment wins over the file, the file over the defaults. FOREBAY_CONFIG names another file;
`FOREBAY_KAFKA__TOPIC` sets `topic` in `[kafka]`. An unknown name is a fault, not a surprise.
Times are text such as "500ms", "90s", "10m", "7d" and are kept as whole milliseconds; sizes are
bytes, or text such as "512MiB".
"""

import os
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ByteSize, Field, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings import PydanticBaseSettingsSource as _Source

from forebay.flows.fault import NAMED, faults, sections_with
from forebay.flows.hosts import Address
from forebay.flows.schemas import PRESETS, Preset, parse_key, parse_path
from forebay.flows.secrets import without_secrets
from forebay.flows.sections import (
    BROKER,
    MIB,
    BatchSettings,
    ColumnSettings,
    Duration,
    FilesSettings,
    KafkaSettings,
    Number,
    RolesSettings,
    Section,
    Size,
    TimeType,
    UploadPaths,
    at_least,
    size_within,
)
from forebay.flows.toml import read_toml
from forebay.storage.base.errors import BadInput
from forebay.storage.base.layout import Layout
from forebay.storage.base.text import did_you_mean, plain
from forebay.storage.base.times import DAY_MS, HOUR_MS, MINUTE_MS, duration_text
from forebay.storage.formats.schema import (
    AS_WRITTEN,
    TEXT,
    UPLOAD_TIME,
    Column,
    ColumnType,
    Schema,
    path_faults,
)

if TYPE_CHECKING:
    from forebay.operators.sources.topic import KafkaConfig

TIMES: frozenset[ColumnType] = frozenset({"time", "time_s", "time_us", "time_auto"})
ROLE_TYPES: dict[str, frozenset[ColumnType]] = {
    "user": TEXT | {AS_WRITTEN, "int"}, "event": TEXT | {AS_WRITTEN}, "time": TIMES,
    "session": frozenset({"int"}),
}  # fmt: skip
"""The types of columns that can play a role."""
CONFIG_FILE = "forebay.toml"
ENV_PREFIX = "FOREBAY_"
NO_SETTINGS = ("CONFIG", "TOKEN", "CA")
"""Names of variables that set nothing: the file of the settings, and what other nodes are asked
with (see `query.node`)."""
NO_SOURCE = 'source: expected source = "kafka" beside [kafka], got none; the default is files'


class _Environment(EnvSettingsSource):
    """Leaves text that is not JSON to the validators, so that it is a fault among the others."""

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        try:
            return super().decode_complex_value(field_name, field, value)
        except (ValueError, RecursionError):
            return value


class Settings(Section, BaseSettings):
    """Every knob with its default and its trade-off."""

    model_config = SettingsConfigDict(
        validate_default=False,
        env_prefix=ENV_PREFIX,
        env_prefix_target="all",
        env_nested_delimiter="__",
        populate_by_name=True,
    )

    data_dir: Path = Path("data")
    """Everything Forebay keeps; one job a folder."""
    source: Literal["files", "kafka"] = "files"
    """Where events come from."""
    files: FilesSettings = FilesSettings()
    kafka: KafkaSettings = KafkaSettings()
    batch: BatchSettings = BatchSettings()
    event_schema: str = Field(
        "amplitude",
        alias="schema",
        description=f"A preset: {', '.join(PRESETS)}; or none, for your own columns only.",
    )
    columns: tuple[ColumnSettings, ...] = ()
    """More columns: name, path (or paths, of which the first that holds a value counts), type. New
    ones may be added at any time."""
    dedup_key: tuple[str, ...] = Field((), validate_default=True)
    """Columns that together name an event; "name?" may be missing, and is then an empty string.
    Default: the preset's. Fixed for the life of a data directory."""
    upload_time: UploadPaths = ()
    """JSON path of the upload time, or a list of paths, of which the first that holds a value
    counts, or "broker" for the broker's timestamp. Default: that of the preset."""
    upload_time_type: TimeType = Field("time", validate_default=True)
    """The unit of a numeric upload_time: time (or ms), time_s (s), time_us (us). Text is always
    read as RFC 3339."""
    roles: RolesSettings = RolesSettings()
    raw: bool = True
    """Keep the whole message beside the columns. Off: about half the disk, but what was not
    declared is gone."""
    volatile: tuple[str, ...] = ()
    """Columns that may differ between copies of one event, such as when it was sent: not compared
    for conflicts. Default: the preset's."""
    conflicts: bool = True
    """Count duplicates whose declared columns, upload_time and volatile ones left out, are not
    those of the event kept. Off: saves about 2 % of the CPU."""
    drops_bytes: Size = ByteSize(16 << 20)
    """What a partition keeps to explain dropped and late events (`forebay why`). More: explains
    older ones; 0: explains none."""
    block_span: Annotated[Duration, at_least(1000)] = 5 * MINUTE_MS
    """Upload time that a block holds. Shorter: more files, finer eviction. Fixed for the life of a
    data directory."""
    dedup_window: Annotated[Duration, at_least(1000)] = 10 * MINUTE_MS
    """How long after its last update a block stays in the cache, in stream time. Longer: catches
    later retries, more memory."""
    blocks_per_chunk: Number = Field(6, ge=1, le=1000)
    """Evicted blocks merged into one file. More: fewer, larger files."""
    merge_memory: Annotated[Size, size_within(64 << 20)] = ByteSize(256 << 20)
    """Memory that merging blocks into a chunk may take in a worker, beyond what an idle one has.
    Less: smaller row groups, more reading where upload times are shuffled."""
    cache_bytes: Annotated[Size, size_within(MIB)] = ByteSize(384 << 20)
    """Dedup indexes and keys kept in memory by a worker. Less costs reads from disk, never
    exactness."""
    epoch_interval: Annotated[Duration, at_least(50)] = 1000
    """Time between commits. Longer: fewer fsyncs, more to replay."""
    publish_interval: Annotated[Duration, at_least(10)] = 100
    """Time until readers see new events; up to 1s where many more wait to be read. Shorter:
    fresher, smaller writes."""
    future_skew: Duration = MINUTE_MS
    """How far an upload time may be ahead of the broker's timestamp. Beyond it the message is a
    reject, because it would evict blocks too early."""
    grace: Annotated[Duration, at_least(1000)] = 10 * MINUTE_MS
    """How long replaced files are kept. Must exceed the longest query and epoch."""
    tick_interval: Annotated[Duration, at_least(100)] = HOUR_MS
    """How often expired data is deleted. It is also deleted after each handoff."""
    retention: Annotated[Duration, at_least(DAY_MS, or_none=True)] = 0
    """Not 0: delete data that is older, in stream time, even if no batch layer has taken it over.
    0s keeps everything until it is handed over. At least 1d."""
    retention_bytes: Annotated[Size, size_within(MIB, or_none=True)] = ByteSize(0)
    """Not 0: delete the oldest data, even if no batch layer has taken it over, once blocks and
    chunks of this data directory exceed this size, not counting deleted files in their grace
    period. The last day, in stream time, is always kept. At least 1MiB."""
    rejects_retention: Duration = 7 * DAY_MS
    """Delete rejects that arrived longer ago, in whole files of up to a day. They are also deleted
    when the events that arrived with them are handed over. 0s: only then."""
    rejects_bytes: Annotated[Size, size_within(MIB, 2 << 30)] = ByteSize(256 << 20)
    """Disk space for a partition's rejects; beyond it the oldest are deleted. More: older ones can
    be looked at and replayed."""
    batch_late: Duration = 36 * HOUR_MS
    """Warn when data has waited longer than this for the batch layer."""
    batch_rows: Number = Field(5000, ge=1, le=100_000)
    """Messages in a batch. More: cheaper; fewer: fresher."""
    message_bytes_max: Annotated[Size, size_within(1)] = ByteSize(MIB)
    """A larger message is a reject. Memory while files are read grows with it."""
    metrics: str = ""
    """Where Prometheus may ask `forebay run` for metrics, as ADDRESS:PORT, such as
    "127.0.0.1:9464"; nowhere by default. There is no password: anyone who can reach the port can
    read them."""
    hash_partitions: Number = Field(0, ge=0, le=4096, validate_default=True)
    """Not 0: partition events by a hash of the dedup key, for topics whose messages have no keys.
    Costs a copy of each batch between workers; rejects can't be replayed in place."""

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: _Source, *_: Any, **__: Any
    ) -> tuple[_Source, ...]:
        file = InitSettingsSource(settings_cls, read_toml(config_file()))
        return init_settings, _Environment(settings_cls), file

    @field_validator("event_schema")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in (*PRESETS, "none"):
            near = did_you_mean(value, (*PRESETS, "none"))
            raise ValueError(f"expected one of {', '.join(PRESETS)}, or none; got {value!r}{near}")
        return value

    @field_validator("metrics")
    @classmethod
    def _address(cls, value: str) -> str:
        return value and str(Address.parse(value))

    @field_validator("columns")
    @classmethod
    def _once(
        cls, value: tuple[ColumnSettings, ...], info: ValidationInfo
    ) -> tuple[ColumnSettings, ...]:
        preset = _preset(info.data.get("event_schema", "none"))
        # Data that was begun under the former preset may have a column that was added since.
        columns = (preset.former or preset).columns
        seen = {column.name.casefold(): column.name for column in columns}
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

    @field_validator("dedup_key", "volatile")
    @classmethod
    def _declared(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if not {"event_schema", "columns"} <= set(info.data):
            return value
        preset = _preset(info.data["event_schema"])
        types = {one.name: one.type for one in (*preset.columns, *info.data["columns"])}
        names, optional = (value, ()) if info.field_name == "volatile" else parse_key(value)
        if unknown := [name for name in names if name not in types]:
            near = did_you_mean(unknown[0], types)
            raise ValueError(f"expected columns among {', '.join(types)}; got {unknown}{near}")
        if info.field_name == "volatile":
            return value
        if not value and not preset.key:
            raise ValueError(
                'expected at least one column, because schema = "none" has no key of its own'
            )
        if len(set(names)) < len(names):
            raise ValueError("expected each column once")
        if floats := [name for name in names if types[name] == "float"]:
            raise ValueError(
                f"expected no float, because equality of floats is not exact; got {floats}"
            )
        if texts := [name for name in names if types[name] == AS_WRITTEN]:
            raise ValueError(
                "expected no column of type text, because one value can be written in many ways;"
                f" got {texts}"
            )
        if others := [name for name in optional if types[name] not in TEXT]:
            raise ValueError(f"expected columns of text before '?', got {others}")
        return value

    @field_validator("roles")
    @classmethod
    def _of_their_types(cls, value: RolesSettings, info: ValidationInfo) -> RolesSettings:
        if not {"event_schema", "columns"} <= set(info.data):
            return value
        columns = (*_preset(info.data["event_schema"]).columns, *info.data["columns"])
        types: dict[str, ColumnType] = {one.name: one.type for one in columns}
        types[UPLOAD_TIME] = "time"
        for role, name in value.model_dump(exclude_defaults=True).items():
            fitting = [one for one, type in types.items() if type in ROLE_TYPES[role]]
            if name not in fitting:
                near = did_you_mean(name, fitting)
                raise ValueError(
                    f"expected as {role} a column among {', '.join(fitting)}; got {name!r}{near}"
                )
        return value

    @field_validator("upload_time_type")
    @classmethod
    def _one_type_a_path(cls, value: TimeType, info: ValidationInfo) -> TimeType:
        """Checked here, when all that declares a path is known."""
        if {"event_schema", "columns", "upload_time"} <= set(info.data):
            known = cls.model_construct(**info.data, upload_time_type=value)
            forms = filter(None, (known.preset, known.preset.former))
            faults = [path_faults(known.schema_under(form).decoded) for form in forms]
            if all(faults):  # the data tells which of the two is in force
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

    def schema_under(self, preset: Schema) -> Schema:
        """What they declare with this preset: its columns and more, of which one takes the place of
        one that was added to the preset later, and another upload time if there is one."""
        upload_time = preset.upload_time
        if self.upload_time == (BROKER,):
            upload_time = None
        elif self.upload_time:
            first, *others = map(parse_path, self.upload_time)
            upload_time = Column(UPLOAD_TIME, first, self.upload_time_type, tuple(others))
        elif upload_time is not None:
            upload_time = replace(upload_time, type=self.upload_time_type)
        own = {column.name.casefold() for column in self.columns}
        kept = (column for column in preset.columns if column.name.casefold() not in own)
        key, optional = preset.key, preset.optional
        if self.dedup_key:
            key, optional = parse_key(self.dedup_key)
        own_roles = self.roles.model_dump(exclude_defaults=True)
        return Schema(
            columns=(*kept, *(column.column for column in self.columns)),
            key=key,
            upload_time=upload_time,
            raw=self.raw,
            volatile=self.volatile or preset.volatile,
            roles=tuple((dict(preset.roles) | own_roles).items()),
            optional=optional,
        )

    @property
    def kafka_config(self) -> "KafkaConfig":
        """What they say about Kafka, as the source takes it."""
        from forebay.operators.sources.topic import (
            KafkaConfig,
        )  # only where needed, because it is slow

        own = self.kafka.model_dump(exclude={"linger"})
        return KafkaConfig(**own, batch_rows=self.batch_rows, linger_s=self.kafka.linger / 1000)


def _preset(name: str) -> Preset:
    """The preset of the schema of this name, an empty one for "none"."""
    return PRESETS.get(name, Preset((), ()))


def config_file() -> Path:
    return Path(os.environ.get(f"{ENV_PREFIX}CONFIG", CONFIG_FILE))


def load(**overrides: Any) -> Settings:
    """The effective settings. Raises BadInput that lists every fault, one a line."""
    found = _unknown_variables()
    named = os.environ.get(f"{ENV_PREFIX}CONFIG")
    if named and not Path(named).is_file():
        found.append(f"{ENV_PREFIX}CONFIG: expected a file, got {plain(repr(named))}")
    try:
        settings = Settings(**overrides)
        span_ms = settings.block_span
        # With any other span `batch run` could hand over few days only. It is fixed for the life of
        # the data, so data that was begun with one is still read.
        if DAY_MS % span_ms and not Layout(settings.data_dir).partitions():
            found.append(
                "block_span: expected a time that divides a day, such as 1m, 5m or 1h, for days are"
                f" handed over whole; got {duration_text(span_ms)!r}"
            )
    except ValidationError as error:
        found += faults(error.errors(), _names(), declared("columns", ()))
    except BadInput as error:
        found += [] if str(error).startswith(f"{named}: ") and found else [str(error)]
    if found:
        raise BadInput("\n".join(found))
    return settings


def _names() -> dict[str, Collection[str]]:
    """The names in each section; those outside of a section are below ""."""
    fields = {field.alias or name: field.default for name, field in Settings.model_fields.items()}
    sections = {name: one for name, one in fields.items() if isinstance(one, BaseModel)}
    inner = {name: type(one).model_fields for name, one in sections.items()}
    return {"": fields, "columns": ColumnSettings.model_fields, **inner}


def declared(name: str, default: Any) -> Any:
    """What file and environment say about a top-level name, even if other names have faults."""
    environment = _Environment(Settings)()
    if name in environment:
        return environment[name]
    try:
        return read_toml(config_file()).get(name, default)
    except BadInput:
        return default


def require_source(settings: Settings) -> None:
    """Raise BadInput if files are the source only by default: there is [kafka], and there are no
    files."""
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
    upload_time = schema.upload_time
    first, *others = map(".".join, upload_time.paths) if upload_time else [BROKER]
    values["upload_time"] = [first, *others] if others else first
    return without_secrets(values)


def _unknown_variables() -> list[str]:
    """A fault for each variable that is meant for Forebay, but sets nothing."""
    names = _names()
    top = [*NO_SETTINGS, *map(str.upper, names[""])]
    inner = [f"{one}__{name}".upper() for one in names if one for name in names[one]]
    found = []
    for name in sorted(name for name in os.environ if name.startswith(ENV_PREFIX)):
        text = name.removeprefix(ENV_PREFIX)
        if text.split("__")[0] not in top:
            near = did_you_mean(text, [*top, *inner])
            for section in sections_with(text.casefold(), names):
                near = f"; did you mean '{section.upper()}__{text}'?"
            near = near.replace("mean '", f"mean '{ENV_PREFIX}")
            found.append(plain(f"{name}: expected one of the settings, got an unknown name{near}"))
    return found
