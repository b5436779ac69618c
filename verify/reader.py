"""A reader during change: asks for all events again and again, and counts what was wrong.

    python -m forebay.verify.reader DATA            ends when its standard input does, with JSON
    python -m forebay.verify.reader DATA GRACE_S    the same with a new store each time, reading
                                                    every column of a view that it had for a while

What is checked in each answer, partition by partition:

- The files of its view are there, for the grace period at least.
- No event is in the answer twice.
- Whatever an earlier answer had is in it, as long as the job has not restarted since.
- Whatever was surely committed when an earlier answer had it is in it for ever. It was, as soon as
  the manifest shows more snapshots than the engine can have taken and lost since.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from forebay import query
from forebay.query.view import View
from forebay.storage.base.errors import MissingFile
from forebay.storage.partition.commits import UNCOMMITTED_SNAPSHOTS_MAX

PAUSE_S, HOLD_S = 0.005, 0.2
CLOCKS_S = 0.05
"""By how much the wall clock, which grace periods go by, may differ from a steady one."""
ALL = "select _partition, _offset from events"


@dataclass
class Seen:
    """One partition as answers had it. `loose` has the events that a crash may still take back, by
    the number of snapshots that the job had taken when they were first seen."""

    incarnation: int = 0
    firm: set[int] = field(default_factory=set)
    loose: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))

    def missing(self, found: set[int], before: tuple[int, int], after: tuple[int, int]) -> int:
        """How many events are missing in an answer that was given between two looks at the
        manifest's incarnation and number of snapshots."""
        if after[0] != self.incarnation:
            self.loose.clear()
        self.incarnation = after[0]
        lost = len(self.firm - found)
        if before[0] == after[0]:
            known = self.firm.union(*self.loose.values())
            lost += len(known - self.firm - found)
            self.loose[after[1]] |= found - known
        # The snapshot after the one at which an event was seen has it.
        for taken in [n for n in self.loose if n + 1 + UNCOMMITTED_SNAPSHOTS_MAX <= before[1]]:
            self.firm |= self.loose.pop(taken)
        return lost


@dataclass
class Tally:
    """`gone` counts the views whose files were deleted before the grace period was over."""

    answers: int = 0
    events: int = 0
    lost: int = 0
    doubled: int = 0
    gone: int = 0


def watch(data: Path, tally: Tally, grace_s: float | None = None) -> None:
    """Ask until standard input ends."""
    store = query.open(data)
    partitions: dict[str, Seen] = defaultdict(Seen)
    while not _stopped(PAUSE_S):
        before, taken_s = _progress(store.view()), time.monotonic()
        if grace_s is None:
            answer = store.sql(ALL)
            after = _progress(store.view())
        else:
            events = query.open(data).scan()
            after = _progress(store.view())
            _stopped(HOLD_S)
            try:
                answer = events.collect()
            except (MissingFile, FileNotFoundError):
                tally.gone += time.monotonic() - taken_s < grace_s - CLOCKS_S
                continue
        rows = answer.select("_partition", "_offset").rows()
        tally.answers += 1
        tally.events = len(rows)
        tally.doubled += len(rows) - len(set(rows))
        found: dict[str, set[int]] = defaultdict(set)
        for name, offset in rows:
            found[name].add(offset)
        for name, now in before.items():
            tally.lost += partitions[name].missing(found[name], now, after[name])


def _stopped(wait_s: float) -> bool:
    """Whether standard input ends within so long."""
    return bool(select.select([sys.stdin], [], [], wait_s)[0])


def _progress(view: View) -> dict[str, tuple[int, int]]:
    """Incarnation and number of snapshots of each partition."""
    states = [partition.state for partition in view.partitions]
    return {state.partition: (state.incarnation, state.snapshots) for state in states}


def main(arguments: list[str]) -> None:
    tally = Tally()
    watch(Path(arguments[0]), tally, *map(float, arguments[1:]))
    os.write(1, json.dumps(vars(tally)).encode() + b"\n")


if __name__ == "__main__":
    main(sys.argv[1:])
