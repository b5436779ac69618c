"""Charts of answers, as Vega-Lite by Altair (the extra `charts`).

What always holds: a chart contains its rows, in a few columns; times are in the question's zone,
whatever the viewer's zone; a name is only ever text, even in a page: Altair writes it into a script
unescaped, so no `<` is followed by anything that could end that script.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import polars as pl

from forebay.query.analytics.events import Roles, labels_of
from forebay.storage.base.errors import BadInput
from forebay.storage.base.text import length_text, plain, shortened

if TYPE_CHECKING:
    import altair as alt

    Chart = alt.Chart | alt.LayerChart

Question = Mapping[str, object]
NONE = "(none)"
PALETTE = ("#4c78a8", "#f58518", "#54a24b", "#b279a2", "#eeca3b", "#72b7b2", "#ff9da6", "#9d755d")
FORMS = {
    "5 min": "%b %-d %H:%M", "hour": "%b %-d %H:%M",
    "day": "%b %-d", "week": "%b %-d", "month": "%b %Y",
}  # fmt: skip
"""How the start of a bucket is formatted."""
IN_ORDER = ("Funnel", "Retention")
"""Answers in which events follow one another."""
MEASURES = {
    "uniques": "users", "totals": "events", "share": "share of active users",
    "average": "events per user", "frequency": "users",
}  # fmt: skip
LARGE = 10_000
"""From this value on, numbers are abbreviated: 10k."""
CELLS_WITH_TEXT = 16
"""A heatmap with more columns shows no numbers."""
WIDTH, HEIGHT, BAR = 560, 300, 28
"""In pixels: the size of a chart with an axis of times or numbers, and the bar of a name."""
NAME_CHARACTERS = 60
HARMLESS = "<\u2060"
"""A `<` and a zero-width joiner."""
HOUR_MS, MINUTE_MS = 3_600_000, 60_000


def altair() -> Any:
    """The library. Raises BadInput if it is not installed."""
    try:
        import altair
    except ImportError:
        raise BadInput(
            "chart: expected altair, which is not installed: pip install 'forebay[charts]'"
        ) from None
    return altair


def text(name: object) -> str:
    """A value as chart text."""
    held = NONE if name is None else shortened(plain(str(name)), NAME_CHARACTERS)
    return held.replace("<", HARMLESS)


def rows_of(table: pl.DataFrame) -> list[dict[str, Any]]:
    """The rows, with times as their zone's clock shows them, and `when` as text."""
    found = table.drop("others", strict=False)
    for name, dtype in found.schema.items():
        if dtype == pl.String:
            values = [text(value) for value in found[name]]
            found = found.with_columns(pl.Series(name, values, pl.String))
        elif isinstance(dtype, pl.Datetime):
            wall = pl.col(name).dt.replace_time_zone(None)
            days = (found[name].dt.time().cast(pl.Int64).fill_null(0) == 0).all()
            found = found.with_columns(
                wall.dt.strftime("%Y-%m-%d" if days else "%Y-%m-%d %H:%M").alias("when"),
                wall.dt.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").alias(name),
            )
    return found.to_dicts()


def base(question: Question, name: str, table: pl.DataFrame, height: int = HEIGHT) -> Any:
    """An empty chart of the rows, with its title and, below that, the period."""
    alt = altair()
    period = question.get("period")
    by = question.get("by")
    told = [str(period)] if period is not None else []
    told += [f"by {by}"] if by is not None else []
    names = text((" → " if name in IN_ORDER else ", ").join(labels_of(question)))
    title = alt.TitleParams(
        f"{name}: {names}" if names else name,
        subtitle=[text(one) for one in told], anchor="start",
    )  # fmt: skip
    data = alt.Data(values=rows_of(table))
    return alt.Chart(data, title=title, width=WIDTH, height=height)


def color(table: pl.DataFrame, column: str = "group", title: str = "") -> dict[str, Any]:
    """The encoding of a column by colour, in order of appearance; empty if the column is missing or
    has one value."""
    if column not in table.columns:
        return {}
    order = [text(value) for value in table[column].unique(maintain_order=True)]
    scale = altair().Scale(domain=order)
    return {"color": altair().Color(f"{column}:N", title=title or None, scale=scale)}


def times(column: str, title: str) -> Any:
    """The axis of a column of times; `title` names a bucket, or anything else."""
    alt = altair()
    form = {"format": FORMS[title]} if title in FORMS else {}
    axis = alt.Axis(labelOverlap=True, labelSeparation=8, **form)
    return alt.X(f"{column}:T", title=title or None, scale=alt.Scale(type="utc"), axis=axis)


def number(table: pl.DataFrame, column: str, title: str, *, share: bool = False) -> Any:
    """The axis of a number, or of a share in per cent."""
    alt = altair()
    values = table[column].drop_nulls().cast(pl.Float64)
    whole = {"tickMinStep": 1} if (values % 1 == 0).all() else {}
    large = (values.abs() >= LARGE).any()
    axis = alt.Axis(format="%") if share else alt.Axis(format="~s" if large else ",~r", **whole)
    return alt.Y(f"{column}:Q", title=title, axis=axis, scale=alt.Scale(zero=True))


def tips(table: pl.DataFrame, *columns: str) -> Sequence[Any]:
    """The tooltip."""
    alt = altair()
    found = []
    for name in columns:
        if name in ("group", "event", "kind", "when", "series"):
            found.append(alt.Tooltip(f"{name}:N"))
        elif "share" in name or name.startswith("of_"):
            found.append(alt.Tooltip(f"{name}:Q", format=".1%"))
        elif name in table.columns:
            found.append(alt.Tooltip(f"{name}:Q", format=",.6~g"))
    return [one for one in found if one.shorthand.split(":")[0] in (*table.columns, "when")]


def lines(question: Question, name: str, table: pl.DataFrame, x: Any, y: Any, **more: Any) -> Chart:
    """A line with points for each group (or for whatever `more` colours by)."""
    colored = more if "tooltip" in more else color(table)
    drawn: Chart = base(question, name, table).mark_line(point=True).encode(x=x, y=y, **colored)
    return drawn


def length_unit(table: pl.DataFrame, *columns: str) -> tuple[pl.DataFrame, str]:
    """The columns of milliseconds, converted to the unit that suits the longest, and its name."""
    longest = max((float(table[name].max() or 0) for name in columns), default=0)  # type: ignore[arg-type]
    units = {"days": 24 * HOUR_MS, "hours": HOUR_MS, "minutes": MINUTE_MS, "seconds": 1000}
    for unit, ms in units.items():
        if longest >= 2 * ms or unit == "seconds":
            break
    return table.with_columns(pl.col(name) / ms for name in columns), unit


def _interval(question: Question) -> str:
    """The name of the question's bucket, such as "day"."""
    return str(getattr(question.get("period"), "interval", ""))


def _funnel(question: Question, table: pl.DataFrame) -> Chart:
    """A bar for each step: its share of the first step, and its count."""
    alt = altair()
    counted = "users" if question["count"] == "uniques" else "paths"
    steps = pl.format("{}. {}", "step", pl.col("event").str.slice(0, NAME_CHARACTERS - 8))
    shares = (pl.col("of_first") * 100).round(1)
    told = pl.format("{} ({}%)", "count", shares.fill_null(0))
    table = table.with_columns(name=steps, told=told)
    order = [text(name) for name in table["name"].unique(maintain_order=True)]
    x = alt.X("name:N", title=None, sort=order, axis=alt.Axis(labelAngle=0, labelLimit=160))
    y = number(table, "of_first", f"share of the {counted} of step 1", share=True)
    drawn = base(question, "Funnel", table).encode(
        x=x, y=y, tooltip=tips(table, "group", "event", "count", "of_first", "of_previous")
    )
    if "group" in table.columns:
        found: Chart = drawn.mark_bar().encode(
            xOffset=alt.XOffset("group:N", sort=None), **color(table, title=str(question["by"]))
        )
        return found
    labels = drawn.mark_text(dy=-8).encode(text="told:N")
    found = drawn.mark_bar(size=2 * BAR)
    return cast("Chart", found + labels)


def _conversion(question: Question, table: pl.DataFrame) -> Chart:
    """The share of those who entered that reached the last step, by time of entry."""
    last = table.filter(pl.col("step") == pl.col("step").max())
    x = times("bucket", _interval(question))
    y = number(last, "of_first", "share that converts", share=True)
    return lines(question, "Funnel", last, x, y)


def _times_to_convert(question: Question, table: pl.DataFrame) -> Chart:
    table, unit = length_unit(table, "from_ms", "to_ms")
    counted = "users" if question["count"] == "uniques" else "paths"
    return _histogram(question, "Funnel", table, f"time to convert ({unit})", "count", counted)


def _lengths(question: Question, table: pl.DataFrame) -> Chart:
    """Bins differ in width, so each is a category."""
    ends = [*zip(table["from_ms"], table["to_ms"], strict=True)]
    names = [f"from {length_text(a)}" if b is None else f"{length_text(a)}–{length_text(b)}"
             for a, b in ends]  # fmt: skip
    table = table.with_columns(pl.Series("length", names))
    return _bars(question, "Sessions", table, "length", "sessions", "length of session", "sessions")


def _histogram(
    question: Question, name: str, table: pl.DataFrame, title: str, column: str, counted: str
) -> Chart:
    """Bars from `from_ms` to `to_ms`."""
    alt = altair()
    x = alt.X("from_ms:Q", title=title, bin="binned")
    found: Chart = (
        base(question, name, table)
        .mark_bar()
        .encode(x=x, x2="to_ms:Q", y=number(table, column, counted), **color(table))
    )
    return found


def _bars(
    question: Question, name: str, table: pl.DataFrame, x: str, y: str, title: str, counted: str,
    *, share: bool = False,
) -> Chart:  # fmt: skip
    """A bar for each value of `x`, in the order of the rows."""
    alt = altair()
    axis = alt.X(f"{x}:N", title=title, sort=None, axis=alt.Axis(labelAngle=0))
    more = color(table)
    if more:
        more["xOffset"] = alt.XOffset("group:N", sort=None)
    amount = number(table, y, counted, share=share)
    drawn = base(question, name, table).mark_bar()
    found: Chart = drawn.encode(x=axis, y=amount, tooltip=tips(table, "group", x, y), **more)
    return found


def _returns(question: Question, table: pl.DataFrame) -> Chart:
    """The share that came back, by days since the start."""
    alt = altair()
    unit = _interval(question)
    x = alt.X("from_day:Q", title=f"{unit}s since the start", axis=alt.Axis(tickMinStep=1))
    y = number(table, "share", "share of users who came back", share=True)
    return lines(question, "Retention", table.drop_nulls("share"), x, y)


def _cohorts(question: Question, table: pl.DataFrame) -> Chart:
    """A heatmap: a row for each cohort, a column for each day since; faint where the day is not
    over for the whole cohort."""
    alt = altair()
    unit = _interval(question)
    table = table.filter(pl.col("complete") | (pl.col("count") > 0))
    users = pl.format("{} ({} users)", pl.col("cohort").dt.strftime("%Y-%m-%d"), "out_of")
    if "group" in table.columns:
        users = pl.format("{}  {}", pl.col("group").fill_null(NONE), users)
    table = table.with_columns(name=users).filter(pl.col("out_of") > 0)
    drawn = base(question, "Retention", table, BAR * max(1, table["name"].n_unique())).encode(
        x=alt.X("from_day:O", title=f"{unit}s since the start", axis=alt.Axis(labelAngle=0)),
        y=alt.Y("name:N", title=None, sort=None, axis=alt.Axis(labelLimit=240)),
        tooltip=tips(table, "group", "from_day", "count", "out_of", "share"),
    )
    # On day 0 nearly all are there: the shades are for the days after it.
    later = table.filter(pl.col("from_day") > 0)["share"].max() or 1.0
    scale = alt.Scale(scheme="blues", domain=[0, later], clamp=True)
    shade = alt.Color("share:Q", scale=scale, legend=alt.Legend(format=".0%", title="came back"))
    faint = alt.condition("datum.complete", alt.value(1), alt.value(0.4))
    cells = drawn.mark_rect().encode(color=shade, opacity=faint)
    if table["from_day"].n_unique() > CELLS_WITH_TEXT:
        return cast("Chart", cells)
    dark = f"datum.complete && datum.share > {0.6 * cast(float, later)}"
    ink = alt.condition(dark, alt.value("white"), alt.value("black"))
    shares = drawn.mark_text(fontSize=10).encode(text=alt.Text("share:Q", format=".0%"), color=ink)
    return cast("Chart", cells + shares)


def _segmentation(question: Question, table: pl.DataFrame) -> Chart:
    """A line for each event, group or number of times; bars if the answer has no times."""
    measure, of = question.get("measure", question.get("formula")), question.get("of")
    told = text(MEASURES.get(str(measure), measure) if of is None else f"{measure} of {of}")
    y = number(table, "value", told, share=measure == "share")
    table = table.with_columns(series=_series(question, table))
    more = color(table, "series") if table["series"].n_unique() > 1 else {}
    if "bucket" in table.columns:
        x = times("bucket", _interval(question))
        tooltip = tips(table.with_columns(when=1), "when", "series", "value")
        return lines(question, "Segmentation", table, x, y, tooltip=tooltip, **more)
    name, title = (
        ("times", "times that a user did it") if "times" in table.columns else ("series", None)
    )
    alt = altair()
    x = alt.X(f"{name}:N", title=title, sort=None, axis=alt.Axis(labelAngle=0))
    if more and name == "times":
        more["xOffset"] = alt.XOffset("series:N", sort=None)
    drawn = base(question, "Segmentation", table).mark_bar()
    found: Chart = drawn.encode(x=x, y=y, tooltip=tips(table, "series", "value"), **more)
    return found


def _series(question: Question, table: pl.DataFrame) -> pl.Series:
    """The name of each line: the event, if there are several, and the group."""
    names = labels_of(question)
    parts = []
    if "event" in table.columns and len(names) > 1:
        labels = {n: f"{chr(65 + n)} {shortened(name, 30)}" for n, name in enumerate(names)}
        parts.append([labels[n] for n in table["event"]])
    if "group" in table.columns:
        parts.append([NONE if one is None else one for one in table["group"]])
    if "times" in table.columns and "bucket" in table.columns:
        parts.append([f"{n}×" for n in table["times"]])
    found = ["  ".join(one) for one in zip(*parts, strict=True)]
    return pl.Series("series", found or [text(", ".join(names))] * table.height)


def _sessions(question: Question, table: pl.DataFrame) -> Chart:
    x = times("bucket", _interval(question))
    return lines(question, "Sessions", table, x, number(table, "sessions", "sessions that begin"))


def _stickiness(question: Question, table: pl.DataFrame) -> Chart:
    """The share of active users, by the number of days they were active."""
    least = "at least so many" if question["at_least"] else "exactly so many"
    title = f"days of the {_interval(question)} on which they were active ({least})"
    table, counted = table.drop_nulls("share"), "share of active users"
    return _bars(question, "Stickiness", table, "days", "share", title, counted, share=True)


def _paths(question: Question, table: pl.DataFrame) -> Chart:
    """How many users did what at each step; the rest in grey."""
    alt = altair()
    kinds = table.sort("users", descending=True).unique("event", keep="first", maintain_order=True)
    named = kinds.filter(pl.col("kind") == "event")["event"]
    rest = kinds.filter(pl.col("kind") != "event")["event"]
    greys = ["#9e9e9e", "#d9d9d9"][: len(rest)]
    colors = [PALETTE[n % len(PALETTE)] for n in range(len(named))]
    scale = alt.Scale(domain=[text(one) for one in (*named, *rest)], range=[*colors, *greys])
    order = {text(name): at for at, name in enumerate((*named, *rest))}
    table = table.with_columns(
        place=pl.Series([order[text(name)] for name in table["event"]], dtype=pl.Int32)
    )
    found: Chart = base(question, "Paths", table).mark_bar(size=2 * BAR).encode(
        x=alt.X("step:O", title="step", axis=alt.Axis(labelAngle=0)),
        y=number(table, "users", "users"), order="place:Q",
        color=alt.Color("event:N", title=None, scale=scale),
        tooltip=tips(table, "event", "kind", "users"),
    )  # fmt: skip
    return found


def _lifecycle(question: Question, table: pl.DataFrame) -> Chart:
    """Bars of active users above the axis, of dormant ones below."""
    alt = altair()
    kinds = {
        "new": "#4c78a8",
        "returning": "#54a24b",
        "resurrected": "#b279a2",
        "dormant": "#e45756",
    }
    long = table.unpivot(list(kinds), index="bucket", variable_name="kind", value_name="users")
    shown = pl.when(pl.col("kind") == "dormant").then(-pl.col("users").cast(pl.Int64))
    long = long.with_columns(users=shown.otherwise(pl.col("users").cast(pl.Int64)))
    when = alt.X("when:O", title=_interval(question),
                 axis=alt.Axis(labelAngle=-45, labelOverlap=True))  # fmt: skip
    scale = alt.Scale(domain=list(kinds), range=list(kinds.values()))
    found: Chart = base(question, "Lifecycle", long).mark_bar().encode(
        x=when, y=number(long, "users", "users (dormant below 0)"),
        color=alt.Color("kind:N", title=None, scale=scale),
        tooltip=tips(long.with_columns(when=1), "when", "kind", "users"),
    )  # fmt: skip
    return found


def _marks(name: str, question: Question, table: pl.DataFrame) -> Chart:
    """A mark for each event, in the row of its name."""
    alt = altair()
    roles = cast(Roles, question["roles"])
    names = {roles.time: "time", roles.event: "event"}
    table = table.select(pl.col(old).alias(new) for old, new in names.items())
    height = BAR * max(1, table["event"].n_unique())
    found: Chart = base(question, name, table, height).mark_tick(thickness=2).encode(
        x=times("time", "time (UTC)"), y=alt.Y("event:N", title=None, sort=None),
        tooltip=tips(table.with_columns(when=1), "when", "event"),
    )  # fmt: skip
    return found


CHARTS: dict[str, dict[str, Callable[[Question, pl.DataFrame], Chart]]] = {
    "Funnel": {"steps": _funnel, "over_time": _conversion, "distribution": _times_to_convert},
    "Retention": {"overall": _returns, "cohorts": _cohorts},
    "Segmentation": {"over_time": _segmentation, "overall": _segmentation},
    "Sessions": {"over_time": _sessions, "lengths": _lengths},
    "Stickiness": {"overall": _stickiness},
    "Paths": {"nodes": _paths},
    "Lifecycle": {"over_time": _lifecycle},
    "Sample": {"events": partial(_marks, "Sample")},
    "Timeline": {"events": partial(_marks, "Timeline")},
}
"""The tables with a chart, for each kind of answer; the first is the default."""
