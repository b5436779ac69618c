"""The cluster: N one-worker processes that run the dataflow as one, and their supervisor.

What always holds:

- The recovery store is there, whole, before a worker starts.
- When one worker dies, all are ended (SIGKILL: their state is safe) and all start again, after a
  back-off; never fewer than N go on.
- A stop (SIGTERM or SIGINT) is forwarded; each worker then closes its last epoch with a snapshot.
- An error that a restart would meet again ends the job.
"""

from __future__ import annotations

import logging
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from bytewax.recovery import init_db_dir

from flows.worker import PERMANENT
from storage.files import Files
from storage.layout import Layout

RECOVERY_PARTITIONS = 4
STOP_S = 60.0
BACKOFF_S, BACKOFF_S_MAX, HEALTHY_S = 1.0, 30.0, 60.0
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(64 << 20), "MALLOC_TRIM_THRESHOLD_": str(128 << 20)}
"""glibc: keep the buffers of a batch instead of asking the kernel for fresh pages each time."""

log = logging.getLogger("forebay.cluster")


@dataclass(frozen=True)
class _Ended:
    """A worker process ended; `run` tells an old run's workers from this one's."""

    run: int
    code: int


class Cluster:
    """Runs and supervises the workers. `run` is used from the main thread."""

    def __init__(
        self,
        data_dir: Path,
        workers: int,
        *,
        module: str = "flows.worker",
        environment: Mapping[str, str] = os.environ,
        output: BinaryIO | None = None,
    ) -> None:
        """Workers run `module` in `environment`; what they print goes to `output`, by default to
        where this process prints."""
        self._data_dir = data_dir
        self._workers = workers
        self._module = module
        self._environment = {**ALLOCATOR, **environment}
        self._output = output
        self._events: queue.SimpleQueue[_Ended | None] = queue.SimpleQueue()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._run = 0

    def run(self) -> int:
        """Exit code of the job: 0 when the input has ended or a stop was asked for."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._events.put(None))
        backoff_s = BACKOFF_S
        while True:
            started_s = time.monotonic()
            code = self.once()
            if code in (0, PERMANENT):
                return code
            if time.monotonic() - started_s > HEALTHY_S:
                backoff_s = BACKOFF_S
            log.error("a worker ended with %d; all start again in %.0f s", code, backoff_s)
            if self._stop_within(backoff_s):
                return 0
            backoff_s = min(2 * backoff_s, BACKOFF_S_MAX)

    def once(self) -> int:
        """One run of all workers: 0 if all ended well, else the first bad exit code."""
        init_recovery(Layout(self._data_dir).recovery)
        self._start()
        left = self._workers
        deadline: float | None = None
        try:
            while left:
                event = self._next(deadline)
                if event is None:
                    if deadline is not None:
                        log.warning("workers did not stop in time; killing them")
                        return 0
                    log.info("stopping %d workers", left)
                    deadline = time.monotonic() + STOP_S
                    for process in self._processes:
                        process.send_signal(signal.SIGTERM)
                elif event.run == self._run:
                    left -= 1
                    if event.code:
                        return 0 if deadline is not None else event.code
            return 0
        finally:
            self._end()

    def _next(self, deadline: float | None) -> _Ended | None:
        """The next worker that ended; None for a stop, or for the deadline."""
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            return self._events.get(timeout=timeout)
        except queue.Empty:
            return None

    def _stop_within(self, seconds: float) -> bool:
        """Whether a stop is asked for before so long has passed."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            try:
                if self._events.get(timeout=left) is None:
                    return True
            except queue.Empty:
                break
        return False

    def _start(self) -> None:
        self._run += 1
        addresses = _free_addresses(self._workers)
        self._processes = []
        for number in range(self._workers):
            process = subprocess.Popen(
                [sys.executable, "-m", self._module, str(number), *addresses],
                stdin=subprocess.PIPE,
                stdout=self._output,
                stderr=self._output,
                env=self._environment,
            )
            self._processes.append(process)
            threading.Thread(target=self._watch, args=(self._run, process), daemon=True).start()
        log.info("started %d workers on %s", self._workers, self._data_dir)

    def _watch(self, run: int, process: subprocess.Popen[bytes]) -> None:
        self._events.put(_Ended(run, process.wait()))

    def _end(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
            if process.stdin:
                process.stdin.close()


def init_recovery(path: Path) -> None:
    """Make the engine's recovery store at `path` if there is none: all of it or nothing."""
    if any(path.glob("part-*.sqlite3")):
        return
    files = Files()
    unfinished = path.with_name(f"{path.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    files.make_directory(unfinished)
    init_db_dir(unfinished, RECOVERY_PARTITIONS)
    unfinished.replace(path)
    files.sync_directory(path.parent)


def _free_addresses(count: int) -> list[str]:
    """So many addresses on this host on which nothing listens now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]
    finally:
        for one in sockets:
            one.close()
