"""How many files a process of the job may have open: enough, or the job does not begin.

What a worker has open does not grow with its partitions or its input files: the engine's store and
sockets, OPEN_FILES_MAX input files, SYNC_THREADS logs that are synced at once, and what librdkafka
has for each broker.
"""

import logging
import resource

from forebay.storage.base.errors import BadInput
from forebay.storage.base.text import count_text

WORKER_FILES, PEER_FILES = 128, 4
"""What a worker needs (it had 32 over 700 input files, 35 over a topic of 256 partitions), and what
it needs for each worker of the job besides."""

log = logging.getLogger("forebay.cluster")


def require_open_files(workers: int) -> None:
    """Ensure that each process may open as many as it needs: a lower soft limit is raised. Raises
    BadInput if the hard limit is lower."""
    needed = WORKER_FILES + PEER_FILES * workers
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise BadInput(
            f"limit of open files: expected at least {needed} for"
            f" {count_text(workers, 'worker')}, got {hard} (`ulimit -Hn`; in systemd LimitNOFILE)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    log.info("raised the limit of open files from %d to %d", soft, needed)
