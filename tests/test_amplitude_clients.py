"""Clients of Amplitude that others wrote read what `forebay serve` answers: only their base address
is changed."""

from __future__ import annotations

import dataclasses
import fcntl
import gzip
import io
import json
import os
import shutil
import subprocess
import zipfile
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pyamplitude import (
    AmplitudeAuthError,
    AmplitudeBadRequest,
    AmplitudeCredentials,
    AmplitudeHTTPError,
    CohortsClient,
    DashboardClient,
    DashboardEvent,
    ExportClient,
    Segment,
)

import forebay
from forebay.serve.tokens import add_token
from tests.amplitude import Event, messages_of, random_events, taken
from tests.image import ROOT
from tests.pythons import interpreter
from tests.serving import Server

PYTHON = "3.11"
"""The newest that Airbyte's source runs on."""
PINS = ("airbyte-source-amplitude==0.6.19", "amplitude-data-wrapper==0.6.2")
API_KEY = "0123456789abcdef"
DAYS = 3
TODAY = datetime.now(UTC).replace(tzinfo=None, hour=0, minute=0, second=0, microsecond=0)
BEGIN = TODAY - timedelta(days=DAYS)
DAY = {"start": f"{BEGIN:%Y%m%d}", "end": f"{BEGIN:%Y%m%d}"}
ALL = {"start": f"{BEGIN:%Y%m%d}", "end": f"{TODAY - timedelta(days=1):%Y%m%d}"}
X = [f"{BEGIN + timedelta(days=n):%Y-%m-%d}" for n in range(DAYS)]


@pytest.fixture(scope="module")
def events() -> list[Event]:
    return [{**one, "uuid": f"{n}"} for n, one in enumerate(random_events(11, 300, BEGIN, DAYS))]


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory, events: list[Event]
) -> Iterator[tuple[str, str]]:
    """The address of a server, and a token of it."""
    folder = tmp_path_factory.mktemp("clients")
    partition = taken(folder / "data", messages_of(events))
    # The first funnel of an installation compiles, for longer than these clients wait.
    forebay.open(partition.root).funnel(["buy", "view"])
    token = add_token(folder / "tokens.json", "clients", "read")
    server = Server(partition.root, "--workers", "1", "--tokens", str(folder / "tokens.json"))
    yield f"http://127.0.0.1:{server.port}", token
    server.close()
    partition.crash()


def made(client: Any, served: tuple[str, str], secret: str | None = None) -> Any:
    """A client of pyamplitude, of our server."""
    address, token = served
    client = client(AmplitudeCredentials(api_key=API_KEY, secret_key=secret or token))
    client.endpoints = dataclasses.replace(
        client.endpoints,
        dashboard=f"{address}/api/2",
        export=f"{address}/api/2/export",
        cohorts_v3=f"{address}/api/3/cohorts",
        cohorts_v5=f"{address}/api/5/cohorts",
    )
    return client


def per_day(events: list[Event], **fields: str) -> list[list[str]]:
    """The users of the events with these fields, of each day."""
    found: list[list[str]] = [[] for _ in range(DAYS)]
    for one in events:
        if all(one[name] == value for name, value in fields.items()):
            found[X.index(one["event_time"][:10])].append(one["user_id"])
    return found


def test_pyamplitude_reads_each_endpoint_that_it_knows(
    served: tuple[str, str], events: list[Event]
) -> None:
    client = made(DashboardClient, served)
    buys = [len(users) for users in per_day(events, event_type="buy")]
    found = client.event_segmentation(events=["buy", "view"], **ALL)["data"]
    assert (found["series"][0], found["xValues"]) == (buys, X)
    event = DashboardEvent("buy")
    event.add_filter("user", "platform", "is", ["iOS"])
    event.add_groupby("user", "gp:plan")
    segment = Segment.user_property("country", "is", ["NL", "DE"])
    grouped = client.event_segmentation(events=[event], segments=[segment], interval=7, **ALL)
    some = [
        one
        for one in events
        if (one["event_type"], one["platform"]) == ("buy", "iOS") and one["country"] is not None
    ]
    plans = Counter(one["user_properties"]["plan"] for one in some)
    collapsed = [one[0]["value"] for one in grouped["data"]["seriesCollapsed"]]
    labels = [label for _, label in grouped["data"]["seriesLabels"]]
    assert dict(zip(labels, collapsed, strict=True)) == plans

    users = client.active_users(group_by="country", **ALL)["data"]
    names = {"NL": "NL", "DE": "DE", "(none)": None}
    for label, series in zip(users["seriesLabels"], users["series"], strict=True):
        days = per_day([one for one in events if one["country"] == names[label]])
        assert series == [len(set(day)) for day in days]
    new = client.active_users(mode="new", **ALL)["data"]["series"][0]
    assert sum(new) == len({one["user_id"] for one in events})

    assert sum(client.session_length_distribution(**ALL)["data"]["series"][0])
    bins = {f"timeHistogramConfigBin{name}": value for name, value in
            {"TimeUnit": "hours", "Min": 0, "Max": 24, "Size": 12}.items()}  # fmt: skip
    assert client.session_length_distribution(**ALL, **bins)["data"]["xValues"] == [
        "0s-43200s", "43200s-86400s",
    ]  # fmt: skip
    for found in (client.average_session_length(**ALL), client.average_sessions_per_user(**ALL)):
        assert len(found["data"]["series"][0]) == DAYS
    assert client.user_composition(properties=["platform"], **ALL)["data"]["seriesLabels"] == [
        "platform"
    ]
    listed = client.event_list()["data"]
    assert {one["value"] for one in listed} == {"buy", "search", "view"}

    (match,) = client.user_search(user="u3")["matches"]
    activity = client.user_activity(user=str(match["amplitude_id"]), limit=5)
    mine = [one for one in events if one["user_id"] == "u3"]
    assert activity["userData"]["num_events"] == len(mine)
    newest = sorted(mine, key=lambda one: one["event_time"])[-5:]
    assert [one["uuid"] for one in activity["events"]] == [one["uuid"] for one in newest[::-1]]
    today, _ = client.realtime_active_users()["data"]["series"]
    assert len(today) == 288

    (funnel,) = client.funnel(events=["search", "buy"], **ALL)["data"]
    searchers = {one["user_id"] for one in events if one["event_type"] == "search"}
    assert funnel["cumulativeRaw"][0] == len(searchers)
    unordered = {"mode": "unordered", "group_by": "platform"}
    any_order = client.funnel(events=["search", "buy"], **unordered, **ALL)
    assert {one["groupValue"] for one in any_order["data"]} == {"iOS", "Web"}
    everyone = {one["user_id"] for one in events}
    brackets = {"retention_mode": "bracket", "bracket": [[0, 2]]}
    for more in ({}, {"retention_mode": "rolling"}, brackets):
        kept = client.retention(start_event="_new", return_event="_active", **more, **ALL)["data"]
        assert kept["series"][0]["combined"][0]["count"] == len(everyone)
    by_hour = {"e": '{"event_type":"buy"}', "i": -3600000, **DAY}
    hourly = client.query("events/segmentation", by_hour)
    assert sum(hourly["data"]["series"][0]) > 0


def test_pyamplitude_raises_its_own_errors(served: tuple[str, str]) -> None:
    client = made(DashboardClient, served)
    with pytest.raises(AmplitudeBadRequest, match="no custom events"):
        client.event_segmentation(events=["ce:mine"], **ALL)
    with pytest.raises(AmplitudeBadRequest, match="expected active, got new"):
        client.funnel(events=["buy"], users="new", **ALL)
    with pytest.raises(AmplitudeAuthError, match="as the secret key"):
        made(DashboardClient, served, "forebay_x").event_list()
    with pytest.raises(AmplitudeHTTPError, match="no charts are saved"):
        client.chart_csv("abc")


def test_pyamplitude_downloads_an_export_and_no_cohorts(
    served: tuple[str, str], events: list[Event]
) -> None:
    client = made(ExportClient, served)
    archive = client.download_archive(start=f"{DAY['start']}T00", end=f"{DAY['start']}T23")
    assert exported(archive) == {one["uuid"] for one in events if one["event_time"][:10] == X[0]}
    with pytest.raises(AmplitudeHTTPError):
        client.download_archive(start="20200101T00", end="20200101T01")
    assert made(CohortsClient, served).list_all_cohorts() == []


def exported(archive: bytes) -> set[str]:
    """The ids of all events in it."""
    found = zipfile.ZipFile(io.BytesIO(archive))
    lines = [
        line for name in found.namelist() for line in gzip.decompress(found.read(name)).splitlines()
    ]
    return {json.loads(line)["uuid"] for line in lines}


@pytest.fixture(scope="module")
def python() -> Path:
    """Of an environment that has the clients of PINS, made once."""
    base = interpreter(PYTHON)
    if base is None:
        pytest.skip(f"expected a Python {PYTHON} for Airbyte's source, got none")
    folder = ROOT / "build" / "amplitude-clients"
    folder.mkdir(parents=True, exist_ok=True)
    inside, ready = folder / "venv" / "bin" / "python", folder / "venv" / "ready"
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if ready.exists() and ready.read_text() == str(PINS):
            return inside
        shutil.rmtree(folder / "venv", ignore_errors=True)
        pip = [str(inside), "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
        for command in ([str(base), "-m", "venv", str(folder / "venv")], [*pip, *PINS]):
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        ready.write_text(str(PINS))
    return inside


def read(python: Path, client: str, served: tuple[str, str]) -> dict[str, Any]:
    """What a client reads in its own environment."""
    script = Path(__file__).with_name("foreign_clients.py")
    left_out = ("PYTHONPATH", "PYTHONHOME")
    done = subprocess.run(
        [str(python), str(script), client, *served, X[0]],
        capture_output=True,
        text=True,
        env={name: text for name, text in os.environ.items() if name not in left_out},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("FOUND "))
    found: dict[str, Any] = json.loads(line.removeprefix("FOUND "))
    return found


@pytest.mark.long
@pytest.mark.airbyte
@pytest.mark.executed
@pytest.mark.timeout(0)
def test_airbytes_source_syncs_all_of_its_streams(
    python: Path, served: tuple[str, str], events: list[Event]
) -> None:
    found = read(python, "airbyte", served)
    assert set(found) == {
        "annotations", "cohorts", "average_session_length", "active_users", "events_list", "events",
    }  # fmt: skip
    assert found["annotations"] == found["cohorts"] == []
    assert {one["uuid"] for one in found["events"]} == {one["uuid"] for one in events}
    assert len(found["events"]) == len(events)
    assert {one["value"] for one in found["events_list"]} == {"buy", "search", "view"}
    lengths = {one["date"]: one["length"] for one in found["average_session_length"]}
    assert all(lengths[day] > 0 for day in X)
    active = {one["date"]: one["statistics"] for one in found["active_users"]}
    for n, day in enumerate(X):
        users = per_day([one for one in events if one["country"] == "NL"])[n]
        assert active[day]["NL"] == len(set(users))


@pytest.mark.long
@pytest.mark.airbyte
@pytest.mark.executed
@pytest.mark.timeout(0)
def test_amplitude_data_wrapper_reads_what_it_knows(
    python: Path, served: tuple[str, str], events: list[Event]
) -> None:
    found = read(python, "wrapper", served)
    mine = [one for one in events if one["event_time"][:10] == X[0]]
    status, totals = found["segmentation"]
    assert (status, totals["data"]["series"]) == (200, [[len(mine)]])
    status, users = found["segment"]
    assert status == 200
    assert users["data"]["seriesCollapsed"][0][0]["value"] == len(
        {one["user_id"] for one in mine if one["country"] == "NL"}
    )
    assert found["search"] == [
        200,
        {"matches": [{"user_id": "u3", "amplitude_id": 3}], "type": "match_user_or_device_id"},
    ]
    assert found["chart"][0] == 404
    assert exported(bytes.fromhex(found["export"])) == {one["uuid"] for one in mine}
