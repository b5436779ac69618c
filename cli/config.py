"""`forebay config`: what the settings are, and what is wrong with them."""

from __future__ import annotations

import click
import orjson
from confluent_kafka import Consumer, KafkaException
from pydantic_core import PydanticUndefined

from flows.realtime import kafka_config
from flows.settings import Settings, config_file, duration_text, load, shown
from storage.errors import BadInput


@click.group()
def config() -> None:
    """Check or show the settings."""


@config.command()
def check() -> None:
    """Report every fault at once: the name, what was expected, what came."""
    settings = load()
    if settings.source == "files" and not settings.files.path.exists():
        raise BadInput(f"files.path: expected a file or folder, got {str(settings.files.path)!r}")
    if settings.source == "kafka":
        try:
            Consumer(kafka_config(settings).consumer()).close()
        except KafkaException as error:
            raise BadInput(f"kafka.librdkafka: {error.args[0].str()}") from error
    click.echo(f"{config_file()} and FOREBAY_*: no faults")


@config.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON, without defaults and reasons.")
def show(as_json: bool) -> None:
    """The effective values, secrets hidden, each with its default and trade-off."""
    values = shown(load())
    if as_json:
        click.echo(orjson.dumps(values, option=orjson.OPT_INDENT_2))
        return
    for name, field in Settings.model_fields.items():
        key = field.alias or name
        value = values[key]
        if isinstance(value, dict):
            click.echo(f"\n[{key}]")
            section = field.default_factory() if field.default_factory else None  # type: ignore[call-arg]
            for inner, inner_field in type(section).model_fields.items():
                _line(inner, value[inner], inner_field.description, inner_field.default)
        else:
            _line(key, value, field.description, field.default)


def _line(name: str, value: object, description: str | None, default: object) -> None:
    click.echo(f"{name} = {orjson.dumps(value).decode()}")
    told = "" if default is PydanticUndefined or default == "" else f" [default: {default}]"
    if description:
        click.echo(click.style(f"    {description}{told}", dim=True))


__all__ = ["config", "duration_text"]
