"""Amplitude's API over both layers: what a batch layer has taken over is answered as before, or
refused where its table can't be asked."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import pytest

from forebay.flows.batch import run_day
from forebay.storage.base.times import ms_of, now_ms
from forebay.storage.handoff import Handoff
from tests import engine
from tests.amplitude import Api, event, messages_of, random_events
from tests.days import CONFIG, MakeJob, a_job, feed, run_job
from tests.job import Job

pytestmark = pytest.mark.long

FIRST = date(2026, 3, 2)
DAYS = 4
LAST = {"start": "20260305", "end": "20260305"}
ALL = {"start": "20260302", "end": "20260305"}


def filled(make_job: MakeJob) -> Job:
    """A job that has read four days of events, and one of a fifth."""
    engine.need()
    job = a_job(make_job, SCHEMA="amplitude", RAW="true")
    for name in ("COLUMNS", "DEDUP_KEY", "UPLOAD_TIME"):
        del job.settings[name]
    begin = datetime.combine(FIRST, time())
    events = random_events(2, 200, begin, DAYS)
    events.sort(key=lambda one: str(one["server_upload_time"]))
    events.append(event("u1", "open", begin + timedelta(days=DAYS, hours=1)))
    feed(job, "a", messages_of(events))
    run_job(job)
    return job


def asked(api: Api) -> dict[str, Any]:
    """Answers that need all days."""
    buy, view, anyone = ({"event_type": name} for name in ("buy", "view", "_active"))
    return {
        "segmentation": api.ask("segmentation", e=buy, g="gp:plan", m="totals", **ALL),
        "formula": api.ask("segmentation", e=buy, e2=view, m="formula",
                           formula="TOTALS(A)/UNIQUES(B)", **ALL),
        "funnel": api.ask("funnels", e=(view, buy), mode="unordered", **LAST),
        "retention": api.ask("retention", se={"event_type": "_new"}, re=anyone, **ALL),
        "new": api.ask("users", m="new", **LAST),
        "users": api.ask("users", **ALL),
        "composition": api.ask("composition", p="country", **ALL),
        "sessions": api.ask("session average", **LAST),
        "realtime": api.ask("realtime"),
        "search": api.ask("user search", user="u"),
        "activity": api.ask("user activity", user="3")["userData"],
        "events": api.ask("events"),
    }  # fmt: skip


def test_days_that_were_handed_over_are_answered_from_the_batch_layers_table(
    make_job: MakeJob,
) -> None:
    job = filled(make_job)
    before = asked(Api(job.data))
    for number in range(3):
        run_day([job.data], CONFIG, FIRST + timedelta(days=number))
    api = Api(job.data)
    assert api.store.view().covered_until_ms is not None
    assert asked(api) == before
    error = api.refused("export", start="20260304T00", end="20260305T23")
    assert "expected an hour from 2026-03-05T00:00:00Z on" in error["metadata"]["details"]
    assert api.written("export", start="20260305T00", end="20260305T23")


def test_days_of_a_batch_layer_that_cannot_be_asked_are_refused(
    make_job: MakeJob,
) -> None:
    job = filled(make_job)
    until = datetime.combine(FIRST + timedelta(days=2), time(), UTC)
    before = Api(job.data).ask("users", **LAST)
    with Handoff([job.data]) as handoff:
        handoff.seal(ms_of(until))
        handoff.complete(now_ms(), late=True)
    api = Api(job.data)
    assert api.ask("users", **LAST) == before
    for name, given in (
        ("users", ALL), ("users", {**LAST, "m": "new"}), ("user search", {"user": "u1"}),
        ("session average", {"start": "20260304", "end": "20260304"}),
    ):  # fmt: skip
        error = api.refused(name, **given)
        assert error["message"] == "Not supported"
        assert "2026-03-04T00:00:00Z" in error["metadata"]["details"]
