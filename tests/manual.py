"""REFERENCE.md: every command and every setting, written from the code.

`python -m tests.manual` (`make reference`) writes it; `tests/test_docs.py` fails if it is not
what the code says.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterator
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, get_args

import click
from click.testing import CliRunner
from pydantic import BaseModel

from forebay.cli.main import main
from forebay.flows.settings import Settings

MIB = 1 << 20
REFERENCE = Path(__file__).resolve().parent.parent / "REFERENCE.md"
HEAD = """# Reference

Every command and every setting, as `forebay COMMAND --help` and `forebay config show` have them.
(`make reference` writes this page from the code.)
"""
COLUMN_HELP = {
    "name": "Its name in SQL.",
    "path": 'JSON path in the message: "a.b.c", or a list of keys where a key contains a dot.',
    "paths": "In place of path, a list of such paths: the first that holds a value counts. Null and"
    " values of a wrong type don't count; empty text does only if no path has anything else.",
    "type": "What its values are: string; id (text, or a whole number as its digits); text (text"
    " as it is, and a number, true, false, an array or an object as its JSON, exactly as written in"
    " the message); int; float; bool; time, time_s, time_us (RFC 3339, or a number of ms, s, µs);"
    " time_auto (RFC 3339, or a number of s, ms or µs, told by its magnitude: from 100,000,000 s"
    " after 1970, in 1973, to the end of 2199). Digits in text are never read as such a number.",
}


def commands() -> Iterator[tuple[str, ...]]:
    """Every command of `forebay`, nested ones too, as its words; the first is `forebay` itself."""

    def below(command: click.Command, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        yield words
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                inner = command.get_command(context, name)
                assert inner is not None
                yield from below(inner, (*words, name))

    return below(main, ())


def settings() -> Iterator[tuple[str, str, str]]:
    """Each setting: its name as in forebay.toml, its default as it is written, what it is for."""
    defaults = _defaults()
    for name, field in Settings.model_fields.items():
        if isinstance(field.default, BaseModel):
            for inner, one in type(field.default).model_fields.items():
                yield f"{name}.{inner}", _written(defaults[name][inner]), one.description or ""
        else:
            name = field.alias or name
            yield name, _written(defaults[name]), field.description or ""
    column, _ = get_args(Settings.model_fields["columns"].annotation)
    for name in column.model_fields:
        yield f"columns.{name}", "", COLUMN_HELP[name]


def _defaults() -> dict[str, Any]:
    """What `forebay config show` says where nothing is set."""
    unset = {name: None for name in os.environ if name.startswith("FOREBAY_")}
    with NamedTemporaryFile(suffix=".toml") as empty:
        runner = CliRunner(env={**unset, "FOREBAY_CONFIG": empty.name})
        found: dict[str, Any] = tomllib.loads(runner.invoke(main, ["config", "show"]).output)
    return found


def _written(value: object) -> str:
    """As in forebay.toml; sizes in MiB."""
    if isinstance(value, int) and value >= MIB and value % MIB == 0:
        return f'"{value // MIB}MiB"'
    return "" if value in ([], {}, "") else json.dumps(value)


def page() -> str:
    parts = [HEAD, "## Settings\n\n| setting | default | |\n| --- | --- | --- |"]
    for name, default, told in settings():
        cells = (f"`{name}`", f"`{default}`" if default else "", told.replace("|", "\\|"))
        parts[-1] += "\n| " + " | ".join(cells) + " |"
    parts.append("## Commands\n")
    for words in commands():
        asked = CliRunner().invoke(main, [*words, "--help"], prog_name="forebay", terminal_width=80)
        name = " ".join(("forebay", *words))
        parts.append(f"### {name}\n\n```text\n{asked.output.strip()}\n```\n")
    return "\n".join(part.rstrip() + "\n" for part in parts)


if __name__ == "__main__":
    REFERENCE.write_text(page())
