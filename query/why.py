"""Why: where the event of a dedup key is, or what became of its copies.

Steps, over one view: the hot blocks and the chunks, also those handed off but not deleted yet; the
batch layer's table, if there is one; the drop logs, by the hash of the key; the rejects, whose
messages are searched for the key. A copy that no place knows was never seen, or is older than what
is kept: drop logs are bounded, and a batch layer without a table is not asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from forebay.query.rejects import reject_batches
from forebay.query.view import PartitionView, View
from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import BadInput, MissingFile
from forebay.storage.base.times import EPOCH, time_of
from forebay.storage.formats.columns import equal_rows
from forebay.storage.formats.drops import DROP_SCHEMA
from forebay.storage.formats.frame import REJECT_SCHEMA
from forebay.storage.formats.hashes import KeyHash
from forebay.storage.formats.log import Extent, LogReader
from forebay.storage.formats.rejects import ALL
from forebay.storage.formats.schema import OFFSET, PARTITION, UPLOAD_TIME
from forebay.storage.formats.state import BlockState, PartitionState

TABLE = "the batch layer's table"
_PLACE = [PARTITION, OFFSET, UPLOAD_TIME]


@dataclass(frozen=True)
class Copy:
    """One message that had the key, and what became of it.

    `what`: "event" (kept), "duplicate", "conflict" (a duplicate with another payload) or "reject".
    `partition` and `offset` are its place, `upload_time` is in UTC, None if it had none. `where` an
    event is: "hot block ID", "chunk FILE" or "the batch layer's table". It came `late`: when it was
    older than the dedup window; it is `handed_off` if the batch layer answers for it. `of` is the
    place of the event that a duplicate was one of, if that can be found yet. `detail`: a reject's
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
    """False for a reject that can't be read but has the key as text in it, and for a duplicate
    that may be one of another event than `of`."""


@dataclass(frozen=True)
class Answer:
    """All that is known of a `key`: the `copies` of its event, by partition and offset.

    `covered_until` (UTC): earlier events are with the batch layer, None before any handoff;
    `table`: whether its table was asked.
    """

    key: dict[str, Any]
    copies: tuple[Copy, ...]
    covered_until: datetime | None
    table: bool = False


@dataclass(frozen=True)
class _Key:
    """The key as one row, typed as the partitions have it."""

    row: pa.RecordBatch

    def hash(self, seed: str) -> int:
        """As the partition of this seed has it in its drop log."""
        return int(KeyHash(seed)(self.row.columns)[0])

    @property
    def values(self) -> dict[str, Any]:
        return dict(self.row.to_pylist()[0])

    @property
    def same(self) -> list[pl.Expr]:
        """What holds of a row with this key."""
        wanted = pl.DataFrame(self.row)
        return [pl.col(name) == wanted[name][0] for name in wanted.columns]

    def rows(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The rows of `batch` that have this key."""
        keys = batch.select(self.row.schema.names)
        same = equal_rows(keys, self.row.take(pa.array(np.zeros(batch.num_rows, np.int64))))
        return batch.filter(pa.array(same))


def key_names(view: View) -> tuple[str, ...]:
    """The columns of the dedup key. Raises BadInput if nothing has been taken in yet."""
    if not view.partitions:
        raise BadInput("why: expected a data directory with events, got an empty one")
    return view.key


def explain(
    disk: Disk,
    view: View,
    key: Mapping[str, object],
    paths: Mapping[str, tuple[str, ...]],
    table: pl.LazyFrame | None = None,
) -> Answer:
    """What became of the messages with this key.

    `paths` says where a message has the key's columns; without, rejects are searched for the values
    as text. `table` is the batch layer's, up to the boundary.

    Raises BadInput if `key` does not give the key's columns, MissingFile if the view is too old.
    """
    wanted = _typed(view, key)
    until_ms = view.covered_until_ms
    covered_until = None if until_ms is None else time_of(until_ms)
    told = {p.folder: list(_drops(disk, p, wanted)) for p in view.partitions}
    late = {_place(row) for rows in told.values() for row in rows if row["what"] == "late"}
    late_table = {p.folder: set(_wheres(p)) for p in view.late}
    kept: dict[Path, list[Copy]] = {}
    for partition in view.partitions:
        kept[partition.folder] = []
        for where, row in (*_hot(disk, partition, wanted), *_cold(partition, wanted)):
            below = covered_until is not None and row[UPLOAD_TIME] < covered_until
            taken = below and where not in late_table.get(partition.folder, ())
            kept[partition.folder].append(_event(where, row, late, handed_off=taken))
    copies = [event for events in kept.values() for event in events]
    here = {(event.partition, event.offset) for event in copies}
    rows = [] if table is None else _in_table(table, wanted)
    gone = [_event(TABLE, row, late, handed_off=True) for row in rows if _place(row) not in here]
    copies += gone
    for partition in view.partitions:
        sources = partition.state.next_offsets
        events = [*kept[partition.folder], *(e for e in gone if e.partition in sources)]
        copies += [
            _dropped(row, events, partition, covered_until)
            for row in told[partition.folder]
            if row["what"] != "late"
        ]
    copies += _rejects(disk, view.partitions, wanted, paths)
    copies.sort(key=lambda copy: (copy.partition, copy.offset))
    return Answer(wanted.values, tuple(copies), covered_until, table is not None)


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


def _hot(disk: Disk, partition: PartitionView, key: _Key) -> Iterator[tuple[str, dict[str, Any]]]:
    names = list(dict.fromkeys((*key.row.schema.names, *_PLACE)))
    for block in partition.hot:
        for extent in block.extents:
            reader = LogReader(disk, partition.folder, extent.file)
            found = reader.follow(extent, torn_ok=True)
            for batch in reader.decode(found, names):
                for row in key.rows(batch).to_pylist():
                    yield _in_block(block), row


def _cold(partition: PartitionView, key: _Key) -> Iterator[tuple[str, dict[str, Any]]]:
    """Through Polars, which reads the row groups whose statistics leave room for the key."""
    paths = partition.chunk_paths
    if not paths:
        return
    chunks = pl.scan_parquet(
        paths, include_file_paths="_file", extra_columns="ignore", hive_partitioning=False,
        schema=dict(pl.DataFrame(_key_and_place(key).empty_table()).schema), glob=False,
    )  # fmt: skip
    for row in chunks.filter(key.same).collect().to_dicts():
        yield _in_chunk(row["_file"]), row


def _in_table(table: pl.LazyFrame, key: _Key) -> list[dict[str, Any]]:
    return table.filter(key.same).select(_PLACE).collect().to_dicts()


def _in_block(block: BlockState) -> str:
    return f"hot block {block.id}"


def _in_chunk(path: str | Path) -> str:
    return f"chunk {path}"


def _wheres(partition: PartitionView) -> Iterator[str]:
    yield from map(_in_block, partition.hot)
    yield from map(_in_chunk, partition.chunk_paths)


def _key_and_place(key: _Key) -> pa.Schema:
    fields = {PARTITION: pa.string(), OFFSET: pa.int64()}
    fields[UPLOAD_TIME] = pa.timestamp("ms", tz="UTC")
    return pa.schema([*fields.items(), *((f.name, f.type) for f in key.row.schema)])


def _drops(disk: Disk, partition: PartitionView, key: _Key) -> Iterator[dict[str, Any]]:
    """What the drop log tells; a file that a power loss took tells nothing."""
    folder = partition.layout.drops(partition.state.partition)
    hash = key.hash(partition.state.seed)
    for extent in partition.state.drops:
        for batch in _told(disk, extent, LogReader(disk, folder, extent.file)):
            hit = pc.equal(batch.column("key_hash"), pa.scalar(hash, pa.uint64()))
            yield from batch.filter(hit).to_pylist()


def _told(disk: Disk, extent: Extent, reader: LogReader) -> list[pa.RecordBatch]:
    try:
        found = reader.follow(extent, torn_ok=True)
    except MissingFile:
        return []
    return reader.decode(found, DROP_SCHEMA.names)


def _place(row: Mapping[str, Any]) -> tuple[str, int]:
    return row[PARTITION], row[OFFSET]


def _event(
    where: str, row: Mapping[str, Any], late: set[tuple[str, int]], *, handed_off: bool
) -> Copy:
    was_late = _place(row) in late
    return Copy("event", *_place(row), row[UPLOAD_TIME], where, was_late, handed_off)


def _dropped(
    row: Mapping[str, Any],
    events: Sequence[Copy],
    partition: PartitionView,
    covered_until: datetime | None,
) -> Copy:
    """What the drop log tells of a copy, and which of the `events` it was a copy of."""
    source, offset = _place(row)
    replays, time = partition.state.replays > 0, row[UPLOAD_TIME]
    earlier = [e for e in events if e.partition != source or e.offset < offset or replays]
    in_order = not replays and all(event.partition == source for event in earlier)
    all_here = not partition.expired_rows and (covered_until is None or time >= covered_until)
    of, certain = _original(earlier, time, partition.state, in_order=in_order, all_here=all_here)
    return Copy(row["what"], source, offset, time, of=of, detail=row["payload"], certain=certain)


def _original(
    events: Sequence[Copy], time: datetime, state: PartitionState, *, in_order: bool, all_here: bool
) -> tuple[tuple[str, int] | None, bool]:
    """Which of the `events` that may have come before it a copy was dropped for, and whether that
    is certain (see `storage.dedup.duplicates`). `in_order`: they did come before it, in order of
    offset. `all_here`: none that it could be has been deleted.

    SUBTLE: an event is kept only if no live block has its key. So only the newest may have been
    live when the copy came; if it was not, the copy was dropped for that of its own interval.
    """

    def distance(event: Copy) -> tuple[bool, timedelta]:
        kept, span = event.upload_time or time, timedelta(milliseconds=state.block_span_ms)
        return (kept - EPOCH) // span != (time - EPOCH) // span, abs(kept - time)

    if not events:
        return None, True
    nearest, newest = min(events, key=distance), max(events, key=lambda event: event.offset)
    elsewhere, _ = distance(nearest)
    if not in_order:
        of, certain = nearest, all_here and len(events) == 1
    elif elsewhere:
        of, certain = newest, all_here
    elif newest.where in [_in_block(block) for block in state.hot.values()]:
        of, certain = newest, True
    else:
        of, certain = nearest, nearest is newest
    return (of.partition, of.offset), certain


def _rejects(
    disk: Disk,
    partitions: Sequence[PartitionView],
    key: _Key,
    paths: Mapping[str, tuple[str, ...]],
) -> Iterator[Copy]:
    search = _Search(key.values, paths)
    for batch in reject_batches(disk, partitions, ALL):
        messages = batch.column(REJECT_SCHEMA.get_field_index("message")).to_pylist()
        for number, message in enumerate(messages):
            certain = search.finds(message or b"")
            if certain is not None:
                row = batch.slice(number, 1).to_pylist()[0]
                detail = ": ".join(part for part in (row["reason"], row["detail"]) if part)
                yield Copy(
                    "reject", row[PARTITION], row[OFFSET], None, detail=detail, certain=certain
                )


class _Search:
    """Looks for a key in messages that are no events."""

    def __init__(self, values: Mapping[str, Any], paths: Mapping[str, tuple[str, ...]]) -> None:
        self._values = values
        self._paths = paths
        self._texts = [
            orjson.dumps(value) for value in values.values() if isinstance(value, (str, int))
        ]

    def finds(self, message: bytes) -> bool | None:
        """Whether the message has the key for certain, False if perhaps, None if not."""
        as_text = all(text in message for text in self._texts)
        if not as_text and b"\\" not in message:  # text may be escaped there
            return None
        try:
            document: object = orjson.loads(message)
        except orjson.JSONDecodeError:
            return False if as_text else None
        certain = True
        for name, value in self._values.items():
            if name not in self._paths or isinstance(value, datetime):
                certain = False
            elif not _same(_at(document, self._paths[name]), value):
                return None
        return certain if certain or as_text else None


def _at(document: object, path: tuple[str, ...]) -> object:
    for step in path:
        document = document.get(step) if isinstance(document, dict) else None
    return document


def _same(found: object, value: object) -> bool:
    """As `decode` reads a value: 1.0 is 1, true is not."""
    return found == value and isinstance(found, bool) == isinstance(value, bool)
