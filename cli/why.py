"""`forebay why`: where an event is, or why it is not there."""

from dataclasses import asdict
from pathlib import Path

import click
import orjson

from forebay import query
from forebay.cli.example import example
from forebay.cli.options import data_dirs_option, settings
from forebay.cli.output import echo_json, time_text
from forebay.query.why import Copy, Explanation, key_names
from forebay.storage.base.errors import BadInput
from forebay.storage.base.text import plain


@click.command(epilog=example('forebay why --json \'{"device_id": "d1", "insert_id": "i1"}\''))
@click.argument("key", nargs=-1)
@click.option("--json", "text", help='The key as {"device_id": "d1", "insert_id": "i1"}.')
@click.option("--format", "kind", type=click.Choice(("text", "json")), default="text")
@data_dirs_option()
def why(key: tuple[str, ...], text: str | None, kind: str, roots: list[Path]) -> None:
    """Say what became of the messages with a dedup KEY (its columns in order).

    Each is kept (where), was dropped as a duplicate (of which event), or is a reject (why).
    """
    store = query.open(*roots, iceberg=settings().batch.catalog)
    names = key_names(store.last_view)
    known = {name for partition in store.last_view.partitions for name in partition.state.paths}
    declared = [] if known else settings().schema_of_events.columns
    paths = {column.name: column.path for column in declared if not column.others}
    answer = store.why(_key(key, text, names), paths)
    if kind == "json":
        echo_json(asdict(answer))
        return
    for copy in answer.copies:
        click.echo(plain(_reported(copy)))
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


def _reported(copy: Copy) -> str:
    place = f"partition {copy.partition}, offset {copy.offset}"
    if copy.upload_time is not None:
        place += f", uploaded {time_text(copy.upload_time, ms=True)}"
    if copy.what == "event":
        kept = f"kept: {place}; in {copy.where}{'; was late' if copy.late else ''}"
        return kept + ("; handed off: the batch layer answers for it" if copy.handed_off else "")
    if copy.what == "reject":
        return f"{'' if copy.certain else 'perhaps '}reject: {place}: {copy.detail}"
    of = "partition {}, offset {}".format(*copy.of) if copy.of else "an event no longer here"
    of += "" if copy.certain else " (most likely)"
    if copy.what == "duplicate":
        return f"dropped: {place}: duplicate of {of}"
    payload = "" if copy.detail is None else f"; its payload: {copy.detail}"
    return f"dropped: {place}: conflict, same key as {of} with another payload{payload}"


def _missing(answer: Explanation) -> str:
    handed_off = ""
    if answer.covered_until is not None:
        handed_off = (
            f"; events uploaded before {time_text(answer.covered_until)} are handed off"
            " to the batch layer"
        )
        handed_off += ", whose table does not have this key" if answer.table else ""
    if answer.copies:
        return f"no event with this key is kept here{handed_off}"
    return f"never seen, as far as is known here{handed_off}"
