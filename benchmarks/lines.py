"""The lines: NDJSON files with a load, for benchmarks in which no broker should play a part."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from benchmarks.topic import generate

PLAIN = ("--broken", "0", "--late", "0", "--duplicates", "0")
"""Every message is a new event, on time."""


@dataclass(frozen=True)
class Lines:
    """A folder of files, one per partition, whose messages are all there."""

    folder: Path
    messages: int
    unique: int
    bytes: int

    @property
    def settings(self) -> dict[str, str]:
        """The settings by which a job reads them."""
        return {"source": "files", "files__path": str(self.folder)}


def lines(folder: Path, events: int, *options: str) -> Lines:
    """Files with a load of `forebay generate`; `options` are of that command. They are on disk,
    so that no sync of a job has to wait for them."""
    totals = generate(events, "--out", str(folder), *PLAIN, *options)
    os.sync()
    return Lines(folder, totals["messages"], totals["accepted"], totals["bytes"])
