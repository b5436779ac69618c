"""Columns of values as they are written, against messages of which the text of each is known."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from forebay.storage.decoding.json_columns import JsonColumns
from forebay.storage.decoding.mend import BOM
from forebay.storage.formats.schema import Column, path_faults
from tests.decoding import risky

COLUMNS = (
    Column("a", ("a",), "text"),
    Column("deep", ("a", "b"), "text", (("c",),)),
    Column("odd", ("", "k\n"), "text"),
    Column("a_b_n", ("a", "b", "n"), "int"),
    Column("user", ("id",), "id"),
)
NAMES = ["a", "b", "c", "n", "", "k\n", "ab", "id"]
SPELLINGS = {"a": ["\\u0061"], "k\n": ["k\\n", "k\\u000a"], "b": ["\\u0062"]}
SCALARS = [
    "null", "true", "1", "-0", "1.50", "1E+2", "123456789012345678901234567890", '""', '"x"',
    '"\\u00e9\\n"', '"é,}]{\\"\\\\"', '"\\ud83d\\ude00"', '"\\ud800"', '"null"', "[]", "{ }",
    '[1, {"a":"}"},\t"]"]', '"\\u0000"',
]  # fmt: skip
Value = tuple[str, list[tuple[str, "Value"]] | None]
"""Its text, and its members if it is an object that we made."""


@st.composite
def objects(draw: st.DrawFn, depth: int = 2) -> Value:
    members: list[tuple[str, Value]] = []
    texts = []
    for name in draw(st.lists(st.sampled_from(NAMES), max_size=5)):
        inner = depth and draw(st.booleans())
        value = draw(objects(depth - 1)) if inner else (draw(st.sampled_from(SCALARS)), None)
        space = draw(st.sampled_from(["", " ", "\n\t"]))
        spelling = draw(st.sampled_from([json.dumps(name)[1:-1], *SPELLINGS.get(name, [])]))
        texts.append(f'"{spelling}"{space}:{space}{value[0]}{space}')
        members.append((name, value))
    return "{" + ",".join(texts) + "}", members


def expected(value: Value, path: Sequence[str]) -> str | None:
    """The text at the path, None if there is none."""
    for name in path:
        found = [inner for key, inner in value[1] or [] if key == name]
        if not found:
            return None
        value = found[-1]
    text = value[0]
    if text.startswith('"'):
        said: str = json.loads(text)
        return said.replace("\ud800", "\ufffd")
    return None if text == "null" else text


def read(messages: Sequence[bytes], columns: Sequence[Column] = COLUMNS) -> list[list[object]]:
    found, _ = JsonColumns(columns).read(pa.array(messages, pa.binary()), list(messages))
    return [column.to_pylist() for column in found]


@given(st.lists(objects(), min_size=1, max_size=8))
@example([('{"a":{"b":{"n":"x"}}}', [("a", ('{"b":{"n":"x"}}', [("b", ('{"n":"x"}', None))]))])])
def test_a_value_is_its_text_as_it_stands_in_the_message(values: list[Value]) -> None:
    a, deep, odd, *_ = read([value[0].encode() for value in values])
    assert a == [expected(value, ["a"]) for value in values]
    assert odd == [expected(value, ["", "k\n"]) for value in values]
    both = [(expected(value, ["a", "b"]), expected(value, ["c"])) for value in values]
    assert deep == [one or two or (two if one is None else one) for one, two in both]


def test_no_message_keeps_another_from_being_read_and_none_fails() -> None:
    good = b'{"a":{"b":[1, 2]},"id":7}'
    columns = read([one for message in risky() for one in (good, message)])
    assert columns[0][::2] == ['{"b":[1, 2]}'] * (len(columns[0]) // 2)
    assert columns[1][::2] == ["[1, 2]"] * (len(columns[0]) // 2)
    assert columns[4][::2] == ["7"] * (len(columns[0]) // 2)


@pytest.mark.parametrize("broken", [b'{"a":"\xff"}', b'{"a":1,"x":"\xc3"}', b'{"a":1}x', b"[1]"])
def test_what_is_no_json_object_has_no_value(broken: bytes) -> None:
    assert read([broken, BOM + b'{"a": 1.0 }'])[0] == [None, "1.0"]


def test_a_path_that_meets_no_object_is_a_value_of_a_wrong_type() -> None:
    messages = [b'{"a":5}', b'{"a":null}', b'{"a":{"b":0}}', b'{"\\u0061":[]}', b'{"a":[],"c":"x"}']
    found, faults = JsonColumns(COLUMNS).read(pa.array(messages), list(messages))
    assert found[1].to_pylist() == [None, None, "0", None, "x"]
    assert sorted(row for row, name in faults.wrong if name == "deep") == [0, 3]


def test_a_column_as_written_may_have_others_within_it_and_beside_it() -> None:
    assert path_faults(COLUMNS) == []
    assert path_faults([Column("a", ("a",), "text"), Column("same", ("a",))]) == []
