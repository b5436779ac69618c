"""Times: milliseconds since 1970 in UTC, as datetimes, as text; and the one wall clock.

Only the years 1 to 9999 are times: those that readers in any language take.
"""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FIRST_S, END_S = -62_135_596_800, 253_402_300_800
"""The years 1 to 9999 in seconds, the end not included."""
FIRST_MS, LAST_MS = FIRST_S * 1000, END_S * 1000 - 1
"""The same in milliseconds, both ends included."""
MINUTE_MS, HOUR_MS, DAY_MS = 60_000, 3_600_000, 86_400_000
UNITS_MS = {"ms": 1, "s": 1000, "m": MINUTE_MS, "h": HOUR_MS, "d": DAY_MS}
PER_SECOND = {"s": 1, "ms": 1000, "us": 1_000_000, "ns": 1_000_000_000}


def now_ms() -> int:
    """The wall clock. Nothing in `storage` asks it: it is passed in."""
    return time.time_ns() // 1_000_000


_STARTED_MS = now_ms() - time.monotonic_ns() // 1_000_000


def steady_ms() -> int:
    """The wall clock as this process first read it, plus the time since: setting the clock makes no
    grace period of this process shorter or longer."""
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


def duration_ms(value: object) -> int:
    """Milliseconds of "500ms", "90s", "10m", "2h", "1d". Only 0 needs no unit."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?\s*", str(value))
    if isinstance(value, bool) or found is None or len(found[1]) > 15:
        raise ValueError("expected a time such as '500ms', '90s', '10m' or '7d'")
    number = float(found[1])
    if found[2] is None and number:
        raise ValueError("expected a time with its unit, such as '500ms', '90s', '10m' or '7d'")
    return round(number * UNITS_MS[found[2] or "s"])


def duration_text(ms: int) -> str:
    """The shortest text that `duration_ms` reads back."""
    unit = max((u for u in UNITS_MS if ms % UNITS_MS[u] == 0), key=UNITS_MS.__getitem__)
    return f"{ms // UNITS_MS[unit]}{unit}" if ms else "0s"
