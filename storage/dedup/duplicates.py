"""Which of the arriving events are duplicates, and which of these have a different payload.

An event is checked against what was there before all of the arrivals, then against the arrivals
before it. Its payload is compared with that of the event kept: the one that counts as live (in a
live block, or accepted before it) if there is one, else that of the first retained block that
counts for it. No two of a kind have the same key, so it does not matter how input is cut.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from forebay.storage.dedup.arrivals import Arrivals
from forebay.storage.dedup.keys import KeySet, earlier_rows
from forebay.storage.formats.columns import Mask
from forebay.storage.formats.hashes import I64
from forebay.storage.formats.payload import Probe


def duplicates(
    arrivals: Arrivals,
    live: Iterable[tuple[KeySet, Mask]],
    retained: Iterable[tuple[KeySet, Mask]],
) -> tuple[Mask, Mask]:
    """For each event, whether it is a duplicate, and whether it is one with a different payload
    (never, if payloads are not compared). `live` has each key set of live blocks with the rows that
    may be in it, `retained` each other key set with the rows for which it counts."""
    dropped: Mask = np.zeros(len(arrivals), dtype=bool)
    differs: Mask = np.zeros(len(arrivals), dtype=bool)

    def look(keys: KeySet, rows: I64) -> None:
        found = keys.find(arrivals.hashes[rows], arrivals.keys, rows)
        hit = np.flatnonzero(found >= 0)
        if len(hit):
            dropped[rows[hit]] = True
            if arrivals.probe:
                differs[rows[hit]] = keys.differs(found[hit], arrivals.probe, rows[hit])

    for keys, may in live:
        rows = np.flatnonzero(may & ~dropped)
        if len(rows):
            look(keys, rows)
    in_live = dropped.copy()
    for keys, counts in retained:
        rows = np.flatnonzero(counts & ~dropped)
        if len(rows):
            look(keys, rows)
    in_retained = np.flatnonzero(dropped & ~in_live)
    rows = np.flatnonzero(~dropped)
    earlier = earlier_rows(arrivals.hashes[rows], arrivals.keys, rows)
    again = np.flatnonzero(earlier >= 0)
    if len(again):
        copies, firsts = rows[again], rows[earlier[again]]
        dropped[copies] = True
        if arrivals.probe:
            differs[copies] = arrivals.probe.hashes[copies] != arrivals.probe.hashes[firsts]
    if arrivals.probe and len(in_retained):
        _compare_with_accepted(arrivals, arrivals.probe, in_retained, ~dropped, differs)
    return dropped, differs


def _compare_with_accepted(
    arrivals: Arrivals, probe: Probe, rows: I64, accepted: Mask, differs: Mask
) -> None:
    """Judge again those of `rows`, dropped because of a retained block, whose key an earlier
    arrival was accepted with, at another upload time: rarely any."""
    rows = rows[np.isin(arrivals.hashes[rows], arrivals.hashes[accepted])]
    if not len(rows):
        return
    kept = np.flatnonzero(accepted & np.isin(arrivals.hashes, arrivals.hashes[rows]))
    first = {key: row for row, key in zip(kept.tolist(), arrivals.key_tuples(kept), strict=True)}
    for row, key in zip(rows.tolist(), arrivals.key_tuples(rows), strict=True):
        if first.get(key, row) < row:
            differs[row] = probe.hashes[row] != probe.hashes[first[key]]
