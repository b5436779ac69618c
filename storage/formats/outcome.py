"""What became of messages: how many are events, and why the others are not, for people.

A wrong guess at the schema rejects everything, and a job does not stop for that; so it is reported
to whoever started the job, with a sample message and what to do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from forebay.storage.base.text import plain, shortened
from forebay.storage.formats.rejects import labels

REASONS_MAX = 10
SAMPLE_CHARACTERS = 200
ADVICE = (
    "is schema the right one, with dedup_key and upload_time? `forebay config check --connect`"
    " tries another on a few messages; after a restart `forebay rejects replay` makes events of"
    " these"
)


@dataclass
class Outcome:
    """Counts of messages; `rejects_expired` are rejects that were deleted. `reasons` maps "REASON"
    or "REASON: COLUMN" to a number of rejects; `sample` is one of them, as text."""

    accepted: int = 0
    duplicates: int = 0
    rejects: int = 0
    rejects_expired: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    sample: str | None = None

    def take(self, rejects: pa.RecordBatch) -> None:
        """Count in a batch of REJECT_SCHEMA."""
        self.rejects += rejects.num_rows
        self.reasons.update(labels(rejects))
        if self.sample is None and rejects.num_rows:
            self.sample = sample(rejects.slice(0, 1).to_pylist()[0])

    @property
    def most_are_rejects(self) -> bool:
        return self.rejects > self.accepted + self.duplicates

    def lines(self) -> list[str]:
        """Counts, then the reasons, the most frequent first, then the sample."""
        counts = {
            "accepted": self.accepted, "duplicates": self.duplicates, "rejects": self.rejects,
        }  # fmt: skip
        if self.rejects_expired:
            counts["rejects_expired"] = self.rejects_expired
        told = ["  ".join(f"{name} {count:,}" for name, count in counts.items())]
        told += [f"  {n:,} {plain(reason)}" for reason, n in self.reasons.most_common(REASONS_MAX)]
        if self.sample is not None:
            told.append(f"  such as {self.sample}")
        return told


def sample(reject: Mapping[str, Any]) -> str:
    """A reject in a line: where it came from, why it is one, and the beginning of the message."""
    text = plain((reject["message"] or b"")[: 4 * SAMPLE_CHARACTERS].decode(errors="replace"))
    why = shortened(reason_text(reject), SAMPLE_CHARACTERS)
    return (
        f"{plain(reject['_partition'])} {reject['_offset']}: {why}:"
        f" {shortened(text, SAMPLE_CHARACTERS)}"
    )


def reason_text(reject: Mapping[str, Any]) -> str:
    """Why it is one, with the detail, if there is any."""
    return ": ".join(plain(part) for part in (reject["reason"], reject["detail"]) if part)
