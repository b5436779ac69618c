"""The cluster: N one-worker processes that run the dataflow as one, and their supervisor.

What always holds:

- The recovery store is there, whole, before a worker starts.
- When one worker dies, all are ended (SIGKILL: their state is safe) and all start again, after a
  back-off; never fewer than N go on.
- A stop (SIGTERM or SIGINT) is forwarded; each worker then closes its last epoch with a snapshot.
- An error that a restart would meet again ends the job.
- Input that could not be read ends nothing: all workers go on to their ends, and the exit code of
  the job is INCOMPLETE.
- The file `ended` is there when the last run committed all that it published, and no job runs.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from flows.recovery import init_recovery, take_data_directory
from storage.errors import INCOMPLETE, PERMANENT
from storage.files import Files
from storage.layout import Layout

STOP_S, SETTLE_S = 60.0, 2.0
BACKOFF_S, BACKOFF_S_MAX, HEALTHY_S = 1.0, 30.0, 60.0
WORKER_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(64 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(32 << 20),
    "MALLOC_ARENA_MAX": "1",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "OPENBLAS_NUM_THREADS": "1",
}
"""Keep the buffers of a batch instead of asking the kernel for fresh pages each time: glibc does as
told, Arrow's own allocator does not. What one thread gave back, another takes. And no threads for
numpy's linear algebra, which no one uses: each spins for 0.1 s when it has been started."""

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
        self._files = Files()
        self._workers = workers
        self._module = module
        self._environment = {**WORKER_ENVIRONMENT, **environment}
        self._output = output
        self._events: queue.SimpleQueue[_Ended | None] = queue.SimpleQueue()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._run = 0
        self._lock: BinaryIO | None = None

    def run(self) -> int:
        """Exit code of the job: 0 when the input has ended or a stop was asked for; INCOMPLETE when
        the input has ended, but some of it could not be read."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._events.put(None))
        backoff_s = BACKOFF_S
        while True:
            started_s = time.monotonic()
            try:
                code = self.once()
            except OSError as error:  # a disk that is full, or read-only
                log.error("%s", error)
                code = 1
            if code in (0, INCOMPLETE, PERMANENT):
                return code
            if time.monotonic() - started_s > HEALTHY_S:
                backoff_s = BACKOFF_S
            log.error("a worker ended with %d; all start again in %.0f s", code, backoff_s)
            if self._stop_within(backoff_s):
                return 0
            backoff_s = min(2 * backoff_s, BACKOFF_S_MAX)

    def once(self) -> int:
        """One run of all workers: 0 or INCOMPLETE if all ended well, else the first bad exit
        code."""
        layout = Layout(self._data_dir)
        self._lock = self._lock or take_data_directory(layout)
        init_recovery(layout.recovery)
        self._files.remove(layout.ended)
        self._start()
        left, ended = self._workers, 0
        deadline: float | None = None
        try:
            while left:
                event = self._next(deadline)
                if event is None and deadline is not None:
                    if time.monotonic() < deadline:
                        continue  # a stop that is asked for again
                    log.warning("workers did not stop in time; killing them")
                    return 0
                if event is None:
                    log.info("stopping %d workers", left)
                    deadline = time.monotonic() + STOP_S
                    for process in self._processes:
                        process.send_signal(signal.SIGTERM)
                elif event.run == self._run:
                    left -= 1
                    if event.code == INCOMPLETE:
                        ended = INCOMPLETE
                    elif event.code:
                        return 0 if deadline is not None else self._cause(event.code)
            self._files.touch(layout.ended)
            return ended
        finally:
            self._end()

    def close(self) -> None:
        """Let the data directory go. (The end of the process does as well.)"""
        if self._lock:
            self._lock.close()
            self._lock = None

    def _cause(self, code: int) -> int:
        """PERMANENT if any worker ends so: one that has lost its peer may end before the peer."""
        deadline = time.monotonic() + (0.0 if code == -signal.SIGKILL else SETTLE_S)
        for process in self._processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
        return PERMANENT if any(p.returncode == PERMANENT for p in self._processes) else code

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
                env={"PYTHONSAFEPATH": "1", **self._environment},  # no modules of this folder
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
