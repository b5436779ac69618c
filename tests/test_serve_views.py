"""`forebay serve`: an answer is of one view, which its tag names, and made once for all who ask."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, BinaryIO, cast

import orjson
import pytest

from forebay.query import store as store_module
from forebay.query.view import View, take_view
from forebay.serve import sharing
from forebay.serve.amplitude.endpoints import ENDPOINTS
from forebay.serve.asked import Asked, Prepared
from forebay.serve.config import Config
from forebay.serve.metrics import Metrics
from forebay.serve.pool import Pool
from forebay.serve.question import BUNDLE, Question
from forebay.serve.routes import ORDERED
from forebay.serve.sharing import Answers
from forebay.serve.wire import CUT, DATA, END, HEAD, PROBLEM, Frame, read_frame
from forebay.serve.worker import Worker
from forebay.storage.base.errors import MissingFile
from forebay.storage.base.times import now_ms
from tests.amplitude import event, frame_of, messages_of, taken
from tests.partition import Partition
from tests.serving import LONG, Reply, Server

EVENTS = [event(f"u{n % 3}", "buy" if n % 2 else "see", f"2026-03-0{n % 5 + 1}") for n in range(9)]
COUNT = "select count(*) as n from events"
BUY = orjson.dumps({"event_type": "buy"}).decode()
DAYS = {"start": ["20260301"], "end": ["20260305"]}
GIVEN: dict[str, dict[str, list[str]]] = {
    "sql": {"text": [COUNT]},
    "segmentation": {"events": ["buy", "see"]},
    "formula": {"events": ["buy", "see"], "text": ["TOTALS(A) / TOTALS(B)"]},
    "funnel": {"steps": ["see", "buy"]},
    "retention": {"start": ["see"]},
    "paths": {"start": ["see"]},
    "why": {"key": ['{"device_id": "d1", "insert_id": "1"}']},
    "amplitude segmentation": {**DAYS, "e": [BUY], "e2": ['{"event_type": "see"}']},
    "amplitude funnels": {**DAYS, "e": [BUY, '{"event_type": "see"}']},
    "amplitude retention": {**DAYS, "se": [BUY], "re": [BUY]},
    "amplitude composition": {**DAYS, "p": ["version"]},
    "amplitude user activity": {"user": ["1"]},
    "amplitude user search": {"user": ["u1"]},
    "amplitude export": {"start": ["20260301T00"], "end": ["20260305T23"]},
    **{f"amplitude {name}": DAYS for name in ("users", "session lengths", "session average")},
    "amplitude sessions per user": DAYS,
}
PATH = {"timeline": {"user": "u1"}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Partition]:
    partition = taken(tmp_path_factory.mktemp("served") / "data", messages_of(EVENTS))
    yield partition
    partition.crash()


@pytest.fixture(scope="module")
def asked(data: Partition) -> Asked:
    return Asked(Config((data.root,)))


class Views:
    """What takes views, counted; `then` is called when one has been taken."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.taken: list[View] = []
        self.then: Callable[[], object] = lambda: None
        monkeypatch.setattr(store_module, "take_view", self._take)

    def _take(self, *arguments: Any, **named: Any) -> View:
        self.taken.append(take_view(*arguments, **named))
        self.then()
        return self.taken[-1]


@pytest.fixture
def views(monkeypatch: pytest.MonkeyPatch) -> Views:
    return Views(monkeypatch)


def question(name: str) -> Question:
    kind = BUNDLE if name == "files" else "json"
    return Question(name, kind, GIVEN.get(name, {}), path=PATH.get(name, {}))


def answered(asked: Asked, name: str) -> tuple[str | None, bytes]:
    """The tag of an answer, and the answer."""
    found: list[tuple[str | None, bytes]] = []

    def send(prepared: Prepared) -> None:
        out = io.BytesIO()
        prepared.write(out)
        found.append((prepared.etag, out.getvalue()))

    asked.answer(question(name), send)
    return found[-1]


def more(data: Partition) -> None:
    """Take in and publish an event of one more user."""
    users = data.manifest().counters.accepted + 1 - len(EVENTS)
    new = [event(f"u{10 + n}", "buy", "2026-03-04 12:00") for n in range(users)]
    data.take(frame_of(messages_of([*EVENTS, *new])))
    data.blocks.publish()


def test_each_answer_takes_one_view(asked: Asked, views: Views) -> None:
    counts = {}
    for name in (*(asked.kinds.keys() - ORDERED.keys()), *ENDPOINTS):
        before = len(views.taken)
        answered(asked, name)
        counts[name] = len(views.taken) - before
    assert counts == dict.fromkeys(counts, 1)


@pytest.mark.parametrize("name", ["sql", "partitions", "segmentation", "amplitude segmentation"])
def test_an_answer_is_of_the_view_that_its_tag_names(
    asked: Asked, data: Partition, views: Views, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = now_ms()  # the tag of an answer without a period changes with the minute
    monkeypatch.setattr("forebay.serve.asked.now_ms", lambda: now)
    before = answered(asked, name)
    views.then = lambda: more(data)
    # The event is there when the answer is read, but was not when the view was taken.
    assert answered(asked, name) == before
    changed = answered(asked, name)
    assert changed[0] != before[0]
    assert changed[1] != before[1]


def test_an_answer_whose_files_go_is_made_again_of_a_new_view(
    asked: Asked, data: Partition, views: Views
) -> None:
    tags = []

    def send(prepared: Prepared) -> None:
        tags.append(prepared.etag)
        if len(tags) == 1:
            more(data)
            raise MissingFile("a chunk")

    asked.answer(question("sql"), send)
    assert len(views.taken) == len(set(tags)) == 2
    assert tags[-1] == answered(asked, "sql")[0]


def test_what_was_sent_in_part_is_cut_off_when_files_of_it_go(
    data: Partition, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = io.BytesIO()
    worker = Worker(Config((data.root,)), cast(BinaryIO, pipe))
    sent = [200_000, 10]

    def write(self: object, *arguments: Any) -> None:
        arguments[-1].write(b"x" * sent[0])
        raise MissingFile("a chunk")

    monkeypatch.setattr(Asked, "_write", write)
    for expected in ([HEAD, DATA, DATA, DATA, CUT], [PROBLEM]):
        pipe.seek(pipe.truncate(0))
        worker.answer(question("sql").encode())
        pipe.seek(0)
        kinds = [kind for kind, _ in frames(pipe)]
        assert (kinds, END in kinds) == (expected, False)
        sent.pop(0)


def frames(pipe: BinaryIO) -> Iterator[Frame]:
    while (found := read_frame(pipe)) is not None:
        yield found


def test_one_answer_is_made_for_all_who_ask_the_same_whatever_they_had(data: Partition) -> None:
    server, count = Server(data.root, "--workers", "1"), 20
    try:
        tag = server.sql(COUNT).headers["etag"]
        replies: list[Reply] = []

        def ask(known: str) -> None:
            replies.append(server.sql(f"{COUNT} where true", **{"If-None-Match": known}))

        before = server.metric("forebay_serve_asked_total")
        shared = server.metric("forebay_serve_shared_total")
        asking = [threading.Thread(target=ask, args=(f'W/"{n}", {tag}',)) for n in range(count)]
        with server.asked("/v1/sql", {"text": LONG}):
            server.until("forebay_serve_busy", 1)
            for one in asking:
                one.start()
            server.until("forebay_serve_shared_total", shared + count - 1)
        for one in asking:
            one.join()
        assert server.metric("forebay_serve_asked_total") == before + 2  # the long one is another
        assert {(one.status, one.body) for one in replies} == {(200, replies[0].body)}
        assert len({one.headers["etag"] for one in replies} | {tag}) == 2
    finally:
        server.close()


@pytest.mark.executed
def test_what_is_asked_again_is_made_anew_before_its_second_is_over(
    data: Partition, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a worker that is free, so that nobody waits; what has not changed is not sent again."""
    for name, value in (("SHARED_S", 1000.0), ("RENEWED_S", 0.0), ("PAUSE", 0.0)):
        monkeypatch.setattr(sharing, name, value)
    config, metrics = Config((data.root,), workers=1), Metrics()

    async def run() -> None:
        async with Pool(config, metrics) as pool:
            answers = Answers(pool, config, metrics)

            async def ask() -> bytes | None:
                """What there is; what that begins is over then."""
                found = await answers.ask(question("sql"))
                while (made := set(answers._renewing)) or not pool.free:
                    await asyncio.gather(*made)
                    await asyncio.sleep(0)
                return found.whole

            first = await ask()
            assert await ask() == first
            more(data)
            assert await ask() == first
            assert await ask() != first

    asyncio.run(run())
    text = metrics.text().decode()
    assert "forebay_serve_asked_total 4.0" in text
    assert "forebay_serve_shared_total 3.0" in text


def test_who_has_an_answer_makes_nobody_else_do_without(data: Partition) -> None:
    server = Server(data.root, "--workers", "1")
    try:
        first = server.sql(COUNT)
        had = {"If-None-Match": first.headers["etag"]}
        for _ in range(3):
            for headers, status, body in ((had, 304, b""), ({}, 200, first.body)):
                reply = server.sql(COUNT, **headers)
                assert (reply.status, reply.body) == (status, body)
    finally:
        server.close()


def told(data: Partition, story: Callable[[Answers, Pool], Awaitable[None]]) -> None:
    """Let a story go on, with the answers of one worker."""
    config, metrics = Config((data.root,), workers=1), Metrics()

    async def run() -> None:
        async with Pool(config, metrics) as pool:
            await story(Answers(pool, config, metrics), pool)

    asyncio.run(run())


@pytest.fixture
def followed(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Each answer is old at once, took long, and is followed for ever."""
    for name, value in (("SHARED_S", -1.0), ("QUICK_S", 0.0), ("RENEWED_S", 0.0),
                        ("FOLLOWED_S", 1000.0), ("PAUSE", 0.0)):  # fmt: skip
        monkeypatch.setattr(sharing, name, value)
    return monkeypatch


@pytest.mark.executed
def test_a_followed_answer_is_given_at_once_while_a_new_one_is_made(
    data: Partition, followed: pytest.MonkeyPatch
) -> None:
    """If that takes long, or no worker is free; who wants a new one, or asks seldom, waits."""

    async def story(answers: Answers, pool: Pool) -> None:
        first = (await answers.ask(question("sql"))).whole
        more(data)
        async with pool.lent():  # no worker is free
            assert (await answers.ask(question("sql"))).whole == first
            assert not answers._renewing
        while not pool.free:
            await asyncio.sleep(0)
        given = await answers.ask(question("sql"))
        assert given.whole == first
        assert given.age_s > 0
        await asyncio.gather(*answers._renewing)
        second = (await answers.ask(question("sql"))).whole
        assert second != first
        await asyncio.gather(*answers._renewing)
        more(data)
        third = (await answers.ask(question("sql"), anew=True)).whole
        assert third not in (first, second)
        more(data)
        followed.setattr(sharing, "QUICK_S", 1000.0)
        fourth = (await answers.ask(question("sql"))).whole
        assert fourth not in (first, second, third)
        more(data)
        async with pool.lent():
            assert (await answers.ask(question("sql"))).whole == fourth
        followed.setattr(sharing, "QUICK_S", 0.0)
        followed.setattr(sharing, "FOLLOWED_S", -1.0)
        assert (await answers.ask(question("sql"))).whole not in (first, second, third, fourth)

    told(data, story)


@pytest.mark.executed
def test_nobody_waits_for_a_renewal_that_turns_out_to_take_long(
    data: Partition, followed: pytest.MonkeyPatch
) -> None:

    async def story(answers: Answers, pool: Pool) -> None:
        first = (await answers.ask(question("sql"))).whole
        more(data)
        [kept] = answers._shared.values()
        kept.took_s = 0.0  # so that it is expected to be quick
        followed.setattr(sharing, "QUICK_S", 0.05)
        [worker] = {one for one in pool._all if not one.asked}
        os.kill(worker.process.pid, signal.SIGSTOP)
        try:
            for _ in range(2):
                assert (await answers.ask(question("sql"))).whole == first
            assert len(answers._renewing) == 1
        finally:
            os.kill(worker.process.pid, signal.SIGCONT)
        await asyncio.gather(*answers._renewing)
        assert (await answers.ask(question("sql"))).whole != first

    told(data, story)


@pytest.mark.executed
def test_what_takes_long_is_renewed_the_more_seldom(
    data: Partition, followed: pytest.MonkeyPatch
) -> None:
    """So that those who follow it leave the machine to others."""

    async def story(answers: Answers, pool: Pool) -> None:
        assert pool.free
        first = (await answers.ask(question("sql"))).whole
        more(data)
        followed.setattr(sharing, "PAUSE", 1e6)
        for _ in range(2):
            assert (await answers.ask(question("sql"))).whole == first
            assert not answers._renewing
        followed.setattr(sharing, "PAUSE", 1e-6)
        assert (await answers.ask(question("sql"))).whole == first
        await asyncio.gather(*answers._renewing)
        assert (await answers.ask(question("sql"))).whole != first

    told(data, story)


@pytest.mark.executed
def test_an_answer_of_a_question_that_fails_is_renewed_until_it_is_too_old(
    data: Partition, followed: pytest.MonkeyPatch
) -> None:

    async def story(answers: Answers, pool: Pool) -> None:
        first = (await answers.ask(question("sql"))).whole
        for _ in range(2):
            assert (await answers.ask(question("sql"))).whole == first
            while not (busy := [one for one in pool._all if one.asked]):
                await asyncio.sleep(0)
            busy[0].process.kill("test")
            await asyncio.gather(*answers._renewing)
        followed.setattr(sharing, "KEPT_S", 0.0)
        more(data)
        assert (await answers.ask(question("sql"))).whole != first

    told(data, story)


def test_a_client_may_want_an_answer_that_is_made_now(data: Partition) -> None:
    server = Server(data.root, "--workers", "1")
    try:
        for _ in range(3):
            server.sql(COUNT, **{"Cache-Control": "max-age=0"})
            server.sql(COUNT, **{"Cache-Control": "Max-Stale=3, no-cache"})
        assert server.metric("forebay_serve_asked_total") == 6
    finally:
        server.close()
