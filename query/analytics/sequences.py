"""Paths of a funnel through the events of units (users, or users with one value of a property):
numbered, sorted, and divided among threads.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from forebay.query.analytics.longest import longest_paths
from forebay.query.analytics.steps import ANY, following, groups
from forebay.query.analytics.totals import total_paths
from forebay.query.analytics.units import number, order
from forebay.storage.formats.hashes import I64, U64

SHARED_ROWS = 100_000
"""From this many rows on, threads are worth starting."""
GROUP_EVENTS = 100
"""Events that make no difference are dropped from larger groups."""


@dataclass(frozen=True)
class PathRules:
    """What counts as a path: `window` and `resolution` in milliseconds; `bounds` has the two steps
    (from 0) of each exclusion; `drop` chooses paths regardless of exclusions; `edges` are those of
    the buckets of entry."""

    steps: int
    window: int
    resolution: int
    order: int
    reentry: int
    bounds: tuple[tuple[int, int], ...]
    drop: bool
    edges: I64


@dataclass(frozen=True)
class UnitPaths:
    """One row per path: its length without and with exclusions, the row of each step's event (-1 if
    there is none), and whether it is its unit's one path."""

    lengths: I64
    events: I64
    longest: npt.NDArray[np.bool_]


def paths(
    units: pl.DataFrame, instants: I64, masks: U64, rules: PathRules, *, totals: bool
) -> UnitPaths:
    """The paths of all units, which are the distinct rows of `units`; `instants` in milliseconds.
    With `totals`, all paths, none sharing an event; else one per unit and bucket of entry.

    Units are independent of one another, so threads share the work."""
    codes, firsts = number(units)
    threads = pl.thread_pool_size() if len(codes) > SHARED_ROWS else 1

    def share(part: int) -> UnitPaths:
        rows = np.flatnonzero(codes % threads == part)
        own = codes[rows] // threads
        rows = rows[order(own, instants[rows], len(firsts) // threads + 1)]
        found = _of_units(codes[rows], instants[rows], masks[rows], rules, totals)
        return UnitPaths(
            found.lengths, np.where(found.events < 0, -1, rows[found.events]), found.longest
        )

    if threads == 1:
        return share(0)
    with ThreadPoolExecutor(threads) as pool:
        parts = list(pool.map(share, range(threads)))
    return UnitPaths(*(np.concatenate(same) for same in zip(*map(_fields, parts), strict=True)))


def _fields(found: UnitPaths) -> tuple[I64, I64, npt.NDArray[np.bool_]]:
    return found.lengths, found.events, found.longest


def _of_units(codes: I64, instants: I64, masks: U64, rules: PathRules, totals: bool) -> UnitPaths:
    """The paths, with events sorted by unit and time."""
    strict, step_ms = rules.resolution == 0, max(1, rules.resolution)
    times = (instants + step_ms // 2) // step_ms * step_ms
    starts = groups(codes, times)
    if not totals and np.diff(starts).max(initial=0) > GROUP_EVENTS:
        kept = np.flatnonzero(_needed(starts, instants, masks, rules))
        if len(kept) < len(codes):
            found = _of_units(codes[kept], instants[kept], masks[kept], rules, totals)
            events = np.where(found.events < 0, -1, kept[found.events])
            return UnitPaths(found.lengths, events, found.longest)
    bounds = np.array(rules.bounds, dtype=np.int64).reshape(-1, 2)
    bits = rules.steps + len(bounds)
    links = following(codes, masks, starts, bits, True)
    if totals:
        lengths, events = total_paths(
            codes, masks, times, starts, links, rules.steps, rules.window, rules.order,
            strict, rules.reentry, bounds,
        )  # fmt: skip
        return UnitPaths(lengths, events, np.ones(len(lengths), dtype=np.bool_))
    back = following(codes, masks, starts, bits, False) if rules.order == ANY else links
    return UnitPaths(
        *longest_paths(
            codes, masks, times, instants, starts, links, back, rules.steps, rules.window,
            rules.order, strict, rules.reentry, bounds, rules.drop, rules.edges,
        )
    )  # fmt: skip


def _needed(starts: I64, instants: I64, masks: U64, rules: PathRules) -> npt.NDArray[np.bool_]:
    """Whether an event can make a difference, so that thousands of events in one second don't cost
    a search each: of one group, mask and bucket (as entries), the first `steps` fill all steps."""
    group = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    bucket = np.searchsorted(rules.edges, instants, side="right") * (masks & np.uint64(1) > 0)
    rows = pl.DataFrame({"group": group, "mask": masks, "bucket": bucket})
    before = pl.int_range(pl.len()).over("group", "mask", "bucket")
    return rows.select(before < rules.steps).to_series().to_numpy()
