"""Units: whether a number is seconds, milliseconds or microseconds since 1970, by its size.

    unit   from                to (exclusive)
    s      100_000_000         7_258_118_400
    ms     100_000_000_000     7_258_118_400_000
    µs     100_000_000_000_000 7_258_118_400_000_000

All three ranges are 1973-03-03T09:46:40Z to 2200-01-01T00:00:00Z, and no number is in two of them:
a number between or beyond them is not a time. A fraction is rounded to the nearest microsecond,
from the double nearest to what is written; six decimal places of a second are kept as they are.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from forebay.storage.formats.columns import ARROW_TYPES, Mask

FIRST_S, END_S = 100_000_000, 7_258_118_400
PER_SECOND = (1, 1_000, 1_000_000)
"""The units."""
EXPECTED = "expected a time in s, ms or µs, from 1973-03-03 to 2199"


def moments(numbers: pa.Array) -> tuple[pa.Array, Mask]:
    """The times of a column of doubles, null where there is none, and the rows where there is a
    number that is not a time."""
    found = numbers.to_numpy(zero_copy_only=False)  # null is NaN, which is within no bounds
    micros = np.zeros(len(found), dtype=np.float64)
    known: Mask = np.zeros(len(found), dtype=bool)
    for per_second in PER_SECOND:
        mine = (found >= FIRST_S * per_second) & (found < END_S * per_second)
        micros[mine] = np.rint(found[mine] * (1_000_000 // per_second))
        known |= mine
    times = pa.array(micros.astype(np.int64), mask=~known).cast(ARROW_TYPES["time_auto"])
    there: Mask = numbers.is_valid().to_numpy(zero_copy_only=False)
    return times, there & ~known
