"""A duration in the settings: text such as "500ms", "90s", "10m", kept as whole milliseconds."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer

MINUTE_MS, HOUR_MS = 60_000, 3_600_000
UNITS_MS = {"ms": 1, "s": 1000, "m": MINUTE_MS, "h": HOUR_MS, "d": 86_400_000}


def duration_ms(value: object) -> int:
    """Milliseconds of "500ms", "90s", "10m", "2h", "1d"; a bare number counts seconds."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?\s*", str(value))
    if isinstance(value, bool) or found is None or len(found[1]) > 15:
        raise ValueError("expected a time such as 500ms, 90s, 10m or 2h")
    return round(float(found[1]) * UNITS_MS[found[2] or "s"])


def duration_text(ms: int) -> str:
    """The shortest text that `duration_ms` reads back."""
    unit = max((u for u in UNITS_MS if ms % UNITS_MS[u] == 0), key=UNITS_MS.__getitem__)
    return f"{ms // UNITS_MS[unit]}{unit}" if ms else "0s"


Duration = Annotated[int, BeforeValidator(duration_ms), PlainSerializer(duration_text)]
