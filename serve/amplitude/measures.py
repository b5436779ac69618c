"""Amplitude's measures and methods, converted to ours."""

from __future__ import annotations

import re

from forebay.query.analytics.funnel import Order
from forebay.query.analytics.retention import Mode
from forebay.query.analytics.segmentation import Measure
from forebay.serve.amplitude.events import Asked
from forebay.serve.amplitude.parameters import came, invalid, unsupported

MEASURES: dict[str, Measure] = {
    "uniques": "uniques", "totals": "totals", "pct_dau": "share", "average": "average",
    "sums": "sum", "value_avg": "mean",
}  # fmt: skip
OF_A_PROPERTY = ("sums", "value_avg")
FORMULA, HISTOGRAM = "formula", "histogram"
FUNCTIONS = {
    "UNIQUES": "UNIQUES", "TOTALS": "TOTALS", "AVG": "AVERAGE", "PROPSUM": "PROPSUM",
    "PROPAVG": "PROPAVG", "PROPCOUNT": "DISTINCT",
}  # fmt: skip
"""Functions of a formula: Amplitude's names, and ours."""
OF_VALUES = re.compile("PROPSUM|PROPAVG|DISTINCT")
ORDERS: dict[str, Order] = {"ordered": "this", "unordered": "any", "sequential": "exact"}
MODES: dict[str, Mode] = {
    "n-day": "on", "nday": "on", "rolling": "on or after", "bracket": "on",
}  # fmt: skip


def divided(event: Asked, group: str | None, measure: str) -> tuple[str | None, str | None]:
    """The property that is measured, and the one to group by."""
    if measure in OF_A_PROPERTY:
        if event.by is None:
            raise invalid(f"m: expected an event with a group_by for {measure}, got none")
        return event.by, group
    if event.by is not None and group is not None:
        raise unsupported("g: expected none beside a group_by of the event")
    return None, event.by or group


def formula(text: str) -> str:
    """The formula with our function names. Raises Problem."""

    def ours(found: re.Match[str]) -> str:
        if found[0] not in FUNCTIONS:
            raise unsupported(f"formula: expected {', '.join(FUNCTIONS)}; got {came(found[0])}")
        return FUNCTIONS[found[0]]

    return re.sub(r"\w+(?=\s*\()", ours, text)


def brackets(given: object, wanted: bool) -> list[tuple[int, int]] | None:
    if (given is not None) != wanted:
        raise invalid("rb: expected brackets with rm=bracket, and none else")
    if given is None:
        return None
    found = given if isinstance(given, list) else []
    pairs = [one for one in found if isinstance(one, list) and len(one) == 2]
    if (
        len(pairs) != len(found)
        or not found
        or not all(type(day) is int for p in pairs for day in p)
    ):
        raise invalid(f"rb: expected brackets such as [[0,5]], got {came(given)}")
    return [(low, high) for low, high in pairs]
