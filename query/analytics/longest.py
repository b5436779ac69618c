"""The longest, then earliest path of each unit; compiled.

A path begins with an event of step 0, its entry, and takes each further step in the earliest group
that can fill it (one step per group if `strict`). `following` has, for each group and bit, the
unit's next group with such an event. So a path costs as much as it has steps, however many events
lie in between.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from forebay.query.analytics.steps import ANY, EXACT, FIRST, LATEST, allowed, fill
from forebay.query.analytics.units import place
from forebay.storage.base.compiled import compiled


@compiled
def _refill(
    entry: int, group: int, level: int, most: int, masks: Any, starts: Any, filled: Any, own: Any
) -> int:
    """Fill steps `level`, ..., `most` - 1 with the events of one group; return the new level."""
    own[starts[group] : starts[group + 1]] = -1
    if starts[group] <= entry < starts[group + 1]:
        own[entry] = 0
    return fill(masks, starts[group], starts[group + 1], level, most, filled, own)


@compiled
def _unbroken(
    entry: int, group: int, units: Any, masks: Any, starts: Any, times: Any,
    steps: int, window: int, filled: Any, places: Any, own: Any,
) -> int:  # fmt: skip
    """How many steps an entry's path has in exact order, where each group in between must fill one:
    using fewer events of one group may leave a step for the next. Fills `filled` and `places`.

    A group that can fill steps k, ..., m can also fill any first part of them, and k + 1, ..., m.
    So the highest level that is reachable before a group is the best one to continue from."""
    reached = np.zeros((steps, steps + 1), dtype=np.bool_)  # the level after so many more groups
    best, last = 0, 0
    for n in range(steps):
        at = group + n
        if at == len(starts) - 1 or units[starts[at]] != units[entry]:
            break
        if times[starts[at]] - times[entry] > window or best == steps:
            break
        for before in range(1, steps):
            if n and not reached[n - 1, before]:
                continue
            top = _refill(entry, at, before, steps, masks, starts, filled, own)
            reached[n, before + min(n, 1) : top + 1] = True
            if top > best:
                best, last = top, n
            if n == 0:
                break
    levels = np.ones(last + 2, dtype=np.int64)
    levels[last + 1] = best
    for n in range(last, 0, -1):
        levels[n] = levels[n + 1] - 1
        while not reached[n - 1, levels[n]]:
            levels[n] -= 1
    filled[1:] = -1
    for n in range(last + 1):
        _refill(entry, group + n, levels[n], levels[n + 1], masks, starts, filled, own)
        places[levels[n] : levels[n + 1]] = group + n
    return best


@compiled
def _sequence(
    entry: int, group: int, units: Any, masks: Any, starts: Any, times: Any, following: Any,
    steps: int, window: int, exact: bool, strict: bool, filled: Any, places: Any, own: Any,
) -> int:  # fmt: skip
    """How many steps an entry's path has; sets its events in `filled`, their groups in `places`."""
    filled[:] = -1
    own[starts[group] : starts[group + 1]] = -1
    own[entry] = 0
    filled[0] = entry
    places[0] = group
    level = 1
    if not strict:
        level = fill(masks, starts[group], starts[group + 1], 1, steps, filled, own)
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
        reached = fill(masks, starts[group], starts[group + 1], level, most, filled, own)
        if reached == level:
            break
        places[level:reached] = group
        level = reached
    if exact and level < steps and places[level - 1] - places[0] + 1 < level:
        return _unbroken(
            entry, places[0], units, masks, starts, times, steps, window, filled, places, own
        )
    return level


@compiled
def _insert(found: Any, count: int, event: int) -> int:
    """Insert an event in order into the first `count`, if not there yet; return the new count."""
    at = count
    while at and found[at - 1] >= event:
        at -= 1
    if at < count and found[at] == event:
        return count
    for n in range(count, at, -1):
        found[n] = found[n - 1]
    found[at] = event
    return count + 1


@compiled
def _unordered(
    entry: int, group: int, masks: Any, starts: Any, times: Any, following: Any, preceding: Any,
    steps: int, window: int, filled: Any, places: Any,
) -> int:  # fmt: skip
    """The same in any order, in the latest window that contains the entry and the most steps. Only
    the nearest events of each step matter: on either side, as many as there are steps."""
    found = np.empty(2 * steps * steps + starts[group + 1] - starts[group], dtype=np.int64)
    count = starts[group + 1] - starts[group]
    for i in range(count):
        found[i] = starts[group] + i
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
    middle = place(found, 0, count, starts[group])
    best = 0
    trial = np.empty(steps, dtype=np.int64)
    for n in range(middle + 1):
        first = middle - n
        low = times[found[first]] if n else times[entry]
        if n and first and times[found[first - 1]] == low:
            continue
        # Those before the entry, the nearest first, and then those after it.
        held = np.empty(len(found), dtype=np.int64)
        kinds = np.empty(len(found), dtype=np.uint64)
        size = 0
        for i in range(len(found)):
            at = middle - 1 - i if i < middle else i
            if low <= times[found[at]] <= low + window:
                held[size], kinds[size] = found[at], masks[found[at]]
                size += 1
        own = np.full(size, -1, dtype=np.int64)
        trial[:] = -1
        for i in range(size):
            if held[i] == entry:
                own[i] = 0
                trial[0] = i
        level = fill(kinds, 0, size, 1, steps, trial, own)
        if level > best:
            best = level
            filled[:] = -1
            for k in range(level):
                filled[k] = held[trial[k]]
                places[k] = place(starts, 0, len(starts), filled[k] + 1) - 1
        if best == steps:
            break
    return best


@compiled
def longest_paths(
    units: Any, masks: Any, times: Any, instants: Any, starts: Any, following: Any, preceding: Any,
    steps: int, window: int, order: int, strict: bool, reentry: int, bounds: Any, drop: bool,
    edges: Any,
) -> Any:  # fmt: skip
    """The longest, then earliest path of each unit and bucket of entry: its length without and with
    exclusions, its events, and whether it is the longest, earliest path of its unit."""
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
            left = allowed(level, places, following, steps, bounds, order)
            chosen = level if drop else left
            if again and chosen <= lengths[count - 1, 0 if drop else 1]:
                continue
            if not again:
                count += 1
            unit, known_part = units[entry], part
            lengths[count - 1, 0], lengths[count - 1, 1] = level, left
            for step in range(steps):
                events[count - 1, step] = filled[step] if step < chosen else -1
            if not same or chosen > top_length:
                if same:
                    longest[top] = False
                top, top_length = count - 1, chosen
                longest[top] = True
    return lengths[:count].copy(), events[:count].copy(), longest[:count].copy()
