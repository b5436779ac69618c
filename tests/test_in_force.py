"""`flows.in_force`: data that was begun under an earlier form of a preset goes on under it.

What was begun so is made with the columns and the key of that form as one's own, which leaves on
disk what it did.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner

import forebay
from forebay.cli.main import main
from forebay.flows.in_force import FORMER, PRESENT, decided, note_of, schema_in_force
from forebay.flows.schemas import PRESETS
from forebay.flows.settings import Settings
from forebay.operators.decode import DecodeConfig, Decoder
from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import BadInput, Corruption
from forebay.storage.base.layout import Layout
from forebay.storage.formats.form import read_form
from forebay.storage.formats.schema import OFFSET, Schema
from forebay.storage.partition.rules import Rules
from tests.job import Job
from tests.partition import Partition
from tests.samples import Form, messages

CHANGED = {name: preset.former for name, preset in PRESETS.items() if preset.former}
SAMPLES = {
    name: Form(f"{name}.{'enriched' if name == 'snowplow' else 'export'}") for name in CHANGED
}


def settings(name: str, root: Path, **more: Any) -> Settings:
    return Settings.model_validate({"schema": name, "data_dir": root, **more})


def begun(partition: Partition, name: str, former: Schema | None) -> None:
    """Take the samples in under this form, or the present one."""
    form = SAMPLES[name]
    preset = former or PRESETS[name]
    schema = form.settings.schema_under(preset)
    partition.config = Rules(schema, 300_000, 600_000, 1000)
    decoder = Decoder(DecodeConfig(schema, 60_000, 1 << 20))
    (frame,) = decoder.decode([messages(form.lines)])
    partition.start().take(frame)
    partition.blocks.publish()
    assert partition.manifest().counters.accepted


@pytest.mark.parametrize("name", CHANGED)
def test_data_goes_on_under_the_form_that_it_was_begun_with(
    name: str, partition: Partition, clean: None
) -> None:
    begun(partition, name, CHANGED[name])
    found = settings(name, partition.root)
    assert decided(found, Disk()) == found.schema_under(CHANGED[name])
    assert read_form(Disk(), Layout(partition.root)) == FORMER
    told = note_of(found)
    assert told is not None
    assert f"the dedup key {', '.join(CHANGED[name].key)};" in told


@pytest.mark.parametrize("name", CHANGED)
def test_new_data_begins_under_the_present_form_and_stays_there(
    name: str, partition: Partition, clean: None
) -> None:
    found = settings(name, partition.root)
    assert decided(found, Disk()) == found.schema_of_events
    begun(partition, name, None)
    assert schema_in_force(found) == found.schema_of_events
    Layout(partition.root).form.unlink()
    assert decided(found, Disk()) == found.schema_of_events
    assert read_form(Disk(), Layout(partition.root)) == PRESENT
    assert note_of(found) is None


def test_a_torn_manifest_changes_nothing(partition: Partition, clean: None) -> None:
    begun(partition, "amplitude", CHANGED["amplitude"])
    found, layout = settings("amplitude", partition.root), Layout(partition.root)
    former = found.schema_under(CHANGED["amplitude"])
    (manifest,) = layout.root.glob("hot/*/manifest.json")
    whole = manifest.read_bytes()
    manifest.write_bytes(whole[:-9])
    assert schema_in_force(found) == former
    manifest.write_bytes(whole)
    assert decided(found, Disk()) == former
    manifest.unlink()
    assert schema_in_force(found) == former


def test_data_without_an_event_begins_anew(partition: Partition, clean: None) -> None:
    form = SAMPLES["posthog"]
    partition.config = Rules(form.settings.schema_under(CHANGED["posthog"]), 300_000, 600_000, 1000)
    partition.start().blocks.publish()
    found = settings("posthog", partition.root)
    assert decided(found, Disk()) == found.schema_of_events


def test_schemas_that_never_changed_have_one_form(tmp_path: Path, clean: None) -> None:
    for found in (
        settings("github", tmp_path),
        settings("none", tmp_path, columns=[{"name": "id", "path": "id"}], dedup_key=["id"]),
    ):
        assert decided(found, Disk()) == found.schema_of_events
        assert note_of(found) is None
    assert not Layout(tmp_path).form.exists()


def test_what_is_kept_of_the_form_is_read_or_refused(tmp_path: Path, clean: None) -> None:
    found = settings("posthog", tmp_path)
    decided(found, Disk())
    Layout(tmp_path).form.write_bytes(b"{}")
    with pytest.raises(Corruption, match="form"):
        schema_in_force(found)
    assert schema_in_force(settings("github", tmp_path)).key == ("id",)


def test_own_columns_must_fit_the_form_in_force_only(partition: Partition, clean: None) -> None:
    own = [{"name": "dtm", "path": "dtm"}, {"name": "id_text", "path": "user_id"}]
    begun(partition, "snowplow", CHANGED["snowplow"])
    old = schema_in_force(settings("snowplow", partition.root, columns=own))
    assert [column.name for column in old.columns][-2:] == ["dtm", "id_text"]
    with pytest.raises(BadInput, match="expected one type for path user_id"):
        schema_in_force(settings("snowplow", partition.root / "new", columns=own))
    new = schema_in_force(settings("snowplow", partition.root / "new", columns=own[:1]))
    assert [column.type for column in new.columns if column.name == "dtm"] == ["string"]


def test_each_former_preset_has_no_column_that_the_present_one_lacks() -> None:
    for name, former in CHANGED.items():
        present = {column.name for column in PRESETS[name].columns}
        assert {column.name for column in former.columns} <= present


def test_a_job_goes_on_under_the_earlier_key_exactly_and_says_so_once(
    make_job: Callable[..., Job], tmp_path: Path
) -> None:
    former = CHANGED["posthog"]
    columns = [{"name": c.name, "path": ".".join(c.path), "type": c.type} for c in former.columns]
    path = tmp_path / "in" / "a.ndjson"
    path.parent.mkdir()
    base = orjson.loads(SAMPLES["posthog"].lines[0])
    early = [{**base, "uuid": "u1"}, {**base, "uuid": "u1", "team_id": 9}, {**base, "uuid": "u2"}]
    path.write_bytes(b"".join(orjson.dumps(one) + b"\n" for one in early))
    job = make_job(
        SCHEMA="none", COLUMNS=json.dumps(columns), DEDUP_KEY='["uuid"]', UPLOAD_TIME="created_at",
        FILES__PATH=str(path.parent),
    )  # fmt: skip
    assert job.ends(job.run()) == 0, job.told()
    for name in ("COLUMNS", "DEDUP_KEY", "UPLOAD_TIME"):
        del job.settings[name]
    job.settings["SCHEMA"] = "posthog"
    more = [{**base, "uuid": "u2", "event": "other"}, {**base, "uuid": "u3", "distinct_id": 5}]
    more.append({**base, "uuid": 4})
    with path.open("ab") as file:
        file.write(b"".join(orjson.dumps(one) + b"\n" for one in more))
    assert job.ends(job.run()) == 0, job.told()
    assert job.told().count("was begun under an earlier form of the schema 'posthog'") == 1
    (row,) = job.partitions().to_dicts()
    counts = [row[name] for name in ("accepted", "duplicates", "rejects", "nulled")]
    assert counts == [3, 2, 1, 1]
    found = forebay.open(job.data).scan().sort(OFFSET).collect()
    assert found["team_id"].to_list() == [7, 7, 7]
    assert found["distinct_id"].to_list() == ["ada", "ada", None]
    shown = CliRunner(env={**job.environment}).invoke(main, ["config", "show", "--json"])
    assert orjson.loads(shown.output)["dedup_key"] == ["uuid"]
    checked = CliRunner(env={**job.environment}).invoke(main, ["config", "check"])
    assert "note: schema: " in checked.output
    assert checked.exit_code == 0, checked.output
