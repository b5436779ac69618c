"""Exact numbers in keys: two messages that differ have two keys, or are rejects that say which
column is at fault.

The reference reads each value with `json` and `Decimal`; it knows nothing of how text is searched.
"""

from __future__ import annotations

import json
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from forebay.operators.decode import DecodeConfig, Decoder
from forebay.operators.sources.messages import Messages
from forebay.storage.formats.schema import UPLOAD_TIME, Column, ColumnType, Schema
from forebay.verify.oracle import NoValue, value_of

NOW_MS = 1_700_000_000_000


def decoder(type: ColumnType, path: tuple[str, ...] = ("k",)) -> Decoder:
    """Of messages whose only key column has this type; `n` is an integer column beside it."""
    columns = (Column("key", path, type), Column("n", ("n",), "int"))
    schema = Schema(columns, ("key",), Column(UPLOAD_TIME, ("up",), "time"))
    return Decoder(DecodeConfig(schema, 60_000, 1 << 20))


def read(made: Decoder, *messages: bytes) -> list[int | str]:
    """The key of each message as a number, or why it is a reject."""
    n = len(messages)
    times = np.full(n, NOW_MS, np.int64)
    (frame,) = made.decode([Messages("s", list(messages), np.arange(n), times, n)])
    keys = frame.events.column("key").cast("int64").to_pylist()
    found: dict[int, int | str] = dict(
        zip(frame.events.column("_offset").to_pylist(), keys, strict=True)
    )
    for row in frame.rejects.to_pylist():
        found[row["_offset"]] = f"{row['reason']}: {row['detail']}"
    return [found[offset] for offset in range(n)]


def message(value: str, name: str = '"k"', between: str = ":", more: str = "") -> bytes:
    return f'{{"up":{NOW_MS},{name}{between}{value}{more}}}'.encode()


# -- against the reference ----------------------------------------------------------------------


def expected(value: str, type: ColumnType) -> int | None:
    """The key that this JSON value is; None if it is none."""
    try:
        found = value_of(json.loads(value, parse_float=Decimal), type, in_key=True)
    except NoValue:
        return None
    assert isinstance(found, int)
    return found


digits = st.text("0123456789", min_size=1, max_size=25)
numbers = st.builds(
    lambda sign, whole, fraction, exponent: sign + (whole.lstrip("0") or "0") + fraction + exponent,
    st.sampled_from(["", "-"]),
    digits,
    st.just("") | digits.map(".{}".format) | st.sampled_from([".0", ".00", ".50"]),
    st.just("") | st.integers(-30, 30).map("e{}".format) | st.integers(0, 9).map("E+{}".format),
)
FRACTIONS = [
    ".5", ".123", ".1230", ".123000", ".123456", ".123456000", ".1234567", ".000", ".000001",
    ".0000001", r".12\u0033", r".12\u0033456", r"\u002e1234567", r".123456\u0037",
]  # fmt: skip
texts = st.builds(
    '"2024-05-01T{:02}:00:{:02}{}Z"'.format,
    st.integers(0, 23),
    st.integers(0, 59),
    st.sampled_from(["", *FRACTIONS]),
)
spaces = st.sampled_from(["", " ", "\t", "\r", "  \t"])
names = st.sampled_from(['"k"', '"\\u006b"', '"\\u006B"'])
behind = st.sampled_from(["", ',"x":1.5', ',"x":"k:1.5"', ',"x":[1.5,2e3]', ',"x":"\\"k\\":1.5"'])


@example("int", "9007199254740993.0", '"k"', ("", ""), "")
@example("int", "4503599627370496.3", '"k"', ("", ""), "")
@example("time", "1714521600000.5", '"k"', ("", ""), "")
@example("time_us", "1714521600000000000", '"k"', ("", ""), "")
@given(
    st.sampled_from(["int", "time", "time_s", "time_us"]),
    numbers,
    names,
    st.tuples(spaces, spaces),
    behind,
)
def test_a_number_in_a_key_is_that_number_or_a_reject(
    type: ColumnType, number: str, name: str, space: tuple[str, str], more: str
) -> None:
    wanted = expected(number, type)
    (found,) = read(decoder(type), message(number, name, f"{space[0]}:{space[1]}", more))
    if wanted is None:
        assert str(found).startswith("no key: key: expected")
    else:
        assert found == wanted


@given(st.sampled_from(["time", "time_s", "time_us"]), texts, names, spaces, behind)
def test_a_time_as_text_in_a_key_is_that_time_or_a_reject(
    type: ColumnType, text: str, name: str, space: str, more: str
) -> None:
    wanted = expected(text, type)
    (found,) = read(decoder(type), message(text, name, f":{space}", more))
    if wanted is None:
        assert str(found).startswith("no key: key: expected")
    else:
        assert found == wanted


@given(st.lists(numbers | texts, min_size=1, max_size=30))
def test_neighbours_change_nothing(values: list[str]) -> None:
    made = decoder("time")
    messages = [message(value) for value in values]
    assert read(made, *messages) == [read(made, one)[0] for one in messages]


# -- case by case -------------------------------------------------------------------------------


def test_keys_that_a_reader_would_cut_to_one_stay_apart() -> None:
    values = ["1", "1.5", "1.9", "-0.7", "0", "1e0", "9007199254740992", "9007199254740993.0"]
    found = read(decoder("int"), *(message(value) for value in values))
    rejects = [
        f"no key: key: expected a whole number of 64 bits, got {value}" for value in values[1:4]
    ]
    assert found == [1, *rejects, 0, 1, 9007199254740992, 9007199254740993]


LENIENT = [
    "9007199254740993.",
    "-9007199254740993.",
    "-.5",
    "-.9e0",
    ".5",
    "1.e-1",
    "1.e3",
    "1.",
    "0.e0",
    "-.",
    "1e",
    "01",
    "-01.5",
    "1..5",
    "+1",
    "--1",
    "1-2",
]
"""Numbers that are none in JSON, some of which the fast reader takes."""


@pytest.mark.parametrize("type", ["int", "time", "time_us"])
def test_a_number_that_only_a_lenient_reader_takes_is_read_whole_or_a_reject(
    type: ColumnType,
) -> None:
    found = read(decoder(type), *(message(value) for value in LENIENT))
    assert found[LENIENT.index("01")] == 1
    others = [one for value, one in zip(LENIENT, found, strict=True) if value != "01"]
    assert all(isinstance(one, str) for one in others), dict(zip(LENIENT, found, strict=True))


@pytest.mark.parametrize("value", ["1.0", "1e0", "1"])
def test_an_integer_is_one_whatever_else_is_in_the_message(value: str) -> None:
    assert read(decoder("int"), message(value, more=',"s":"a\tb\u0007"')) == [1]


def test_a_time_of_the_key_is_exact_whatever_of_its_text_is_escaped() -> None:
    made = decoder("time")
    text = "2024-05-01T00:00:00.0001Z"
    for at in range(len(text)):
        escaped = f"{text[:at]}\\u{ord(text[at]):04x}{text[at + 1 :]}"
        (found,) = read(made, message(f'"{escaped}"'))
        assert str(found).startswith("no key: key: expected"), escaped
    whole = text.replace(".0001", "\\u002e001")
    assert read(made, message(f'"{whole}"')) == [1714521600001]


def test_the_last_of_two_equal_names_counts() -> None:
    assert read(decoder("int"), message('1.5,"k":2'), message('2,"k":1.5')) == [
        2,
        "no key: key: expected a whole number of 64 bits, got 1.5",
    ]


@pytest.mark.parametrize("path", [("a", "k"), ("größe",), ('a"b',), ("a\\b",), ("k", "k")], ids=str)
def test_a_key_is_found_at_any_path_however_its_name_is_written(path: tuple[str, ...]) -> None:
    made = decoder("int", path)
    for ascii in (True, False):
        reject = "no key: key: expected a whole number of 64 bits, got 7.5"
        for value, wanted in ((7, 7), (7.5, reject)):
            document: object = value
            for name in reversed(path):
                document = {name: document}
            assert isinstance(document, dict)
            text = json.dumps({"up": NOW_MS, **document}, ensure_ascii=ascii)
            assert read(made, text.encode()) == [wanted]


@pytest.mark.parametrize(
    "value",
    [
        "1e400",
        "-1e400",
        '"inf"',
        '"NaN"',
        "9" * 400,
        "9" * 5000,
    ],
)
def test_a_number_that_is_not_finite_is_null_and_counted(value: str) -> None:
    columns = (Column("id", ("id",)), Column("f", ("f",), "float"))
    schema = Schema(columns, ("id",), Column(UPLOAD_TIME, ("up",), "time"))
    made = Decoder(DecodeConfig(schema, 60_000, 1 << 20))
    good = f'{{"id":"a","up":{NOW_MS},"f":0.5}}'.encode()
    odd = f'{{"id":"b","up":{NOW_MS},"f":{value}}}'.encode()
    for more in (b"", odd[:-1] + b',"id":{}}', b"{"):
        messages = [good, odd, *([more] if more else [])]
        times = np.full(len(messages), NOW_MS, np.int64)
        taken = Messages("s", messages, np.arange(len(messages)), times, len(messages))
        (frame,) = made.decode([taken])
        assert frame.events.column("f").to_pylist() == [0.5, None]
        assert frame.nulled == 1


@pytest.mark.parametrize(
    "value", ["1.5", "1e-1", "1e400", "9" * 400 + ".5", "0." + "9" * 400, "1e9999999999999999999"]
)
def test_a_fraction_in_a_column_that_is_no_key_is_null_and_counted(value: str) -> None:
    times = np.full(1, NOW_MS, np.int64)
    made = decoder("int")
    one = [message("1", more=f',"n":{value}')]
    (frame,) = made.decode([Messages("s", one, np.arange(1), times, 1)])
    assert frame.events.column("n").to_pylist() == [None]
    assert frame.nulled == 1


@pytest.mark.parametrize(
    "names",
    [["user_id", "event_id"], ["id", "event_id", "user.id"], ["größe", "maße"], ["a", "b"], ["n"]],
)
def test_numbers_are_found_however_the_names_of_their_columns_end(names: list[str]) -> None:
    columns = [Column(f"c{n}", (name,), "int") for n, name in enumerate(names)]
    schema = Schema((Column("k", ("k",)), *columns), ("k",), Column(UPLOAD_TIME, ("up",), "time"))
    made = Decoder(DecodeConfig(schema, 60_000, 1 << 20))
    whole = {"k": "key", "up": NOW_MS, "other_id": 1.5, **dict.fromkeys(names, 7)}
    messages = [json.dumps(whole).encode()]
    messages += [json.dumps({**whole, name: 2.5}, ensure_ascii=False).encode() for name in names]
    messages += [json.dumps({**whole, name: 2.5}).encode() for name in names]
    count = len(messages)
    times = np.full(count, NOW_MS, np.int64)
    (frame,) = made.decode([Messages("s", messages, np.arange(count), times, count)])
    for n in range(len(names)):
        odd = (1 + n, 1 + n + len(names))
        found = frame.events.column(f"c{n}").to_pylist()
        assert found == [None if row in odd else 7 for row in range(count)]
    assert frame.nulled == count - 1


def test_a_time_that_is_no_key_is_cut_to_its_unit() -> None:
    columns = (Column("id", ("id",)), Column("at", ("at",), "time"))
    schema = Schema(columns, ("id",), Column(UPLOAD_TIME, ("up",), "time"))
    made = Decoder(DecodeConfig(schema, 60_000, 1 << 20))
    values = ["1714521600000.9", '"2024-05-01T00:00:00.000999Z"', "253402300800000", "-1e300"]
    messages = [f'{{"id":"a","up":{NOW_MS},"at":{value}}}'.encode() for value in values]
    times = np.full(4, NOW_MS, np.int64)
    (frame,) = made.decode([Messages("s", messages, np.arange(4), times, 4)])
    assert frame.events.column("at").cast("int64").to_pylist() == [1714521600000] * 2 + [None] * 2
    assert frame.nulled == 2
