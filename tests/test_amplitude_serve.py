"""Amplitude's API over HTTP: who gets in, in which form errors come, and that its figures are those
of /v1."""

from __future__ import annotations

import gzip
import io
import json
import random
import zipfile
from base64 import b64encode
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from forebay.serve.amplitude.endpoints import ENDPOINTS
from forebay.serve.problems import Problem
from forebay.serve.tokens import add_token
from tests.amplitude import messages_of, random_events, taken
from tests.serving import LONG, Reply, Server

ZONE = "Europe/Berlin"
BEGIN = datetime(2026, 3, 27)
DAYS = 6
"""Clocks change within them."""
EVENTS = random_events(7, 600, BEGIN, DAYS)
BUY = json.dumps({"event_type": "buy"})
USERS = "/api/2/users?start=20260327&end=20260401"
QUESTIONS = 3
"""Of each kind."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    partition = taken(tmp_path_factory.mktemp("served") / "data", messages_of(EVENTS))
    yield partition.root
    partition.crash()


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    file = tmp_path_factory.mktemp("tokens") / "tokens.json"
    return file, add_token(file, "charts", "read")


@pytest.fixture(scope="module")
def server(root: Path, key: tuple[Path, str]) -> Iterator[Server]:
    made = Server(root, "--workers", "1", "--time-zone", ZONE, "--tokens", str(key[0]))
    yield made
    made.close()


def basic(secret: str, api_key: str = "0123456789abcdef") -> dict[str, str]:
    return {"Authorization": f"Basic {b64encode(f'{api_key}:{secret}'.encode()).decode()}"}


@pytest.fixture(scope="module")
def ask(server: Server, key: tuple[Path, str]) -> Callable[..., Reply]:
    def ask(name: str, **given: object) -> Reply:
        path = name if name.startswith("/") else ENDPOINTS[f"amplitude {name}"]
        return server.ask(path, given, headers=basic(key[1]))

    return ask


@pytest.fixture(scope="module")
def own(server: Server, key: tuple[Path, str]) -> Callable[..., Any]:
    def own(name: str, **given: object) -> Any:
        headers = {"Authorization": f"Bearer {key[1]}"}
        reply = server.ask(f"/v1/{name}", body=given, headers=headers)
        assert reply.status == 200, reply.body
        return reply.json

    return own


def test_the_secret_key_is_a_token_and_any_api_key_will_do(
    server: Server, key: tuple[Path, str]
) -> None:
    secret = key[1]
    for headers in (
        {},
        basic("forebay_x"),
        basic("", secret),
        {"Authorization": f"Bearer {secret}"},
        {"Authorization": "Basic !"},
        {"Authorization": "Basic /w=="},
    ):
        reply = server.ask(USERS, headers=headers)
        assert (reply.status, reply.headers["www-authenticate"]) == (401, 'Basic realm="forebay"')
        assert reply.json["error"]["http_code"] == 401
    assert server.ask(USERS, headers=basic(secret)).status == 200
    assert server.ask(USERS, headers=basic(secret, "")).status == 200
    assert server.ask("/v1/receipt", headers=basic(secret)).status == 401


def test_errors_have_amplitudes_form_whatever_is_wrong(
    server: Server, key: tuple[Path, str], ask: Callable[..., Reply]
) -> None:
    found: list[tuple[Reply, int, str]] = [
        (ask("users", start="20260327", end="20260327", g="foo"), 400, "Invalid user property foo"),
        (ask("/api/2/revenue/ltv"), 400, "no role has which events are purchases"),
        (ask("/api/3/chart/abc/query"), 404, "no charts are saved"),
        (ask("/api/2/other"), 404, "got /api/2/other"),
        (ask("segmentation", e=BUY, start="20260327", end="20260327", s="[{}]"), 400, "s: prop"),
        (server.ask("/api/2/users", body={}, headers=basic(key[1])), 405, "expected GET"),
        (server.ask(USERS, headers={**basic(key[1]), "Host": "evil.example"}), 421, "Host"),
        (server.ask(USERS, headers={**basic(key[1]), "Sec-Fetch-Site": "cross-site"}), 403, "site"),
        (ask("users", start="20260327", end="20260327", limit="3"), 400, "limit: expected one of"),
    ]
    for reply, status, said in found:
        error = reply.json["error"]
        assert (reply.status, error["http_code"]) == (status, status), reply.body
        assert said in error["metadata"]["details"], error
        assert reply.headers["content-type"] == "application/json"
        assert error["message"]


@pytest.mark.long
def test_too_many_at_once_are_told_so_in_amplitudes_form(root: Path) -> None:
    server = Server(root, "--workers", "1", "--max-waiting", "0")
    try:
        with server.asked("/v1/sql", {"text": LONG}):
            server.until("forebay_serve_busy", 1)
            reply = server.ask(USERS)
        assert (reply.status, reply.headers["retry-after"]) == (429, "1")
        assert reply.json["error"]["http_code"] == 429
        assert server.ask(USERS).status in (200, 429)
    finally:
        server.close()


def test_an_export_is_a_zip_and_what_was_kept_none_is_404(ask: Callable[..., Reply]) -> None:
    reply = ask("export", start="20260327T00", end="20260401T23")
    assert (reply.status, reply.headers["content-type"]) == (200, "application/zip")
    archive = zipfile.ZipFile(io.BytesIO(reply.body))
    hours = {one["server_upload_time"][:13] for one in EVENTS}
    assert len(archive.namelist()) == len(hours)
    assert ask("export", start="20200101T00", end="20200101T23").status == 404


@pytest.mark.long
def test_an_export_of_any_size_is_streamed_and_whole(tmp_path: Path) -> None:
    events = random_events(5, 60_000, BEGIN, DAYS)
    rng = random.Random(5)
    messages = messages_of([{**one, "note": rng.randbytes(40).hex()} for one in events])
    partition = taken(tmp_path / "data", messages)
    server = Server(partition.root, "--workers", "1")
    try:
        reply = server.ask("/api/2/export?start=20260301T00&end=20260430T00")
        assert reply.headers["transfer-encoding"] == "chunked"
        assert len(reply.body) > 1 << 20
        archive = zipfile.ZipFile(io.BytesIO(reply.body))
        lines = [
            line
            for name in archive.namelist()
            for line in gzip.decompress(archive.read(name)).splitlines()
        ]
        assert sorted(lines) == sorted(messages)
        assert len(archive.namelist()) == len(set(archive.namelist())) == DAYS * 24
    finally:
        server.close()
        partition.crash()


def test_what_is_kept_here_of_neither_is_empty(ask: Callable[..., Reply]) -> None:
    assert ask("annotations", start="20260101").json == {"data": []}
    assert ask("cohorts", includeSyncInfo="true").json == {"cohorts": []}


def test_the_asker_that_has_an_answer_gets_304(server: Server, key: tuple[Path, str]) -> None:
    first = server.ask(USERS, headers=basic(key[1]))
    found = []
    for _ in range(2):  # a minute may end between two requests
        tag = first.headers["etag"]
        first = server.ask(USERS, headers={**basic(key[1]), "If-None-Match": tag})
        found.append(first.status)
        if first.status == 304:
            break
    assert found[-1] == 304, found


def test_all_endpoints_are_named_in_the_index(server: Server) -> None:
    assert set(ENDPOINTS.values()) <= set(server.ask("/v1").json["paths"].values())


def test_a_problem_keeps_its_title_on_its_way_to_the_front() -> None:
    problem = Problem(400, "rm: expected another", title="Invalid retention method.")
    assert vars(Problem.decode(problem.encode())) == vars(problem)


SEGMENTS: list[tuple[list[dict[str, Any]], list[dict[str, Any]]]] = [
    ([], []),
    (
        [{"prop": "country", "op": "is", "values": ["NL", "DE"]}],
        [{"property": "country", "op": "is", "values": ["NL", "DE"]}],
    ),
    (
        [{"prop": "country", "op": "is", "values": ["(none)"]}],
        [{"property": "country", "op": "not set"}],
    ),
    (
        [{"prop": "gp:plan", "op": "is not", "values": ["pro"]}],
        [{"property": "user_properties.plan", "op": "is not", "values": ["pro"]}],
    ),
    (
        [{"prop": "version", "op": "contains", "values": ["1."]},
         {"prop": "platform", "op": "is", "values": ["Web"]}],
        [{"property": "version_name", "op": "contains", "values": ["1."]},
         {"property": "platform", "op": "is", "values": ["Web"]}],
    ),
]  # fmt: skip
"""Conditions as Amplitude writes them, and as /v1 does."""
GROUPS = {"country": "country", "gp:plan": "user_properties.plan", "version": "version_name"}


class Asked:
    """A random question in both languages: what all kinds have."""

    def __init__(self, seed: int, intervals: dict[int, str]) -> None:
        self.rng = rng = random.Random(seed)
        start = BEGIN.date() + timedelta(days=rng.randrange(DAYS))
        end = start + timedelta(days=rng.randrange(4))
        interval = rng.choice(list(intervals))
        theirs, ours = rng.choice(SEGMENTS)
        self.theirs: dict[str, Any] = {
            "start": f"{start:%Y%m%d}", "end": f"{end:%Y%m%d}", "i": interval,
            "s": json.dumps(theirs),
        }  # fmt: skip
        self.ours: dict[str, Any] = {
            "period": {
                "start": str(start), "end": str(end + timedelta(days=1)), "zone": ZONE,
                "interval": intervals[interval],
            },
            "segment": ours,
        }  # fmt: skip

    def event(self) -> tuple[str, dict[str, Any]]:
        """An event with a filter, or without."""
        name = self.rng.choice(["search", "view", "buy", "_active"])
        theirs: dict[str, Any] = {"event_type": name}
        ours: dict[str, Any] = {"event": None if name == "_active" else name}
        if self.rng.random() < 0.5:
            theirs["filters"] = [
                {"subprop_type": "event", "subprop_key": "price", "subprop_op": "greater or equal",
                 "subprop_value": ["2"]}
            ]  # fmt: skip
            ours["where"] = [
                {"property": "event_properties.price", "op": "greater or equal", "values": [2]}
            ]
        return json.dumps(theirs), ours

    def group(self) -> None:
        if self.rng.random() < 0.5:
            name = self.rng.choice(list(GROUPS))
            self.theirs["g"], self.ours["by"] = name, GROUPS[name]


def by_group(rows: list[dict[str, Any]], *columns: str) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for row in rows:
        group = "" if "group" not in row else row["group"] or "(none)"
        values = [row[column] or 0 for column in columns]
        found.setdefault(group, []).append(values[0] if len(values) == 1 else values)
    return found


def labelled(labels: list[Any], values: list[Any]) -> dict[str, Any]:
    return {"" if label == 0 else label: value for label, value in zip(labels, values, strict=True)}


BY_DAY = {1: "day", 7: "week", 30: "month"}
BY_ALL = {-300000: "5 min", -3600000: "hour", **BY_DAY}


@pytest.mark.few(QUESTIONS)
@pytest.mark.parametrize("seed", range(40))
def test_segmentation_is_that_of_v1(
    ask: Callable[..., Reply], own: Callable[..., Any], seed: int
) -> None:
    asked = Asked(seed, BY_DAY if seed % 3 else {-3600000: "hour", 1: "day"})
    asked.group()
    theirs, ours = asked.event()
    measures = {"uniques": "uniques", "totals": "totals", "average": "average", "pct_dau": "share"}
    measure = asked.rng.choice(list(measures))
    found = ask("segmentation", e=theirs, m=measure, **asked.theirs).json["data"]
    answer = own("segmentation", events=[ours], measure=measures[measure], **asked.ours)
    series = labelled(found["seriesLabels"], found["series"])
    collapsed = [one[0]["value"] for one in found["seriesCollapsed"]]
    empty = {"(none)": [0]} if "by" in asked.ours and not collapsed else {}
    whole = labelled(found["seriesLabels"], [[one] for one in collapsed]) or empty
    assert whole == by_group(answer["overall"], "value")
    if not empty:
        assert series == by_group(answer["over_time"], "value")
    assert collapsed == sorted(collapsed, reverse=True)
    buckets = list(dict.fromkeys(row["bucket"] for row in answer["over_time"]))
    assert len(found["xValues"]) == len(buckets)


@pytest.mark.few(QUESTIONS)
@pytest.mark.parametrize("seed", range(40))
def test_funnels_are_those_of_v1(
    ask: Callable[..., Reply], own: Callable[..., Any], seed: int
) -> None:
    asked = Asked(seed, BY_DAY)
    asked.group()
    steps = [asked.event() for _ in range(asked.rng.randrange(1, 4))]
    mode, order = asked.rng.choice(
        [("ordered", "this"), ("unordered", "any"), ("sequential", "exact")]
    )
    hours = asked.rng.choice([24, 48, 720] if order == "any" else [1, 24, 720])
    theirs, ours = zip(*steps, strict=True)
    found = ask("funnels", e=theirs, mode=mode, cs=hours * 3600, **asked.theirs).json["data"]
    answer = own("funnel", steps=ours, order=order, window=f"{hours}h", **asked.ours)
    counts = by_group(answer["steps"], "count")
    empty = {"(none)": [0] * len(steps)} if "by" in asked.ours and not found else {}
    assert ({one["groupValue"]: one["cumulativeRaw"] for one in found} or empty) == counts
    whole = {**by_group(answer["whole"], "mean_ms", "median_ms")}
    means = by_group(answer["steps"], "mean_ms", "median_ms")
    days = by_group(answer["over_time"], "count")
    for one in found:
        group = one["groupValue"]
        times = [*whole[group], *means[group][1:]]
        assert one["avgTransTimes"] == [mean for mean, _ in times]
        assert one["medianTransTimes"] == [median for _, median in times]
        assert list(chain(*one["dayFunnels"]["series"])) == days[group]


@pytest.mark.few(QUESTIONS)
@pytest.mark.parametrize("seed", range(40))
def test_retention_is_that_of_v1(
    ask: Callable[..., Reply], own: Callable[..., Any], seed: int
) -> None:
    asked = Asked(seed, BY_DAY)
    asked.group()
    (start, start_own), (back, back_own) = asked.event(), asked.event()
    method = asked.rng.choice(["n-day", "rolling", "bracket"])
    more: dict[str, Any] = {"mode": "on or after"} if method == "rolling" else {}
    if method == "bracket":
        more["brackets"] = [[0, 1], [1, 4]]
        asked.theirs["rb"] = json.dumps(more["brackets"])
    found = ask("retention", se=start, re=back, rm=method, **asked.theirs).json["data"]
    some = found["series"][0]["combined"] if found["series"] else [None]
    days = {} if method == "bracket" else {"days": len(some) - 2}
    if not found["series"]:
        days = {}
    answer = own("retention", start=start_own, back=back_own, **days, **more, **asked.ours)
    overall = by_group(answer["overall"], "count", "out_of")
    if not found["series"]:
        assert set(overall) == {"(none)"}
        return
    combined = {
        group: [[point["count"], point["outof"]] for point in one["combined"][1:]]
        for group, one in labelled(found["seriesLabels"], found["series"]).items()
    }
    assert combined == overall
    cohorts = by_group(answer["cohorts"], "count", "out_of")
    for group, one in labelled(found["seriesLabels"], found["series"]).items():
        points = [point for day in reversed(one["dates"]) for point in one["values"][day][1:]]
        assert [[point["count"], point["outof"]] for point in points] == cohorts[group]


@pytest.mark.few(QUESTIONS)
@pytest.mark.parametrize("seed", range(12))
def test_users_and_sessions_are_those_of_v1(
    ask: Callable[..., Reply], own: Callable[..., Any], seed: int
) -> None:
    asked = Asked(seed, {1: "day"})
    days = {name: asked.theirs[name] for name in ("start", "end")}
    period = {"period": asked.ours["period"]}
    tables = own("sessions", **period)
    average = ask("session average", **days).json["data"]["series"][0]
    assert average == [(row["mean_ms"] or 0) / 1000 for row in tables["over_time"]]
    per_user = ask("sessions per user", **days).json["data"]["series"][0]
    assert per_user == [row["per_user"] or 0 for row in tables["over_time"]]
    lengths = ask("session lengths", **days).json["data"]["series"][0]
    assert sum(lengths) == tables["overall"][0]["sessions"]
    assert lengths[:-1] == [row["sessions"] for row in tables["lengths"]][: len(lengths) - 1]
    new = {"event": None, "first": True}
    for kind, event in (("active", {"event": None}), ("new", new)):
        users = ask("users", m=kind, **days).json["data"]["series"]
        answer = own("segmentation", events=[event], **period)
        assert users == [[row["value"] for row in answer["over_time"]]]


def test_the_events_of_a_user_are_those_of_v1(
    ask: Callable[..., Reply], own: Callable[..., Any]
) -> None:
    found = ask("user activity", user="3", limit=1000).json["events"]
    mine = own("users/u3")["events"]
    assert [one["$insert_id"] for one in reversed(found)] == [one["insert_id"] for one in mine]
    weeks = own("segmentation", events=[{}], by="event_type", measure="totals",
                period={"start": str(monday()), "end": str(monday() + timedelta(days=7)),
                        "zone": ZONE})  # fmt: skip
    totals = {one["value"]: one["totals"] for one in ask("events").json["data"]}
    expected = {row["group"]: row["value"] for row in weeks["overall"] if row["value"]}
    assert {name: n for name, n in totals.items() if n} == expected
    assert set(totals) == {"search", "view", "buy"}


def monday() -> date:
    today = datetime.now(ZoneInfo(ZONE)).date()
    return today - timedelta(days=today.weekday())
