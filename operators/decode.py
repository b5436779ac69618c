"""Decode: messages in, columnar frames out; what can't become an event becomes a reject.

1. messages that are empty or too large are rejects, whatever is in them;
2. the others are read as typed columns (`storage.decoding.json_columns`); what is not a JSON object
   is a reject, and a value of a wrong type is null and counted;
3. events without key or upload time, or with an absurd or future one, are rejects.
What comes out for a message never depends on the messages around it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from forebay.operators.likeness import batch_of, came, not_an_object, not_json
from forebay.operators.sources.messages import I64, Messages
from forebay.storage.base.times import now_ms
from forebay.storage.decoding.documents import NotAnObject
from forebay.storage.decoding.json_columns import Faults, JsonColumns, absent
from forebay.storage.decoding.mend import BOM
from forebay.storage.formats.columns import Mask, arrow_schema, as_mask, within_years
from forebay.storage.formats.frame import OF_A_COLUMN, REJECT_SCHEMA, Frame
from forebay.storage.formats.schema import OFFSET, PARTITION, RAW, UPLOAD_TIME, Schema

NO_UPLOAD_TIME = 'if messages have none, set upload_time = "broker"'
CALL_BYTES_MAX = 64 << 20
"""Messages in one call of the reader: keeps text and columns within Arrow's 32-bit offsets."""
REPLAYED_MAX, FAR_OFF_MS = 5_000, -(2**63)
_CUT = re.compile(r"(\d+) bytes, at most \d+ are taken; its first \d+ are kept\Z")
"""The detail of a message of which only the beginning was kept."""
UPLOAD_MIN_MS = 946_684_800_000
"""2000-01-01: an earlier upload time is absurd."""
UPLOAD_MAX_MS = 7_258_118_400_000
"""2200-01-01: so is a later one."""


@dataclass(frozen=True)
class DecodeConfig:
    """`future_skew_ms`: how far an upload time may be ahead of the clock (see `Messages`). `hints`
    are for messages without a value in a column of the key: by column, what may have gone wrong
    with events of this kind."""

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
        self._json = JsonColumns(self._columns, config.schema.key)

    def decode(self, items: Sequence[Messages]) -> list[Frame]:
        """One frame per item. Items share a call of the reader up to CALL_BYTES_MAX."""
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
        times are the original ones. A null one was further off than any reader takes, and still is.
        Whether an upload time is in the future is decided by the present wall clock."""
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
        return self._frames(items, self._read(messages, values, reasons), messages, reasons)

    def _flag_sizes(self, sizes: I64, cut: dict[int, int], reasons: _Reasons) -> None:
        """`cut` has the whole size of each message of which only the beginning is here, by row:
        never an event, whatever that beginning is."""
        most = self._config.message_bytes_max
        for row in {*np.flatnonzero(sizes > most).tolist(), *cut}:
            detail = f"{cut.get(row, sizes[row])} bytes, at most {most} are taken"
            if row in cut:
                detail += f"; its first {sizes[row]} are kept"
            reasons.flag_row("too large", row, detail)

    def _read(self, messages: pa.Array, values: list[bytes], reasons: _Reasons) -> list[pa.Array]:
        """Step 2: the columns."""
        columns, reasons.faults = self._json.read(messages, values)
        for row, refusal in reasons.faults.refused.items():
            if isinstance(refusal, NotAnObject):
                detail = not_an_object(refusal.document)
            else:
                detail = not_json(values[row].removeprefix(BOM), refusal.said)
            reasons.flag_row("bad json", row, detail)
        return columns

    def _frames(
        self,
        items: Sequence[Messages],
        columns: list[pa.Array],
        messages: pa.Array,
        reasons: _Reasons,
    ) -> list[Frame]:
        """Step 3, and the events and rejects of each item separately."""
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
            missing = absent(by_name[name])
            if name in self._config.schema.optional:
                by_name[name] = by_name[name].fill_null("")
                missing &= reasons.faults.wrong_in(name)
            self._flag_column("no key", missing, name, messages, reasons)
        upload_time = by_name[UPLOAD_TIME]
        missing = as_mask(upload_time.is_null())
        self._flag_column("no upload time", missing, UPLOAD_TIME, messages, reasons)
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
        """The column has no value in these rows, or a wrong one: the detail says which."""
        for row in np.flatnonzero(rows & ~reasons.mask).tolist():
            message = messages[row].as_py()
            found = came(message, self._by_name[name].paths) if name in self._by_name else None
            expected = reasons.faults.wrong.get((row, name), "expected a value")
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
    """Why rows are rejects: `found` has the first reason, with its detail; and the `faults` of
    their values."""

    def __init__(self, rows: int) -> None:
        self.mask: Mask = np.zeros(rows, dtype=bool)
        self.found: dict[int, tuple[str, str | None]] = {}
        self.faults = Faults(rows)

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
        rows = np.array([row for row, _ in self.faults.wrong], np.int64)
        return np.bincount(rows, minlength=len(self.mask)) * ~self.mask


def _milliseconds(times: pa.Array) -> pa.Array:
    """Timestamps of any unit in ms, truncated; those too large for ms stay absurd."""
    if times.type.unit == "s":
        bound = pa.scalar(UPLOAD_MAX_MS // 1000, pa.int64())
        seconds = pc.min_element_wise(times.cast(pa.int64()), bound, skip_nulls=False)
        seconds = pc.max_element_wise(seconds, pc.negate(bound), skip_nulls=False)
        times = seconds.cast(times.type)
    return times.cast(pa.timestamp("ms", tz="UTC"), safe=False)
