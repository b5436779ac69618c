"""All paths, each event belonging to one path only; compiled.

Events are taken in order of time (simultaneous ones by their first step). Each goes to the open
path that it takes furthest, the earliest of these. If there is none and it can be an entry (or any
step, in any order), it opens a path. Unless `reentry` is ALL, one path is open at a time; with
LATEST, an entry before its second step restarts it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from forebay.query.analytics.steps import ALL, ANY, EXACT, LATEST, allowed
from forebay.query.analytics.units import place
from forebay.storage.base.compiled import compiled

CLOSED, AGAIN, NEITHER = 0, -1, -2
"""In place of a step: the open path has ended, restarts, or goes on without the event."""


@compiled
def _without(
    mask: int, now: int, current: int, count: int, window: int, front: Any, begun: Any, events: Any
) -> tuple[int, int]:
    """In any order: the earliest open path that lacks a step of the mask, and the step. With a
    `current` path, only that path."""
    path, step = -1, -1
    for k in range(len(front)):
        if not (mask >> np.uint64(k)) & np.uint64(1):
            continue
        if current >= 0:
            front[k] = current if events[current, k] < 0 else count
        while front[k] < count and (events[front[k], k] >= 0 or now - begun[front[k]] > window):
            front[k] += 1
        if front[k] < count and (path < 0 or front[k] < path):
            path, step = front[k], k
    return path, step


@compiled
def _waiting(
    mask: int, group: int, now: int, window: int, exact: bool, strict: bool,
    heads: Any, behind: Any, begun: Any, last: Any,
) -> tuple[int, int]:  # fmt: skip
    """In order: the path that waits for a step of the mask, the highest such step first; and the
    step. It no longer waits."""
    for level in range(len(heads) - 1, 0, -1):
        if not (mask >> np.uint64(level)) & np.uint64(1):
            continue
        head = heads[level]
        while head >= 0 and (now - begun[head] > window or (exact and last[head] < group - 1)):
            head = behind[head]
        heads[level] = head
        if head >= 0 and not (strict and last[head] == group):
            heads[level] = behind[head]
            return head, level
    return -1, -1


@compiled
def _current(
    mask: int, group: int, now: int, path: int, window: int, exact: bool, strict: bool,
    latest: bool, begun: Any, last: Any, events: Any,
) -> int:  # fmt: skip
    """The step that an event fills in the one open path; or what becomes of that path."""
    step, steps = 1, events.shape[1]
    while step < steps and events[path, step] >= 0:
        step += 1
    if step == steps or now - begun[path] > window or (exact and last[path] < group - 1):
        return CLOSED
    if (mask >> np.uint64(step)) & np.uint64(1) and not (strict and last[path] == group):
        return step
    return AGAIN if latest and step == 1 and mask & np.uint64(1) else NEITHER


@compiled
def _lengths(events: Any, count: int, starts: Any, following: Any, bounds: Any, order: int) -> Any:
    """The lengths of the first `count` paths, without and with exclusions."""
    steps = events.shape[1]
    lengths = np.zeros((count, 2), dtype=np.int64)
    places = np.empty(steps, dtype=np.int64)
    for path in range(count):
        level = 0
        while level < steps and events[path, level] >= 0:
            places[level] = place(starts, 0, len(starts), events[path, level] + 1) - 1
            level += 1
        lengths[path, 0] = level
        lengths[path, 1] = allowed(level, places, following, steps, bounds, order)
    return lengths


@compiled
def total_paths(
    units: Any, masks: Any, times: Any, starts: Any, following: Any,
    steps: int, window: int, order: int, strict: bool, reentry: int, bounds: Any,
) -> Any:  # fmt: skip
    """The lengths of all paths, and their events."""
    one, size = np.uint64(1), len(masks)
    events = np.full((size, steps), -1, dtype=np.int64)
    begun, last = np.empty(size, dtype=np.int64), np.empty(size, dtype=np.int64)
    behind = np.full(size, -1, dtype=np.int64)  # the next path that waits after this one
    heads, tails = np.full(steps, -1, dtype=np.int64), np.full(steps, -1, dtype=np.int64)
    front = np.zeros(steps, dtype=np.int64)  # in any order: no path before it lacks the step
    exact, latest, every = order == EXACT, reentry == LATEST, reentry == ALL
    count, current = 0, -1
    for group in range(len(starts) - 1):
        low, high, now = starts[group], starts[group + 1], times[starts[group]]
        if group == 0 or units[low] != units[low - 1]:
            heads[:] = -1
            front[:] = count
            current = -1
        for n in range(steps * (high - low)):
            first, i = n // (high - low), low + n % (high - low)
            mask, path, step = masks[i], -1, -1
            if not (mask >> np.uint64(first)) & one or mask & ((one << np.uint64(first)) - one):
                continue  # it begins with another step
            if order == ANY:
                only = -1 if every else current
                path, step = _without(mask, now, only, count, window, front, begun, events)
                waits = only >= 0 and now - begun[only] <= window
                if path < 0 and waits and (events[only] < 0).any():
                    continue
            elif every:
                path, step = _waiting(
                    mask, group, now, window, exact, strict, heads, behind, begun, last
                )
            elif current >= 0:
                step = _current(
                    mask, group, now, current, window, exact, strict, latest, begun, last, events
                )
                if step == NEITHER:
                    continue
                path = current if step > 0 else -1
                count -= step == AGAIN
            if path < 0:
                if order != ANY and not mask & one:
                    continue
                path, step, current = count, first, count
                events[path], begun[path] = -1, now
                count += 1
            events[path, step], last[path] = i, group
            if order != ANY and every and step + 1 < steps:
                behind[path] = -1
                if heads[step + 1] < 0:
                    heads[step + 1] = path
                else:
                    behind[tails[step + 1]] = path
                tails[step + 1] = path
    return _lengths(events, count, starts, following, bounds, order), events[:count].copy()
