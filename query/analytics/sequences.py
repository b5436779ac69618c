"""Paths of a funnel through each unit's events, compiled.

A unit is a user, or a user with one value of a property. Its events, in order of time, have a mask
each: bit k for what may fill step k (from 0), and above the steps a bit for each exclusion. Events
at one time form a group; within it, any order counts, and a group fills as many steps as distinct
events can fill (bipartite matching, by augmenting paths). With `strict`, it fills one.

A path begins with an event of step 0, its entry, and takes each further step in the earliest group
that can fill it. Groups are found through `following`: for each group and bit the next group of the
unit with such an event. So a path costs its steps, however many events lie between.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from forebay.query.analytics.units import number, order
from forebay.storage.base.compiled import compiled
from forebay.storage.formats.hashes import I64, U64

THIS, EXACT, ANY = 0, 1, 2
ALL, FIRST, LATEST = 0, 1, 2
SHARED_ROWS = 100_000
"""From so many on, threads are worth their start."""


@compiled
def _groups(units: Any, times: Any) -> Any:
    """Where the groups of events of one unit and time begin, and the end of the last one."""
    starts = np.empty(len(units) + 1, dtype=np.int64)
    count = 0
    for i in range(len(units)):
        if i == 0 or units[i] != units[i - 1] or times[i] != times[i - 1]:
            starts[count] = i
            count += 1
    starts[count] = len(units)
    return starts[: count + 1].copy()


@compiled
def _following(units: Any, masks: Any, starts: Any, bits: int, forward: bool) -> Any:
    """For each group and bit the next group of its unit (or the one before) with such an event;
    -1 if there is none."""
    groups = len(starts) - 1
    found = np.full((groups, bits), -1, dtype=np.int32)
    nearest = np.full(bits, -1, dtype=np.int32)
    for n in range(groups):
        g = groups - 1 - n if forward else n
        if n and units[starts[g]] != units[starts[g + 1 if forward else g - 1]]:
            nearest[:] = -1
        found[g] = nearest
        for i in range(starts[g], starts[g + 1]):
            for bit in range(bits):
                if (masks[i] >> np.uint64(bit)) & np.uint64(1):
                    nearest[bit] = g
    return found


@compiled
def _fill(masks: Any, low: int, high: int, level: int, most: int, filled: Any, own: Any) -> int:
    """Fill steps `level`, …, `most` - 1, as many as can be, with the events from `low` to `high`;
    the level then. `own` has the step that an event fills, or -1; the entry (0) stays."""
    if high - low == 1:  # as nearly all groups are
        if level < most and own[low] < 0 and (masks[low] >> np.uint64(level)) & np.uint64(1):
            own[low] = level
            filled[level] = low
            level += 1
        return level
    via = np.empty(high - low, dtype=np.int64)
    queue = np.empty(most + 1, dtype=np.int64)
    while level < most:
        via[:] = -1
        queue[0] = level
        head, tail, last = 0, 1, -1
        while head < tail and last < 0:
            step = queue[head]
            head += 1
            for i in range(low, high):
                fits = (masks[i] >> np.uint64(step)) & np.uint64(1)
                if fits and via[i - low] < 0 and own[i] != 0:
                    via[i - low] = step
                    if own[i] < 0:
                        last = i
                        break
                    queue[tail] = own[i]
                    tail += 1
        if last < 0:
            break
        while True:
            step = via[last - low]
            before = filled[step]
            own[last] = step
            filled[step] = last
            if step == level:
                break
            last = before
        level += 1
    return level


@compiled
def _sequence(
    entry: int, group: int, units: Any, masks: Any, starts: Any, times: Any, following: Any,
    steps: int, window: int, exact: bool, strict: bool, filled: Any, places: Any, own: Any,
) -> int:  # fmt: skip
    """How many steps the path of an entry has: events in `filled`, their groups in `places`."""
    filled[:] = -1
    own[starts[group] : starts[group + 1]] = -1
    own[entry] = 0
    filled[0] = entry
    places[0] = group
    level = 1
    if not strict:
        level = _fill(masks, starts[group], starts[group + 1], 1, steps, filled, own)
    places[1:level] = group
    while level < steps:
        if exact:
            after = group + 1
            if after == len(starts) - 1 or units[starts[after]] != units[entry]:
                break
        else:
            after = following[group, level]
        if after < 0 or times[starts[after]] - times[entry] > window:
            break
        group = after
        own[starts[group] : starts[group + 1]] = -1
        most = level + 1 if strict else steps
        reached = _fill(masks, starts[group], starts[group + 1], level, most, filled, own)
        if reached == level:
            break
        places[level:reached] = group
        level = reached
    return level


@compiled
def _insert(found: Any, count: int, event: int) -> int:
    """Put an event in order into the first `count`, unless it is there; how many there are then."""
    at = count
    while at and found[at - 1] >= event:
        at -= 1
    if at < count and found[at] == event:
        return count
    found[at + 1 : count + 1] = found[at:count].copy()
    found[at] = event
    return count + 1


@compiled
def _unordered(
    entry: int, group: int, masks: Any, starts: Any, times: Any, following: Any, preceding: Any,
    steps: int, window: int, filled: Any, places: Any,
) -> int:  # fmt: skip
    """The same in any order, of the latest window that holds the entry and the most steps. Of each
    step, the nearest events are enough, as many on either side as there are steps."""
    found = np.empty(2 * steps * steps + starts[group + 1] - starts[group], dtype=np.int64)
    count = starts[group + 1] - starts[group]
    found[:count] = np.arange(starts[group], starts[group + 1])
    for step in range(1, steps):
        for side in range(2):
            links = following if side == 0 else preceding
            left, g = steps, links[group, step]
            while g >= 0 and left and abs(times[starts[g]] - times[entry]) <= window:
                for i in range(starts[g], starts[g + 1]):
                    if left and (masks[i] >> np.uint64(step)) & np.uint64(1):
                        count = _insert(found, count, i)
                        left -= 1
                g = links[g, step]
    found = found[:count]
    middle = np.searchsorted(found, starts[group])
    best = 0
    trial = np.empty(steps, dtype=np.int64)
    for n in range(middle + 1):
        first = middle - n
        low = times[found[first]] if n else times[entry]
        if n and first and times[found[first - 1]] == low:
            continue
        # What came before the entry, the nearest first, and then what came after it.
        held = np.empty(len(found), dtype=np.int64)
        size = 0
        for i in range(len(found)):
            at = middle - 1 - i if i < middle else i
            if low <= times[found[at]] <= low + window:
                held[size] = found[at]
                size += 1
        own = np.full(size, -1, dtype=np.int64)
        trial[:] = -1
        for i in range(size):
            if held[i] == entry:
                own[i] = 0
                trial[0] = i
        level = _fill(masks[held[:size]], 0, size, 1, steps, trial, own)
        if level > best:
            best = level
            filled[:] = -1
            for k in range(level):
                filled[k] = held[trial[k]]
                places[k] = np.searchsorted(starts, filled[k], side="right") - 1
        if best == steps:
            break
    return best


@compiled
def _allowed(level: int, places: Any, following: Any, steps: int, bounds: Any, order: int) -> int:
    """How many steps are left of a path, that ends before a step if an excluded event lies between
    the two steps of its `bounds`, or between the first and last if in any order."""
    for k in range(1, level):
        for n in range(len(bounds)):
            low, high = bounds[n]
            if k <= low:
                continue
            begin, end = places[low], places[min(k, high)]
            if order == ANY:
                begin, end = places[: k + 1].min(), places[: k + 1].max()
            excluded = following[begin, steps + n]
            if 0 <= excluded < end:
                return k
    return level


@compiled
def _paths(
    units: Any, masks: Any, times: Any, instants: Any, starts: Any, following: Any, preceding: Any,
    steps: int, window: int, order: int, strict: bool, reentry: int, bounds: Any, drop: bool,
    edges: Any,
) -> Any:  # fmt: skip
    """The longest, then earliest path of each unit and bucket of entry: its length without
    exclusions and with them, its events, and whether it is the longest, earliest of its unit."""
    one = np.uint64(1)
    entries = 0
    for i in range(len(masks)):
        entries += masks[i] & one
    lengths = np.zeros((entries, 2), dtype=np.int64)
    events = np.full((entries, steps), -1, dtype=np.int64)
    filled, places = np.empty(steps, dtype=np.int64), np.empty(steps, dtype=np.int64)
    own = np.empty(len(masks), dtype=np.int64)
    longest = np.zeros(entries, dtype=np.bool_)
    count, part, known_part, unit, top, top_length = 0, 0, -1, -1, 0, 0
    for group in range(len(starts) - 1):
        for entry in range(starts[group], starts[group + 1]):
            if not masks[entry] & one:
                continue
            same = units[entry] == unit
            if same and reentry == FIRST:
                continue
            if not same or instants[entry] < edges[part]:
                part = 0
            while part < len(edges) - 2 and edges[part + 1] <= instants[entry]:
                part += 1
            again = same and part == known_part
            if again and lengths[count - 1, 0 if drop else 1] == steps:
                continue
            if order == ANY:
                level = _unordered(
                    entry, group, masks, starts, times, following, preceding, steps, window,
                    filled, places,
                )  # fmt: skip
            else:
                level = _sequence(
                    entry, group, units, masks, starts, times, following, steps, window,
                    order == EXACT, strict, filled, places, own,
                )  # fmt: skip
            if reentry == LATEST and level > 1 and 0 <= following[group, 0] < places[1]:
                level = 1  # another entry comes before the second step
            allowed = _allowed(level, places, following, steps, bounds, order)
            chosen = level if drop else allowed
            if again and chosen <= lengths[count - 1, 0 if drop else 1]:
                continue
            if not again:
                count += 1
            unit, known_part = units[entry], part
            lengths[count - 1] = (level, allowed)
            events[count - 1] = -1
            events[count - 1, :chosen] = filled[:chosen]
            if not same or chosen > top_length:
                if same:
                    longest[top] = False
                top, top_length = count - 1, chosen
                longest[top] = True
    return lengths[:count].copy(), events[:count].copy(), longest[:count].copy()


@compiled
def _totals(
    units: Any, masks: Any, times: Any, starts: Any, following: Any,
    steps: int, window: int, order: int, strict: bool, reentry: int, bounds: Any,
) -> Any:  # fmt: skip
    """All paths, where each event is of one path only. Events are taken in order of time (at one
    time by their first step). Each goes to the open path that it takes furthest, the earliest of
    such; if there is none and it can be an entry (or any step, in any order), it opens one. Unless
    `reentry` is ALL, one path is open at a time, which with LATEST an entry before the second step
    begins again."""
    one = np.uint64(1)
    size = len(masks)
    events = np.full((size, steps), -1, dtype=np.int64)
    begun, last = np.empty(size, dtype=np.int64), np.empty(size, dtype=np.int64)
    behind = np.full(size, -1, dtype=np.int64)  # the path that waits behind this one
    heads, tails = np.full(steps, -1, dtype=np.int64), np.full(steps, -1, dtype=np.int64)
    front = np.zeros(steps, dtype=np.int64)  # in any order: no path before it lacks the step
    count, current = 0, -1
    for group in range(len(starts) - 1):
        low, high, now = starts[group], starts[group + 1], times[starts[group]]
        if group == 0 or units[low] != units[low - 1]:
            heads[:] = -1
            front[:] = count
            current = -1
        for n in range(steps * (high - low)):
            first, i = n // (high - low), low + n % (high - low)
            below = (one << np.uint64(first)) - one
            if not (masks[i] >> np.uint64(first)) & one or masks[i] & below:
                continue  # its first step is another
            mask, path, step = masks[i], -1, -1
            if order == ANY:
                for k in range(steps):
                    if not (mask >> np.uint64(k)) & one:
                        continue
                    if reentry != ALL and current >= 0:
                        front[k] = current if events[current, k] < 0 else count
                    while front[k] < count and (
                        events[front[k], k] >= 0 or now - begun[front[k]] > window
                    ):
                        front[k] += 1
                    if front[k] < count and (path < 0 or front[k] < path):
                        path, step = front[k], k
            elif reentry == ALL:
                for level in range(steps - 1, 0, -1):
                    if not (mask >> np.uint64(level)) & one:
                        continue
                    head = heads[level]
                    while head >= 0 and (
                        now - begun[head] > window or (order == EXACT and last[head] < group - 1)
                    ):
                        head = behind[head]
                    heads[level] = head
                    if head >= 0 and not (strict and last[head] == group):
                        path, step = head, level
                        heads[level] = behind[head]
                        break
            elif current >= 0:
                step = 1
                while step < steps and events[current, step] >= 0:
                    step += 1
                broken = order == EXACT and last[current] < group - 1
                if step < steps and now - begun[current] <= window and not broken:
                    fits = (mask >> np.uint64(step)) & one
                    if fits and not (strict and last[current] == group):
                        path = current
                    elif mask & one and reentry == LATEST and step == 1:
                        count -= 1  # the path begins again
                    else:
                        continue
            if path < 0:
                if order != ANY and not mask & one:
                    continue
                if order == ANY and reentry != ALL and current >= 0:
                    waits = now - begun[current] <= window and (events[current] < 0).any()
                    if waits:
                        continue
                path, step = count, first
                events[path] = -1
                begun[path] = now
                current = path
                count += 1
            events[path, step] = i
            last[path] = group
            if order != ANY and reentry == ALL and step + 1 < steps:
                behind[path] = -1
                if heads[step + 1] < 0:
                    heads[step + 1] = path
                else:
                    behind[tails[step + 1]] = path
                tails[step + 1] = path
    lengths = np.zeros((count, 2), dtype=np.int64)
    places = np.empty(steps, dtype=np.int64)
    for path in range(count):
        level = 0
        while level < steps and events[path, level] >= 0:
            places[level] = np.searchsorted(starts, events[path, level], side="right") - 1
            level += 1
        lengths[path] = (level, _allowed(level, places, following, steps, bounds, order))
    return lengths, events[:count].copy()


@dataclass(frozen=True)
class Rules:
    """What is a path: `window` and `resolution` in milliseconds; `bounds` has for each exclusion
    the steps (from 0) that it lies between; `drop` chooses paths without regard to exclusions;
    `edges` are those of the buckets of entry."""

    steps: int
    window: int
    resolution: int
    order: int
    reentry: int
    bounds: tuple[tuple[int, int], ...]
    drop: bool
    edges: I64


@dataclass(frozen=True)
class Paths:
    """A row a path: its length without and with exclusions, the row of the event of each step (-1
    where there is none), and whether it is the one path of its unit."""

    lengths: I64
    events: I64
    longest: npt.NDArray[np.bool_]


def paths(units: pl.DataFrame, instants: I64, masks: U64, rules: Rules, *, totals: bool) -> Paths:
    """The paths of all units, which are the distinct rows of `units`; `instants` in milliseconds.
    With `totals` all of them, each with events of its own; else one a unit and bucket of entry.

    Units don't depend on each other, so threads share them out."""
    codes, firsts = number(units)
    threads = pl.thread_pool_size() if len(codes) > SHARED_ROWS else 1

    def share(part: int) -> Paths:
        rows = np.flatnonzero(codes % threads == part)
        own = codes[rows] // threads
        rows = rows[order(own, instants[rows], len(firsts) // threads + 1)]
        found = _of_units(codes[rows], instants[rows], masks[rows], rules, totals)
        return Paths(
            found.lengths, np.where(found.events < 0, -1, rows[found.events]), found.longest
        )

    if threads == 1:
        return share(0)
    with ThreadPoolExecutor(threads) as pool:
        parts = list(pool.map(share, range(threads)))
    return Paths(*(np.concatenate(same) for same in zip(*map(_fields, parts), strict=True)))


def _fields(found: Paths) -> tuple[I64, I64, npt.NDArray[np.bool_]]:
    return found.lengths, found.events, found.longest


def _of_units(codes: I64, instants: I64, masks: U64, rules: Rules, totals: bool) -> Paths:
    """The paths of events in order of unit and time."""
    strict, step_ms = rules.resolution == 0, max(1, rules.resolution)
    times = (instants + step_ms // 2) // step_ms * step_ms
    starts = _groups(codes, times)
    bounds = np.array(rules.bounds, dtype=np.int64).reshape(-1, 2)
    bits = rules.steps + len(bounds)
    following = _following(codes, masks, starts, bits, True)
    if totals:
        lengths, events = _totals(
            codes, masks, times, starts, following, rules.steps, rules.window, rules.order,
            strict, rules.reentry, bounds,
        )  # fmt: skip
        return Paths(lengths, events, np.ones(len(lengths), dtype=np.bool_))
    unordered = rules.order == ANY
    preceding = _following(codes, masks, starts, bits, False) if unordered else following
    return Paths(
        *_paths(
            codes, masks, times, instants, starts, following, preceding, rules.steps,
            rules.window, rules.order, strict, rules.reentry, bounds, rules.drop, rules.edges,
        )
    )  # fmt: skip
