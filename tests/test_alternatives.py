"""Columns of several paths, ids that may be numbers, times of any unit and keys with an optional
part, as `operators.decode` reads them, against the reference that reads one message at a time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from forebay.operators.decode import DecodeConfig, Decoder
from forebay.operators.sources.messages import Messages
from forebay.storage.decoding.mend import BOM, Mender, without_halves
from forebay.storage.formats.frame import Frame
from forebay.storage.formats.schema import OFFSET, RAW, UPLOAD_TIME, Column, Schema, path_faults
from tests import reference
from tests.reference import Read

NOW_MS, SKEW_MS, BYTES_MAX = 1_700_000_000_000, 60_000, 4_000
SCHEMA = Schema(
    columns=(
        Column("id", ("$id",), "id", (("p", "id"), ("uuid",))),
        Column("uuid", ("uuid",), "id"),
        Column("user", ("p", "user"), "id"),
        Column("made", ("made",), "time_auto"),
        Column("at", ("at",), "time", (("p", "at"),)),
        Column("n", ("n",), "int", (("p", "n"),)),
        Column("text", ("text",), "string", (("p", "text"),)),
        Column("other", ("other", "user"), "string"),
    ),
    key=("id", "user", "made"),
    upload_time=Column(UPLOAD_TIME, ("up",), "time", (("p", "up"),)),
    optional=("user",),
)
DECODER = Decoder(DecodeConfig(SCHEMA, SKEW_MS, BYTES_MAX))


def decode(messages: Sequence[bytes], decoder: Decoder = DECODER) -> Frame:
    n = len(messages)
    offsets = np.arange(n, dtype=np.int64)
    item = Messages("s0", list(messages), offsets, np.full(n, NOW_MS, dtype=np.int64), n)
    return decoder.decode([item])[0]


def reads(frame: Frame) -> list[Read]:
    found: dict[int, Read] = {}
    columns = []
    for name in (*(column.name for column in SCHEMA.decoded), RAW):
        column = frame.events.column(name)
        column = column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column
        columns.append(column.to_pylist())
    for offset, *row in zip(frame.events.column(OFFSET).to_pylist(), *columns, strict=True):
        found[offset] = Read(None, tuple(row))
    for reject in frame.rejects.to_pylist():
        found[reject["_offset"]] = Read(reject["reason"])
    return [found[offset] for offset in sorted(found)]


def assert_as_expected(messages: Sequence[bytes]) -> None:
    frame = decode(messages)
    wanted = [reference.read(one, SCHEMA, NOW_MS + SKEW_MS, BYTES_MAX) for one in messages]
    assert reads(frame) == [Read(one.reason, one.columns) for one in wanted]
    assert frame.nulled == sum(one.nulled for one in wanted)


NUMBERS = ["0", "-0", "-7", "123", "9007199254740993", "18446744073709551617", "1.0", "1e3"]
MOMENTS = [
    "1714564799", "1714564799123", "1714564799123456", "1714564799.123456", "1714564799.1234567",
    "99999999", "100000000", "7258118399.999999", "7258118400", "1e9", "-1714564799", "1e400",
    '"1714564799"', '"2024-05-01T11:59:59.123456Z"', '"2024-05-01 11:59:59.1234567"',
    '"1970-01-20T12:16:04Z"', '"noon"', '""',
]  # fmt: skip
ODD = ["null", '""', '"a"', '"123"', '"\\u0031"', "true", "[]", "{}", '"\\ud800"', '"\\ufffd"']
ids = st.sampled_from([*ODD, *NUMBERS])
times = st.sampled_from(["null", "1700000000000", '"2023-11-14T22:13:20Z"', '"x"', "true", "1.5"])
numbers = st.sampled_from(["null", "1", '"2"', "1.0", "1.5", "{}", '"x"'])
texts = st.sampled_from(["null", '""', '"t"', "5", '"\\udc00x"', "{}"])
moments = st.sampled_from(["null", *MOMENTS])
FIELDS = {"$id": ids, "uuid": ids, "at": times, "made": moments, "n": numbers, "text": texts}
INNER = {"id": ids, "user": ids, "at": times, "n": numbers, "text": texts, "up": times}
NAMES = {"made": '"mad\\u0065"', "$id": '"\\u0024id"', "user": '"\\u0075ser"'}


@st.composite
def objects(draw: st.DrawFn, fields: dict[str, st.SearchStrategy[str]]) -> str:
    names = draw(st.lists(st.sampled_from(sorted(fields)), max_size=9))
    space = draw(st.sampled_from(["", " ", "\t"]))
    parts = []
    for name in names:
        written = json.dumps(name)
        if name in NAMES and draw(st.integers(0, 9)) == 0:
            written = NAMES[name]
        parts.append(f"{written}{space}:{space}{draw(fields[name])}")
    return ",".join(parts)


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    inner = draw(st.sampled_from(["null", "[]", "5"])) if draw(st.integers(0, 9)) == 0 else None
    inner = inner or "{" + draw(objects(INNER)) + "}"
    outer = draw(objects(FIELDS))
    head = f'"uuid":"u","made":1714564799,"p":{inner},"up":1699999999999'
    whole = "{" + head + ("," + outer if outer else "") + "}"
    return draw(st.sampled_from([b"", b"", BOM])) + whole.encode()


@pytest.mark.cases
@given(st.lists(messages(), min_size=1, max_size=20))
def test_values_are_read_as_the_reference_reads_them(found: list[bytes]) -> None:
    assert_as_expected(found)


@pytest.mark.cases
@given(st.lists(messages(), min_size=2, max_size=8))
def test_neighbours_change_nothing(found: list[bytes]) -> None:
    together = reads(decode(found))
    assert together == [one for message in found for one in reads(decode([message]))]


@pytest.mark.parametrize("value", MOMENTS)
def test_a_number_counts_the_unit_that_its_size_tells_and_text_never_does(value: str) -> None:
    assert_as_expected([b'{"$id":"a","up":1699999999999,"made":' + value.encode() + b"}"])


@pytest.mark.parametrize("value", NUMBERS)
def test_a_whole_number_as_an_id_is_its_digits_and_no_other_number_is_an_id(value: str) -> None:
    message = b'{"$id":%b,"up":1699999999999,"made":1714564799}' % value.encode()
    assert_as_expected([message])
    found = decode([message]).events.column("id").to_pylist()
    whole = value.lstrip("-").isdigit()
    assert found == ([{"-0": "0"}.get(value, value)] if whole else [])


def test_two_numbers_that_a_double_takes_for_one_are_two_ids() -> None:
    text = b'{"$id":%d,"up":1699999999999,"made":1714564799}'
    near = [text % (2**64 + n) for n in range(3)]
    near += [one.replace(b"$id", b"\\u0024id") for one in near]
    found = decode(near).events.column("id").to_pylist()
    assert found == 2 * [str(2**64 + n) for n in range(3)]


def test_an_id_that_is_missing_or_empty_gives_way_to_the_next_of_its_paths() -> None:
    rest = b',"up":1699999999999,"made":1714564799}'
    lines = [
        b'{"$id":null,"uuid":"u"', b'{"$id":"","uuid":"u"', b'{"uuid":"u"', b'{"$id":7,"uuid":"u"',
        b'{"$id":{},"uuid":"u"', b'{"p":{"id":5},"uuid":"u"', b'{"p":null,"uuid":"u"',
    ]  # fmt: skip
    frame = decode([line + rest for line in lines])
    assert frame.events.column("id").to_pylist() == ["u", "u", "u", "7", "u", "5", "u"]
    assert (frame.rejects.num_rows, frame.nulled) == (0, 0)


def test_an_optional_part_of_the_key_is_empty_where_it_is_missing_and_never_where_it_is_wrong() -> (
    None
):
    line = b'{"$id":"a","up":1699999999999,"made":1714564799,"p":{"user":%b}}'
    frame = decode([line % value for value in (b"null", b'""', b'"u"', b"1", b"1.0", b"{}")])
    assert frame.events.column("user").to_pylist() == ["", "", "u", "1"]
    details = frame.rejects.column("detail").to_pylist()
    assert details == [
        "user: expected text or a whole number, got 1.0",
        "user: expected text or a whole number, got an object",
    ]


def test_half_of_a_surrogate_pair_is_u_fffd_and_in_a_key_a_reject_that_names_the_column() -> None:
    rest = b',"up":1699999999999,"made":1714564799}'
    lines = [
        b'{"$id":"a","text":"x\\ud800\\ud83d\\ude00y\\udc00"' + rest,
        b'{"$id":"\\ud800"' + rest,
        b'{"$id":"a","x":"\\ud800","text":"\\\\ud800"' + rest,
    ]
    frame = decode(lines)
    assert frame.events.column("text").to_pylist() == ["x\ufffd\U0001f600y\ufffd", "\\ud800"]
    assert frame.events.column(RAW).to_pylist() == [lines[0], lines[2]]
    assert [(one["reason"], one["detail"]) for one in frame.rejects.to_pylist()] == [
        ("no key", 'id: expected text without half of a surrogate pair, got "\\ud800"')
    ]


@given(
    st.lists(st.sampled_from(["\\", "\\u", "d83d", "de00", "D800", "x"]), max_size=12).map("".join)
)
@example("\\\\ud83d\\ud83d\\ude00")
def test_text_without_halves_is_what_the_standard_reader_makes_of_it(text: str) -> None:
    message = f'"{text}"'.encode()
    try:
        wanted = json.loads(message)
    except ValueError:
        return
    wanted = "".join("\ufffd" if "\ud800" <= one <= "\udfff" else one for one in wanted)
    assert json.loads(without_halves(message)) == wanted


def test_only_whole_numbers_under_an_ids_own_name_are_put_in_quotes() -> None:
    mender = Mender([Column("a", ("é",), "id"), Column("b", ("b",), "id"), Column("c", ("x", "b"))])
    same = [
        b'{"b":1}', '{"é":01}'.encode(), '{"é":-0}'.encode(), '{"é":1.0}'.encode(),
        '{"x":"\\"é\\":1,"}'.encode(), '{"é":[1]}'.encode(),
    ]  # fmt: skip
    assert mender.mend(same) is None
    found = mender.mend(['{"é" : -12 ,"x":{"é":0}}'.encode()])
    assert found is not None
    assert found.values == ['{"é" : "-12" ,"x":{"é":"0"}}'.encode()]


def test_an_upload_time_has_alternatives_too() -> None:
    frame = decode([b'{"$id":"a","made":1714564799,"p":{"up":1699999999999}}'])
    (time,) = frame.events.column(UPLOAD_TIME).to_pylist()
    assert time == datetime(2023, 11, 14, 22, 13, 19, 999000, UTC)


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (b'[{"id":1},{"id":2},{}]', "an array of 3 events: send one event a message"),
        (b"[1]", "an array of 1 value: send one event a message"),
        (b'{"batch":[{"$id":1}],"sentAt":"x"}', "an SDK's request with 1 event in 'batch'"),
        (b'{"api_key":"k","events":[{},{}]}', "an SDK's request with 2 events in 'events'"),
        (b'{"schema":"iglu:","data":[{"eid":"e"}]}', "an SDK's request with 1 event in 'data'"),
        (b"\x1f\x8b\x08\x00", "looks like gzip"),
        (b"\0\0\0\0\x05x", "looks like a schema registry's framing"),
        (b"data=eyJ9", "looks like a form"),
        (b"shop\tweb" + b"\t" * 120, "got what looks like tab-separated values: send JSON; of"),
    ],
)
def test_a_reject_says_what_the_message_looks_like(message: bytes, told: str) -> None:
    (reject,) = decode([message]).rejects.to_pylist()
    assert told in reject["detail"]


def test_a_path_has_one_type_and_one_value_among_alternatives_too() -> None:
    columns = [Column("a", ("x",), "id", (("y",),)), Column("b", ("y",)), Column("c", ("x", "z"))]
    assert path_faults(columns) == [
        "expected one type for path y, got a as id and b as string",
        "expected a value at x for column a, got an object for column c",
    ]
