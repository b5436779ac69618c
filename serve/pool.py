"""Query workers: several at once, one more in reserve, and a queue for them.

What always holds:

- A worker has one question at a time. If it is killed, or ends, only that question fails, and
  another worker takes its place.
- At most `workers` questions are worked on. `waiting` more wait, in order, for a bounded time; any
  more are refused at once. Questions asked beside these use the one in reserve.
- The memory of workers is checked while they work; one that exceeds its limit is killed, and one
  that holds half of it after an answer is replaced, so that the next question need not pay.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress

from forebay.serve.config import Config
from forebay.serve.metrics import Metrics
from forebay.serve.problems import Problem
from forebay.serve.process import Ended, Process
from forebay.serve.wire import CUT, END, PROBLEM, QUESTION, SAME, Frame, frame

MODULE = "forebay.serve.worker"
LOOK_S = 0.05
RETRY_S = 1.0
LEFT_S = 0.2
"""An abandoned question that ends within this time costs no worker."""
LAST = (END, CUT, SAME, PROBLEM)
"""Frames that end an answer."""
log = logging.getLogger("forebay.serve")


class Worker:
    """A query worker, `asked` while it has a question."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.asked = False

    def ask(self, question: bytes) -> None:
        self.asked = True
        self.process.write(frame(QUESTION, question))

    async def next(self) -> Frame:
        """The next frame of the answer. Raises Ended."""
        found = await self.process.read()
        self.asked = found[0] not in LAST
        return found

    async def drain(self) -> None:
        while self.asked:
            await self.next()


class Pool:
    """The workers of one server. Use it in `async with`."""

    def __init__(self, config: Config, metrics: Metrics) -> None:
        self._config = config
        self._metrics = metrics
        self._slots = asyncio.Semaphore(config.workers)
        self._idle: asyncio.LifoQueue[Worker] = asyncio.LifoQueue()
        self._all: set[Worker] = set()
        self._waiting = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Pool:
        """Start the first worker. Raises Problem if no data can be read at all."""
        try:
            first = Worker(await Process.start(MODULE, self._config))
        except Ended as error:
            raise Problem(500, "worker: expected it to start, got its end") from error
        self._later(self._keep(first))
        for _ in range(self._config.workers):
            self._later(self._keep(None))
        self._later(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        ending = [worker.process.end("stop") for worker in self._all]
        await asyncio.gather(*ending, *self._tasks, return_exceptions=True)

    @property
    def ready(self) -> bool:
        """Whether any worker could be asked, even if only after its present question."""
        return bool(self._all)

    @property
    def free(self) -> bool:
        """Whether a question would be worked on at once."""
        return not self._slots.locked()

    @asynccontextmanager
    async def lent(self, *, beside: bool = False) -> AsyncIterator[Worker]:
        """A worker for one question; with `beside`, it does not count as one of those at once.
        Raises Problem if there are too many questions.

        If it has not been answered in full when the context is left, the rest is abandoned."""
        slots = asyncio.Semaphore() if beside else self._slots
        worker = await self._taken(slots)
        self._metrics.busy.inc()
        try:
            yield worker
        finally:
            self._metrics.busy.dec()
            self._later(self._back(worker, slots))

    async def _taken(self, slots: asyncio.Semaphore) -> Worker:
        if slots.locked() and self._waiting >= self._config.waiting:
            at_once, waiting = self._config.workers, self._config.waiting
            raise _busy(f"at most {at_once} questions at once and {waiting} that wait, got more")
        self._waiting += 1
        self._metrics.waiting.set(self._waiting)
        try:
            async with asyncio.timeout(self._config.waiting_seconds):
                await slots.acquire()
                try:
                    while (worker := await self._idle.get()).process.ended:
                        pass
                    return worker
                except BaseException:
                    slots.release()
                    raise
        except TimeoutError as error:
            seconds = self._config.waiting_seconds
            raise _busy(f"a worker that is free within {seconds:g} s, got none") from error
        finally:
            self._waiting -= 1
            self._metrics.waiting.set(self._waiting)

    async def _back(self, worker: Worker, slots: asyncio.Semaphore) -> None:
        """Take a worker back, unless it is killed."""
        try:
            if worker.asked and worker.process.killed is None:
                with suppress(TimeoutError):
                    async with asyncio.timeout(LEFT_S):
                        await worker.drain()
            if worker.asked:
                worker.process.kill("left")
            elif worker.process.memory_bytes > self._config.memory_bytes / 2:
                worker.process.kill("large")
            else:
                self._idle.put_nowait(worker)
        except Ended:
            worker.process.kill("ended")
        finally:
            slots.release()

    async def _keep(self, worker: Worker | None) -> None:
        """Keep a worker running: start another when it has ended."""
        while True:
            if worker is None:
                worker = await self._started()
            self._all.add(worker)
            self._count()
            self._idle.put_nowait(worker)
            await worker.process.wait()
            self._all.discard(worker)
            self._count()
            reason = worker.process.killed or "ended"
            self._metrics.kills.labels(reason).inc()
            log.info("worker %s is replaced: %s", worker.process.pid, reason)
            worker = None

    async def _started(self) -> Worker:
        while True:
            try:
                return Worker(await Process.start(MODULE, self._config))
            except (Ended, Problem, OSError) as error:
                log.error("a worker could not start: %s", error)
            await asyncio.sleep(RETRY_S)

    def _count(self) -> None:
        self._metrics.workers.set(len(self._all))

    async def _watch(self) -> None:
        """Kill workers that hold too much memory."""
        while True:
            await asyncio.sleep(LOOK_S)
            for worker in self._all:
                if worker.asked and worker.process.memory_bytes > self._config.memory_bytes:
                    worker.process.kill("memory")

    def _later(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _busy(expected: str) -> Problem:
    return Problem(429, f"expected {expected}: ask again", {"Retry-After": "1"})
