"""Replay requests: which rejects are to be decoded again or deleted, asked of the job in files.

    DATA/replay/000004.json     a record (see `record`) of kind "replay", version 2

Requests are numbered in order, written once and never changed. Each partition carries them out in
that order and keeps the last number in its state, so a look for the next number's file shows
whether there is anything to do. Carrying a request out twice changes nothing: what passed is no
longer a reject, and the rest fails again.

A deletion records how far the messages had been read when it was requested: it does not apply to
later ones, however late it is carried out, and a partition that begins with it loses nothing to it.

Each partition skips a request that can't be read; its number stays taken. Requests are never
deleted: a manifest does not show what a crash could undo, so a restart may look for a number that
it had passed, and a new partition begins with the first. Each is some hundred bytes, made by hand.

Asking twice makes one request as long as no partition has begun another run, because within a run a
message is always decoded alike. `runs` (each partition's incarnation at the request) shows that.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import count

from forebay.storage.base import record
from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import BadInput, Corruption, FormatVersion
from forebay.storage.base.layout import Layout
from forebay.storage.base.record import OPTIONAL, Count
from forebay.storage.formats.rejects import RejectFilter

KIND = "replay"
VERSION = 2


@dataclass(frozen=True)
class ReplayRequest:
    number: Count
    wanted: RejectFilter
    runs: dict[str, Count]
    delete: dict[str, dict[str, Count]] | None = field(default=None, metadata=OPTIONAL)
    """None: a replay. Else a deletion; of each partition and source, the next offset to be read
    when it was asked."""

    def encode(self) -> bytes:
        return record.encode(KIND, VERSION, self)

    @classmethod
    def decode(cls, data: bytes, name: str) -> ReplayRequest:
        """Raises Corruption or FormatVersion; `name` describes the data in errors."""
        return record.read(cls, KIND, VERSION, data, name)


def read_request(disk: Disk, layout: Layout, number: int) -> ReplayRequest | None:
    """The request of this number, or None if there is none yet."""
    path = layout.replay_request(number)
    try:
        return ReplayRequest.decode(disk.read(path), str(path))
    except FileNotFoundError:
        return None


def pending(disk: Disk, layout: Layout, done: Collection[int]) -> list[ReplayRequest]:
    """The requests that some partition has yet to carry out; `done` has the last number of each.
    One that can't be read is left out, as the partitions do."""
    found = []
    for number in count(min(done) + 1) if done else ():
        try:
            request = read_request(disk, layout, number)
        except (Corruption, FormatVersion):
            continue
        if request is None:
            break
        found.append(request)
    return found


def ask(
    disk: Disk,
    layout: Layout,
    wanted: RejectFilter,
    runs: dict[str, int],
    delete: dict[str, dict[str, int]] | None = None,
) -> ReplayRequest:
    """The request that asks for this: the one there is, or a new one, durable on return.

    Raises BadInput if another process is writing one at this moment.
    """
    disk.make_directory(layout.replay)
    try:
        lock = disk.lock(layout.replay / "lock")
    except BadInput as error:
        raise BadInput(
            f"{layout.replay}: expected no other request to be written now, got one: try again"
        ) from error
    with lock:
        for number in count(1):
            try:
                found = read_request(disk, layout, number)
            except (Corruption, FormatVersion):
                continue
            if found is None:
                break
            if (found.wanted, found.runs, found.delete) == (wanted, runs, delete):
                return found
        request = ReplayRequest(number, wanted, runs, delete)
        disk.replace(layout.replay_request(number), request.encode(), durable=True)
    return request
