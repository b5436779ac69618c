"""The batch number and the boundary between the batch layer and this one.

    DATA/batch.json     a record (see `record`) of kind "batch", version 1, replaced atomically

Before any handoff there is no file: number 0, nothing covered.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from storage import record
from storage.files import Files
from storage.record import Count, TimeMs

KIND = "batch"
VERSION = 1


@dataclass(frozen=True)
class Batch:
    """`covered_until_ms` is the upload time below which the batch layer answers."""

    number: Count = 0
    covered_until_ms: TimeMs | None = None

    @classmethod
    def decode(cls, data: bytes, name: str) -> Batch:
        """Raises Corruption or FormatVersion; `name` describes the data in errors."""
        return record.read(cls, KIND, VERSION, data, name)


def read_batch(files: Files, path: Path) -> Batch:
    """The current batch, number 0 if there never was a handoff."""
    try:
        data = files.read(path)
    except FileNotFoundError:
        return Batch()
    return Batch.decode(data, str(path))
