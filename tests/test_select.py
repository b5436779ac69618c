"""The SQL that asks what a segmentation asks: over the same events, it gives the same figures."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Any

import polars as pl
import pytest

import forebay
from forebay import Event, Period, Where
from forebay.query.analytics.select import select
from forebay.storage.base.errors import BadInput
from tests.shop import taken

DAYS = Period(date(2024, 5, 1), date(2024, 5, 4))
PLAN = Where("user_properties.plan", "is", ("pro",))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[forebay.Store]:
    partition = taken(tmp_path_factory.mktemp("select") / "data")
    yield forebay.open(partition.root)
    partition.crash()


def purchases(*where: Where) -> list[Event]:
    return [Event("purchase", where)]


QUESTIONS: dict[str, dict[str, Any]] = {
    "uniques": {"events": purchases()},
    "totals of any": {"events": [Event()], "measure": "totals"},
    "average": {"events": [Event("search")], "measure": "average"},
    "sum": {"events": purchases(), "measure": "sum", "of": "price"},
    "mean": {"events": purchases(), "measure": "mean", "of": "price"},
    "median": {"events": purchases(), "measure": "median", "of": "price"},
    "percentile": {"events": purchases(), "measure": "percentile", "of": "price", "percentile": 75},
    "distinct": {"events": [Event()], "measure": "distinct", "of": "user_properties.plan"},
    "by column": {"events": [Event("search")], "by": "country"},
    "by path": {"events": [Event("search")], "by": "user_properties.plan", "measure": "totals"},
    "by nothing that is there": {"events": purchases(), "by": "a.b"},
    "is": {"events": purchases(Where("price", "is", ("2", 4)))},
    "is not": {"events": purchases(Where("price", "is not", (2.0,)))},
    "is not, of none": {"events": [Event("search", (Where("price", "is not", (2,)),))]},
    "contains": {"events": [Event("*", ())], "segment": [Where("country", "contains", ("D",))]},
    "does not contain": {
        "events": [Event()], "segment": [Where("price", "does not contain", ("2",))],
    },
    "greater": {"events": purchases(Where("price", "greater", (1, 3)))},
    "between": {"events": purchases(Where("price", "between", (0, 2)))},
    "between times": {
        "events": [Event(None, (Where("at", "between", (
            datetime(2024, 5, 1, 2, tzinfo=UTC), datetime(2024, 5, 2, tzinfo=UTC),
        )),))],
    },
    "set": {"events": [Event(None, (Where("price", "set"),))]},
    "not set": {"events": [Event(None, (Where("user_properties.no", "not set"),))]},
    "path": {"events": [Event("search", (PLAN,))], "segment": [Where("country", "is", ("DE",))]},
    "hours": {"events": [Event()], "period": Period(DAYS.start, DAYS.end, "hour")},
    "weeks": {"events": [Event()], "period": Period(DAYS.start, DAYS.end, "week")},
    "a zone's days": {
        "events": [Event()], "period": Period(DAYS.start, DAYS.end, zone="Asia/Tokyo"),
    },
    "instants": {
        "events": [Event()],
        "period": Period(datetime(2024, 5, 1, 1, tzinfo=UTC), datetime(2024, 5, 2, tzinfo=UTC)),
    },
    "hostile": {"events": [Event("a'b\" --")], "by": "country"},
}  # fmt: skip


@pytest.mark.few(8)
@pytest.mark.parametrize("name", QUESTIONS)
def test_sql_has_the_figures_of_the_segmentation(store: forebay.Store, name: str) -> None:
    question = {"period": DAYS, **QUESTIONS[name]}
    given = {n: v for n, v in question.items() if n not in ("events", "period")}
    answer = store.segmentation(question["events"], question["period"], **given).over_time
    found = store.sql(select(question, store.roles(), store.schema.names))
    zone = question["period"].zone
    keys = [key for key in ("bucket", "group") if key in answer.columns]
    expected = answer.filter(pl.col("value") > 0).with_columns(
        pl.col("bucket")
        .dt.convert_time_zone(zone)
        .dt.replace_time_zone(None)
        .cast(pl.Datetime("us"))
    )
    bucket = pl.col("bucket").cast(pl.Datetime("us"))
    found = found.with_columns(bucket, value=pl.col("value").cast(pl.Float64))
    assert found.filter(pl.col("value") > 0).select(*keys, "value").sort(keys).equals(
        expected.select(*keys, "value").sort(keys)
    )  # fmt: skip


def test_several_events_are_columns(store: forebay.Store) -> None:
    events = [Event("search"), Event("purchase", (Where("price", "greater", (1,)),))]
    text = select({"events": events, "period": DAYS}, store.roles(), store.schema.names)
    assert store.sql(text).columns == ["bucket", "A search", "B purchase"]
    assert store.sql(text)["B purchase"].to_list() == [2, 2, 2]


@pytest.mark.parametrize(
    "question",
    [
        {"period": None},
        {"measure": "share"},
        {"measure": "frequency"},
        {"events": [Event("search", first=True)]},
        {"events": [Event("a"), Event("b")], "measure": "average"},
        {"period": Period(DAYS.start, DAYS.end, "hour", "Europe/Berlin")},
        {"period": Period(DAYS.start, DAYS.end, "week", week_start=6)},
    ],
)
def test_where_sql_would_answer_otherwise_there_is_none(
    store: forebay.Store, question: dict[str, Any]
) -> None:
    whole = {"events": purchases(), "period": DAYS, **question}
    with pytest.raises(BadInput, match="no SQL that asks the same"):
        select(whole, store.roles(), store.schema.names)
