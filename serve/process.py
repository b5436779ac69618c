"""A child process of the front, with pipes to and from it.

What always holds: it ends when the front does, as its pipe ends then; whoever waits for a frame
learns that it has ended, and why it was killed if it was.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from forebay.serve.config import Config
from forebay.serve.problems import Problem
from forebay.serve.wire import CONFIG, PROBLEM, READY, Frame, frame, next_frame

PIPE_BYTES = 128 << 10
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Ended(Exception):
    """The process has ended; `reason` is why we killed it, None if we did not."""

    def __init__(self, reason: str | None) -> None:
        super().__init__(reason)
        self.reason = reason


class Process:
    """`python -m MODULE`; frames are read from it and written to it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.killed: str | None = None

    @classmethod
    async def start(cls, module: str, config: Config) -> Process:
        """Start one. Raises Ended if it ends before it is ready, Problem if it reports one."""
        made = cls(
            await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                module,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=PIPE_BYTES,
                # Don't import modules from the current folder, whatever is there.
                env={**os.environ, "PYTHONSAFEPATH": "1"},
            )
        )
        try:
            made.write(frame(CONFIG, config.encode()))
            kind, payload = await made.read()
            if kind != READY:
                raise Problem.decode(payload) if kind == PROBLEM else Ended(None)
        except BaseException:
            await made.end("start")
            raise
        return made

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def ended(self) -> bool:
        return self.killed is not None or self._process.returncode is not None

    def write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        if not self._process.stdin.is_closing():
            self._process.stdin.write(data)

    async def read(self) -> Frame:
        """The next frame. Raises Ended."""
        assert self._process.stdout is not None
        try:
            return await next_frame(self._process.stdout)
        except (asyncio.IncompleteReadError, OSError) as error:
            raise Ended(self.killed) from error

    def kill(self, reason: str) -> None:
        """End it at once, by SIGKILL; the first reason is kept."""
        if self.killed is None and self._process.returncode is None:
            self.killed = reason
            self._process.kill()

    async def end(self, reason: str) -> None:
        """Kill it, and wait until it has ended."""
        self.kill(reason)
        await self.wait()

    async def wait(self) -> None:
        await self._process.wait()

    @property
    def memory_bytes(self) -> int:
        """Its private memory; file pages, which the system can reclaim, don't count."""
        try:
            sizes = Path(f"/proc/{self.pid}/statm").read_text().split()
        except (OSError, ValueError):  # it has ended
            return 0
        return (int(sizes[1]) - int(sizes[2])) * PAGE_BYTES if len(sizes) > 2 else 0
