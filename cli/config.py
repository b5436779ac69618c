"""`forebay config`: the settings, and their faults."""

import os
from pathlib import Path
from typing import Any

import click
import orjson
from confluent_kafka import Consumer, KafkaException
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from forebay.cli.example import example
from forebay.cli.options import json_option
from forebay.cli.output import echo_json
from forebay.flows.in_force import note_of, schema_in_force
from forebay.flows.secrets import HIDDEN, masked, shown_property
from forebay.flows.settings import (
    ENV_PREFIX,
    NO_SOURCE,
    Settings,
    config_file,
    declared,
    load,
    shown,
)
from forebay.flows.toml import read_toml
from forebay.operators.sources.folder import FilesConfig, file_partitions
from forebay.query.view import take_view
from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import BadInput, ForebayError
from forebay.storage.base.text import plain
from forebay.storage.base.times import DAY_MS, duration_text
from forebay.storage.formats.columns import arrow_schema


@click.group(epilog=example("forebay config check --connect"))
def config() -> None:
    """Check or show the settings."""


@config.command(epilog=example("forebay config check --connect"))
@click.option(
    "--connect", is_flag=True,
    help="Ask the broker, or look at the files, and try the schema on a few messages.",
)  # fmt: skip
def check(connect: bool) -> None:
    """Report every fault at once: the setting, what was expected, and what was found."""
    faults, settings = [], None
    try:
        settings = load()
    except BadInput as error:
        faults = str(error).splitlines()
    if settings is not None or (
        _file_is_read() and not any(one.startswith(("files", "FOREBAY_CONFIG")) for one in faults)
    ):
        faults += _source_faults(settings)
    faults += [] if settings is None else _data_faults(settings)
    if faults:
        raise BadInput("\n".join(faults))
    warnings = []
    if connect and settings is not None:
        from forebay.cli.connect import ask

        warnings = ask(settings)
    for warning in warnings:
        click.echo(f"warning: {warning}")
    for note in [] if settings is None else _notes(settings):
        click.echo(f"note: {note}")
    file = config_file()
    variables = ", ".join(sorted(name for name in os.environ if name.startswith(ENV_PREFIX)))
    own = f"the environment ({plain(variables) if variables else f'no {ENV_PREFIX}*'})"
    if file.is_file():
        told = f"{file} and {own}"
    else:
        told = f"defaults and {own}; there is no file at {file.absolute()}"
    click.echo(f"{told}: no faults{f', {len(warnings)} warning' if warnings else ''}")


def _notes(settings: Settings) -> list[str]:
    """Settings that work, but perhaps not as intended."""
    notes = [
        f"columns.{n}.path: a list is the keys of one path, {'.'.join(column.path)}; paths of which"
        " the first that holds a value counts are a list in `paths`"
        for n, column in enumerate(settings.columns)
        if _listed(n) and len(column.path) > 1 and not any("." in key for key in column.path)
    ]
    if DAY_MS % settings.block_span:
        notes.append(
            f"block_span: {duration_text(settings.block_span)} does not divide a day, so only some"
            " days can be handed over; it is fixed for the life of this data directory"
        )
    noted = note_of(settings)
    return [*notes, f"schema: {noted}"] if noted else notes


def _listed(number: int) -> bool:
    """Whether the path of this column was declared as a list."""
    columns = declared("columns", ())
    column = columns[number] if isinstance(columns, list) and number < len(columns) else None
    return isinstance(column, dict) and isinstance(column.get("path"), list)


def _file_is_read() -> bool:
    """Whether the settings file, if there is one, is TOML."""
    try:
        read_toml(config_file())
    except BadInput:
        return False
    return True


def _source_faults(settings: Settings | None) -> list[str]:
    """Faults of the source itself, as far as they show without asking it."""
    if settings is not None and settings.source == "kafka":
        try:
            Consumer(settings.kafka_config.consumer()).close()
        except KafkaException as error:
            reported = _reported(settings, error)
            return [f"kafka.librdkafka: expected properties that it takes, got: {reported}"]
        return []
    source = declared("source", None)
    if source is None and declared("kafka", None) is not None:
        return [NO_SOURCE]
    if source not in (None, "files"):
        return []
    section = declared("files", {})
    path = section.get("path", "events") if isinstance(section, dict) else "events"
    try:
        file_partitions(FilesConfig(Path(str(path))))
    except BadInput as error:
        return [str(error)]
    return []


def _data_faults(settings: Settings) -> list[str]:
    """Settings that differ from those that the existing data was made with: these can't change once
    an event was kept."""
    try:
        wanted = schema_in_force(settings)
    except BadInput as error:
        return str(error).splitlines()
    except ForebayError as error:
        return [f"data_dir: expected data that can be read, got: {error}"]
    if not settings.data_dir.is_dir():
        return []
    try:
        view = take_view(Disk(), [settings.data_dir], partial=True)
        states = [p.state for p in view.partitions if p.state.counters.accepted]
        known = view.schema
    except ForebayError as error:
        return [f"data_dir: expected data that can be read, got: {error}"]
    faults, made = set(), f"as the data in {settings.data_dir} was made with"
    for state in states:
        if state.key != wanted.key:
            faults.add(f"dedup_key: expected {list(state.key)}, {made}, got {list(wanted.key)}")
        if state.block_span_ms != settings.block_span:
            spans = duration_text(state.block_span_ms), duration_text(settings.block_span)
            faults.add(f"block_span: expected {spans[0]!r}, {made}, got {spans[1]!r}")
    own = arrow_schema(wanted)
    faults |= {
        f"columns: {name}: expected {known.field(name).type}, as the data in {settings.data_dir}"
        f" has it, got {own.field(name).type}; a new type needs a new name"
        for name in own.names
        if states and name in known.names and known.field(name).type != own.field(name).type
    }
    return sorted(faults)


def _reported(settings: Settings, error: KafkaException) -> str:
    """librdkafka's complaint about its properties, without their values, which it quotes."""
    text = masked(str(error.args[0].str()))
    for name, value in settings.kafka.librdkafka.items():
        if shown_property(name, value) == HIDDEN and str(value):
            text = text.replace(str(value), HIDDEN)
    return plain(text)


@config.command(epilog=example("forebay config show --json"))
@json_option("As JSON, without defaults and reasons.")
def show(as_json: bool) -> None:
    """The effective values as a forebay.toml, each with its trade-off; secrets are hidden."""
    settings = load()
    values = shown(settings, schema_in_force(settings))
    if as_json:
        echo_json(values)
        return
    defaults = Settings.model_construct().model_dump(mode="json", by_alias=True)
    fields = {field.alias or name: field for name, field in Settings.model_fields.items()}
    sections = {n: type(f.default) for n, f in fields.items() if isinstance(f.default, BaseModel)}
    for name in [name for name in fields if name not in sections]:
        _line(name, fields[name], values, defaults)
    for name, section in sections.items():
        click.echo(f"[{name}]")
        for inner, field in section.model_fields.items():
            _line(inner, field, values[name], defaults[name])


def _line(name: str, field: FieldInfo, values: dict[str, Any], defaults: dict[str, Any]) -> None:
    if field.description:
        default = defaults[name]
        known = "" if default in ("", []) else f" [default: {_toml(default)}]"
        click.echo(click.style(f"# {field.description}{known}", dim=True))
    click.echo(f"{name} = {_toml(values[name])}\n")


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(key)} = {_toml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return orjson.dumps(value).decode()
