"""`forebay why`: where an event is, or why it is not there."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click
import orjson

from forebay import query
from forebay.cli.roots import data_dirs_option, roots_of
from forebay.flows.settings import load
from forebay.query.why import Answer, Copy, key_names
from forebay.storage.base.errors import BadInput
from forebay.storage.base.text import plain


@click.command()
@click.argument("key", nargs=-1)
@click.option("--json", "text", help='The key as {"device_id": "d1", "insert_id": "i1"}.')
@click.option("--format", "kind", type=click.Choice(("text", "json")), default="text")
@data_dirs_option
def why(key: tuple[str, ...], text: str | None, kind: str, data_dirs: tuple[Path, ...]) -> None:
    """Say what became of the messages with a dedup KEY (its columns in order).

    Each is kept (where), was dropped as a duplicate (of which event), or is a reject (why).
    """
    settings = load()
    store = query.open(*roots_of(data_dirs, settings.data_dir), iceberg=settings.batch.catalog)
    names = key_names(store.view())
    paths = {column.name: column.path for column in settings.schema_of_events.columns}
    answer = store.why(_key(key, text, names), paths)
    if kind == "json":
        click.echo(orjson.dumps(asdict(answer), option=orjson.OPT_INDENT_2))
        return
    for copy in answer.copies:
        click.echo(plain(_told(copy)))
    if not any(copy.what == "event" for copy in answer.copies):
        click.echo(_missing(answer))


def _key(values: tuple[str, ...], text: str | None, names: tuple[str, ...]) -> dict[str, object]:
    if text is not None:
        try:
            found = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            raise BadInput(f"why: --json: expected an object, got {text!r}: {error}") from error
        if values or not isinstance(found, dict):
            raise BadInput("why: expected either the key's values or --json with an object")
        return found
    if len(values) != len(names):
        raise BadInput(f"why: expected values for {', '.join(names)}; got {len(values)}")
    return dict(zip(names, values, strict=True))


def _told(copy: Copy) -> str:
    place = f"partition {copy.partition}, offset {copy.offset}"
    if copy.upload_time is not None:
        place += f", uploaded {copy.upload_time:%Y-%m-%d %H:%M:%S.%f}"[:-3]
    if copy.what == "event":
        told = f"kept: {place}; in {copy.where}"
        told += "; was late" if copy.late else ""
        return told + ("; handed off: the batch layer answers for it" if copy.handed_off else "")
    if copy.what == "reject":
        return f"{'' if copy.certain else 'perhaps '}reject: {place}: {copy.detail}"
    of = (
        "an event no longer here"
        if copy.of is None
        else f"partition {copy.of[0]}, offset {copy.of[1]}"
    ) + ("" if copy.certain else " (most likely)")
    if copy.what == "duplicate":
        return f"dropped: {place}: duplicate of {of}"
    payload = "" if copy.detail is None else f"; its payload: {copy.detail}"
    return f"dropped: {place}: conflict, same key as {of} with another payload{payload}"


def _missing(answer: Answer) -> str:
    handed_off = ""
    if answer.covered_until is not None:
        handed_off = (
            f"; events uploaded before {answer.covered_until:%Y-%m-%d %H:%M:%S} are handed off"
            " to the batch layer"
        )
        handed_off += ", whose table does not have this key" if answer.table else ""
    if answer.copies:
        return f"no event with this key is kept here{handed_off}"
    return f"never seen, as far as is known here{handed_off}"
