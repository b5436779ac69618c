"""`operators.decode` against a reference that reads one message at a time with the `json` module.

Messages on which strict JSON and the fast reader are known to differ are not among those compared;
that neighbours change nothing is tried on all.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.operators.decode import UPLOAD_MAX_MS, UPLOAD_MIN_MS, DecodeConfig, Decoder
from forebay.storage.formats.columns import arrow_schema
from forebay.storage.formats.frame import Frame
from forebay.storage.formats.schema import OFFSET, PARTITION, UPLOAD_TIME, Column, ColumnType
from tests import reference
from tests.decoding import (
    BYTES_MAX,
    DECODER,
    GOOD,
    NOW_MS,
    SCHEMA,
    SKEW_MS,
    item,
    nonsense,
    plain,
    reads,
    well_formed,
)
from tests.reference import Read

ROOT = Path(__file__).parent.parent


# -- the reference ------------------------------------------------------------------------------


def expected(message: bytes) -> Read:
    """By the rules, from the message alone."""
    return reference.read(message, SCHEMA, NOW_MS + SKEW_MS, BYTES_MAX)


# -- what the decoder gives ---------------------------------------------------------------------


def decode(messages: Sequence[bytes]) -> Frame:
    return DECODER.decode([item(messages)])[0]


def assert_as_expected(messages: Sequence[bytes]) -> None:
    frame = decode(messages)
    wanted = [expected(message) for message in messages]
    assert reads(frame) == [replace(read, nulled=0) for read in wanted]
    assert frame.nulled == sum(read.nulled for read in wanted)
    for reject in frame.rejects.to_pylist():
        assert reject["message"] == messages[reject["_offset"]]


# -- messages -----------------------------------------------------------------------------------

BROKEN = [
    b"",
    b" ",
    b"\n",
    b"{",
    b"}",
    b"}\n{",
    b"null",
    b"[]",
    b"5",
    b'"s"',
    b"{} {}",
    b"{}{}",
    GOOD + GOOD,
    GOOD + b"\n" + GOOD,
    b'{"a":1}}\n{"x":{"a":2}',
    b',"x":1',
    GOOD + b',"x":2',
    GOOD + b',"x":{"b":2}',
    GOOD + b' "x":{}',
    GOOD + b",",
    GOOD + b',"id":{"a":{}}',
    b'1,"x":1',
    b'{"id":"a",up:1}',
    b"{'id':'a'}",
    b'{"id":"\xff"}',
    b'{"id":"\xed\xa0\x80"}',
    b'{"id":"\\q"}',
    b'{"id":"\\u12"}',
    b'{"id":NaN}',
    b'{"x":NaN}',
    b'{"x":-Infinity}',
    b'{"x":nul}',
    b'{"x":TRUE}',
    b'{"x":+1}',
    b'{"x":.5}',
    b'{"x":0x1}',
    b'{"x":1 /*c*/}',
    b'{"p":{"n":1.2.3}}',
    b'{"x":"',
]
truncated = st.builds(
    lambda message, at: message[: at % len(message)], well_formed, st.integers(0, 10**6)
)
broken = st.sampled_from(BROKEN) | truncated


# -- against the reference ----------------------------------------------------------------------


@given(st.lists(well_formed, min_size=1, max_size=60))
def test_well_formed_messages_are_read_as_the_reference_reads_them(messages: list[bytes]) -> None:
    assert_as_expected(messages)


@given(st.lists(well_formed | broken, min_size=1, max_size=60))
def test_broken_messages_are_rejects_and_the_others_unharmed(messages: list[bytes]) -> None:
    assert_as_expected(messages)


@pytest.mark.parametrize("message", BROKEN, ids=repr)
def test_each_broken_message_is_a_reject_between_two_good_ones(message: bytes) -> None:
    assert expected(message).reason in ("bad json", "empty")
    assert_as_expected([GOOD, message, GOOD])


@given(st.lists(nonsense | well_formed | broken, min_size=1, max_size=80), st.data())
def test_neighbours_and_cuts_change_nothing(messages: list[bytes], data: st.DataObject) -> None:
    alone = [read for message in messages for read in reads(decode([message]))]
    nulled = sum(decode([message]).nulled for message in messages)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(messages)))))
    bounds = list(zip([0, *cuts], [*cuts, len(messages)], strict=True))
    frames = DECODER.decode([item(messages[low:high], low) for low, high in bounds])
    assert [(frame.first_offset, frame.next_offset) for frame in frames] == bounds
    assert [read for frame in frames for read in reads(frame)] == alone
    assert sum(frame.nulled for frame in frames) == nulled


# -- case by case -------------------------------------------------------------------------------


def only(message: bytes) -> Read:
    frame = decode([message])
    return replace(reads(frame)[0], nulled=frame.nulled)


NULS = [
    b'{"id":"a","up":%d,"x":"\0"}',
    b'{"id":"a","up":%d,"x":\0}',
    b'{"id":"a","up":%d}\0',
    b'\0{"id":"a","up":%d}',
    b'{"id":"a","up":%d,"t":"\0"}',
    b'{"id":"a","up":%d,"x":"\\u0000"}',
    b'{"id":"\\u0000","up":%d}',
    b'{"id":"a","up":%d,"t":"\\u0000"}',
    b'{"id":"a","up":%d,"p":{"n":"\\u0000"}}',
    b'{"id":"a","up":%d,"p":"\\u0000"}',
    b'{"id":"a","up":%d,"b":{"\\u0000":[]}}',
    b'{"id":["\\u0000"],"up":%d}',
]


def test_nul_never_ends_the_process() -> None:
    """In a process of its own, for what goes wrong here is no exception; the last line that it
    prints tells at which message."""
    program = (
        "from tests.test_decode import *\n"
        "for message in NULS:\n"
        "    print(message, flush=True)\n"
        "    assert_one_of_each([GOOD, message % NOW_MS, GOOD])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True)
    told = (done.stdout[-300:] + done.stderr[-2000:]).decode(errors="replace")
    assert done.returncode == 0, told


def assert_one_of_each(messages: Sequence[bytes]) -> None:
    """Each message became one event or one reject; what is valid JSON as the reference has it."""
    found = reads(decode(messages))
    assert len(found) == len(messages)
    for message, read in zip(messages, found, strict=True):
        wanted = replace(expected(message), nulled=0)
        assert read == wanted or wanted.reason == "bad json"


@pytest.mark.parametrize("depth", [100, 1_000, 1_100, 100_000])
@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
@pytest.mark.parametrize("field", ["x", "b", "t"])
def test_deep_nesting_becomes_one_event_or_one_reject(
    depth: int, closed: bool, opening: bytes, field: str
) -> None:
    """In a field of no column, or in place of a column's value."""
    decoder = Decoder(DecodeConfig(SCHEMA, SKEW_MS, 10_000_000))
    closing = (b"]" if opening == b"[" else b"}") * depth if closed else b""
    inner = b"" if opening == b"[" else b"1"
    message = GOOD[:-1] + b',"%b":' % field.encode() + opening * depth + inner + closing + b"}"
    (frame,) = decoder.decode([item([GOOD, message, GOOD])])
    found = [read.reason for read in reads(frame)]
    assert found[0] is None
    assert found[2] is None
    assert found[1] in (None, "bad json")
    if depth <= 1_000:
        assert (found[1] is None) == closed
        assert frame.nulled == (closed and field in ("b", "t"))


@pytest.mark.parametrize(
    "number", [b"1e308", b"-1e308", b"9" * 300, b"0." + b"9" * 300, b"1e-999", b"-0.0"]
)
def test_long_and_huge_numbers_in_an_ignored_field_do_no_harm(number: bytes) -> None:
    assert only(GOOD[:-1] + b',"x":' + number + b"}").reason is None


@pytest.mark.parametrize("plane", range(1, 17))
@pytest.mark.parametrize("ascii", [True, False], ids=["escaped", "plain"])
def test_text_of_every_plane_is_read_right(plane: int, ascii: bool) -> None:
    """Else two keys become one, and an event is dropped that is no duplicate."""
    id = chr(plane << 16 | 0x123) + chr(plane << 16 | 0xFF00)
    message = json.dumps({"id": id, "up": NOW_MS}, ensure_ascii=ascii).encode()
    assert only(message) == expected(message)


def test_of_two_equal_names_the_last_counts() -> None:
    message = b'{"id":"a","id":"b","up":1,"up":%d,"p":{"n":1},"p":{"n":2,"n":3}}' % NOW_MS
    assert only(message) == expected(message)
    assert only(message).columns[:2] == (NOW_MS, "b")


def test_wrong_type_in_an_optional_column_is_null_and_counted() -> None:
    message = b'{"id":"a","up":%d,"p":{"n":"x","f":2.5},"b":1}' % NOW_MS
    read = only(message)
    assert read == Read(None, (NOW_MS, "a", None, None, 2.5, None, None, message), 2)


def test_wrong_type_in_a_reject_is_not_counted() -> None:
    assert only(b'{"id":"","up":%d,"b":1}' % NOW_MS) == Read("no key")


@pytest.mark.parametrize("id", [b'""', b"null", b"5", b"[]"])
def test_no_key_is_a_reject(id: bytes) -> None:
    assert only(b'{"id":%b,"up":%d}' % (id, NOW_MS)) == Read("no key")
    assert only(b'{"up":%d}' % NOW_MS) == Read("no key")


@pytest.mark.parametrize(
    ("upload", "reason"),
    [
        (b"null", "no upload time"),
        (b'"soon"', "no upload time"),
        (b"%d" % (UPLOAD_MIN_MS - 1), "absurd upload time"),
        (b"%d" % UPLOAD_MIN_MS, None),
        (b"%d" % UPLOAD_MAX_MS, "absurd upload time"),
        (b"%d" % (2**63 - 1), "absurd upload time"),
        (b"%d" % -(2**63), "absurd upload time"),
        (b"%d" % (NOW_MS + SKEW_MS), None),
        (b"%d" % (NOW_MS + SKEW_MS + 1), "future upload time"),
    ],
)
def test_upload_time_outside_its_bounds_is_a_reject(upload: bytes, reason: str | None) -> None:
    assert only(b'{"id":"a","up":%b}' % upload).reason == reason


@pytest.mark.parametrize(("type", "per_s"), [("time_s", 1), ("time_us", 10**6)])
def test_upload_time_of_another_unit_is_kept_in_ms(type: ColumnType, per_s: int) -> None:
    schema = replace(SCHEMA, upload_time=Column(UPLOAD_TIME, ("up",), type))
    decoder = Decoder(DecodeConfig(schema, SKEW_MS, BYTES_MAX))
    good = b'{"id":"a","up":%d}' % (NOW_MS * per_s // 1000)
    # Times 1000 this is a good time in ms, beyond 64 bits.
    wrapped = b'{"id":"a","up":%d}' % ((2**64 + NOW_MS) // 1000)
    first, second = reads(decoder.decode([item([good, wrapped])])[0])
    assert first.columns[0] == NOW_MS
    assert second.reason in ("no upload time", "absurd upload time", "future upload time")


def test_undeclared_upload_time_is_the_brokers() -> None:
    decoder = Decoder(DecodeConfig(replace(SCHEMA, upload_time=None), SKEW_MS, BYTES_MAX))
    (frame,) = decoder.decode([item([b'{"id":"a","up":1}'])])
    assert plain(frame.events.column(UPLOAD_TIME)) == [NOW_MS]


def test_message_above_the_limit_is_a_reject_and_is_kept_whole() -> None:
    padding = b" " * (BYTES_MAX - len(GOOD))
    frame = decode([GOOD + padding, GOOD + padding + b" "])
    assert [read.reason for read in reads(frame)] == [None, "too large"]
    assert frame.rejects.column("message").to_pylist() == [GOOD + padding + b" "]
    size = f"{BYTES_MAX + 1} bytes, at most {BYTES_MAX} are taken"
    assert frame.rejects.column("detail").to_pylist() == [size]


def test_message_of_which_only_the_beginning_is_here_is_a_reject_in_every_replay_too() -> None:
    """However much is taken by then, and though the beginning is a document."""
    cut = replace(item([GOOD, GOOD]), lengths={1: 10**10})
    first, _ = DECODER.decode([item([GOOD], 2), cut])[::-1]
    assert [read.reason for read in reads(first)] == [None, "too large"]
    (detail,) = first.rejects.column("detail").to_pylist()
    assert detail.startswith("10000000000 bytes, at most ")
    assert detail.endswith(f" are taken; its first {len(GOOD)} are kept")
    larger = Decoder(DecodeConfig(SCHEMA, SKEW_MS, 10**11))
    (again,) = larger.decode_again(first.rejects)
    assert [read.reason for read in reads(again)] == ["too large"]
    (again,) = larger.decode_again(again.rejects)
    assert [read.reason for read in reads(again)] == ["too large"]


def test_frame_keeps_what_the_source_said() -> None:
    told = replace(
        item([GOOD, b"x", GOOD], 10),
        offsets=np.array([10, 12, 19], dtype=np.int64),
        next_offset=25,
        skipped=3,
        end_offset=30,
    )
    (frame,) = DECODER.decode([told])
    assert (frame.first_offset, frame.next_offset) == (10, 25)
    assert (frame.skipped, frame.end_offset) == (3, 30)
    assert frame.events.column(OFFSET).to_pylist() == [10, 19]
    assert frame.events.column(PARTITION).to_pylist() == ["s0", "s0"]
    assert frame.rejects.column(OFFSET).to_pylist() == [12]


def test_item_without_messages_gives_an_empty_frame() -> None:
    empty = item([], 7)
    for items in ([empty], [item([GOOD]), empty]):
        frame = DECODER.decode(items)[-1]
        assert (frame.first_offset, frame.next_offset) == (7, 7)
        assert (frame.events.num_rows, frame.rejects.num_rows) == (0, 0)
        assert frame.events.schema == arrow_schema(SCHEMA)


def test_float_column_keeps_every_bit() -> None:
    values = [0.1, -0.0, 5e-324, 1.7976931348623157e308, math.pi, 123456789.123456789]
    messages = [
        b'{"id":"a","up":%d,"p":{"f":%b}}' % (NOW_MS, repr(value).encode()) for value in values
    ]
    found = decode(messages).events.column("f").to_numpy()
    assert found.tobytes() == np.array(values).tobytes()
