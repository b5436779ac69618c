"""What only a worker knows about itself, for the supervisor's exporter: how long commits and merges
take.

prometheus-client keeps the values of each process in files of the folder that
PROMETHEUS_MULTIPROC_DIR names, so a worker's measurements outlive it, even if it is killed. Without
that folder nothing is kept.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from prometheus_client import Counter, Histogram

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
Measured = Literal["sync", "snapshot"]
_HELP = {
    "sync": "Making the logs of all partitions of a worker durable, at the close of an epoch.",
    "snapshot": "A partition's commit record, with the sync before the first of an epoch.",
}


@contextmanager
def measured(what: Measured) -> Iterator[None]:
    """Measures how long the code within takes, unless it fails."""
    started_s = time.perf_counter()
    yield
    if kept := _histogram(what):
        kept.observe(time.perf_counter() - started_s)


def count_merges(count: int, seconds: float) -> None:
    """Note that so many chunks were merged, in that time."""
    if kept := _merges():
        merges, merging = kept
        merges.inc(count)
        merging.inc(seconds)


@cache
def _histogram(what: Measured) -> Histogram | None:
    if FOLDER not in os.environ:
        return None
    from prometheus_client import Histogram

    return Histogram(f"forebay_{what}_seconds", _HELP[what])


@cache
def _merges() -> tuple[Counter, Counter] | None:
    if FOLDER not in os.environ:
        return None
    from prometheus_client import Counter

    return (
        Counter("forebay_merges", "Chunks that were made of blocks."),
        Counter("forebay_merge_seconds", "The time that took."),
    )
