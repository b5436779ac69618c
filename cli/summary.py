"""What became of the messages: how many are events, and why the others are not.

A guess at the schema that is wrong rejects everything, and a job does not stop for that; so whoever
started it must be told, with a message to look at and what to do. `Outcome` is what there is to
tell, of a view of a data directory (`outcome_of`) or of a few messages that were tried.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from query.view import PartitionView, View
from storage.files import Files
from storage.rejects import ALL, read_rejects
from storage.text import plain, shortened

ROWS_MAX = 50_000
"""Rejects that are looked at for their reasons where they were not counted."""
SAMPLE_CHARACTERS = 200
FREE_TEXT = ("bad json",)
"""Reasons whose detail is what a parser said, another for each message."""


@dataclass
class Outcome:
    """Counts of messages. `reasons` has "reason" or "reason: column" to how many rejects, of those
    that were looked at; `sample` is one of them, as text."""

    accepted: int = 0
    duplicates: int = 0
    rejects: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    sample: str | None = None

    def take(self, rejects: pa.RecordBatch) -> None:
        """Count the reasons of a batch of REJECT_SCHEMA."""
        columns = (rejects.column(name).to_pylist() for name in ("reason", "detail"))
        self.reasons.update(map(reason_of, *columns))
        if self.sample is None and rejects.num_rows:
            self.sample = _sample(rejects.slice(0, 1).to_pylist()[0])

    @property
    def most_are_rejects(self) -> bool:
        return self.rejects > self.accepted + self.duplicates


def reason_of(reason: str, detail: str | None) -> str:
    """A reason as it is counted: with the column that the detail begins with, if it has one."""
    column = re.match(r"\w+(?=: |$)", detail or "")
    return reason if reason in FREE_TEXT or column is None else f"{reason}: {column[0]}"


def outcome_of(view: View) -> Outcome:
    """The counters of all partitions; reasons as they were counted, else of the newest rejects, of
    which no more than ROWS_MAX are read."""
    states = [partition.state for partition in view.partitions]
    found = Outcome(
        sum(state.counters.accepted for state in states),
        sum(state.counters.duplicates for state in states),
        sum(state.counters.rejects for state in states),
    )
    counted: Mapping[str, int]
    for state in states:
        counted = getattr(state.counters, "rejected", None) or {}
        found.reasons.update(counted)
    if not found.rejects:
        return found
    looked = Outcome()
    for batch in _newest(view.partitions):
        looked.take(batch)
        if looked.reasons.total() >= ROWS_MAX or (found.reasons and looked.sample):
            break
    found.reasons = found.reasons or looked.reasons
    found.sample = looked.sample
    return found


def lines(found: Outcome) -> list[str]:
    """For people: counts, then the reasons, the most frequent first, then the sample."""
    counts = ("accepted", found.accepted), ("duplicates", found.duplicates)
    told = ["  ".join(f"{name} {n:,}" for name, n in (*counts, ("rejects", found.rejects)))]
    if not found.rejects:
        return told
    looked = found.reasons.total()
    part = "" if looked >= found.rejects else f" (of the newest {looked:,})"
    told += [f"  {n:,} {plain(reason)}{part}" for reason, n in found.reasons.most_common()]
    if found.sample is not None:
        told.append(f"  such as {found.sample}")
    return told


def advice(schema: str) -> str:
    """What to do where the messages are not of the schema that was declared."""
    return (
        f'schema = "{schema}" is for other messages, or dedup_key or upload_time name what these do'
        " not have: change forebay.toml, try it with `forebay config check --connect`, start again,"
        " then `forebay rejects replay`"
    )


def _newest(partitions: Iterable[PartitionView]) -> Iterator[pa.RecordBatch]:
    """The rejects of all partitions, the newest file of each first."""
    files = Files()
    for partition in partitions:
        folder = partition.layout.rejects(partition.state.partition)
        for extent in reversed(partition.state.rejects):
            yield from read_rejects(files, folder, [extent], ALL)


def _sample(reject: Mapping[str, Any]) -> str:
    text = plain((reject["message"] or b"")[: 8 * SAMPLE_CHARACTERS].decode(errors="replace"))
    why = ": ".join(plain(part) for part in (reject["reason"], reject["detail"]) if part)
    return (
        f"{reject['_partition']} {reject['_offset']}: {shortened(why, SAMPLE_CHARACTERS)}:"
        f" {shortened(text, SAMPLE_CHARACTERS)}"
    )
