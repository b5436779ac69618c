"""A query worker: one Store, asked one question after another over its standard streams.

What always holds: it ends with its standard input, whatever it is doing; only frames get into its
output; memory holds no more of an answer than a batch and what one frame takes.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, BinaryIO, cast

import orjson

from forebay.serve.config import Config
from forebay.serve.problems import Problem
from forebay.serve.question import OPENAPI, Question
from forebay.serve.wire import (
    CONFIG,
    CUT,
    DATA,
    DATA_BYTES,
    END,
    HEAD,
    PROBLEM,
    QUESTION,
    READY,
    SAME,
    frame,
    read_frame,
)
from forebay.storage.base.errors import BadInput, ForebayError, NodeError

if TYPE_CHECKING:
    from forebay.serve.asked import Prepared

PR_SET_PDEATHSIG = 1
log = logging.getLogger("forebay.serve.worker")


class Out:
    """The answer as a file to write to, sent in frames of limited size. Before the first is sent,
    an error can still become a problem, or another answer can be begun."""

    def __init__(self, pipe: BinaryIO) -> None:
        self._pipe = pipe
        self._head: Callable[[], bytes] = bytes
        self._held = bytearray()
        self.begun = False
        self.closed = False

    def begin(self, head: Callable[[], bytes]) -> None:
        """Begin an answer; `head` is called when the first frame is sent. Raises Problem if some of
        another answer has been sent."""
        if self.begun:
            raise Problem(
                410, "expected files that stay until they are read, got some that were deleted"
            )
        self._head = head
        self._held.clear()

    def write(self, data: bytes | bytearray | memoryview) -> int:
        size = len(memoryview(data).cast("B"))
        self._held += data
        while len(self._held) >= DATA_BYTES:
            self._send(DATA_BYTES)
        return size

    def writelines(self, lines: object) -> None:
        for line in lines:  # type: ignore[attr-defined]
            self.write(line)

    def _send(self, size: int) -> None:
        if not self.begun:
            self._pipe.write(frame(HEAD, self._head()))
            self.begun = True
        self._pipe.write(frame(DATA, bytes(self._held[:size])))
        del self._held[:size]
        self._pipe.flush()

    def end(self) -> None:
        self._send(len(self._held))
        self._pipe.write(frame(END))
        self._pipe.flush()

    def flush(self) -> None:
        """Nothing: frames are sent when they are full."""

    def close(self) -> None:
        self.closed = True


def problem_of(error: BaseException) -> Problem:
    """The problem that reports an error; a bug is called one."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, BadInput):
        return Problem(422, str(error))
    if isinstance(error, NodeError):
        return Problem(502, str(error))
    if isinstance(error, ForebayError):
        return Problem(500, str(error))
    log.error("a bug", exc_info=error)
    return Problem(500, "expected an answer, got an error: see the log")


class Worker:
    """Answers questions from `questions` into `pipe`."""

    def __init__(self, config: Config, pipe: BinaryIO) -> None:
        from forebay.serve.asked import Asked  # takes a while to load

        self._pipe = pipe
        self._asked = Asked(config)

    def answer(self, data: bytes) -> None:
        out = Out(self._pipe)
        try:
            question = Question.decode(data)
            if question.name == OPENAPI:
                from forebay.serve.openapi import document

                out.begin(lambda: b"{}")
                out.write(orjson.dumps(document(self._asked.kinds)))
                out.end()
                return
            self._asked.answer(question, partial(self._send, question, out))
        except BrokenPipeError:
            raise
        except Exception as error:  # noqa: BLE001  # the next question must be answered
            self._tell(CUT if out.begun else PROBLEM, problem_of(error).encode())

    def _send(self, question: Question, out: Out, prepared: Prepared) -> None:
        if prepared.etag is not None and prepared.etag in question.known:
            self._tell(SAME, orjson.dumps({"etag": prepared.etag}))
            return
        out.begin(prepared.head)
        prepared.write(cast(BinaryIO, out))
        out.end()

    def _tell(self, kind: bytes, payload: bytes) -> None:
        self._pipe.write(frame(kind, payload))
        self._pipe.flush()


def streams() -> tuple[BinaryIO, BinaryIO]:
    """The two pipes; from now on, other writes to standard output go to standard error. The process
    ends with the one that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # from a terminal: the front ends this process
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
    return sys.stdin.buffer, pipe


def main() -> None:
    given, pipe = streams()
    found = read_frame(given)
    if found is None or found[0] != CONFIG:
        raise SystemExit(f"expected to be started by forebay serve, got {found!r}")
    try:
        worker = Worker(Config.decode(found[1]), pipe)
    except ForebayError as error:
        pipe.write(frame(PROBLEM, problem_of(error).encode()))
        pipe.flush()
        return
    questions: SimpleQueue[bytes] = SimpleQueue()

    def listen() -> None:
        while (found := read_frame(given)) is not None:
            if found[0] == QUESTION:
                questions.put(found[1])
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    pipe.write(frame(READY))
    pipe.flush()
    while True:
        worker.answer(questions.get())


if __name__ == "__main__":
    main()
