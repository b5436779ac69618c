"""Our answers in Amplitude's shapes: pure functions of frames.

Groups are in order of their values, the greatest first; groups beyond the limit are left out, and a
missing value is called (none). A value that does not exist (the mean of nothing) is 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from zoneinfo import ZoneInfo

import polars as pl

from forebay.query.analytics import Funnel, Retention, Segmentation, Sessions
from forebay.query.analytics.period import Period
from forebay.serve.amplitude.properties import NONE

Json = dict[str, object]
Number = int | float
DAY = "%b %d"
Group = tuple[str | None, ...]
"""A value of a property; empty if nothing groups the answer."""
NO_VALUE: Group = (None,)


@dataclass(frozen=True)
class Line:
    """One series of an answer: its group, a value for each bucket, and one for the whole period."""

    group: Group
    values: list[Number]
    whole: Number


def number(value: float | None) -> Number:
    """0 for None; an integer if it is one, as far as a double is exact."""
    if value is None:
        return 0
    return int(value) if float(value).is_integer() and abs(value) < 2**53 else value


def ratio(part: float, whole: float) -> float:
    """0.0 if the whole is 0."""
    return part / whole if whole else 0.0


def x_values(period: Period) -> list[str]:
    """The beginnings of its buckets: days; for hours or five minutes, with the time of day."""
    text = "%Y-%m-%dT%H:%M:%S" if period.interval in ("5 min", "hour") else "%Y-%m-%d"
    return [start.strftime(text) for start in _starts(period)]


def formatted_x_values(period: Period) -> list[str]:
    text = f"{DAY} %H:%M" if period.interval in ("5 min", "hour") else DAY
    return [start.strftime(text) for start in _starts(period)]


def _starts(period: Period) -> list[datetime]:
    zone = ZoneInfo(period.zone)
    edges = period.edges_ms[:-1].tolist()
    return [datetime.fromtimestamp(ms / 1000, UTC).astimezone(zone) for ms in edges]


def by_group(table: pl.DataFrame) -> dict[Group, pl.DataFrame]:
    """The rows of each named group; all rows under () if nothing groups them."""
    if "group" not in table.columns:
        return {(): table}
    named = table.filter(~pl.col("others"))
    parts = named.partition_by("group", as_dict=True, maintain_order=True)
    return {(key[0],): rows for key, rows in parts.items()}


def ranked(weights: Mapping[Group, float]) -> list[Group]:
    """Groups, the greatest first, equal ones by name. Without any event there is just one group,
    without a value: then the list is empty."""
    if len(weights) == 1 and not weights.get(NO_VALUE, 1):
        return []
    return sorted(weights, key=lambda group: (-weights[group], group != (), str(group)))


def named(group: Group) -> str:
    """The name of a group; none if nothing groups the answer."""
    return "" if not group else NONE if group[0] is None else group[0]


def lines(answer: Segmentation) -> list[Line]:
    """The series of an answer about one event, or of a formula."""
    whole = {group: rows["value"][0] for group, rows in by_group(answer.overall).items()}
    parts = by_group(answer.over_time)
    return [
        Line(group, [number(value) for value in parts[group]["value"]], number(whole[group]))
        for group in ranked({group: value or 0 for group, value in whole.items()})
    ]


def segmentation(found: Sequence[Sequence[Line]], period: Period, *, plain: bool) -> Json:
    """From the lines of each series; groups are labelled by name if `plain`, else with the number
    of the event."""
    labels: list[object] = []
    for place, some in enumerate(found):
        for line in some:
            label = named(line.group) if plain else [place, named(line.group)]
            labels.append(label if line.group else place)
    flat = [line for some in found for line in some]
    return {
        "series": [line.values for line in flat],
        "seriesLabels": labels,
        "seriesCollapsed": [[{"setId": "", "value": line.whole}] for line in flat],
        "xValues": x_values(period),
    }


def users(found: Sequence[Sequence[Line]], period: Period) -> Json:
    """From the lines of each segment. `seriesCollapsed` is 0 in Amplitude's answers too."""
    flat = [(place, line) for place, some in enumerate(found) for line in some]
    meta: list[object] = [
        named(line.group) if line.group else {"segmentIndex": place} for place, line in flat
    ]
    return {
        "xValues": x_values(period),
        "series": [line.values for _, line in flat],
        "seriesCollapsed": [[0] for _ in flat],
        "seriesLabels": [named(line.group) if line.group else place for place, line in flat],
        "seriesMeta": meta,
    }


def composition(found: Sequence[Line], label: str) -> Json:
    return {
        "series": [[line.whole for line in found]],
        "seriesLabels": [label],
        "xValues": [named(line.group) for line in found],
    }


def realtime(answer: Segmentation, period: Period) -> Json:
    """From two days in buckets of five minutes, the later day first."""
    (line,) = lines(answer)
    half = period.buckets // 2
    return {
        "xValues": [start.strftime("%H:%M") for start in _starts(period)[half:]],
        "seriesLabels": ["Today", "Yesterday"],
        "series": [line.values[half:], line.values[:half]],
    }


def funnels(answer: Funnel, period: Period, labels: Sequence[str], segment: int) -> list[Json]:
    """One object for each group of a segment."""
    steps, whole = by_group(answer.steps), by_group(answer.whole)
    over_time, whole_by_day = by_group(answer.over_time), by_group(answer.whole_over_time)
    return [
        {
            "meta": {"segmentIndex": segment},
            "groupValue": named(group),
            "events": list(labels),
            **_steps(steps[group], whole[group]),
            **_by_day(over_time[group], whole_by_day[group], period, len(labels)),
        }
        for group in ranked({group: rows["count"][0] for group, rows in steps.items()})
    ]


def _steps(steps: pl.DataFrame, whole: pl.DataFrame) -> Json:
    raw = steps["count"].to_list()
    return {
        "cumulativeRaw": raw,
        "cumulative": [ratio(count, raw[0]) for count in raw],
        "stepByStep": [ratio(*both) for both in zip(raw, raw[:1] + raw[:-1], strict=True)],
        "medianTransTimes": _times(steps, whole, "median_ms"),
        "avgTransTimes": _times(steps, whole, "mean_ms"),
    }


def _times(steps: pl.DataFrame, whole: pl.DataFrame, column: str) -> list[Number]:
    """Milliseconds for the whole funnel, then for each step after the one before."""
    return [number(whole[column][0]), *map(number, steps[column][1:])]


def _by_day(
    over_time: pl.DataFrame, whole: pl.DataFrame, period: Period, steps: int
) -> dict[str, object]:
    days = list(over_time.iter_slices(steps))
    ends = list(whole.iter_slices(1))
    both = list(zip(days, ends, strict=True))
    series: dict[str, list[list[Number]]] = {
        "dayFunnels": [day["count"].to_list() for day in days],
        "dayMedianTransTimes": [_times(day, end, "median_ms") for day, end in both],
        "dayAvgTransTimes": [_times(day, end, "mean_ms") for day, end in both],
    }
    x = {"xValues": x_values(period), "formattedXValues": formatted_x_values(period)}
    return {name: {"series": values, **x} for name, values in series.items()}


def retention(found: Sequence[Retention], period: Period) -> Json:
    """From the answer of each segment. The first element of each list is the size of the cohort;
    the others are the intervals, or brackets, that were asked about."""
    series: list[Json] = []
    meta: list[Json] = []
    labels: list[object] = []
    for place, answer in enumerate(found):
        overall, cohorts = by_group(answer.overall), by_group(answer.cohorts)
        sizes = {group: _sizes(rows, overall[group].height) for group, rows in cohorts.items()}
        for group in ranked({group: sum(of) for group, of in sizes.items()}):
            series.append(_retained(cohorts[group], overall[group], sizes[group], period))
            meta.append({"segmentIndex": place, "eventIndex": 0})
            labels.append(named(group) if group else place)
    return {"series": series, "seriesMeta": meta, "seriesLabels": labels}


def _sizes(cohorts: pl.DataFrame, intervals: int) -> list[int]:
    return cohorts["out_of"].gather_every(intervals).to_list()


def _retained(
    cohorts: pl.DataFrame, overall: pl.DataFrame, sizes: Sequence[int], period: Period
) -> Json:
    dates = _dates(period)
    values: dict[str, list[Json]] = {}
    for date, size, rows in zip(dates, sizes, cohorts.iter_slices(overall.height), strict=True):
        values[date] = [
            {"count": size, "outof": size, "incomplete": False},
            *(
                {"count": row["count"], "outof": size, "incomplete": not row["complete"]}
                for row in rows.iter_rows(named=True)
            ),
        ]
    counts = [(sum(sizes), sum(sizes)), *overall.select("count", "out_of").iter_rows()]
    combined = [
        # No cohort has got this far, so none counts.
        {"count": count, "outof": out_of, "retainedSetId": None, "incomplete": not out_of}
        for count, out_of in counts
    ]
    return {"dates": dates[::-1], "values": values, "combined": combined}


def _dates(period: Period) -> list[str]:
    """Dates of its buckets, with the year if two would have the same name."""
    starts = _starts(period)
    found = [start.strftime(DAY) for start in starts]
    if len(set(found)) < len(found):
        return [start.strftime(f"{DAY}, %Y") for start in starts]
    return found


def session_lengths(answer: Sessions, edges_ms: Sequence[int], *, open_ended: bool) -> Json:
    """From bins with these edges; if `open_ended`, longer sessions count in the last bin."""
    counts: list[int] = answer.lengths["sessions"].to_list()
    bins = counts[: len(edges_ms) - 1]
    if open_ended:
        bins[-1] += sum(counts[len(bins) :])
    texts = [f"{number(edge / 1000)}s" for edge in edges_ms]
    return {"series": [bins], "xValues": [f"{a}-{b}" for a, b in pairwise(texts)]}


def session_days(answer: Sessions, period: Period, column: str, divisor: int) -> Json:
    """From a column by bucket; 0 if there are no sessions."""
    values = [0 if one is None else one / divisor for one in answer.over_time[column]]
    return {
        "series": [[number(value) for value in values]],
        "seriesMeta": [{"segmentIndex": 0}],
        "xValues": x_values(period),
    }
