"""Why: where the event with a dedup key is, or what became of its copies.

Steps, over one view: the hot blocks and the chunks, including those handed off but not deleted yet;
the batch layer's table, if there is one; the drop logs, by the hash of the key; the rejects, whose
messages are searched for the key. A copy found nowhere was never seen, or is older than what is
kept: drop logs are bounded, and a batch layer without a table can't be searched.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from forebay.query.frames import polars_schema, scan_chunks
from forebay.query.partition import Partition
from forebay.query.view import View
from forebay.storage.base.errors import BadInput
from forebay.storage.base.times import EPOCH
from forebay.storage.formats.columns import SYSTEM_FIELDS
from forebay.storage.formats.drops import DROP_SCHEMA
from forebay.storage.formats.frame import REJECT_SCHEMA
from forebay.storage.formats.hashes import KeyHash
from forebay.storage.formats.rejects import ALL
from forebay.storage.formats.schema import OFFSET, PARTITION, UPLOAD_TIME
from forebay.storage.formats.state import BlockState

TABLE = "the batch layer's table"
BOM = b"\xef\xbb\xbf"
DAY = timedelta(days=1)
_PLACE = [PARTITION, OFFSET, UPLOAD_TIME]


@dataclass(frozen=True)
class Copy:
    """One message with the key, and what became of it.

    `what`: "event" (kept), "duplicate", "conflict" (a duplicate with another payload) or "reject".
    `partition` and `offset` are its place, `upload_time` is in UTC, None if it had none. `where` an
    event is: "hot block ID", "chunk FILE" or "the batch layer's table". `late`: it was older than
    the dedup window when it arrived; `handed_off`: the batch layer answers for it. `of` is the
    place of the event that a duplicate was one of, if that can still be found. `detail`: a reject's
    reason, a sampled conflict's payload.
    """

    what: str
    partition: str
    offset: int
    upload_time: datetime | None
    where: str | None = None
    late: bool = False
    handed_off: bool = False
    of: tuple[str, int] | None = None
    detail: str | None = None
    certain: bool = True
    """False for a reject that can't be decoded but contains the key as text, and for a duplicate
    that may be one of another event than `of`."""


@dataclass(frozen=True)
class Explanation:
    """All that is known about a `key`: the `copies` of its event, by partition and offset.

    `covered_until` (UTC): the batch layer has earlier events, None before any handoff; `table`:
    whether its table was searched.
    """

    key: dict[str, Any]
    copies: tuple[Copy, ...]
    covered_until: datetime | None
    table: bool = False


@dataclass(frozen=True)
class _Key:
    """The key as one row, with the partitions' types."""

    row: pa.RecordBatch

    def hash(self, seed: str) -> int:
        """The key's hash in the drop log of the partition with this seed."""
        return int(KeyHash(seed)(self.row.columns)[0])

    @property
    def columns(self) -> list[str]:
        """The key's columns, and those for the place of a row."""
        return list(dict.fromkeys((*_PLACE, *self.row.schema.names)))

    @property
    def values(self) -> dict[str, Any]:
        return dict(self.row.to_pylist()[0])

    def rows(self, frame: pl.LazyFrame | pl.DataFrame) -> list[dict[str, Any]]:
        """The rows with the key."""
        wanted = pl.DataFrame(self.row)
        same = [pl.col(name) == wanted[name][0] for name in wanted.columns]
        return frame.lazy().filter(same).collect().to_dicts()


def key_names(view: View) -> tuple[str, ...]:
    """The columns of the dedup key. Raises BadInput if nothing has been ingested yet."""
    if not view.partitions:
        raise BadInput("why: expected a data directory with events, got an empty one")
    return view.key


def explain(
    view: View,
    key: Mapping[str, object],
    paths: Mapping[str, tuple[str, ...]],
    table: pl.LazyFrame | None = None,
) -> Explanation:
    """What became of the messages with this key.

    `paths` says where a message has the key's columns, otherwise each partition's state does;
    without both, rejects are searched for the values as text. `table` is the batch layer's, up to
    the boundary.

    Raises BadInput if `key` does not give the key's columns, MissingFile if the view is too old.
    """
    wanted = _typed(view, key)
    covered_until = view.covered_until
    drops = {p.folder: list(_drops(p, wanted)) for p in view.partitions}
    late = {_place(row) for rows in drops.values() for row in rows if row["what"] == "late"}
    late_table = {
        p.folder: {*map(_in_block, p.hot), *map(_in_chunk, p.chunk_paths)} for p in view.late
    }

    def event(where: str, row: Mapping[str, Any], late_table: Collection[str] = ()) -> Copy:
        below = covered_until is not None and row[UPLOAD_TIME] < covered_until
        taken = where == TABLE or (below and where not in late_table)
        place = _place(row)
        return Copy("event", *place, row[UPLOAD_TIME], where, place in late, handed_off=taken)

    kept = {
        p.folder: [event(*one, late_table.get(p.folder, ())) for one in _stored(p, wanted)]
        for p in view.partitions
    }
    copies = list(chain.from_iterable(kept.values()))
    here = {(copy.partition, copy.offset) for copy in copies}
    rows = [] if table is None else wanted.rows(table.select(wanted.columns))
    gone = [event(TABLE, row) for row in rows if _place(row) not in here]
    copies += gone
    for partition in view.partitions:
        sources = partition.state.next_offsets
        events = [*kept[partition.folder], *(e for e in gone if e.partition in sources)]
        originals = _Originals.of(partition, events, covered_until)
        copies += [
            originals.dropped(row) for row in drops[partition.folder] if row["what"] != "late"
        ]
    copies += _rejects(view.partitions, wanted, paths)
    copies.sort(key=lambda copy: (copy.partition, copy.offset))
    return Explanation(wanted.values, tuple(copies), covered_until, table is not None)


def _typed(view: View, key: Mapping[str, object]) -> _Key:
    names = key_names(view)
    if set(key) != set(names):
        raise BadInput(f"why: expected the key columns {', '.join(names)}; got {', '.join(key)}")
    types = view.schema
    columns = []
    for name in names:
        type, value = types.field(name).type, key[name]
        try:
            if isinstance(value, str) and not pa.types.is_string(type):
                columns.append(pa.array([value]).cast(type))
            else:
                columns.append(pa.array([value], type))
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise BadInput(f"why: {name}: expected a {type}, got {value!r}") from error
        if columns[-1].null_count:
            raise BadInput(f"why: {name}: expected a value, got null")
    return _Key(pa.RecordBatch.from_arrays(columns, names=list(names)))


def _stored(partition: Partition, key: _Key) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows with the key, and where each is. In chunks, Polars reads only row groups that may
    have it by their statistics."""
    for block in partition.hot:
        logs = partition.logs_of(block)
        for table in chain.from_iterable(log.tables(key.columns) for log in logs):
            yield from ((_in_block(block), row) for row in key.rows(pl.DataFrame(table)))
    if partition.chunks:
        fields = (*SYSTEM_FIELDS, *(one for one in key.row.schema if one.name not in _PLACE))
        chunks = scan_chunks(partition.chunk_paths, polars_schema(pa.schema(fields)), "_file")
        yield from ((_in_chunk(row["_file"]), row) for row in key.rows(chunks))


def _in_block(block: BlockState) -> str:
    return f"hot block {block.id}"


def _in_chunk(path: str | Path) -> str:
    return f"chunk {path}"


def _drops(partition: Partition, key: _Key) -> Iterator[dict[str, Any]]:
    """The drop log's entries for this key."""
    hash = pa.scalar(key.hash(partition.state.seed), pa.uint64())
    for log in partition.drop_logs:
        for batch in log.batches(DROP_SCHEMA.names):
            yield from batch.filter(pc.equal(batch.column("key_hash"), hash)).to_pylist()


def _place(row: Mapping[str, Any]) -> tuple[str, int]:
    return row[PARTITION], row[OFFSET]


@dataclass(frozen=True)
class _Originals:
    """The `events` that copies in one partition may be duplicates of (see `admission` and
    `storage.dedup.duplicates`). Of these, `live` are in a live block now; `backfill` are in a
    backfill block (of one `day`), or in the batch layer's table, which does not say.
    """

    events: Sequence[Copy]
    live: Collection[Copy]
    backfill: Collection[Copy]
    span: timedelta
    day: timedelta
    replayed: bool
    expired: bool
    covered_until: datetime | None

    @classmethod
    def of(
        cls, partition: Partition, events: Sequence[Copy], covered_until: datetime | None
    ) -> _Originals:
        state, span = partition.state, timedelta(milliseconds=partition.state.block_span_ms)
        live = {_in_block(block) for block in state.hot.values()}
        backfill = {TABLE, *(_in_block(block) for block in partition.hot if block.id.backfill)}
        backfill |= {_in_chunk(file.path) for file in partition.chunk_files if file.chunk.backfill}
        return cls(
            events,
            {event for event in events if event.where in live},
            {event for event in events if event.where in backfill},
            span,
            max(DAY, span),
            replayed=state.replays > 0,
            expired=partition.expired_rows > 0,
            covered_until=covered_until,
        )

    def dropped(self, row: Mapping[str, Any]) -> Copy:
        """What the drop log says about a copy, and which event it was a copy of."""
        (source, offset), time = _place(row), row[UPLOAD_TIME]
        earlier = [
            e for e in self.events if e.partition != source or e.offset < offset or self.replayed
        ]
        of, certain = self._original(earlier, source, time) if earlier else (None, True)
        place = (of.partition, of.offset) if of else None
        return Copy(
            row["what"], source, offset, time, of=place, detail=row["payload"], certain=certain
        )

    def _original(self, earlier: Sequence[Copy], source: str, time: datetime) -> tuple[Copy, bool]:
        """Which of the events that may have come before a copy it was a duplicate of, and whether
        that is certain.

        SUBTLE: an event is kept only if no live block has its key. So only the newest may have been
        live when the copy arrived. If it was not, the copy was dropped for the event of its own
        interval or, if there is none, for the backfill event of its day. There is no record of
        whether the newest was live then, or whether the copy itself was backfill.
        """
        own = [event for event in earlier if self._share(event, time, self.span)]
        retained = own or [
            event
            for event in earlier
            if event in self.backfill and self._share(event, time, self.day)
        ]
        nearest = min(
            retained or earlier, key=lambda event: abs((event.upload_time or time) - time)
        )
        all_here = not self.expired and (
            self.covered_until is None or _begin(time, self.day) >= self.covered_until
        )
        if self.replayed or any(event.partition != source for event in earlier):
            return nearest, all_here and len(earlier) == 1  # not ordered by offset
        newest = max(earlier, key=lambda event: event.offset)
        if newest in self.live:
            return newest, True
        if not retained:
            return newest, all_here
        return nearest, retained == [newest] and (bool(own) or all_here)

    @staticmethod
    def _share(event: Copy, time: datetime, span: timedelta) -> bool:
        """Whether the event's time is in the same `span` as this one."""
        return _begin(event.upload_time or time, span) == _begin(time, span)


def _begin(time: datetime, span: timedelta) -> datetime:
    return EPOCH + (time - EPOCH) // span * span


def _rejects(
    partitions: Sequence[Partition], key: _Key, paths: Mapping[str, tuple[str, ...]]
) -> Iterator[Copy]:
    values, given = key.values, {name: (path,) for name, path in paths.items()}
    texts = [_text(value) for value in values.values() if isinstance(value, (str, int))]
    for partition in partitions:
        known = {**partition.state.paths, **given}
        for batch in partition.rejects(ALL):
            messages = batch.column(REJECT_SCHEMA.get_field_index("message")).to_pylist()
            for number, message in enumerate(messages):
                certain = _has(message or b"", values, texts, known)
                if certain is not None:
                    row = batch.slice(number, 1).to_pylist()[0]
                    detail = ": ".join(part for part in (row["reason"], row["detail"]) if part)
                    yield Copy(
                        "reject", row[PARTITION], row[OFFSET], None, detail=detail, certain=certain
                    )


def _has(
    message: bytes,
    values: Mapping[str, Any],
    texts: Sequence[bytes],
    paths: Mapping[str, Iterable[Sequence[str]]],
) -> bool | None:
    """True if the message certainly has the key, False if it may have it, None if not. `texts` are
    the key's values as JSON; `paths` has, for each column, paths of which the first with a value
    counts."""
    as_text = all(text in message for text in texts)
    if not as_text and b"\\" not in message:  # text may be escaped
        return None
    try:
        document: object = orjson.loads(message.removeprefix(BOM))
    except orjson.JSONDecodeError:
        return False if as_text else None
    certain = True
    for name, value in values.items():
        if name not in paths or isinstance(value, datetime):
            certain = False
        else:
            same = _same(_first(_at(document, path) for path in paths[name]), value)
            if same is False:
                return None
            certain &= bool(same)
    return certain if certain or as_text else None


def _text(value: str | int) -> bytes:
    """What a message contains if it has the value, as JSON: digits may lack their quotes, and an
    empty part of the key may be missing altogether."""
    text = orjson.dumps(value)
    return text.strip(b'"') if _is_digits(value) or not value else text


def _is_digits(value: object) -> bool:
    return isinstance(value, str) and value.removeprefix("-").isdecimal() and value.isascii()


def _at(document: object, path: Sequence[str]) -> object:
    for step in path:
        document = document.get(step) if isinstance(document, dict) else None
    return document


def _first(found: Iterable[object]) -> object:
    """The first that is a value, as far as this is known without the column's type."""
    return next((one for one in found if one not in (None, "") and type(one) in _PLAIN), None)


_PLAIN = (str, int, float, bool)


def _same(found: object, value: object) -> bool | None:
    """Compare as `decode` reads values: 1.0 equals 1, true does not, and an integer may be an id
    with its digits. None if unknown, as a number has lost some of its digits."""
    if isinstance(value, str) and type(found) in (int, float):
        return None if isinstance(found, float) and _is_digits(value) else str(found) == value
    if value == "" and found is None:  # a part of the key that may be missing
        return True
    return found == value and isinstance(found, bool) == isinstance(value, bool)
