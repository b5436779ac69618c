"""Roles: from the preset or the settings, through the manifest, to whoever asks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from forebay.flows.schemas import PRESETS
from forebay.flows.settings import ROLE_TYPES, Settings
from forebay.query.analytics import Roles, read_roles
from forebay.storage.base.errors import BadInput
from tests.partition import CONFIG, Partition, event

ROLES = (("user", "u"), ("event", "e"), ("time", "t"))


def settings(**given: Any) -> Settings:
    return Settings.model_validate({"schema": "amplitude", **given})


def begun(root: Path, roles: tuple[tuple[str, str], ...]) -> Path:
    """A data directory with an event."""
    config = replace(CONFIG, schema=replace(CONFIG.schema, roles=roles))
    partition = Partition(root, config).start()
    partition.append(event(0, 1, 0))
    partition.blocks.publish()
    partition.files.close()
    return root


@pytest.mark.parametrize("name", PRESETS)
def test_the_roles_of_each_preset_are_columns_of_their_types(name: str) -> None:
    for schema in filter(None, (PRESETS[name], PRESETS[name].former)):
        types = {column.name: column.type for column in schema.columns}
        assert {"user", "event", "time"} <= dict(schema.roles).keys()
        for role, column in schema.roles:
            assert types[column] in ROLE_TYPES[role]


def test_settings_override_the_roles_of_the_preset(clean: None) -> None:
    found = dict(settings().schema_of_events.roles)
    own = settings(roles={"user": "amplitude_id", "time": "upload_time"}).schema_of_events
    assert found["session"] == "session_id"
    assert dict(own.roles) == {**found, "user": "amplitude_id", "time": "upload_time"}


@pytest.mark.parametrize(
    ("roles", "said"),
    [
        ({"user": "user"}, "expected as user a column among .*; did you mean 'user_id'"),
        ({"time": "user_id"}, "expected as time a column among .*; got 'user_id'"),
        ({"session": "uuid"}, "expected as session a column among"),
    ],
)
def test_a_role_needs_a_column_of_its_type(clean: None, roles: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        settings(roles=roles)


def test_the_roles_of_a_data_directory_are_read_without_its_settings(tmp_path: Path) -> None:
    root = begun(tmp_path, ROLES)
    assert read_roles(root) == Roles("u", "e", "t")
    assert read_roles(root, user="w", session="s") == Roles("w", "e", "t", "s")


def test_data_of_a_job_that_knew_no_roles_needs_them_named(tmp_path: Path) -> None:
    root = begun(tmp_path, ())
    with pytest.raises(BadInput, match=r"expected columns as user, event, time, got none"):
        read_roles(root)
    assert read_roles(root, user="u", event="e", time="t") == Roles("u", "e", "t")


def test_nodes_that_differ_in_a_role_need_it_named(tmp_path: Path) -> None:
    roots = [begun(tmp_path / "a", ROLES), begun(tmp_path / "b", (("user", "v"), *ROLES[1:]))]
    with pytest.raises(BadInput, match=r"expected one column as user, got \['u', 'v'\]"):
        read_roles(*roots)
    assert read_roles(*roots, user="v").user == "v"


def test_an_unknown_role_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="expected names among event, session, time, user"):
        read_roles(begun(tmp_path, ROLES), users="u")
