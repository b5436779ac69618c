"""Hot rows that match a filter: of batches that have none, only what the filter needs is decoded.

The oracle is the same filter over all rows, in memory.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import polars as pl
import pyarrow as pa
import pytest
from polars.testing import assert_frame_equal

import forebay
from forebay.query.hot import Found
from forebay.storage.formats.log import LogReader
from forebay.storage.formats.schema import OFFSET, RAW
from tests.lane import IN_ORDER, NARROW, SCHEMA, Lane, Lanes, events, in_memory

EACH, BATCHES = 5, 40


def batches(one: Lane, first: int, count: int) -> None:
    """So many record batches of the same block."""
    for n in range(first, first + count):
        one.take(*events(n * EACH, EACH, n)).publish()


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, set[str]]]:
    """How many batches were decoded at once, and their columns."""
    noted: list[tuple[int, set[str]]] = []
    original = LogReader.decoded

    def note(
        self: LogReader, found: Found, columns: Sequence[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        assert columns is not None
        noted.append((len(found), set(columns)))
        return original(self, found, columns)

    monkeypatch.setattr(LogReader, "decoded", note)
    return noted


def test_of_other_columns_only_the_batches_that_match_are_decoded(
    lane: Lanes, decoded: list[tuple[int, set[str]]]
) -> None:
    batches(one := lane(), 0, BATCHES)
    store, wanted = forebay.open(one.root), pl.col(OFFSET).is_in([7, 9, 123])
    assert_frame_equal(
        store.scan().filter(wanted).collect(), in_memory(one.published).filter(wanted)
    )
    all_columns = set(store.schema.names)
    assert decoded == [(BATCHES, {OFFSET}), (2, all_columns)]
    decoded.clear()
    assert store.scan().filter(pl.col(OFFSET) < 0).collect().is_empty()
    assert decoded == []
    assert store.scan().filter(pl.col(OFFSET) >= 0).collect().height == BATCHES * EACH
    assert decoded == [(BATCHES, all_columns - {OFFSET})]
    decoded.clear()
    batches(one, BATCHES, 1)
    assert store.scan().filter(wanted).collect().height == 3
    assert decoded == [(1, all_columns)]


@pytest.mark.parametrize("seed", range(3))
def test_rows_are_those_of_the_filter_over_all_rows(seed: int, lane: Lanes) -> None:
    chance, one = random.Random(seed), lane(schema=NARROW)
    batches(one, 0, BATCHES)
    snapshot = one.blocks.snapshot()
    one.crash()
    one.schema = SCHEMA
    one.start(snapshot)
    store, few = forebay.open(one.root), 0
    for round in range(30):
        batches(one, BATCHES + round, 1)
        rows = in_memory(one.published)
        values = chance.sample(rows["id"].to_list(), chance.randint(1, 6))
        wanted = chance.choice(
            [
                pl.col("id").is_in(values),
                pl.col("id").is_in(values) & (pl.col("part") == 1),
                pl.col("number").is_not_null() & (pl.col(OFFSET) > rows.height - 9),
                pl.col(RAW) == b'{"n":251,"a":{"b":"x3"}}',
                pl.col("text").is_null() | (pl.col("id") == values[0]),
            ]
        )
        names = chance.sample(rows.columns, chance.randint(1, len(rows.columns)))
        columns = list({*names, *IN_ORDER})
        if chance.random() < 0.2:
            store = forebay.open(one.root)
        found = store.scan().filter(wanted).select(columns).collect()
        expected = rows.filter(wanted).select(columns)
        assert_frame_equal(found.sort(IN_ORDER), expected)
        few += 0 < expected.height < rows.height // EACH
    assert few > 5
