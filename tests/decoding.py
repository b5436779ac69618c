"""A decoder, messages for it, well-formed ones and others, and what it reads of them."""

from __future__ import annotations

import codecs
import json
from collections.abc import Sequence
from datetime import datetime

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from forebay.operators.decode import UPLOAD_MAX_MS, UPLOAD_MIN_MS, DecodeConfig, Decoder
from forebay.operators.sources.messages import Messages
from forebay.storage.formats.frame import Frame
from forebay.storage.formats.schema import OFFSET, RAW, UPLOAD_TIME, Column, Schema
from tests.reference import Read, Value

NOW_MS = 1_700_000_000_000
SKEW_MS = 60_000
BYTES_MAX = 4_000
SCHEMA = Schema(
    columns=(
        Column("id", ("id",)),
        Column("name", ("user", "name")),
        Column("n", ("p", "n"), "int"),
        Column("f", ("p", "f"), "float"),
        Column("b", ("b",), "bool"),
        Column("t", ("t",), "time"),
    ),
    key=("id",),
    upload_time=Column(UPLOAD_TIME, ("up",), "time"),
)
DECODER = Decoder(DecodeConfig(SCHEMA, SKEW_MS, BYTES_MAX))
GOOD = b'{"id":"a","up":%d}' % NOW_MS


def item(messages: Sequence[bytes], first_offset: int = 0) -> Messages:
    n = len(messages)
    return Messages(
        source="s0",
        values=list(messages),
        offsets=np.arange(first_offset, first_offset + n, dtype=np.int64),
        times_ms=np.full(n, NOW_MS, dtype=np.int64),
        next_offset=first_offset + n,
    )


def reads(frame: Frame) -> list[Read]:
    """What became of each message, in order; `nulled` is the frame's and stands with none."""
    found: dict[int, Read] = {}
    names = [column.name for column in SCHEMA.decoded]
    columns = [plain(frame.events.column(name)) for name in (*names, RAW)]
    for offset, *row in zip(frame.events.column(OFFSET).to_pylist(), *columns, strict=True):
        found[offset] = Read(None, tuple(row))
    for reject in frame.rejects.to_pylist():
        assert reject["_offset"] not in found
        found[reject["_offset"]] = Read(reject["reason"])
    assert sorted(found) == list(range(frame.first_offset, frame.next_offset))
    return [found[offset] for offset in sorted(found)]


def plain(column: pa.Array) -> list[Value]:
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.int64())
    values: list[Value] = column.to_pylist()
    return values


# NUL and the planes above 1 have tests of their own.
text = st.text(
    st.characters(max_codepoint=0x1FFFF, exclude_categories=["Cs"], exclude_characters="\0"),
    max_size=8,
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(-1e9, 1e9) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
int64 = st.integers(-(2**63), 2**63 - 1)
fractions = st.floats(-(2.0**63), 2.0**62) | st.integers(-99, 99).map(lambda n: n / 4)
# "x…" is neither a number nor a time.
no_number = st.sampled_from([True, "x", "x1", [], [1], {}, {"n": 1}, 2**63, 10**30])
times = st.datetimes(datetime(1970, 1, 2), datetime(2199, 1, 1)).map(
    lambda moment: moment.isoformat("T", "milliseconds")
)
fields = {
    "id": st.one_of(text, text.map("k{}".format), st.none(), st.sampled_from([5, True, [], {}])),
    "up": st.one_of(
        st.integers(NOW_MS - 10**9, NOW_MS + SKEW_MS),
        st.sampled_from([0, -1, 10**17, NOW_MS + SKEW_MS + 1, UPLOAD_MIN_MS, UPLOAD_MAX_MS]),
        st.sampled_from(["2023-11-14T22:13:20Z", "2023-11-14 22:13:20.123", "x", None, True, []]),
    ),
    "user": st.fixed_dictionaries({}, optional={"name": text | no_number, "x": anything})
    | st.sampled_from([None, 5, "x", []]),
    "p": st.fixed_dictionaries(
        {},
        optional={
            "n": int64 | fractions | st.none() | no_number,
            "f": st.floats(allow_nan=False, allow_infinity=False)
            | st.integers(-(2**53), 2**53)
            | st.sampled_from(["x", False, [], {}]),
            "x": anything,
        },
    ),
    "b": st.booleans() | st.sampled_from([None, 0, 1, "true", [], {}]),
    "t": int64
    | st.integers(-(10**14), 3 * 10**14)
    | st.floats(0, 1e12)
    | times.map("{}Z".format)
    | times.map("{}+02:00".format)
    | times
    | st.sampled_from([None, "x", "", True, [], {}]),
    "x": anything,
}
documents = st.fixed_dictionaries(
    {"id": fields["id"] | text.map("k{}".format), "up": fields["up"]},
    optional={name: values for name, values in fields.items() if name not in ("id", "up")},
)
well_formed = st.builds(
    lambda document, ascii, indent: json.dumps(
        document, ensure_ascii=ascii, indent=indent
    ).encode(),
    documents,
    st.booleans(),
    st.sampled_from([None, None, 1]),
)
FRAGMENTS = [
    *(b"{", b"}", b"[", b"]", b",", b":", b'"', b"\n", b" ", b"\\", b"1", b"-", b"null", b"\xc3"),
    *(b'"id":"a"', b'"up":%d' % NOW_MS, b'"x":', b"}\n{", b'}},{"', b'{"x":', b'"p":{"n":"x"}'),
    *(GOOD, GOOD[:-1], GOOD[1:]),
]
nonsense = st.lists(st.sampled_from(FRAGMENTS), max_size=12).map(b"".join)


def risky() -> list[bytes]:
    """What has ended or could end a reader's process, or its patience."""
    text = f'{{"id":"a","up":{NOW_MS},"x":"é\\u00e9"}}'
    inner = [
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b'"' + b"x" * 1_000_000 + b'"',
        b'"' + b"\\u00e9" * 200_000 + b'"',
        b'"' + b"\\" * 1_000_001 + b'"',
        b"9" * 1_000_000,
        b"-" + b"9" * 1_000_000,
        b"1e" + b"9" * 100_000,
        b"0." + b"0" * 1_000_000 + b"1",
        b"{" + b",".join(b'"k%d":1' % n for n in range(50_000)) + b"}",
        b"{" + b",".join(b'"a":%d' % n for n in range(50_000)) + b"}",
        b"[" + b"1," * 300_000 + b"1]",
        *(b'"\\ud800"', b'"\\udc00\\ud800"', b'"\xed\xa0\x80"', b'"\0"', b'"\\u0000"', b"\0"),
        *(b"}\n{", b'1}\n{"id":"b"', b'"\x1b[31m"', b"NaN", b"Infinity", b"01", b"1.", b"--1"),
    ]
    fields = (b"x", b"id", b"up", b"t", b"b", b"user", b"p")
    made = [
        GOOD[:-1] + b',"%b":%b}' % (field, value)
        for value in inner
        for field in (fields if len(value) < 1000 else fields[:2])
    ]
    encoded = [text.encode(name) for name in ("utf-16", "utf-16-le", "utf-16-be", "utf-32")]
    encoded += [codecs.BOM_UTF8 + GOOD, codecs.BOM_UTF16 + GOOD, b"\x1f\x8b" + GOOD, bytes(1000)]
    encoded += [bytes([byte]) for byte in range(256)] + [
        bytes([byte]) + GOOD for byte in range(256)
    ]
    encoded += [GOOD[:-1] + bytes([byte]) + b"}" for byte in range(256)]
    return [*made, *encoded]
