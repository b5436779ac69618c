"""The batch number, and the boundary between the batch layer and this one.

    DATA/batch.json     a record (see `record`) of kind "batch", version 2, replaced atomically
    DATA/batch.lock     held by the one who changes it

A handoff has two steps. A *seal* says: what arrives from now on with an upload time below T is
late. Each partition carries it out between two events and commits that, so the sealed time never
changes any more, and the batch layer may read it at leisure. *Complete* then moves the boundary:
number and covered-until change in one replacement, for every query at once.

What always holds: seals, number and boundary never go back; the boundary is that of a seal; a
boundary never comes with another number. Before any handoff there is no file: number 0, nothing
covered.

Late events are in blocks of their own, which carry the number of the seal that they arrived too
late for. They are events like any other until the boundary passes them; then they are the *late
table*, until a batch layer says that it has taken it (`late_from`).
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from types import TracebackType
from typing import Protocol

from forebay.storage.base import record
from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import BadInput
from forebay.storage.base.layout import Layout
from forebay.storage.base.record import Count, TimeMs
from forebay.storage.base.times import utc_text
from forebay.storage.base.watched import Watched

KIND = "batch"
VERSION = 2
HISTORY_MAX = 1000


@dataclass(frozen=True)
class Seal:
    """What arrives after it with an upload time below `until_ms` is late. Numbers rise, from 1;
    `id` tells the seals of different data directories apart."""

    number: Count
    until_ms: TimeMs
    id: str


@dataclass(frozen=True)
class Completed:
    """One completed handoff: the batch number since then, and up to where the batch layer answers.

    `seal` is the number of the seal, `at_ms` the wall time. `late`: whether the batch layer took
    the late table too. `table` is the metadata file of the Iceberg table that has it, if known.
    """

    number: Count
    covered_until_ms: TimeMs
    seal: Count
    late: bool
    at_ms: TimeMs
    table: str | None = None


class Placed(Protocol):
    """A block or chunk, as far as a handoff looks at it. `late` is 0 if it was not late."""

    @property
    def late(self) -> int: ...

    @property
    def first_ms(self) -> int: ...

    @property
    def last_ms(self) -> int: ...


@dataclass(frozen=True)
class Boundary:
    """What a data directory records about handoffs: how many were completed (`number`), the newest
    `seal`, if there was one, and the last thousand completed ones (`history`).

    `covered_until_ms` is the upload time (since 1970) below which the batch layer answers; late
    blocks of seals below `late_from` are with it too.
    """

    number: Count = 0
    covered_until_ms: TimeMs | None = None
    late_from: Count = 0
    seal: Seal | None = None
    history: tuple[Completed, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether the boundary is at the newest seal."""
        return self.seal is not None and self.seal.until_ms == self.covered_until_ms

    @property
    def table(self) -> str | None:
        """The metadata file of the newest Iceberg table."""
        return next((one.table for one in reversed(self.history) if one.table), None)

    def handed_off(self, part: Placed) -> bool:
        """Whether the batch layer has all events of a `part`, a block or chunk."""
        until_ms = self.covered_until_ms
        if until_ms is None or part.last_ms >= until_ms:
            return False
        return not part.late or part.late < self.late_from

    def in_late_table(self, part: Placed) -> bool:
        """Whether the events below the boundary of a `part`, a block or chunk, are yet to be
        taken."""
        return part.late >= max(1, self.late_from)

    def sealed(self, until_ms: int) -> Boundary:
        """This boundary with a seal up to `until_ms`; unchanged if it has that seal. Raises
        BadInput if the seal would go back."""
        if self.seal is None or until_ms > self.seal.until_ms:
            return self._newly_sealed(until_ms)
        if until_ms < self.seal.until_ms:
            raise BadInput(
                f"seal: expected {utc_text(self.seal.until_ms)} or later, as all before is sealed"
                f" already, got {utc_text(until_ms)}"
            )
        return self

    def _newly_sealed(self, until_ms: int) -> Boundary:
        number = self.seal.number + 1 if self.seal else 1
        return replace(self, seal=Seal(number, until_ms, uuid.uuid4().hex))

    def completed(self, now_ms: int, *, late: bool, table: str | None) -> Boundary:
        """This boundary moved to the seal at `now_ms`; if it is there already, only the `table`
        changes. `late`: the late table was taken too. Raises BadInput without a seal."""
        seal = self.seal
        if seal is None:
            raise BadInput("batch: expected a seal to complete, got none")
        if self.complete:
            last = self.history[-1]
            known = replace(last, table=table or last.table)
            return replace(self, history=(*self.history[:-1], known))
        done = Completed(self.number + 1, seal.until_ms, seal.number, late, now_ms, table)
        return Boundary(
            done.number,
            done.covered_until_ms,
            seal.number if late else self.late_from,
            seal,
            (*self.history, done)[-HISTORY_MAX:],
        )

    def encode(self) -> bytes:
        """The content of batch.json."""
        return record.encode(KIND, VERSION, asdict(self))

    @classmethod
    def decode(cls, data: bytes, name: str) -> Boundary:
        """What `data`, the content of batch.json, says. Raises Corruption or FormatVersion; `name`
        describes the data in errors."""
        return record.read(cls, KIND, VERSION, data, name)


def read_boundary(disk: Disk, layout: Layout) -> Boundary:
    """The current boundary, number 0 if there never was a handoff."""
    try:
        data = disk.read(layout.batch)
    except FileNotFoundError:
        return Boundary()
    return Boundary.decode(data, str(layout.batch))


def watched_boundary(disk: Disk, layout: Layout) -> Watched[Boundary]:
    """The current one, read again only when the file has changed."""
    return Watched(disk, layout.batch, lambda: read_boundary(disk, layout), Boundary())


class BoundaryWriter:
    """The one writer of batch.json, for as long as it is open. Raises BadInput if there is one."""

    def __init__(self, disk: Disk, layout: Layout) -> None:
        self._disk = disk
        self._layout = layout
        try:
            self._lock = disk.lock(layout.batch_lock)
        except BadInput as error:
            raise BadInput(
                f"{layout.batch_lock}: expected no other batch run, got one: it holds the lock"
            ) from error

    def __enter__(self) -> BoundaryWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lock.close()

    @property
    def boundary(self) -> Boundary:
        return read_boundary(self._disk, self._layout)

    def seal(self, until_ms: int, spans_ms: Iterable[int]) -> Boundary:
        """Seal up to `until_ms`, durably. `spans_ms` are the block spans of the partitions: a block
        lies on one side of a seal."""
        for span_ms in spans_ms:
            if until_ms % span_ms:
                raise BadInput(
                    f"seal: expected a multiple of the block span, {span_ms} ms, got"
                    f" {utc_text(until_ms)}"
                )
        return self._put(self.boundary.sealed(until_ms))

    def complete(self, now_ms: int, *, late: bool, table: str | None = None) -> Boundary:
        """Move the boundary to the seal, durably and for every query at once."""
        return self._put(self.boundary.completed(now_ms, late=late, table=table))

    def _put(self, boundary: Boundary) -> Boundary:
        self._disk.replace(self._layout.batch, boundary.encode(), durable=True)
        return boundary
