"""A worker process: one worker of the cluster that `cluster` supervises.

    python -m forebay.flows.worker PROCESS ADDRESS...

Its standard input is a socket to the supervisor. It ends when that does, so that no worker outlives
its supervisor; it reports there that it has built the dataflow, runs it when asked to, and may
ask for a restart of all workers. Exit codes: 0 the input ended or a stop was asked for;
INCOMPLETE the input ended, but some of it could not be read; PERMANENT an error that a restart
would meet again; 1 another error; else what the engine makes of the loss of a peer.
"""

import errno
import gc
import logging
import os
import queue
import sys
import threading
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

from bytewax._bytewax import cluster_main
from bytewax.recovery import (
    InconsistentPartitionsError,
    MissingPartitionsError,
    NoPartitionsError,
    RecoveryConfig,
)

from forebay.flows.cluster import AGAIN, BUILT
from forebay.operators.process import failure, note, stop_on_signals, stopping, unread
from forebay.storage.base.disk import Disk, naming
from forebay.storage.base.errors import INCOMPLETE, PERMANENT, BadInput, Corruption, ForebayError
from forebay.storage.base.layout import Layout

_RESOURCE = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EMFILE, errno.ENFILE, errno.EIO)
)
_PROBE_BYTES = 1 << 20
UNREAD_LINES_MAX = 50
GARBAGE_OBJECTS = 100_000
"""New objects before the collector looks for cycles among them: more than there are messages in a
poll, which have none."""
LISTEN_S, LISTEN_LOOK_S = 5.0, 0.005
UNMET_S = 10.0
_SOCKETS, _LISTENING = Path("/proc/net/tcp"), "0A"
_STORE_ERRORS = (InconsistentPartitionsError, MissingPartitionsError, NoPartitionsError)

_go: queue.SimpleQueue[None] = queue.SimpleQueue()

log = logging.getLogger("forebay.worker")


def main(process: int, addresses: list[str], disk: Disk | None = None) -> int:
    """Run until the input ends or a stop is asked for; `disk` as in `build`."""
    stop_on_signals()
    # What is imported and built now stays: collecting garbage in it would take a fifth of a start.
    gc.disable()
    from forebay.flows.in_force import note_of
    from forebay.flows.realtime import build
    from forebay.flows.settings import load
    from forebay.operators.routing import Place

    logging.basicConfig(format=f"%(asctime)s worker {process} %(levelname)s %(message)s")
    if process == 0:
        logging.getLogger("forebay.compiled").setLevel(logging.INFO)
    threading.Thread(target=_listen, daemon=True).start()
    try:
        settings = load()
        if process == 0 and (noted := note_of(settings)):
            log.warning(noted)
        recovery = RecoveryConfig(
            str(Layout(settings.data_dir).recovery), backup_interval=timedelta(0)
        )
        place = Place(process, len(addresses)) if len(addresses) > 1 else None
        met = threading.Event()
        flow = build(settings, disk, lambda: _say(AGAIN), place, met.set)
        gc.freeze()
        gc.set_threshold(GARBAGE_OBJECTS)
        gc.enable()
        _say(BUILT)
        _go.get()
        if place:
            threading.Thread(target=_tell_unmet, args=(met, addresses), daemon=True).start()
            _wait_for_listeners(addresses[:process], of=addresses[process])
        cluster_main(
            flow,
            addresses if len(addresses) > 1 else [],
            process,
            epoch_interval=timedelta(milliseconds=settings.epoch_interval),
            recovery_config=recovery,
            worker_count_per_proc=1,
        )
    except Exception as error:  # noqa: BLE001
        note(_cause(error) or error)
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:  # noqa: BLE001
        # A panic of the engine, which is not an Exception: a peer has ended, or a step has raised
        # in a worker that has peers.
        note(error)
    return _told(failure())


def leave(code: int) -> NoReturn:
    """End the process at once. All that counts is closed; shutting the interpreter down as well
    would cost 0.2 s, and after a failure, engine threads that still run would abort it."""
    logging.shutdown()
    if sys.stdout:
        sys.stdout.flush()
    os._exit(code)


def _told(error: BaseException | None) -> int:
    """Report what went wrong, or could not be read of an input that has ended. Returns the exit
    code."""
    if error is None:
        if stopping() or not (left := unread()):
            return 0
        lines = left[:UNREAD_LINES_MAX]
        if len(left) > len(lines):
            lines.append(f"and {len(left) - len(lines)} more, see above")
        log.error("the input has ended; what could not be read of it:\n%s", "\n".join(lines))
        return INCOMPLETE
    if isinstance(error, BadInput):
        log.error("%s", error)
        return PERMANENT
    if isinstance(error, ForebayError):
        log.error("%s: %s", type(error).__name__, error)
        return PERMANENT
    if isinstance(error, OSError) and error.errno in _RESOURCE:
        log.error("%s; what was committed is safe, and the job restarts", error)
    elif isinstance(error, Exception):
        log.error("%s: %s", type(error).__name__, error, exc_info=error)
    else:
        log.error(
            "the engine failed (%s): another worker has ended, or the recovery store could not be"
            " written: %s",
            error,
            _store_problem() or "it can be written now",
        )
    return 1


def _store_problem() -> OSError | None:
    """What keeps anyone from writing to the folder of the recovery store; the engine does not say.
    It tries to write a little, as the engine does."""
    from forebay.flows.settings import load

    probe = Layout(load().data_dir).recovery / f".probe-{os.getpid()}"
    try:
        with naming(probe):
            probe.write_bytes(bytes(_PROBE_BYTES))
    except OSError as problem:
        return problem
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    return None


def _cause(error: BaseException | None) -> ForebayError | None:
    """Our error that the engine wrapped, or its own about a store that can't be used."""
    while error is not None and not isinstance(error, ForebayError):
        if isinstance(error, _STORE_ERRORS):
            return Corruption(f"recovery store: {error}")
        error = error.__cause__ or error.__context__
    return error


def _say(word: bytes) -> None:
    """To the supervisor."""
    os.write(sys.stdin.fileno(), word)


def _listen() -> None:
    """To the supervisor, which lets this worker go, and whose end is the worker's too."""
    while os.read(sys.stdin.fileno(), 1):
        _go.put(None)
    os._exit(1)


def _tell_unmet(met: threading.Event, addresses: list[str]) -> None:
    """Report it until all have met: the engine tries for ever, and does not always say so."""
    while not met.wait(UNMET_S):
        log.warning(
            "the workers at %s have not found each other: each must reach the ports of all others",
            ", ".join(addresses),
        )


def _wait_for_listeners(addresses: list[str], of: str) -> None:
    """Wait until the peers on the host `of` this worker listen, before the engine connects to them:
    it would report each refusal. Does not connect: they count all connections."""
    here = of.rpartition(":")[0]
    ports = {int(port) for host, _, port in (a.rpartition(":") for a in addresses) if host == here}
    deadline = time.monotonic() + LISTEN_S
    while ports and time.monotonic() < deadline:
        try:
            sockets = [line.split() for line in _SOCKETS.read_text().splitlines()[1:]]
        except OSError:  # not Linux
            return
        ports -= {int(one[1].rpartition(":")[2], 16) for one in sockets if one[3] == _LISTENING}
        time.sleep(LISTEN_LOOK_S if ports else 0)


if __name__ == "__main__":
    leave(main(int(sys.argv[1]), sys.argv[2:]))
