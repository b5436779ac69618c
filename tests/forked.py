"""Python processes without the second of CPU that imports take: forked from one that has them.

`Forked` is a `subprocess.Popen` of `python -m MODULE …` that executes no program: a nursery, one
for each process that runs tests, has imported what the job, its batch layer and the tests' variants
of them need, and forks. What comes of it is a process as any other: with an id, a group,
standard streams, an environment and an exit code of its own; it is killed like any other, and its
parent is the one that asked for it. A supervisor that was started so starts its workers so. What
is not a `-m`, or needs what a fork has not (a limit, another program first, threads of Polars), is
executed.

1. The nursery imports, and waits for requests on its standard input, a socket.
2. A request has the arguments, the environment, the folder, and the three standard streams.
3. The nursery forks a process that forks again, tells the id, and ends: the orphan's parent is then
   the nearest ancestor that takes orphans in (PR_SET_CHILD_SUBREAPER), which is who asked.
4. The child runs the module as `python -m` does, and ends as an interpreter does.
"""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import gc
import io
import json
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

IMPORTED = (
    "rich.progress",
    "pyarrow.dataset",
    "sqlalchemy.dialects.sqlite",
    "pyiceberg.io.pyarrow",
    "forebay.cli.main",
    "forebay.cli.batch",
    "forebay.cli.summary",
    "forebay.query",
    "forebay.cli.serve",
    "forebay.serve.server",
    "forebay.cli.mcp",
    "forebay.serve.stdio",
    "forebay.serve.tailing",
    "forebay.serve.openapi",
    "forebay.query.sql",
    "forebay.verify.reader",
    "pyiceberg.catalog.sql",
    "forebay.flows.batch",
    "forebay.cli.run",
    "forebay.flows.realtime",
    "forebay.flows.worker",
    "forebay.verify.worker",
)
"""Those that need the engine come last."""
OURS = re.compile(r"(forebay|bytewax|tests)\b")
"""Modules that are run in forked processes."""
NONE = -1
APART = 64
"""No standard stream has a number from this on."""
FILES_MAX = 1 << 16
PR_SET_CHILD_SUBREAPER = 36

Executed = subprocess.Popen


class Forked(subprocess.Popen[Any]):
    """As `subprocess.Popen`; see the module."""

    def _execute_child(self, args: Any, *rest: Any) -> None:
        (
            executable, preexec_fn, _close_fds, pass_fds, cwd, env, _info, _flags, shell,
            p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, *_
        ) = rest  # fmt: skip
        alone = isinstance(args, str | bytes | os.PathLike)
        arguments = [] if alone else [os.fspath(one) for one in args]
        plain = not (executable or preexec_fn or pass_fds or shell or _has_pool())
        if not (plain and arguments[:2] == [sys.executable, "-m"] and OURS.match(arguments[2])):
            super()._execute_child(args, *rest)  # type: ignore[misc]
            return
        streams = [NONE if one == -1 else one for one in (p2cread, c2pwrite, errwrite)]
        request = {
            "arguments": arguments[2:],
            "environment": dict(os.environ if env is None else env),
            "folder": os.fspath(cwd or os.getcwd()),
            "session": bool(rest[-2]),
        }
        try:
            self.pid = _fork(request, streams)
        finally:
            self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)  # type: ignore[attr-defined]
        self._child_created = True


def _has_pool() -> bool:
    """Whether this process would fork itself, and Polars has threads in it: a fork has none of
    them, and would wait for them for ever."""
    names = (comm.read_text() for comm in Path("/proc/self/task").glob("*/comm"))
    return _fork is _fork_here and any(name.startswith("polars") for name in names)


# -- who asks -----------------------------------------------------------------------------------

_lock = threading.Lock()
_asked: tuple[subprocess.Popen[bytes], socket.socket] | None = None


def _ask(request: Mapping[str, Any], streams: list[int]) -> int:
    """The id of a process that the nursery has forked."""
    with _lock:
        _, channel = _nursery()
        mine = [number if one == NONE else one for number, one in enumerate(streams)]
        text = json.dumps(request).encode()
        socket.send_fds(channel, [len(text).to_bytes(4, "big")], mine)
        channel.sendall(text)
        return int.from_bytes(_exactly(channel, 4), "big")


_fork: Callable[[Mapping[str, Any], list[int]], int] = _ask


def _nursery() -> tuple[subprocess.Popen[bytes], socket.socket]:
    global _asked
    if _asked is None:
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        ours, theirs = socket.socketpair()
        with theirs:
            process = Executed(
                [sys.executable, "-m", "tests.forked"],
                stdin=theirs.fileno(),
                cwd=os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
            )
        _asked = process, ours
    return _asked


def close() -> None:
    """End the nursery, and take leave of all orphans that came here, which are counted by that."""
    global _asked
    if _asked is not None:
        process, channel = _asked
        channel.close()
        process.wait()
        _asked = None
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _exactly(channel: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        more = channel.recv(size - len(found))
        if not more:
            raise EOFError("expected an answer of the nursery, it has ended")
        found += more
    return found


# -- the nursery --------------------------------------------------------------------------------


def _serve(channel: socket.socket) -> None:
    while True:
        head, streams, _, _ = socket.recv_fds(channel, 4, 3)
        if not head:
            return
        request = json.loads(_exactly(channel, int.from_bytes(head, "big")))
        sent, told = os.pipe()
        if not (between := os.fork()):
            pid = os.fork()
            if not pid:
                _become(request, streams)
            os.write(told, pid.to_bytes(4, "big"))
            os._exit(0)
        os.waitpid(between, 0)
        channel.sendall(os.read(sent, 4))
        for one in (sent, told, *streams):
            os.close(one)


def _become(request: Mapping[str, Any], streams: list[int]) -> NoReturn:
    """The process that was asked for, to its end."""
    global _fork
    code = 1
    try:
        _keep_only(streams)
        _open_streams(request["environment"])
        if request["session"]:
            os.setsid()
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        _fork = _fork_here
        subprocess.Popen = Forked  # type: ignore[misc]
        module, *arguments = request["arguments"]
        sys.modules.pop(module, None)
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except KeyboardInterrupt:
        code = 130
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    finally:
        _end(code)


def _end(code: int) -> NoReturn:
    """As an interpreter ends."""
    with suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(BaseException):
            stream.flush()
    os._exit(code)


def _fork_here(request: Mapping[str, Any], streams: list[int]) -> int:
    """A process that one which was forked itself asks for."""
    if pid := os.fork():
        return pid
    _become(request, [number if one == NONE else one for number, one in enumerate(streams)])


def _keep_only(streams: list[int]) -> None:
    """These are the standard streams; nothing else is open."""
    apart = [fcntl.fcntl(one, fcntl.F_DUPFD, APART) for one in streams]
    for number, one in enumerate(apart):
        os.dup2(one, number)
    os.closerange(3, FILES_MAX)


def _open_streams(environment: Mapping[str, str]) -> None:
    """As at the start of an interpreter."""
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", closefd=False)  # type: ignore[misc]  # noqa: SIM115
    at_once = "PYTHONUNBUFFERED" in environment
    for number, name, errors in ((1, "stdout", "strict"), (2, "stderr", "backslashreplace")):
        raw = open(number, "wb", closefd=False)  # noqa: SIM115
        stream = io.TextIOWrapper(
            raw,
            encoding="utf-8",
            errors=errors,
            line_buffering=number == 2 or os.isatty(number),
            write_through=at_once,
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _load_compiled() -> None:
    """What numba looks up once in the life of a process."""
    from forebay.operators.routing import hash_partitions, state_key

    for partition in hash_partitions(1):
        state_key(partition)


def main() -> None:
    try:
        for module in IMPORTED:
            import_module(module)
        _load_compiled()
    except ModuleNotFoundError as error:  # of what is not installed here
        if not error.name or error.name.startswith("forebay"):
            raise
    # Of a supervisor, whose threads wait for its workers.
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with socket.socket(fileno=os.dup(0)) as channel:
        _serve(channel)


if __name__ == "__main__":
    main()
