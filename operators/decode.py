"""Decode: messages in, columnar frames out; what can't become an event becomes a reject.

1. one call of the fast reader (`json_reader`) reads a whole batch;
2. if it refuses the batch, messages are mended (`mend`) and tried once more; if it refuses that
   too, orjson finds the messages that are not JSON documents, and these are tried alone; of the
   others, small regions are tried;
3. what is refused then is taken from orjson's documents, column by column: what is not an object is
   a reject, and a value of a wrong type is null and counted;
4. numbers that these readers cut or round are taken from the text (`exact`); a fraction where a
   column has integers, and a time outside the years 1 to 9999, is a value of a wrong type; the size
   of a number tells its unit where the column says so (`units`);
5. of a column's paths, the first that holds a value counts;
6. events without key or upload time, or with an absurd or future one, are rejects.
In steps 1 to 4 each path is a column of its own, a *source*.
What comes out for a message never depends on the messages around it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Literal

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from forebay.operators.exact import Exact, Found, is_finer
from forebay.operators.json_reader import READ_TYPES, Reader, misread
from forebay.operators.likeness import batch_of, came, not_an_object, not_json
from forebay.operators.mend import HALF, Mender, with_text_at
from forebay.operators.sources.messages import I64, Messages
from forebay.operators.units import EXPECTED, moments
from forebay.storage.base.times import now_ms
from forebay.storage.formats.columns import (
    Mask,
    arrow_schema,
    as_mask,
    nulled,
    outside_years,
    within_years,
)
from forebay.storage.formats.frame import OF_A_COLUMN, REJECT_SCHEMA, Frame
from forebay.storage.formats.schema import (
    OFFSET,
    PARTITION,
    RAW,
    TEXT,
    UPLOAD_TIME,
    Column,
    ColumnType,
    Schema,
)

NO_UPLOAD_TIME = 'if messages have none, set upload_time = "broker"'
CALL_BYTES_MAX = 64 << 20
"""Messages in one call of the reader: keeps text and columns within Arrow's 32-bit offsets."""
REPLAYED_MAX, FAR_OFF_MS = 5_000, -(2**63)
INT_DIGITS_MAX = 30
"""More than any integer that a column holds."""
_CUT = re.compile(r"(\d+) bytes, at most \d+ are taken; its first \d+ are kept\Z")
"""The detail of a message of which only the beginning was kept."""
_VALUES: dict[ColumnType, str] = {
    "string": "text",
    "id": "text or a whole number",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "time": "a time",
    "time_s": "a time",
    "time_us": "a time",
    "time_auto": "a time",
}
"""What a column's values are."""
_EXACT: dict[ColumnType, str] = {
    "int": "a whole number of 64 bits",
    "time": "a time in whole ms",
    "time_s": "a time in whole s",
    "time_us": "a time in whole µs",
}
"""What they are where nothing may be cut."""
UPLOAD_MIN_MS = 946_684_800_000
"""2000-01-01: an earlier upload time is absurd."""
UPLOAD_MAX_MS = 7_258_118_400_000
"""2200-01-01: so is a later one."""


@dataclass(frozen=True)
class DecodeConfig:
    """`future_skew_ms`: how far an upload time may be ahead of the clock (see `Messages`). `hints`
    are said of messages without a value in a column of the key: the column, and what may have gone
    wrong with events of this kind."""

    schema: Schema
    future_skew_ms: int
    message_bytes_max: int
    hints: tuple[tuple[str, str], ...] = ()


class Decoder:
    """Decodes messages under one schema. Thread safety: none needed, it holds no state."""

    def __init__(self, config: DecodeConfig) -> None:
        self._config = config
        self._schema = arrow_schema(config.schema)
        self._columns = config.schema.decoded
        self._by_name = {column.name: column for column in self._columns}
        self._hints = {**dict(config.hints), UPLOAD_TIME: NO_UPLOAD_TIME}
        self._sources = [source for column in self._columns for source in column.sources]
        self._reader = Reader(self._sources)
        self._single = [Reader([replace(source, path=("v",))]) for source in self._sources]
        self._mender = Mender(self._sources)
        self._exact = Exact(self._sources, config.schema.key)
        self._of_any_unit = [s for s in self._sources if s.type == "time_auto"]

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
        values, columns = self._read(values, reasons)
        columns = self._united(self._checked(values, messages, columns, reasons), reasons)
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

    def _read(self, values: list[bytes], reasons: _Reasons) -> tuple[list[bytes], list[pa.Array]]:
        """Steps 1 to 3: the messages as they were read, and their sources."""
        whole = self._reader.read(values)
        if whole is None and (mended := self._mender.mend(values)) is not None:
            values, reasons.halves = mended.values, mended.halves
            whole = self._reader.read(values)
        if whole is not None:
            return values, self._reader.take(whole)
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
        pairs = zip(*columns, strict=True)
        return values, [pa.concat_arrays(pair).take(positions) for pair in pairs]

    def _read_alone(
        self, values: list[bytes], rows: list[int], reasons: _Reasons
    ) -> list[pa.Array]:
        """Step 3: the sources of the messages at `rows`, among which the reader refuses some."""
        documents: list[object] = []
        for row in rows:
            try:
                document = _document(values[row])
                fault = None if isinstance(document, dict) else not_an_object(document)
            except ValueError as error:
                fault = not_json(values[row], error)
            if fault is not None:
                reasons.flag_row("bad json", row, fault)
            documents.append(document if fault is None else {})
        columns = []
        for reader, column in zip(self._single, self._sources, strict=True):
            found = [_dig(document, column.path) for document in documents]
            if column.type in TEXT:
                if column.type == "id":
                    found = [
                        _digits(values[row], column.path) if type(one) in (int, float) else one
                        for row, one in zip(rows, found, strict=True)
                    ]
                good = [value is None or isinstance(value, str) for value in found]
                texts = [value if isinstance(value, str) else None for value in found]
                columns.append(pa.array(texts, pa.string()))
            else:
                taken, good = _read_values(reader, found)
                columns.append(taken)
            for row, ok in zip(rows, good, strict=True):
                if not ok:
                    reasons.wrong[row, column.name] = f"expected {_VALUES[column.type]}"
        return columns

    def _checked(
        self, values: list[bytes], messages: pa.Array, columns: list[pa.Array], reasons: _Reasons
    ) -> list[pa.Array]:
        """Step 4: the sources with exact numbers, and null for what is not a number or a time."""
        suspects = self._exact.suspects(messages, columns).tolist()
        with_text = with_text_at(messages, self._of_any_unit)
        found = [one for row in suspects for one in self._exact.found(row, values[row])]
        for n, column in enumerate(self._sources):
            if mine := [one for one in found if one.column == n]:
                columns[n] = _replaced(columns[n], column, mine, reasons)
            if column.type == "time_auto":
                columns[n] = self._timed(columns[n], column, values, with_text, reasons)
            if column.type in TEXT and column.name in self._config.schema.key:
                columns[n] = _without_halves(columns[n], column, reasons)
            if column.name == UPLOAD_TIME:
                continue  # one that is far off has a reason of its own
            expected, odd = _odd(columns[n])
            if odd is not None:
                columns[n] = nulled(columns[n], odd)
                for row in np.flatnonzero(odd).tolist():
                    reasons.wrong[row, column.name] = f"expected {expected}"
        return columns

    def _timed(
        self,
        numbers: pa.Array,
        column: Column,
        values: list[bytes],
        with_text: Sequence[int],
        reasons: _Reasons,
    ) -> pa.Array:
        """The times of a source of which a number's size tells the unit. Text in its place is a
        time as text is anywhere, or null: its digits are never a number."""
        times, odd = moments(numbers)
        for row in np.flatnonzero(odd).tolist():
            reasons.wrong[row, column.name] = EXPECTED
        found = [_dig_text(values[row], column.path) for row in with_text]
        rows = [row for row, text in zip(with_text, found, strict=True) if text is not None]
        if not rows:
            return times
        texts = [text for text in found if text is not None]
        exact = column.name in self._config.schema.key
        unit = replace(column, path=("v",), type="time_us")
        read, good = _read_values(Reader([unit]), list(texts))
        for n, (row, text) in enumerate(zip(rows, texts, strict=True)):
            reasons.wrong.pop((row, column.name), None)
            good[n] = good[n] and not (exact and is_finer(text, unit))
            if not good[n]:
                reasons.wrong[row, column.name] = EXPECTED
        read = nulled(read, ~np.array(good, dtype=bool))
        where: Mask = np.zeros(len(times), dtype=bool)
        where[rows] = True
        return pc.replace_with_mask(times, pa.array(where), read)

    def _united(self, columns: list[pa.Array], reasons: _Reasons) -> list[pa.Array]:
        """Step 5: the columns, of which some have several sources."""
        if len(self._sources) == len(self._columns):
            return columns
        united, low = [], 0
        for column in self._columns:
            mine = columns[low : low + len(column.paths)]
            low += len(mine)
            if len(mine) > 1:
                mine = [_first_of(mine)]
                wrong = reasons.wrong_in(column.name)
                for row in np.flatnonzero(wrong & ~_absent(mine[0])).tolist():
                    del reasons.wrong[row, column.name]
                if reasons.wrong:
                    mine = [nulled(mine[0], reasons.wrong_in(column.name))]
            united += mine
        return united

    def _frames(
        self,
        items: Sequence[Messages],
        columns: list[pa.Array],
        messages: pa.Array,
        reasons: _Reasons,
    ) -> list[Frame]:
        """Step 6, and the events and rejects of each item apart."""
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
            absent = _absent(by_name[name])
            if name in self._config.schema.optional:
                by_name[name] = by_name[name].fill_null("")
                absent &= reasons.wrong_in(name)
            self._flag_column("no key", absent, name, messages, reasons)
        upload_time = by_name[UPLOAD_TIME]
        absent = as_mask(upload_time.is_null())
        self._flag_column("no upload time", absent, UPLOAD_TIME, messages, reasons)
        self._flag_times(upload_time, clocks_ms, reasons)
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

    def _flag_column(
        self, reason: str, rows: Mask, name: str, messages: pa.Array, reasons: _Reasons
    ) -> None:
        """The column has no value in these rows, or a wrong one: which, the detail says."""
        for row in np.flatnonzero(rows & ~reasons.mask).tolist():
            message = messages[row].as_py()
            found = came(message, self._by_name[name].paths) if name in self._by_name else None
            expected = reasons.wrong.get((row, name), "expected a value")
            detail = f"{name}: {expected}, got {found or 'none'}"
            hint = batch_of(message) if reason in OF_A_COLUMN else None
            hint = hint or (self._hints.get(name) if found is None else None)
            reasons.flag_row(reason, row, f"{detail}; {hint}" if hint else detail)

    def _flag_times(self, upload: pa.Array, clocks_ms: I64, reasons: _Reasons) -> None:
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
        self.halves: Mapping[int, bytes] = {}
        """The messages of which half of a surrogate pair was mended, as they came, by row."""

    def wrong_in(self, column: str) -> Mask:
        """The rows in which the column's value is wrong."""
        rows: Mask = np.zeros(len(self.mask), dtype=bool)
        rows[[row for row, name in self.wrong if name == column]] = True
        return rows

    def flag(self, reason: str, rows: Mask) -> None:
        for row in np.flatnonzero(rows & ~self.mask).tolist():
            self.flag_row(reason, row, None)

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
            reasons.wrong[one.row, declared.name] = f"expected {_EXACT[declared.type]}"
    values = pa.array([one.value for one in found], pa.int64()).cast(column.type)
    return pc.replace_with_mask(column, pa.array(where), values)


def _first_of(sources: Sequence[pa.Array]) -> pa.Array:
    """The first of the sources that holds a value, row by row; empty text is one if none is."""
    if not _absent(sources[0]).any():
        return sources[0]
    if pa.types.is_string(sources[0].type):
        none = pa.scalar(None, pa.string())
        full = [pc.if_else(pc.equal(pc.binary_length(one), 0), none, one) for one in sources]
        return pc.coalesce(*full, *sources)
    return pc.coalesce(*sources)


def _without_halves(column: pa.Array, declared: Column, reasons: _Reasons) -> pa.Array:
    """A source of the key, null where its text has half of a surrogate pair: keys that differ in
    these only would be one."""
    if not reasons.halves:
        return column
    where: Mask = np.zeros(len(column), dtype=bool)
    for row, message in reasons.halves.items():
        if HALF.search(_dig_text(message, declared.path) or ""):
            where[row] = True
            reasons.wrong[row, declared.name] = "expected text without half of a surrogate pair"
    return nulled(column, where) if where.any() else column


def _digits(message: bytes, path: Sequence[str]) -> object:
    """The whole number at `path` as its digits; what else there is, as it is.

    SUBTLE: orjson makes a double of a number beyond 64 bits, and two of them would be one.
    """
    try:
        document = json.loads(message.decode(), strict=False, parse_int=_Digits)
    except (ValueError, RecursionError):
        return []
    found = _dig(document, path)
    return found.text if isinstance(found, _Digits) else found


class _Digits:
    """A whole number as it is written; -0 is 0."""

    def __init__(self, text: str) -> None:
        self.text = "0" if text == "-0" else text


def _dig_text(message: bytes, path: Sequence[str]) -> str | None:
    """The text at `path`, None if there is none."""
    try:
        document = json.loads(message.decode(), strict=False)
    except (ValueError, RecursionError):
        return None
    found = _dig(document, path)
    return found if isinstance(found, str) else None


def _document(message: bytes) -> object:
    """A message as orjson reads it, or if that finds a number too large for it, as `json` does:
    such a number is infinite then, and right in no column. Raises ValueError."""
    try:
        return orjson.loads(message)
    except orjson.JSONDecodeError as refused:
        if not refused.msg.startswith("number is infinity"):
            raise
    try:
        document = json.loads(message.decode(), parse_int=_parse_int, parse_constant=_refuse)
        json.dumps(document, ensure_ascii=False).encode()  # which half of a surrogate pair fails
    except RecursionError as error:
        raise ValueError(str(error)) from error
    return document


def _parse_int(text: str) -> int | float:
    """Python refuses to read some thousand digits."""
    return int(text) if len(text) <= INT_DIGITS_MAX else math.inf


def _refuse(constant: str) -> None:
    raise ValueError(f"expected JSON, got {constant}")


def _dig(document: object, path: Sequence[str]) -> object:
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
    null = pa.nulls(1, READ_TYPES[reader.columns[0].type])
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
