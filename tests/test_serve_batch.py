"""`forebay serve` hands days over: what the commands do, for whoever has a token for it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import forebay
from forebay.serve.tokens import add_token
from forebay.storage.base.disk import Disk
from forebay.storage.base.layout import Layout
from forebay.storage.formats.boundary import Boundary, read_boundary
from forebay.storage.handoff import Handoff
from tests.broker import Broker
from tests.days import HOUR_MS, START_MS, MakeJob, Topic, a_job, ids, keys, once
from tests.job import Job
from tests.serving import COMPLETE, SEAL, Reply, Server

FIRST_DAY = {"through": "2024-05-02"}
COUNTS = {"text": "select count(*) as n, count(distinct id) as ids from events"}

Post = Callable[..., Reply]


def boundary(job: Job) -> Boundary:
    return read_boundary(Disk(), Layout(job.data))


@pytest.fixture
def job(filled: Path, make_job: MakeJob) -> Job:
    job = a_job(make_job)
    shutil.copytree(filled, job.folder)
    return job


@pytest.fixture
def keyed(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A file of tokens, and what a request with each has for a header."""
    file = tmp_path / "tokens.json"
    made = {scope: add_token(file, scope, scope) for scope in ("read", "admin")}
    return file, {scope: f"Bearer {token}" for scope, token in made.items()}


@pytest.fixture
def server(job: Job, keyed: tuple[Path, dict[str, str]]) -> Iterator[Server]:
    job.data.mkdir(parents=True, exist_ok=True)
    made = Server(job.data, "--workers", "1", "--tokens", str(keyed[0]))
    yield made
    made.close()


@pytest.fixture
def post(server: Server, keyed: tuple[Path, dict[str, str]]) -> Post:
    def post(path: str, body: Any, scope: str = "admin", method: str = "POST") -> Reply:
        headers = {"Authorization": keyed[1][scope]}
        return server.ask(path, body=body, headers=headers, method=method)

    return post


def test_a_day_is_sealed_and_completed_once_however_often_it_is_asked(job: Job, post: Post) -> None:
    for _ in range(2):
        reply = post(SEAL, FIRST_DAY)
        assert reply.json == {
            "sealed_until": "2024-05-02T00:00:00Z", "nodes": [{"node": str(job.data), "seal": 1}],
        }  # fmt: skip
        assert "etag" not in reply.headers
    sealed = post("/v1/sql", {"text": "select distinct id from events_sealed"}).json
    assert {one["id"] for one in sealed} == keys(0)
    for _ in range(2):
        reply = post(COMPLETE, {"through": "2024-05-02T00:00:00Z", "late": True})
        assert reply.json == {
            "covered_until": "2024-05-02T00:00:00Z",
            "nodes": [{"node": str(job.data), "batch_number": 1}],
        }
    assert (boundary(job).number, boundary(job).late_from) == (1, 1)
    left = keys(1) | keys(2) | {"a-3", "b-3"}
    assert post("/v1/sql", COUNTS).json[0]["ids"] == len(left)
    assert set(ids(forebay.open(job.data).scan())) == left


@pytest.mark.few(1)
@pytest.mark.parametrize("path", [SEAL, COMPLETE])
def test_what_can_t_be_handed_over_is_refused_and_changes_nothing(
    job: Job, post: Post, path: str
) -> None:
    with Handoff([job.data]) as handoff:
        handoff.seal(START_MS + 24 * HOUR_MS)
        held = post(path, FIRST_DAY)
    assert (held.status, "no other batch run" in held.json["detail"]) == (409, True)
    before = boundary(job)
    reply = post(path, FIRST_DAY, "read")
    assert (reply.status, "expected one of scope admin" in reply.json["detail"]) == (403, True)
    for body, said in (
        ({}, "through: expected a value, got none"),
        ({"through": "yesterday"}, "through: expected a time such as 2024-05-01T12:00Z"),
        ({"through": "2024-02-31"}, "through: expected a day such as 2024-05-01"),
        ({"through": "2024-05-03T00:00"}, "through: expected a time such as"),
        ({"through": "0001-01-01T00:00+01:00"}, "years 1 to 9999"),
        ({"through": "2024-05-01"}, "expected 2024-05-02T00:00:00Z or later"),
        ({"through": "2024-05-03T00:30:00Z"}, "expected a multiple of the block span"),
        ({"through": "2030-01-01"}, "at most 2024-05-04T01:00:00Z, got 2030-01-01T00:00:00Z"),
        ({"thruogh": "2024-05-02"}, "did you mean 'through'"),
    ):
        reply = post(path, body)
        assert (reply.status, said in reply.json["detail"]) == (422, True), reply.body
    assert post(path, None, method="GET").status == 405
    Layout(job.data).ended.unlink()
    reply = post(path, FIRST_DAY)
    assert (reply.status, "start it again" in reply.json["detail"]) == (422, True), reply.body
    assert boundary(job) == before


def test_what_can_t_be_read_or_written_is_not_handed_over(job: Job, post: Post) -> None:
    manifest = next((job.data / "hot").glob("*/manifest.json"))
    whole = manifest.read_bytes()
    manifest.write_bytes(whole[:-20])
    reply = post(COMPLETE, FIRST_DAY)
    assert (reply.status, "manifest.json" in reply.json["detail"]) == (500, True), reply.body
    manifest.write_bytes(whole)
    (job.data / "batch.lock").mkdir()
    reply = post(COMPLETE, FIRST_DAY)
    assert (reply.status, "a folder to write to" in reply.json["detail"]) == (500, True), reply.body
    assert boundary(job).seal is None


# -- while a job runs ---------------------------------------------------------------------------


@pytest.mark.kafka
@pytest.mark.long
def test_a_day_is_handed_over_beside_the_job_and_what_comes_for_it_then_is_late(
    broker: Broker, make_job: MakeJob, keyed: tuple[Path, dict[str, str]]
) -> None:
    topic = Topic(broker, make_job)
    job = topic.job
    hours = [START_MS + hour * HOUR_MS for hour in range(30)]
    topic.send((f"{n}-{at_ms}", at_ms) for at_ms in hours for n in range(4))
    day_0 = {f"{n}-{at_ms}" for at_ms in hours[:24] for n in range(4)}
    process = job.run()
    topic.read(process)
    admin = {"Authorization": keyed[1]["admin"]}
    server = Server(job.data, "--workers", "1", "--tokens", str(keyed[0]))
    try:

        def sealed(_: object) -> bool:
            reply = server.ask(SEAL, body=FIRST_DAY, headers=admin)
            said = "expected a time that committed events have reached"
            assert reply.status == 200 or said in reply.json["detail"], reply.body
            return reply.status == 200

        job.until(process, sealed)
        # One that is new, one that is known, and one of the day that goes on.
        late = [("late", hours[3]), (f"1-{hours[2]}", hours[2]), ("on", hours[29])]
        topic.send(late * 2)
        topic.read(process)
        found = forebay.open(job.data).sql("select id from events_sealed")
        assert set(found["id"]) == day_0
        reply = server.ask(COMPLETE, body=FIRST_DAY, headers=admin)
        assert reply.json["nodes"][0]["batch_number"] == 1
        assert ids(forebay.open(job.data).late()) == once(["late"])
        job.kill(process)
        process = job.run()
        topic.send([("end", hours[29])])
        topic.read(process)
        reply = server.ask(COMPLETE, body=FIRST_DAY, headers=admin)
        assert reply.json["nodes"][0]["batch_number"] == 1
        left = {f"{n}-{at_ms}" for at_ms in hours[24:] for n in range(4)} | {"on", "end"}
        assert ids(forebay.open(job.data).scan()) == once(left)
        assert job.stop(process) == 0
    finally:
        server.close()
