"""Times: milliseconds since 1970 in UTC, as datetimes, as text; and the one wall clock.

Only the years 1 to 9999 are times: those that readers in any language take.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FIRST_S, END_S = -62_135_596_800, 253_402_300_800
"""The years 1 to 9999 in seconds, the end not included."""
FIRST_MS, LAST_MS = FIRST_S * 1000, END_S * 1000 - 1
"""The same in milliseconds, both ends included."""
MINUTE_MS, HOUR_MS, DAY_MS = 60_000, 3_600_000, 86_400_000
PER_SECOND = {"s": 1, "ms": 1000, "us": 1_000_000, "ns": 1_000_000_000}


def now_ms() -> int:
    """The wall clock. Nothing in `storage` asks it: it is passed in."""
    return time.time_ns() // 1_000_000


_STARTED_MS = now_ms() - time.monotonic_ns() // 1_000_000


def steady_ms() -> int:
    """The wall clock as this process has found it, and the time since: where the clock is set, no
    grace period of this process becomes shorter or longer."""
    return _STARTED_MS + time.monotonic_ns() // 1_000_000


def time_of(ms: int) -> datetime:
    return EPOCH + timedelta(milliseconds=ms)


def ms_of(moment: datetime) -> int:
    """Whole milliseconds, rounded down."""
    return (moment - EPOCH) // timedelta(milliseconds=1)


def utc_text(ms: int) -> str:
    """A time as people read it, to the millisecond where there are any."""
    text = time_of(ms).isoformat(timespec="milliseconds" if ms % 1000 else "seconds")
    return text.replace("+00:00", "Z")
