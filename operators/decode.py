"""Decode: messages in, columnar frames out; what can't become an event becomes a reject.

1. one call of the fast reader (`json_reader`) reads a whole batch;
2. if it refuses the batch, orjson finds the messages that are not JSON documents, and these are
   tried alone; of the others, small regions are tried;
3. what is refused then is taken from orjson's documents, column by column: what is not an object is
   a reject, and a value of a wrong type is null and counted;
4. numbers that these readers cut or round are taken from the text (`exact`); a fraction where a
   column has integers, and a time outside the years 1 to 9999, is a value of a wrong type;
5. events without key or upload time, or with an absurd or future one, are rejects.
What comes out for a message never depends on the messages around it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from forebay.operators.exact import Exact, Found
from forebay.operators.json_reader import Reader, misread
from forebay.operators.sources.messages import I64, Messages
from forebay.storage.base.times import now_ms
from forebay.storage.formats.columns import (
    ARROW_TYPES,
    Mask,
    arrow_schema,
    as_mask,
    nulled,
    outside_years,
    within_years,
)
from forebay.storage.formats.frame import REJECT_SCHEMA, Frame
from forebay.storage.formats.schema import OFFSET, PARTITION, RAW, UPLOAD_TIME, Column, Schema

NO_OBJECT = "expected an object"
CALL_BYTES_MAX = 64 << 20
"""Messages in one call of the reader: keeps text and columns within Arrow's 32-bit offsets."""
REPLAYED_MAX, FAR_OFF_MS = 5_000, -(2**63)
INT_DIGITS_MAX = 30
"""More than any integer that a column holds."""
_CUT = re.compile(r"(\d+) bytes, at most \d+ are taken; its first \d+ are kept\Z")
"""The detail of a message of which only the beginning was kept."""
UPLOAD_MIN_MS = 946_684_800_000
"""2000-01-01: an earlier upload time is absurd."""
UPLOAD_MAX_MS = 7_258_118_400_000
"""2200-01-01: so is a later one."""


@dataclass(frozen=True)
class DecodeConfig:
    """`future_skew_ms`: how far an upload time may be ahead of the clock (see `Messages`)."""

    schema: Schema
    future_skew_ms: int
    message_bytes_max: int


class Decoder:
    """Decodes messages under one schema. Thread safety: none needed, it holds no state."""

    def __init__(self, config: DecodeConfig) -> None:
        self._config = config
        self._schema = arrow_schema(config.schema)
        self._columns = config.schema.decoded
        self._reader = Reader(self._columns)
        self._single = [Reader([replace(c, path=("v",))]) for c in self._columns]
        self._exact = Exact(self._columns, config.schema.key)

    def decode(self, items: Sequence[Messages]) -> list[Frame]:
        """One frame an item. Items share a call of the reader up to CALL_BYTES_MAX."""
        frames: list[Frame] = []
        held: list[Messages] = []
        size = 0
        for item in items:
            more = sum(map(len, item.values))
            if held and size + more > CALL_BYTES_MAX:
                frames += self._decode(held)
                held, size = [], 0
            held.append(item)
            size += more
        return frames + self._decode(held) if held else frames

    def decode_again(self, rejects: pa.RecordBatch) -> list[Frame]:
        """Frames of each source's rejects, of REPLAYED_MAX messages at most, for a replay; broker
        times are the first ones. One that is null was further off than any reader takes, and still
        is. An upload time is in the future or not by the present wall clock."""
        items = []
        for source in pc.unique(rejects.column(PARTITION)).to_pylist():
            mine = rejects.filter(pc.equal(rejects.column(PARTITION), source))
            for low in range(0, mine.num_rows, REPLAYED_MAX):
                part = mine.slice(low, REPLAYED_MAX)
                offsets = part.column(OFFSET).to_numpy()
                times = part.column("broker_time").cast(pa.int64())
                item = Messages(
                    source=source,
                    values=part.column("message").to_pylist(),
                    offsets=offsets,
                    times_ms=times.fill_null(FAR_OFF_MS).to_numpy(),
                    next_offset=int(offsets[-1]) + 1,
                    read_ms=now_ms(),
                    lengths=_cut_before(part.column("detail").to_pylist()),
                )
                items.append(item)
        return self.decode(items)

    def _decode(self, items: Sequence[Messages]) -> list[Frame]:
        values = list(chain.from_iterable(item.values for item in items))
        messages = pa.array(values, pa.binary())
        reasons = _Reasons(len(values))
        sizes = pc.binary_length(messages).to_numpy()
        self._flag_sizes(sizes, _cut(items), reasons)
        reasons.flag("empty", sizes == 0)
        for row in reasons.found:
            values[row] = b"null"
        columns = self._checked(values, messages, self._read(values, reasons), reasons)
        return self._frames(items, columns, messages, reasons)

    def _flag_sizes(self, sizes: I64, cut: dict[int, int], reasons: _Reasons) -> None:
        """`cut` has the whole size of each message of which only the beginning is here, by row:
        never an event, whatever that beginning is."""
        most = self._config.message_bytes_max
        for row in {*np.flatnonzero(sizes > most).tolist(), *cut}:
            detail = f"{cut.get(row, sizes[row])} bytes, at most {most} are taken"
            if row in cut:
                detail += f"; its first {sizes[row]} are kept"
            reasons.flag_row("too large", row, detail)

    def _read(self, values: list[bytes], reasons: _Reasons) -> list[pa.Array]:
        """Steps 1 to 3: the columns."""
        whole = self._reader.read(values)
        if whole is not None:
            return self._reader.take(whole)
        suspect = misread(b"\n".join(values))
        rows_of: dict[str, list[int]] = {"object": [], "other": [], "unclear": []}
        for row, value in enumerate(values):
            rows_of[_kind(value, suspect)].append(row)
        documents, refused, unclear = rows_of.values()
        read = self._reader.read_documents([values[row] for row in documents])
        regions = [(documents[low:high], part) for low, high, part in read]
        regions += [([row], self._reader.read([values[row]])) for row in unclear]
        refused += [row for rows, part in regions if part is None for row in rows]
        order = [row for rows, part in regions if part is not None for row in rows]
        columns = [self._read_alone(values, refused, reasons)]
        if parts := [part for _, part in regions if part is not None]:
            columns.insert(0, self._reader.take(pa.concat_arrays(parts)))
        positions = pa.array(np.argsort(np.array(order + refused, dtype=np.int64)))
        return [pa.concat_arrays(both).take(positions) for both in zip(*columns, strict=True)]

    def _read_alone(
        self, values: list[bytes], rows: list[int], reasons: _Reasons
    ) -> list[pa.Array]:
        """Step 3: the columns of the messages at `rows`, among which the reader refuses some."""
        documents: list[object] = []
        for row in rows:
            try:
                documents.append(_object(values[row]))
            except ValueError as error:
                reasons.flag_row("bad json", row, str(error))
                documents.append({})
        columns = []
        for reader, column in zip(self._single, self._columns, strict=True):
            found = [_dig(document, column.path) for document in documents]
            if column.type == "string":
                good = [value is None or isinstance(value, str) for value in found]
                texts = [value if isinstance(value, str) else None for value in found]
                columns.append(pa.array(texts, pa.string()))
            else:
                taken, good = _read_values(reader, found)
                columns.append(taken)
            for row, ok in zip(rows, good, strict=True):
                if not ok:
                    reasons.wrong[row, column.name] = f"expected {column.type}"
        return columns

    def _checked(
        self, values: list[bytes], messages: pa.Array, columns: list[pa.Array], reasons: _Reasons
    ) -> list[pa.Array]:
        """Step 4: the columns with exact numbers, and null for what is not a number or a time."""
        suspects = self._exact.suspects(messages, columns).tolist()
        found = [one for row in suspects for one in self._exact.found(row, values[row])]
        for n, column in enumerate(self._columns):
            if mine := [one for one in found if one.column == n]:
                columns[n] = _replaced(columns[n], column, mine, reasons)
            if column.name == UPLOAD_TIME:
                continue  # one that is far off has a reason of its own
            expected, odd = _odd(columns[n])
            if odd is not None:
                columns[n] = nulled(columns[n], odd)
                for row in np.flatnonzero(odd).tolist():
                    reasons.wrong[row, column.name] = f"expected {expected}"
        return columns

    def _frames(
        self,
        items: Sequence[Messages],
        columns: list[pa.Array],
        messages: pa.Array,
        reasons: _Reasons,
    ) -> list[Frame]:
        """Step 5, and the events and rejects of each item apart."""
        offsets = np.concatenate([item.offsets for item in items])
        times_ms = np.concatenate([item.times_ms for item in items])
        clocks_ms = np.concatenate([item.clocks_ms for item in items])
        names = [pa.repeat(pa.scalar(i.source, pa.string()), len(i.values)) for i in items]
        broker = pa.array(times_ms, pa.timestamp("ms", tz="UTC"))
        by_name = dict(zip((column.name for column in self._columns), columns, strict=True))
        by_name[UPLOAD_TIME] = _milliseconds(by_name.get(UPLOAD_TIME, broker))
        by_name[PARTITION] = pa.concat_arrays(names)
        by_name[OFFSET] = pa.array(offsets)
        by_name[RAW] = messages
        for name in self._config.schema.key:
            reasons.flag("no key", _absent(by_name[name]), name)
        self._flag_times(by_name[UPLOAD_TIME], clocks_ms, reasons)
        events = pa.RecordBatch.from_arrays(
            [by_name[field.name] for field in self._schema], schema=self._schema
        )
        places = [by_name[PARTITION], by_name[OFFSET], broker]
        rejects = reasons.rejects(*places, messages)
        nulled = reasons.nulled()
        frames, low, rejected = [], 0, 0
        for item in items:
            rows = slice(low, low + len(item.values))
            mine, bad = events.slice(low, len(item.values)), reasons.mask[rows]
            count = int(np.count_nonzero(bad))
            frames.append(
                Frame(
                    partition=item.source,
                    source=item.source,
                    first_offset=item.first_offset,
                    next_offset=item.next_offset,
                    events=mine.filter(pa.array(~bad)) if count else mine,
                    rejects=rejects.slice(rejected, count),
                    nulled=int(nulled[rows].sum()),
                    skipped=item.skipped,
                    end_offset=item.end_offset,
                )
            )
            low, rejected = rows.stop, rejected + count
        return frames

    def _flag_times(self, upload: pa.Array, clocks_ms: I64, reasons: _Reasons) -> None:
        reasons.flag("no upload time", as_mask(upload.is_null()), UPLOAD_TIME)
        ms = upload.cast(pa.int64()).fill_null(UPLOAD_MIN_MS).to_numpy(zero_copy_only=False)
        reasons.flag("absurd upload time", (ms < UPLOAD_MIN_MS) | (ms >= UPLOAD_MAX_MS))
        reasons.flag("future upload time", ms > clocks_ms + self._config.future_skew_ms)


def _cut(items: Sequence[Messages]) -> dict[int, int]:
    """The `lengths` of all items, by row among all messages."""
    cut: dict[int, int] = {}
    first = 0
    for item in items:
        cut |= {first + row: length for row, length in item.lengths.items()}
        first += len(item.values)
    return cut


def _cut_before(details: Sequence[str | None]) -> dict[int, int]:
    """The whole length of each reject of which only the beginning was kept, by row."""
    found = ((row, _CUT.match(detail)) for row, detail in enumerate(details) if detail)
    return {row: int(match[1]) for row, match in found if match}


class _Reasons:
    """Why rows are rejects: `found` has the first reason, with its detail; and what is `wrong` with
    the value of a column, by row and name: it was read as null."""

    def __init__(self, rows: int) -> None:
        self.mask: Mask = np.zeros(rows, dtype=bool)
        self.found: dict[int, tuple[str, str | None]] = {}
        self.wrong: dict[tuple[int, str], str] = {}

    def flag(self, reason: str, rows: Mask, column: str = "") -> None:
        """`column` is at fault, if any is."""
        fresh = rows & ~self.mask
        if not fresh.any():
            return
        for row in np.flatnonzero(fresh).tolist():
            wrong = self.wrong.get((row, column), "expected a value")
            self.flag_row(reason, row, f"{column}: {wrong}" if column else None)

    def flag_row(self, reason: str, row: int, detail: str | None) -> None:
        self.mask[row] = True
        self.found.setdefault(row, (reason, detail))

    def rejects(self, *columns: pa.Array) -> pa.RecordBatch:
        """The rejects, of whose source, offset, broker time and message these are the columns."""
        rows = np.flatnonzero(self.mask)
        source, offset, time, message = (column.take(pa.array(rows)) for column in columns)
        found = [self.found[row] for row in rows.tolist()]
        reason = pa.array([reason for reason, _ in found], pa.string())
        detail = pa.array([detail for _, detail in found], pa.string())
        arrays = [source, offset, time, reason, detail, message]
        # A producer may stamp any time.
        return within_years(pa.RecordBatch.from_arrays(arrays, schema=REJECT_SCHEMA))

    def nulled(self) -> I64:
        """How many values of each row were read as null, unless it is a reject."""
        rows = np.array([row for row, _ in self.wrong], np.int64)
        return np.bincount(rows, minlength=len(self.mask)) * ~self.mask


def _odd(column: pa.Array) -> tuple[str, Mask | None]:
    """What is expected of a column's values, and which are of its type but no such value; None if
    none is."""
    if pa.types.is_timestamp(column.type):
        return "a time in the years 1 to 9999", outside_years(column)
    if pa.types.is_floating(column.type) and len(column):
        odd = as_mask(pc.invert(pc.is_finite(column)))
        return "a finite number", odd if odd.any() else None
    return "", None


def _replaced(
    column: pa.Array, declared: Column, found: Sequence[Found], reasons: _Reasons
) -> pa.Array:
    """The column with the exact values found, null for those that are none."""
    where: Mask = np.zeros(len(column), dtype=bool)
    where[[one.row for one in found]] = True
    for one in found:
        if one.value is not None:
            reasons.wrong.pop((one.row, declared.name), None)
        elif column[one.row].is_valid:
            reasons.wrong[one.row, declared.name] = f"expected {declared.type} without a fraction"
    values = pa.array([one.value for one in found], pa.int64()).cast(column.type)
    return pc.replace_with_mask(column, pa.array(where), values)


def _object(message: bytes) -> dict[str, Any]:
    """A message as orjson reads it, or if that finds a number too large for it, as `json` does:
    such a number is infinite then, and right in no column. Raises ValueError."""
    try:
        document = orjson.loads(message)
    except orjson.JSONDecodeError as refused:
        if not refused.msg.startswith("number is infinity"):
            raise
        try:
            document = json.loads(message.decode(), parse_int=_parse_int, parse_constant=_refuse)
            json.dumps(document, ensure_ascii=False).encode()  # half of a surrogate pair fails
        except RecursionError as error:
            raise ValueError(str(error)) from error
    if not isinstance(document, dict):
        raise ValueError(NO_OBJECT)
    return document


def _parse_int(text: str) -> int | float:
    """Python refuses to read some thousand digits."""
    return int(text) if len(text) <= INT_DIGITS_MAX else math.inf


def _refuse(constant: str) -> None:
    raise ValueError(f"expected JSON, got {constant}")


def _dig(document: object, path: tuple[str, ...]) -> object:
    """The value at `path`: None if there is none, a list, which is right in no column, if the path
    meets something that is no object."""
    for key in path:
        if document is None:
            return None
        if not isinstance(document, dict):
            return []
        document = document.get(key)
    return document


def _read_values(reader: Reader, values: list[object]) -> tuple[pa.Array, list[bool]]:
    """One column of `values`, null where one has another type, and which ones are right.

    SUBTLE: no list or object is ever right, and none may come to orjson again: it reads deeper
    nesting than it writes.
    """
    infinite = (math.inf, -math.inf)
    right = [not isinstance(value, dict | list) and value not in infinite for value in values]
    texts = [orjson.dumps({"v": v if ok else None}) for v, ok in zip(values, right, strict=True)]
    null = pa.nulls(1, ARROW_TYPES[reader.columns[0].type])
    parts = [null.slice(1)]
    for low, _, part in reader.read_each(texts):
        right[low] &= part is not None
        parts.append(null if part is None else reader.take(part)[0])
    return pa.concat_arrays(parts), right


def _kind(value: bytes, suspect: bool) -> Literal["object", "other", "unclear"]:
    """What orjson makes of a message: an object, another document, or none that it can read."""
    try:
        document = orjson.loads(value)
    except orjson.JSONDecodeError:
        return "unclear"
    if not isinstance(document, dict) or (suspect and b"\\u" in value and misread(value)):
        return "other"
    return "object"


def _absent(column: pa.Array) -> Mask:
    """Null or empty text."""
    absent = as_mask(column.is_null())
    if pa.types.is_string(column.type):
        absent = absent | as_mask(pc.equal(pc.binary_length(column), 0))
    return absent


def _milliseconds(times: pa.Array) -> pa.Array:
    """Timestamps of any unit in ms, truncated; those too large for ms stay absurd."""
    if times.type.unit == "s":
        bound = pa.scalar(UPLOAD_MAX_MS // 1000, pa.int64())
        seconds = pc.min_element_wise(times.cast(pa.int64()), bound, skip_nulls=False)
        seconds = pc.max_element_wise(seconds, pc.negate(bound), skip_nulls=False)
        times = seconds.cast(times.type)
    return times.cast(pa.timestamp("ms", tz="UTC"), safe=False)
