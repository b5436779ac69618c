"""The cluster: N one-worker processes that run the dataflow as one, and their supervisor.

If the job runs on several hosts, the workers of all hosts are one cluster, and each host has a
supervisor for its own, which does nothing of what follows without the others (see `group`).

What always holds:

- The recovery store is there, whole, before a worker starts.
- No worker runs the dataflow before all have built it, so that none waits for a peer that never
  arrives: until then a stop, or a worker that fails, ends all at once, and nothing has begun.
- When one worker dies, all are killed (SIGKILL: their state is safe) and all restart, after a
  back-off; never fewer than N go on.
- A stop (SIGTERM or SIGINT) is forwarded; each worker then closes its last epoch with a snapshot.
- An error that a restart would meet again ends the job, during a stop as well.
- A stop of one host stops all; those that were not asked to stop wait for it, and restart.
- When a worker asks for it, all are stopped, and restart at once. When the wall clock has stepped
  back (see `clock`), all are ended and restart at once.
- Exit code 0 means that the last run ended with a last snapshot, or had not begun.
- Input that could not be read ends nothing: all workers go on to their ends, and the exit code of
  the job is INCOMPLETE.
- The file `ended` is there when the last run committed all that it published, and no job runs.
"""

import logging
import math
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from forebay.flows.clock import LOOK_S, RESTART_S, Clock
from forebay.flows.coordinator import Coordinator
from forebay.flows.group import Alone, Group, Kind, Said
from forebay.flows.handshake import handshake
from forebay.flows.hosts import Hosts
from forebay.flows.link import Heard
from forebay.flows.member import Member
from forebay.flows.recovery import begin, init_recovery, join_hosts, take_data_directory
from forebay.operators.process import stop_signals
from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import INCOMPLETE, PERMANENT, ForebayError
from forebay.storage.base.layout import Layout
from forebay.storage.base.text import count_text

STOP_S, SETTLE_S = 60.0, 2.0
BUILT, AGAIN = b"b", b"a"
"""What a worker says on its standard input, a socket: it has built the dataflow; all must start
again."""
GO = b"g"
"""The answer, once all have built it."""
BACKOFF_S, BACKOFF_S_MAX, HEALTHY_S = 1.0, 30.0, 60.0
WORKER_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(64 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(32 << 20),
    "MALLOC_ARENA_MAX": "1",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "OPENBLAS_NUM_THREADS": "1",
    "POLARS_MAX_THREADS": "1",
}
"""Keep the buffers of a batch instead of asking the kernel for fresh pages each time: glibc does as
told, Arrow's own allocator does not. What one thread gave back, another takes. And no threads for
numpy's linear algebra, which no one uses: each spins for 0.1 s when it has been started. Polars has
one, for it only merges, beside the worker."""

log = logging.getLogger("forebay.cluster")


STEPPED = b"c"
"""What no worker says: the wall clock has stepped back so far that all must restart."""
_Event = tuple[int, bytes | int] | Heard
"""The run, for an old one's workers may still speak, and what one of its worker processes has said,
or the exit code with which it has ended; or what was heard of another host."""


class Cluster:
    """Runs and supervises the workers. `run` is used from the main thread."""

    def __init__(
        self,
        data_dir: Path,
        workers: int,
        *,
        module: str = "forebay.flows.worker",
        environment: Mapping[str, str] = os.environ,
        output: BinaryIO | None = None,
        hosts: Hosts | None = None,
        shared: Mapping[str, Any] | None = None,
        measured: Callable[[], Mapping[str, str]] | None = None,
    ) -> None:
        """Workers run `module` in `environment`; what they print goes to `output`, by default to
        where this process prints. With several `hosts`, all have the `shared` settings. At each
        start `measured` gives more of the workers' environment. `stopped`: a stop was asked for."""
        self._layout = Layout(data_dir)
        self._disk = Disk()
        self._module = module
        self._environment = {**WORKER_ENVIRONMENT, **environment}
        self._output = output
        self._measured = measured
        self._events: queue.SimpleQueue[_Event | None] = queue.SimpleQueue()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._channels: list[socket.socket] = []
        self._run = self._unbuilt = self._left = self._code = 0
        self._begun = False
        self.stopped = self._restarting = False
        self._failure: str | None = None
        self._lock: BinaryIO | None = None
        self._clock = Clock()
        self._hosts = hosts
        self._group: Group = Alone(workers)
        if hosts:
            side = Member if hosts.number else Coordinator
            settings = shared or {}
            self._group = side(
                hosts, lambda: handshake(hosts, settings, self._layout), self._events.put
            )

    def run(self) -> int:
        """Exit code of the job: 0 when the input has ended or a stop was asked for; INCOMPLETE when
        the input has ended, but some of it could not be read."""
        for number in stop_signals():
            signal.signal(number, lambda *_: self._events.put(None))
        backoff_s = BACKOFF_S
        while True:
            started_s = time.monotonic()
            code, failure = self._tried()
            if code == 0 and self._restarting and not self.stopped:
                continue
            if code == PERMANENT and self._failure:
                log.error("%s", failure)
            if code in (0, INCOMPLETE, PERMANENT):
                return code
            if self.stopped:
                log.error("stopped: %s; the next run continues from the last commit", failure)
                return 1
            if time.monotonic() - started_s > HEALTHY_S:
                backoff_s = BACKOFF_S
            log.error("%s; all restart in %.0f s", failure, backoff_s)
            if self._stop_within(backoff_s):
                log.error("stopped before that")
                return 1
            backoff_s = min(2 * backoff_s, BACKOFF_S_MAX)

    def _tried(self) -> tuple[int, str]:
        """One run: its exit code, and what to report if the job has not ended by that."""
        failure: str | None = None
        code = 1
        try:
            code = self.once()
            failure = self._failure or f"a worker {_end_of(code)}, without a last snapshot"
        except OSError as error:  # a disk that is full, or read-only
            failure = str(error)
        except ForebayError as error:
            code, failure = PERMANENT, str(error)
            raise
        finally:
            well = code in (0, INCOMPLETE)
            self._group.part(None if well else failure, permanent=code == PERMANENT)
        return code, failure

    def once(self) -> int:
        """One run of all workers: 0 or INCOMPLETE if all ended well, else the first bad exit code;
        1 if they did not end in time. Raises OSError if the data directory can't be written."""
        self._restarting, self._failure = False, None
        self._lock = self._lock or take_data_directory(self._layout, self._hosts)
        together = self._gather()
        if together is None:
            return 0  # nothing has begun
        if self._hosts:
            join_hosts(self._layout, self._hosts, together.job)
        init_recovery(self._layout.recovery, self._hosts)
        self._start()
        try:
            return self._supervise()
        finally:
            self._end()

    def _gather(self) -> Said | None:
        """Wait until all hosts are there; None if asked to stop meanwhile."""
        said = self._group.meet()
        while said is None or said.kind != Kind.TOGETHER:
            try:
                event = self._next(self._group.due_s())
            except queue.Empty:
                self._group.remind()
                continue
            if event is None:
                self.stopped = True
                return None
            said = self._group.hear(event) if isinstance(event, Heard) else None
        return said

    def _supervise(self) -> int:
        """Wait until all workers have ended, or one has failed. Returns the exit code."""
        self._unbuilt = self._left = len(self._processes)
        self._begun, self._code, deadline = False, 0, math.inf
        while True:
            try:
                event = self._next(deadline)
            except queue.Empty:
                log.error("workers did not stop within %.0f s; killing them", STOP_S)
                return 1
            end, said = None, None
            if event is None:
                self.stopped = True
            elif isinstance(event, Heard):
                said = self._group.hear(event)
            elif event[0] == self._run:
                end, said = self._take(event[1])
            if said:
                end = self._follow(said)
            if end is not None:
                return end
            if not self._begun and (self.stopped or self._left < len(self._processes)):
                return 0  # nothing has begun
            if (self.stopped or self._restarting) and deadline == math.inf:
                log.info("stopping %s", count_text(self._left, "worker"))
                deadline = time.monotonic() + STOP_S
                self._group.stop()
                for process in self._processes:
                    process.send_signal(signal.SIGTERM)

    def _take(self, told: bytes | int) -> tuple[int | None, Said | None]:
        """Handle what a worker or the clock says: the exit code with which that ends the run, and
        what the group says to it."""
        if told == STEPPED:
            if self.stopped or not self._begun:
                return None, None
            self._restarting = True
            return 0, None  # as after a crash
        self._restarting |= told == AGAIN
        if told == BUILT:
            self._unbuilt -= 1
            return None, None if self._unbuilt else self._group.built(self._layout)
        if not isinstance(told, int):
            return None, None
        self._left -= 1
        if told not in (0, INCOMPLETE):
            return self._cause(told), None
        self._code = max(self._code, told)
        well = self._begun and not self._left
        return None, self._group.ended(self._code) if well else None

    def _follow(self, said: Said) -> int | None:
        """Do what the group says. Returns the exit code with which that ends the run."""
        match said.kind:
            case Kind.GO:
                self._begun = True
                self._let_go()
                return None
            case Kind.STOP:
                self._restarting = True
                return None
            case Kind.DONE:
                self._note_end()
                return said.code
        self._failure = said.reason
        return PERMANENT if said.kind == Kind.REFUSED else 1

    def _let_go(self) -> None:
        """Let all workers begin."""
        begin(self._layout)
        for channel in self._channels:
            with suppress(OSError):  # of a worker that has ended; its exit code follows
                channel.send(GO)

    def _note_end(self) -> None:
        """Note that all workers ended with a last snapshot."""
        try:
            self._disk.touch(self._layout.ended)
        except OSError as error:
            reason = error.strerror or error
            raise OSError(
                f"all workers ended with a last snapshot, but {self._layout.ended}, which tells"
                f" that, could not be made: {reason}"
            ) from error

    def close(self) -> None:
        """Release the data directory and the ports. (The end of the process does as well.)"""
        self._group.close()
        if self._lock:
            self._lock.close()
            self._lock = None

    def _cause(self, code: int) -> int:
        """PERMANENT if any worker ended with it: one that lost its peer may end before the peer."""
        deadline = time.monotonic() + (0.0 if code in (-signal.SIGKILL, PERMANENT) else SETTLE_S)
        for process in self._processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
        if any(p.returncode == PERMANENT for p in self._processes):
            return PERMANENT
        # The lost peer may be one of another host; its supervisor says why it has ended.
        deadline = time.monotonic() + (SETTLE_S if self._hosts else 0.0)
        with suppress(queue.Empty):
            while event := self._next(deadline):
                said = self._group.hear(event) if isinstance(event, Heard) else None
                if said and said.kind in (Kind.LOST, Kind.REFUSED):
                    self._failure = said.reason
                    return PERMANENT if said.kind == Kind.REFUSED else code
            self.stopped = True
        return code

    def _next(self, deadline: float) -> _Event | None:
        """What a worker has done next, or the clock; None for a stop. Raises queue.Empty at the
        deadline."""
        while (left_s := deadline - time.monotonic()) > 0:
            with suppress(queue.Empty):
                return self._events.get(timeout=min(left_s, LOOK_S))
            if self._stepped_back():
                return self._run, STEPPED
        return self._events.get_nowait()

    def _stepped_back(self) -> bool:
        """Whether the clock has stepped back too far to wait for it; reports that."""
        back_s = self._clock.stepped_back_s()
        if back_s:
            log.warning(
                "the wall clock stepped back by %.1f s; %s",
                back_s,
                "all workers restart, as the engine would wait as long"
                if back_s > RESTART_S
                else "nothing is read for as long",
            )
        return back_s > RESTART_S

    def _stop_within(self, seconds: float) -> bool:
        """Whether a stop is asked for within so long."""
        deadline = time.monotonic() + seconds
        with suppress(queue.Empty):
            while event := self._next(deadline):
                if isinstance(event, Heard):
                    self._group.hear(event)
            return True
        return False

    def _start(self) -> None:
        self._run += 1
        addresses = self._group.addresses()
        environment = {**self._environment, **(self._measured() if self._measured else {})}
        for number in self._group.processes:
            ours, theirs = socket.socketpair()
            self._channels.append(ours)
            with theirs, _deaf_to_interrupts():
                process = subprocess.Popen(
                    [sys.executable, "-m", self._module, str(number), *addresses],
                    stdin=theirs.fileno(),
                    stdout=self._output,
                    stderr=self._output,
                    env={"PYTHONSAFEPATH": "1", **environment},  # no modules of this folder
                )
            self._processes.append(process)
            threading.Thread(
                target=self._watch, args=(self._run, process, ours), daemon=True
            ).start()
        count = count_text(len(self._processes), "worker")
        where = f", of {self._hosts.named(self._hosts.number)}" if self._hosts else ""
        log.info("started %s on %s%s", count, self._layout.root, where)

    def _watch(self, run: int, process: subprocess.Popen[bytes], channel: socket.socket) -> None:
        with suppress(OSError):  # a worker that was killed
            while said := channel.recv(1):
                self._events.put((run, said))
        self._events.put((run, process.wait()))

    def _end(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        for channel in self._channels:
            channel.close()
        self._processes, self._channels = [], []


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """What is started inside takes Ctrl-C from the terminal only when it can stop cleanly: until
    then it would end with a traceback (see `stop_on_signals`)."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_of(code: int) -> str:
    """What an exit code says about how a process ended; below 0, it was a signal."""
    if code >= 0:
        return f"ended with {code}"
    memory = ", as the system does when memory runs out" if code == -signal.SIGKILL else ""
    return f"was ended by signal {-code} ({signal.strsignal(-code)}){memory}"
