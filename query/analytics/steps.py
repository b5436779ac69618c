"""Steps of a funnel's path, compiled: groups of simultaneous events, and the steps they can fill.

The events of a unit are in order of time. Each has a mask: bit k is set if it may fill step k (from
0); above the steps there is a bit for each exclusion. Simultaneous events form a group. Within it
any order counts, and it fills as many steps as distinct events can fill (bipartite matching, by
augmenting paths).

Here and in `longest`, values are copied one by one: if an array is assigned to a slice, numba
compiles the text of an error, which takes longer than all the rest.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from forebay.storage.base.compiled import compiled

THIS, EXACT, ANY = 0, 1, 2
ALL, FIRST, LATEST = 0, 1, 2


@compiled
def groups(units: Any, times: Any) -> Any:
    """Where each group of events of one unit and time begins, and the end of the last."""
    starts = np.empty(len(units) + 1, dtype=np.int64)
    count = 0
    for i in range(len(units)):
        if i == 0 or units[i] != units[i - 1] or times[i] != times[i - 1]:
            starts[count] = i
            count += 1
    starts[count] = len(units)
    return starts[: count + 1].copy()


@compiled
def following(units: Any, masks: Any, starts: Any, bits: int, forward: bool) -> Any:
    """For each group and bit, the unit's next (or previous) group with such an event; -1 if there
    is none."""
    groups = len(starts) - 1
    found = np.full((groups, bits), -1, dtype=np.int32)
    nearest = np.full(bits, -1, dtype=np.int32)
    for n in range(groups):
        g = groups - 1 - n if forward else n
        if n and units[starts[g]] != units[starts[g + 1 if forward else g - 1]]:
            nearest[:] = -1
        for bit in range(bits):
            found[g, bit] = nearest[bit]
        for i in range(starts[g], starts[g + 1]):
            for bit in range(bits):
                if (masks[i] >> np.uint64(bit)) & np.uint64(1):
                    nearest[bit] = g
    return found


@compiled
def fill(masks: Any, low: int, high: int, level: int, most: int, filled: Any, own: Any) -> int:
    """Fill steps `level`, …, `most` - 1, as many as possible, with the events from `low` to `high`;
    return the new level. `own` has the step that an event fills, or -1; the entry (0) stays."""
    if high - low == 1:  # the usual case
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
def allowed(level: int, places: Any, following: Any, steps: int, bounds: Any, order: int) -> int:
    """How many steps of a path are left. It ends before a step if an excluded event lies between
    the two steps of its `bounds`; in any order, between the first and last."""
    for k in range(1, level):
        for n in range(len(bounds)):
            low, high = bounds[n]
            if k <= low:
                continue
            begin, end = places[low], places[min(k, high)]
            if order == ANY:
                for at in range(k + 1):
                    begin, end = min(begin, places[at]), max(end, places[at])
            excluded = following[begin, steps + n]
            if 0 <= excluded < end:
                return k
    return level
