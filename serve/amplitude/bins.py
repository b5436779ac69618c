"""The bins of session lengths that a request may ask for."""

from __future__ import annotations

import re

from forebay.serve.amplitude.parameters import Given, invalid
from forebay.storage.base.times import DAY_MS, HOUR_MS, MINUTE_MS

BIN = "timeHistogramConfigBin"
NAMES = tuple(f"{BIN}{name}" for name in ("TimeUnit", "Min", "Max", "Size"))
"""Names of the parameters."""
UNITS_MS = {"hours": HOUR_MS, "minutes": MINUTE_MS, "seconds": 1000}
BINS = 10
"""The number of bins if a request gives no size."""
BINS_MAX = 1000


def edges_ms(given: Given) -> tuple[int, ...] | None:
    """The edges of bins; None if they are not valid, for which Amplitude has defaults. Raises
    Problem for too many."""
    unit, low, high, size = map(given.text, NAMES)
    texts = [text for text in (low, high, size) if text is not None]
    numbers = [int(text) for text in texts if re.fullmatch(r"\d{1,9}", text)]
    if unit not in UNITS_MS or None in (low, high) or len(numbers) < len(texts):
        return None
    first, last = numbers[:2]
    step = numbers[2] if size is not None else max(1, -(-(last - first) // BINS))
    if first >= last or not step:
        return None
    if last * UNITS_MS[unit] > DAY_MS or (last - first) / step > BINS_MAX:
        raise invalid(f"{BIN}Max: expected at most {BINS_MAX} bins up to a day, got more")
    return tuple(one * UNITS_MS[unit] for one in (*range(first, last, step), last))
