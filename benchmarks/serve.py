"""Serving: how long dashboards wait for answers while ingest goes on at half of its greatest rate.

The greatest rate is that at which the job works off a topic that already holds the events, two
hours of them. Then a sender sends at half of that rate, with the present as upload time, while
twenty clients ask `forebay serve` for ten panels each, every second, with the tags of the answers
that they have; one of them does so for a minute before the others, so that all is warm.
Broker, sender, job, server and clients share the machine, which they would not do elsewhere.

An answer's time is from the request to its last byte. Freshness is the age of the newest event that
readers can see, sampled meanwhile: `published` is that of the job, `answered` that of a panel's
answer when a client has it, which may be shared for a second.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import orjson
from prometheus_client.parser import text_string_to_metric_families

import forebay
from benchmarks.job import STOP_S, TIMEOUT_S, Job, taken
from benchmarks.lines import PLAIN
from benchmarks.measure import Child, Failed, Figure, percentile, scratch
from benchmarks.report import Bound, Report
from benchmarks.topic import Topic, broker, generated
from forebay.storage.base.times import now_ms, time_of, utc_text

EVENTS = 1_000_000
SECONDS, WARM_S = 60.0, 60.0
SHARE = 0.5
CLIENTS = 20
REFRESH_S = 1.0
SPAN = timedelta(hours=2)
LOOK_S = 0.1
NEWEST = "newest"
"""The panel by which the freshness of answers is known."""


def panels(now: datetime) -> dict[str, str]:
    """What a dashboard asks, by name: the page's own, and questions about the last quarter of an
    hour up to `now`, and about all there is."""
    recent = f"upload_time > timestamptz '{(now - timedelta(minutes=15)).isoformat()}'"
    days = f"{(now - SPAN).date()}/{(now + timedelta(days=1)).date()}"
    sql = {
        NEWEST: "select max(upload_time) as at from events",
        "by type": "select event_type, count(*) as n from events group by all order by n desc",
        "users": f"select count(distinct user_id) as n from events where {recent}",
        "platforms": f"select platform, count(*) as n from events where {recent} group by all",
    }
    asked: dict[str, tuple[str, Mapping[str, str]]] = {
        "per minute": ("per_minute", {"minutes": "60"}),
        "partitions": ("partitions", {}),
        "receipt": ("receipt", {}),
        "rejects": ("rejects", {"limit": "100"}),
        **{name: ("sql", {"text": text}) for name, text in sql.items()},
        "segmentation": (
            "segmentation", {"events": "page_view", "measure": "totals", "period": days},
        ),
        "by platform": (
            "segmentation", {"events": "page_view", "by": "platform", "period": days},
        ),
    }  # fmt: skip
    return {name: f"/v1/{path}?{urlencode(query)}" for name, (path, query) in asked.items()}


def run(events: int, runs: int, command: str) -> Report:
    """How long 20 dashboards wait for answers while ingest goes on at half of its greatest rate."""
    report = Report("serve", command, events, runs)
    found = []
    for n in range(runs):
        with scratch("serve") as folder, broker(folder / "broker") as running:
            start = utc_text(now_ms() - SPAN // timedelta(milliseconds=1))
            span = ("--start", start, "--span", f"{SPAN // timedelta(minutes=1)}m")
            topic = generated(running, f"serve-{n}", events, *PLAIN, *span)
            found.append(_measured(topic, folder))
    report.forebay = {
        **{name: Figure.of(one[name] for one in found).median for name in MEASURED},
        "exact": all(one["exact"] for one in found),
        "runs": found,
    }
    report.ratios = {name: float(report.forebay[name]) for name in BOUNDS}
    report.bounds = BOUNDS
    _show(report, found)
    return report


MEASURED = (
    "p50_ms", "p99_ms", "answers", "computed", "unchanged", "refused", "failed", "events_per_s",
    "lag_begin", "lag_end", "published_p99_s", "answered_p99_s", "job_cores", "server_cores",
)  # fmt: skip
BOUNDS = {
    "p99_ms": Bound("<=", 300),
    "published_p99_s": Bound("<=", 1),
    "failed": Bound("<=", 0),
    "refused": Bound("<=", 0),
}


def _measured(topic: Topic, folder: Path) -> dict[str, Any]:
    """Load the topic, then ask while more arrives."""
    job = Job(topic, folder / "job")
    rate = SHARE * _rate(job, topic.messages)
    server = _Server(job.data, folder)
    count = round(rate * (WARM_S + SECONDS))
    sender = _sender(topic, count, rate, folder)
    job.child.wait_until(lambda: taken(job.data) > topic.messages, TIMEOUT_S)
    asked, start_s = panels(time_of(now_ms())), time.monotonic() + WARM_S
    watched = Watched(job.data, start_s, server)
    dashboards = [
        Dashboard(asked, server.port, start_s, n * REFRESH_S / CLIENTS - (0 if n else WARM_S))
        for n in range(CLIENTS)
    ]
    asyncio.run(_follow(dashboards, watched))
    computed = server.counters() - watched.computed
    sender.wait(TIMEOUT_S)
    wanted = topic.messages + count
    job.child.wait_until(lambda: taken(job.data) >= wanted, TIMEOUT_S)
    served, used = server.child.kill(), job.child.stop(STOP_S)
    answers = [one for dashboard in dashboards for one in dashboard.answers]
    statuses = Counter(one.status for one in answers)
    times_ms = [1000 * one.seconds for one in answers]
    ages_s = [age_s for dashboard in dashboards for age_s in dashboard.ages_s]
    unchanged, refused = statuses[304], statuses[429]
    return {
        "p50_ms": percentile(times_ms, 0.5),
        "p99_ms": percentile(times_ms, 0.99),
        "answers": len(answers),
        "computed": computed,
        "unchanged": unchanged,
        "refused": refused,
        "failed": len(answers) - statuses[200] - unchanged - refused,
        "events_per_s": rate,
        "lag_begin": watched.lags[0],
        "lag_end": watched.lags[-1],
        "published_p99_s": percentile(watched.ages_s, 0.99),
        "answered_p99_s": percentile(ages_s, 0.99) if ages_s else 0.0,
        "job_cores": used.cpu_s / used.wall_s,
        "server_cores": served.cpu_s / served.wall_s,
        "panels": {
            name: {f"p{share:.0%}"[:-1]: percentile(found, share) for share in (0.5, 0.99)}
            for name in asked
            if (found := [1000 * one.seconds for one in answers if one.panel == name])
        },
        "statuses": {str(status): n for status, n in statuses.items()},
        "exact": job.unique() == topic.unique + count,
    }


def _rate(job: Job, messages: int) -> float:
    """Events per second of a job that works off a filled topic, from first event to last."""
    job.child.wait_until(lambda: taken(job.data) > 0, TIMEOUT_S)
    started_s, before = time.monotonic(), taken(job.data)
    job.child.wait_until(lambda: taken(job.data) >= messages, TIMEOUT_S)
    took_s = time.monotonic() - started_s
    if before >= messages:
        raise Failed(f"{messages} events are too few to measure a rate by")
    return (messages - before) / took_s


def _sender(topic: Topic, events: int, rate: float, folder: Path) -> Child:
    command = [sys.executable, "-m", "forebay", "generate", "--events", str(events), "--now"]
    command += ["--bootstrap", topic.bootstrap, "--topic", topic.name, "--rate", str(rate)]
    return Child([*command, "--seed", "1", *PLAIN], folder / "sender.log", {})


class _Server:
    """`forebay serve` over the job's data."""

    def __init__(self, data: Path, folder: Path) -> None:
        command = [sys.executable, "-m", "forebay", "serve", "--port", "0"]
        log = folder / "server.log"
        self.child = Child([*command, "--data-dir", str(data)], log, {})
        told = re.compile(r"served at http://[^:]+:(\d+)")
        self.child.wait_until(lambda: told.search(log.read_text()) is not None, TIMEOUT_S)
        found = told.search(log.read_text())
        assert found is not None
        self.port = int(found[1])

    def counters(self) -> int:
        """The number of answers that its workers were asked for."""
        with urlopen(f"http://127.0.0.1:{self.port}/metrics") as reply:
            text = reply.read().decode()
        for family in text_string_to_metric_families(text):
            if family.name == "forebay_serve_asked":
                return round(sum(one.value for one in family.samples))
        raise Failed(f"expected the metric forebay_serve_asked, got {text[:500]}")


@dataclass(frozen=True)
class Answered:
    panel: str
    status: int
    seconds: float


class Watched:
    """What the job has published, sampled now and then for SECONDS from `start_s` on: `lags` in
    messages, and `ages_s` of the newest event. `computed` answers were there before."""

    def __init__(self, data: Path, start_s: float, server: _Server) -> None:
        self.lags: list[int] = []
        self.ages_s: list[float] = []
        self.computed = 0
        self.end_s = start_s + SECONDS
        self._start_s = start_s
        self._server = server
        self._store = forebay.open(data)

    async def follow(self) -> None:
        await asyncio.sleep(self._start_s - time.monotonic())
        self.computed = await asyncio.to_thread(self._server.counters)
        while time.monotonic() < self.end_s:
            found = await asyncio.to_thread(self._store.partitions)
            self.lags.append(int(found["lag"].sum()))
            newest = found["stream_time"].max()
            assert isinstance(newest, datetime)
            self.ages_s.append(time.time() - newest.timestamp())
            await asyncio.sleep(LOOK_S)


class Dashboard:
    """One client: a connection for each panel, each of which it asks for once a second, first
    `phase_s` after `start_s`. What it asks for from then on counts; `ages_s` are the ages of the
    newest event that it was shown."""

    def __init__(self, asked: Mapping[str, str], port: int, start_s: float, phase_s: float) -> None:
        self.answers: list[Answered] = []
        self.ages_s: list[float] = []
        self._asked = asked
        self._port = port
        self._start_s, self._phase_s = start_s, phase_s

    async def follow(self, end_s: float) -> None:
        async with asyncio.TaskGroup() as group:
            for panel, path in self._asked.items():
                group.create_task(self._refresh(panel, path, end_s))

    async def _refresh(self, panel: str, path: str, end_s: float) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        due_s, tag = self._start_s + self._phase_s, ""
        try:
            while due_s < end_s:
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))
                began_s = time.monotonic()
                known = f"If-None-Match: {tag}\r\n" if tag else ""
                writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{known}\r\n".encode())
                status, headers, body = await _reply(reader)
                ended_s = time.monotonic()
                tag = headers.get("etag", "")
                if began_s >= self._start_s:
                    self.answers.append(Answered(panel, status, ended_s - began_s))
                if panel == NEWEST and status == 200 and began_s >= self._start_s:
                    newest = datetime.fromisoformat(orjson.loads(body)[0]["at"])
                    self.ages_s.append(time.time() - newest.timestamp())
                # A client that waits for longer than a second asks again at the next one.
                due_s += REFRESH_S * max(1, -(-(ended_s - due_s) // REFRESH_S))
        finally:
            writer.close()


async def _reply(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and all of the body."""
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = {
        name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }
    status, body = int(first.split()[1]), b""
    if "content-length" in headers:
        body = await reader.readexactly(int(headers["content-length"]))
    elif headers.get("transfer-encoding") == "chunked":
        while size := int(await reader.readline(), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readline()
    return status, headers, body


async def _follow(dashboards: list[Dashboard], watched: Watched) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(watched.follow())
        for one in dashboards:
            group.create_task(one.follow(watched.end_s))


def _show(report: Report, found: list[dict[str, Any]]) -> None:
    mine = report.forebay
    times = {
        name: tuple(
            f"{Figure.of(one['panels'][name][share] for one in found).median:,.0f}"
            for share in ("p50", "p99")
        )
        for name in found[0]["panels"]
    }
    report.table(f"serve: {CLIENTS} clients, each panel every second", ("p50 ms", "p99 ms"), times)
    columns = ("answers", "computed", "304", "429", "failed", "events/s", "lag", "published s",
               "answered s", "job cores", "server cores", "exact")  # fmt: skip
    report.show(
        "serve: in all",
        columns,
        {
            "": (
                *(f"{mine[name]:,.0f}" for name in MEASURED[2:8]),
                f"{mine['lag_begin']:,.0f} to {mine['lag_end']:,.0f}",
                *(f"{mine[name]:.2f}" for name in MEASURED[10:]),
                "yes" if mine["exact"] else "no",
            )
        },
    )
