"""A worker process that only does what SHAM says, for tests of its supervisor.

SHAM has the steps of each worker, workers by comma, steps by blank: `build` says that the dataflow
is built and waits to be let go, `again` asks for another start of all unless it did so before,
`hang` waits for ever, `exit:N` ends with exit code N, `kill:N` by signal N, `stop:N` with exit code
N when asked to stop, `held:N` so as well, but not before someone opens the pipe SHAM_LOG.go to
write; `deaf` says whether SIGINT was blocked when it started. What it does goes to SHAM_LOG, a line
each.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

from forebay.flows.cluster import AGAIN, BUILT, GO


def main(number: int) -> None:
    steps = os.environ["SHAM"].split(",")[number].split()
    log = Path(os.environ["SHAM_LOG"])

    def did(what: str) -> None:
        with log.open("a") as file:
            file.write(f"{number} {what}\n")

    # Not waited for with a handler: a signal that comes before would be missed.
    stops = {signal.SIGTERM, signal.SIGINT}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, stops)
    for step in steps:
        name, _, code = step.partition(":")
        if name == "build":
            os.write(0, BUILT)
            if os.read(0, 1) != GO:
                os._exit(9)
            did("runs")
        elif name == "deaf" and signal.SIGINT in before:
            did("deaf")
        elif name == "again" and "again" not in log.read_text():
            did("again")
            os.write(0, AGAIN)
        elif name == "stop":
            signal.sigwait(stops)
            did("stops")
            os._exit(int(code))
        elif name == "held":
            signal.sigwait(stops)
            did("held")
            log.with_name(f"{log.name}.go").open("rb").close()
            os._exit(int(code))
        elif name == "exit":
            os._exit(int(code))
        elif name == "kill":
            os.kill(os.getpid(), int(code))
        elif name == "hang":
            did("hangs")
            threading.Event().wait()


if __name__ == "__main__":
    main(int(sys.argv[1]))
