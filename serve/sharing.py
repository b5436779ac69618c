"""Answers, shared by all who ask the same within a second, or while it is being answered, or while
it is followed.

What always holds:

- A small answer is held whole before any of it is sent: so no slow client occupies a worker, and an
  error in it is a problem. A larger one goes to one client as it is made, no faster than that
  client reads; others who asked the same get a worker each.
- A question that nobody waits for any more is ended, and so is one that exceeds its time.
- An answer that is asked for again and again, as by dashboards, is followed: it is renewed beside
  who asks, and nobody waits for that longer than QUICK_S: then the newest there is is given, with
  its age, which is KEPT_S at most. What takes long to renew leaves a worker to other questions.
- An answer that ends early is never mistaken for a whole one: its stream raises Cut.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace

import orjson

from forebay.serve.config import Config
from forebay.serve.metrics import Metrics
from forebay.serve.pool import Pool, Worker
from forebay.serve.problems import Problem
from forebay.serve.process import Ended
from forebay.serve.question import Question
from forebay.serve.routes import BESIDE, FRESH
from forebay.serve.wire import CUT, DATA, END, HEAD, PROBLEM, SAME, Frame

SMALL_BYTES = 1 << 20
SHARED_S = 1.0
RENEWED_S, PAUSE = 0.7, 4.0
"""The age at which a shared answer is renewed for later clients; if it took long, so many times as
long, so that whoever follows it takes a quarter of a worker at most."""
FOLLOWED_S, KEPT_S = 2.0, 60.0
"""An answer is followed while so much time at most passes between two who ask for it; and how old a
followed one may get."""
QUICK_S = 0.2
"""Whoever asks for a followed answer that took no longer waits so long for a new one."""
SHARED_MAX = 64
"""Maximum number of answers that are kept, besides those being sent."""
OF_THE_QUESTION = (406, 422)
"""Problems that would be the same if asked again."""
AHEAD = 4
"""Frames of a large answer that are read ahead of the client."""
log = logging.getLogger("forebay.serve")


class Cut(Exception):
    """An answer ended before it was whole."""


@dataclass(frozen=True)
class Reply:
    """The head of an answer, with the nodes that are `missing`, its age, and its content: nothing
    if the client has it already (`same`), `whole`, or a stream that must be read to its end."""

    etag: str | None
    missing: tuple[str, ...] = ()
    same: bool = False
    whole: bytes | None = None
    stream: Stream | None = None
    age_s: float = 0.0


class _Running:
    """One question in progress; `settled` once it is known how it is answered, `took_s` after it
    began. `asked_s` is when somebody last asked for it, or was answered."""

    def __init__(self, question: Question) -> None:
        self.question = question
        self.began_s = self.asked_s = asyncio.get_running_loop().time()
        self.took_s = 0.0
        self.renewal: asyncio.Task[None] | None = None
        self.watchers = 0
        self.settled = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self.head: bytes | None = None
        self.same = False
        self.parts = bytearray()
        self.problem: Problem | None = None
        self.large: asyncio.Queue[Frame] | None = None
        self.claimed = False

    def is_current(self, now_s: float) -> bool:
        """Whether it is no older than a shared answer may be."""
        return not self.settled.is_set() or now_s - self.began_s <= SHARED_S

    def is_followed(self, now_s: float) -> bool:
        followed = now_s - self.asked_s <= FOLLOWED_S and now_s - self.began_s <= KEPT_S
        return followed and self.problem is None

    def end(self) -> None:
        """Settle it, if it is not."""
        if not self.settled.is_set():
            self.took_s = asyncio.get_running_loop().time() - self.began_s
            self.settled.set()

    def serves(self, question: Question) -> bool:
        """Whether its answer also answers that question: not if it failed for a passing reason, and
        not if it says "same" of an answer that this client does not have."""
        if self.problem is not None and self.problem.status not in OF_THE_QUESTION:
            return False
        if self.same and _head(self)[0] not in question.known:
            return False
        return self.large is None


class Stream:
    """The parts of an answer as they are made. Raises Cut if it ends before it is whole. Must be
    closed, to free its worker."""

    def __init__(self, parts: asyncio.Queue[Frame], leave: Callable[[], None]) -> None:
        self._parts = parts
        self._leave: Callable[[], None] | None = leave

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        kind, payload = await self._parts.get()
        if kind == END:
            raise StopAsyncIteration
        if kind == CUT:
            raise Cut(payload.decode())
        return payload

    async def aclose(self) -> None:
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()


class Answers:
    """The answers of one server."""

    def __init__(self, pool: Pool, config: Config, metrics: Metrics) -> None:
        self._pool = pool
        self._config = config
        self._metrics = metrics
        self._shared: dict[bytes, _Running] = {}
        self._renewing: set[asyncio.Task[None]] = set()
        self._slow = 0
        """How many renewals are in progress that take long."""

    async def ask(self, question: Question, *, anew: bool = False) -> Reply:
        """The answer; with `anew`, one that is begun now. The caller must close a stream. Raises
        Problem."""
        if question.name in FRESH:
            reply = await self._reply(self._started(question), question)
            if question.name in BESIDE:  # earlier answers are out of date from now on
                self._shared.clear()
            return reply
        key, now_s = question.key, asyncio.get_running_loop().time()
        running = None if anew else self._shared.get(key)
        if running is not None and running.serves(question):
            current = running.is_current(now_s)
            if current or running.is_followed(now_s):
                running.asked_s = now_s
                self._metrics.shared.inc()
                self._renew(key, running)
                if not current and running.renewal is not None and running.took_s <= QUICK_S:
                    await asyncio.wait([running.renewal], timeout=QUICK_S)
                    running = self._newest(key, running, question)
                return await self._reply(running, question)
        running = self._started(question)
        self._share(key, running)
        return await self._reply(running, question)

    def _newest(self, key: bytes, running: _Running, question: Question) -> _Running:
        """What there is by now in place of an answer."""
        newer = self._shared.get(key, running)
        return newer if newer.settled.is_set() and newer.serves(question) else running

    async def _reply(self, running: _Running, question: Question) -> Reply:
        """The reply, once it is known."""
        running.watchers += 1
        try:
            await running.settled.wait()
        except BaseException:
            self._leave(running)
            raise
        if running.large is not None and not running.claimed:
            running.claimed = True
            return Reply(*_head(running), stream=self._stream(running))
        self._leave(running)
        if running.large is not None:
            return await self._reply(self._started(question), question)
        if running.problem is not None:
            raise running.problem
        etag, missing = _head(running)
        running.asked_s = asyncio.get_running_loop().time()
        age_s = running.asked_s - running.began_s
        if etag is not None and etag in question.known:
            return Reply(etag, same=True, age_s=age_s)
        if running.same:  # another client had it, this one does not
            return await self.ask(replace(question, known=()))
        return Reply(etag, missing, whole=bytes(running.parts), age_s=age_s)

    def _started(self, question: Question) -> _Running:
        self._metrics.asked.inc()
        running = _Running(question)
        running.task = asyncio.create_task(self._run(running))
        return running

    def _renew(self, key: bytes, running: _Running) -> None:
        """Renew the answer in time, if there is a worker for it. One of several is left to what
        does not take long."""
        loop, slow = asyncio.get_running_loop(), running.took_s > QUICK_S
        until_s = running.began_s + max(RENEWED_S, PAUSE * running.took_s)
        old = running.settled.is_set() and loop.time() >= until_s
        free = self._pool.free and not (slow and self._slow >= max(1, self._config.workers - 1))
        if old and free and running.renewal is None and running.problem is None:
            running.renewal = asyncio.create_task(self._made_anew(key, running, slow))
            self._slow += slow
            self._renewing.add(running.renewal)
            running.renewal.add_done_callback(self._renewing.discard)

    async def _made_anew(self, key: bytes, old: _Running, slow: bool) -> None:
        etag, _ = _head(old)
        made = self._started(replace(old.question, known=() if etag is None else (etag,)))
        made.watchers += 1
        try:
            await made.settled.wait()
            if made.same and not old.same:  # nothing has changed
                made.head, made.parts, made.same = old.head, old.parts, False
            wanted = self._shared.get(key) is old
            if wanted and made.problem is None and made.large is None:
                made.asked_s = old.asked_s
                self._share(key, made)
        finally:
            old.renewal = None
            self._slow -= slow
            self._leave(made)

    def _share(self, key: bytes, running: _Running) -> None:
        """Share the answer until it is a second old, and while it is followed."""
        self._shared[key] = running
        assert running.task is not None
        loop = asyncio.get_running_loop()
        end_s = running.began_s + SHARED_S
        running.task.add_done_callback(
            lambda _: loop.call_later(max(0.0, end_s - loop.time()), forget)
        )

        def forget() -> None:
            if self._shared.get(key) is not running:
                return
            if running.is_current(loop.time()) or running.is_followed(loop.time()):
                loop.call_later(FOLLOWED_S, forget)
            else:
                del self._shared[key]

        if len(self._shared) > SHARED_MAX:
            settled = [one for one, held in self._shared.items() if held.settled.is_set()]
            for one in settled[: len(self._shared) - SHARED_MAX]:
                del self._shared[one]

    def _leave(self, running: _Running) -> None:
        running.watchers -= 1
        if not running.watchers and running.task is not None and not running.task.done():
            running.task.cancel()
            for key, one in list(self._shared.items()):
                if one is running:
                    del self._shared[key]

    def _stream(self, running: _Running) -> Stream:
        assert running.large is not None
        return Stream(running.large, lambda: self._leave(running))

    async def _run(self, running: _Running) -> None:
        """Ask a worker, and receive its answer."""
        try:
            async with self._pool.lent(beside=running.question.name in BESIDE) as worker:
                try:
                    async with asyncio.timeout(self._config.seconds):
                        await self._take_in(running, worker)
                except TimeoutError:
                    worker.process.kill("deadline")
                    self._fail(running, self._problem_of("deadline"))
                except Ended as error:
                    self._fail(running, self._problem_of(error.reason))
        except Problem as problem:
            self._fail(running, problem)
        except Exception:  # those who wait must learn of it
            log.exception("a bug")
            self._fail(running, Problem(500, "expected an answer, got an error: see the log"))
        finally:
            running.end()

    async def _take_in(self, running: _Running, worker: Worker) -> None:
        worker.ask(running.question.encode())
        while True:
            kind, payload = await worker.next()
            if kind == PROBLEM:
                raise Problem.decode(payload)
            if kind in (HEAD, SAME):
                running.head, running.same = payload, kind == SAME
            elif kind == CUT and running.large is None:
                raise Problem.decode(payload)
            elif running.large is not None:
                await running.large.put((kind, payload))
            elif kind == DATA:
                running.parts += payload
                if len(running.parts) > SMALL_BYTES:
                    running.large = asyncio.Queue(AHEAD)
                    await running.large.put((DATA, bytes(running.parts)))
                    running.parts.clear()
                    running.end()
            if not worker.asked:
                return

    def _fail(self, running: _Running, problem: Problem) -> None:
        """Report a problem; a stream ends with it, in place of what was not taken yet."""
        if running.large is None:
            running.problem = problem
            return
        while running.large.full():
            running.large.get_nowait()
        running.large.put_nowait((CUT, problem.detail.encode()))

    def _problem_of(self, reason: str | None) -> Problem:
        if reason == "deadline":
            return Problem(504, f"expected an answer within {self._config.seconds:g} s, got none")
        if reason == "memory":
            mib = self._config.memory_bytes >> 20
            return Problem(
                507,
                f"expected an answer that takes at most {mib} MiB of memory, got one that takes"
                " more: aggregate or filter",
            )
        return Problem(502, "expected an answer, got the end of the process that made it")


def _head(running: _Running) -> tuple[str | None, tuple[str, ...]]:
    """The tag of the answer, and the nodes missing in it."""
    head = {} if running.head is None else orjson.loads(running.head)
    return head.get("etag"), tuple(head.get("missing", ()))
