"""Each type that a column may have is known wherever types are told apart, and no other is."""

from __future__ import annotations

from typing import get_args

import duckdb
import orjson
import pyarrow as pa
import pytest

from forebay.query.tables import _type
from forebay.storage.decoding.json_columns import _VALUES
from forebay.storage.formats.columns import ARROW_TYPES
from forebay.storage.formats.schema import ColumnType
from forebay.verify import values
from forebay.verify.oracle import NoValue, value_of
from tests.manual import COLUMN_HELP

TYPES: tuple[ColumnType, ...] = get_args(ColumnType)


def test_each_type_has_one_in_arrow_and_a_name_in_errors() -> None:
    assert list(ARROW_TYPES) == list(TYPES)
    assert list(_VALUES) == list(TYPES)


def test_verify_has_a_column_of_each_type_and_sends_values_for_it() -> None:
    assert set(values.COLUMNS.values()) == set(TYPES)
    assert set(values._OF_TYPE) == set(TYPES)


@pytest.mark.parametrize("type", TYPES)
def test_the_oracle_has_a_rule_for_each_type(type: ColumnType) -> None:
    assert any(_has_value(text, type) for text in values._OF_TYPE[type])


def _has_value(text: bytes, type: ColumnType) -> bool:
    try:
        return value_of(orjson.loads(text), type, False) is not None
    except (NoValue, orjson.JSONDecodeError):
        return False


@pytest.mark.parametrize("type", TYPES)
def test_a_column_that_no_file_has_yet_is_of_the_same_type_in_sql(type: ColumnType) -> None:
    held = duckdb.from_arrow(pa.table({"value": pa.nulls(1, ARROW_TYPES[type])}))
    absent = duckdb.sql(f"select null::{_type(ARROW_TYPES[type])} as value")
    assert absent.types == held.types


@pytest.mark.parametrize("type", TYPES)
def test_the_reference_says_what_each_type_is(type: ColumnType) -> None:
    _, _, told = COLUMN_HELP["type"].partition(":")
    assert f" {type}" in told
