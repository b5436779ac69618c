"""Amplitude's Dashboard REST API over small data: users, the list of events, and exports."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from forebay.storage.base.times import ms_of
from tests.amplitude import (
    BUY,
    DAYS,
    MINUTE_MS,
    SCHEMA,
    Api,
    Make,
    apis,
    event,
    messages_of,
    purchases,
    random_events,
    taken,
    utc,
)
from tests.shop import taken as taken_of_another


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Make]:
    with apis(tmp_path_factory) as make:
        yield make


@pytest.fixture(scope="module")
def shop(made: Make) -> Api:
    return made(purchases())


def test_a_user_is_known_by_amplitude_id_and_shown_with_events(shop: Api) -> None:
    found = shop.ask("user activity", user="1", limit=1)
    assert found["userData"]["user_id"] == "u1"
    known = {
        "canonical_amplitude_id": 1, "num_events": 4, "num_sessions": 2, "usage_time": 120_000,
        "first_used": "2026-03-02", "last_used": "2026-03-03", "country": "NL",
        "device_ids": ["d1"], "properties": {"plan": "pro"},
    }  # fmt: skip
    assert {name: found["userData"][name] for name in known} == known
    (newest,) = found["events"]
    assert newest["event_type"] == "buy"
    assert newest["event_time"] == "2026-03-03 09:01:00.000000"
    assert newest["event_properties"] == {"price": 1, "kind": "a.b"}
    earliest = shop.ask("user activity", user="1", limit=2, offset=1, direction="earliest")
    times = [one["event_time"][:16] for one in earliest["events"]]
    assert times == ["2026-03-02 09:01", "2026-03-03 09:00"]


def test_an_unknown_user_is_answered_with_nothing(shop: Api) -> None:
    found = shop.ask("user activity", user="99")
    assert (found["events"], found["userData"]["user_id"]) == ([], None)
    assert (found["userData"]["num_events"], found["userData"]["usage_time"]) == (0, 0)
    assert shop.refused("user activity", user="u1")["http_code"] == 400


@pytest.mark.parametrize(
    ("user", "kind", "users"),
    [
        ("u1", "match_user_or_device_id", ["u1"]),
        ("d1", "match_user_or_device_id", ["u1"]),
        ("1", "match_amplitude_id", ["u1"]),
        ("u", "match_user_prefix", ["u5", "u1", "u2", "u4", "u3"]),
        ("zz", "nomatch", []),
    ],
)
def test_users_are_found_by_each_of_their_names(
    shop: Api, user: str, kind: str, users: list[str]
) -> None:
    matches = [{"user_id": one, "amplitude_id": int(one[1:])} for one in users]
    assert shop.ask("user search", user=user) == {"matches": matches, "type": kind}


def test_events_are_listed_with_the_totals_of_this_week(made: Make) -> None:
    api = made(
        [
            *(event("u1", "buy", f"2026-03-02 09:{n:02}") for n in range(12)),
            event("u1", "old", "2026-03-01 09:00"),
        ]
    )
    first, second = api.ask("events")["data"]
    assert first.pop("id") > second.pop("id") - 2**53
    flags = dict.fromkeys(("non_active", "hidden", "deleted", "flow_hidden"), False)
    assert first == {"value": "buy", "name": "buy", "display": "buy", "totals": 12, **flags}
    assert (second["value"], second["totals"]) == ("old", 0)


def test_an_empty_project_has_no_events_and_no_export(made: Make) -> None:
    api = made([])
    assert api.ask("events") == {"data": []}
    assert api.refused("export", start="20260302T09", end="20260302T11")["http_code"] == 404


def test_where_nothing_happened_are_no_groups_and_no_export(made: Make) -> None:
    api = made([event("u1", "buy", "2026-03-02 09:00")])
    assert api.refused("export", start="20260302T10", end="20260302T11")["http_code"] == 404
    assert api.ask("users", start="20260310", end="20260310", g="country")["data"]["series"] == []


def exported(api: Api, **given: str) -> dict[str, list[bytes]]:
    archive = zipfile.ZipFile(io.BytesIO(api.written("export", **given)))
    assert archive.testzip() is None
    return {name: gzip.decompress(archive.read(name)).splitlines() for name in archive.namelist()}


def test_an_export_has_the_messages_as_they_came_by_the_hour_of_upload(
    tmp_path: Path,
) -> None:
    events = [event("u1", "buy", f"2026-03-02 {hour:02}:30:00.123") for hour in (8, 9, 9, 10, 11)]
    messages = messages_of(events)
    partition = taken(tmp_path / "data", messages)
    api = Api(partition.root)
    found = exported(api, start="20260302T9", end="20260302T10")
    assert found == {
        "forebay/forebay_2026-03-02_9#0.json.gz": messages[1:3],
        "forebay/forebay_2026-03-02_10#0.json.gz": messages[3:4],
    }
    assert exported(api, start="20260302T09", end="20260302T10") == found
    partition.crash()


def test_an_export_has_each_event_of_chunks_and_of_hot_blocks_once(tmp_path: Path) -> None:
    events = random_events(3, 150, datetime(2026, 3, 2), 1)
    messages = messages_of(sorted(events, key=lambda one: str(one["server_upload_time"])))
    partition = taken(tmp_path / "data", messages, span_ms=90 * MINUTE_MS)
    partition.merge()
    partition.blocks.publish()
    api = Api(partition.root)
    found = exported(api, start="20260302T03", end="20260302T22")
    receipt = api.store.receipt()
    assert receipt.cold_rows > 0 < receipt.hot_rows

    def hour(message: bytes) -> datetime:
        text: str = json.loads(message)["server_upload_time"]
        return datetime.fromisoformat(text).replace(minute=0, second=0)

    first, last = datetime(2026, 3, 2, 3), datetime(2026, 3, 2, 22)
    expected = sorted(one for one in messages if first <= hour(one) <= last)
    assert sorted(itertools.chain(*found.values())) == expected
    for name, lines in found.items():
        (at,) = {hour(line) for line in lines}
        assert name == f"forebay/forebay_{at:%Y-%m-%d}_{at.hour}#0.json.gz"
    partition.crash()


def test_what_a_message_lacks_of_an_export_is_added(tmp_path: Path) -> None:
    sent = {
        "event_type": "buy", "time": ms_of(utc("2026-03-02 09:00:01")), "user_id": "u1",
        "device_id": "d1", "insert_id": "i1", "note": "two\nlines",
        "server_upload_time": "2026-03-02T09:00:02Z",
    }  # fmt: skip
    partition = taken(tmp_path / "data", [json.dumps(sent, indent=1).encode()])
    api = Api(partition.root)
    ((line,),) = exported(api, start="20260302T00", end="20260302T23").values()
    assert json.loads(line) == {
        **sent,
        "event_time": "2026-03-02 09:00:01.000000",
        "server_upload_time": "2026-03-02 09:00:02.000000",
        "$insert_id": "i1",
    }
    partition.crash()


def test_without_messages_an_export_has_the_columns(tmp_path: Path) -> None:
    messages = messages_of([event("u1", "buy", "2026-03-02 09:00", country="NL")])
    partition = taken(tmp_path / "data", messages, replace(SCHEMA, raw=False))
    api = Api(partition.root)
    ((line,),) = exported(api, start="20260302T00", end="20260302T23").values()
    record = json.loads(line)
    assert (record["event_type"], record["country"]) == ("buy", "NL")
    assert record["event_time"] == "2026-03-02 09:00:00.000000"
    lacking = {**BUY, "group_by": [{"type": "event", "value": "price"}]}
    assert "messages are not kept" in api.refused(
        "segmentation", e=lacking, **DAYS)["metadata"]["details"]  # fmt: skip
    partition.crash()


def test_data_of_another_form_is_asked_by_its_own_names(tmp_path: Path) -> None:
    partition = taken_of_another(tmp_path / "data")
    api = Api(partition.root)
    days = {"start": "20240501", "end": "20240503"}
    price = {"subprop_type": "event", "subprop_key": "price", "subprop_op": "greater"}
    some = {"event_type": "purchase", "filters": [{**price, "subprop_value": ["1"]}]}
    found = api.ask("segmentation", e=some, g="country", **days)["data"]
    assert (found["series"], found["seriesLabels"]) == ([[2, 2, 2]], ["DE"])
    plan = api.ask("composition", p="gp:user_properties.plan", **days)["data"]
    assert plan["xValues"] == ["free", "pro"]
    told = api.refused("user search", user="u1")["metadata"]["details"]
    assert "amplitude_id" in told
    (lines,) = list(exported(api, start="20240501T00", end="20240501T00").values())
    assert {json.loads(line)["event_type"] for line in lines} == {"search", "signup", "purchase"}
    partition.crash()
