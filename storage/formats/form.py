"""The form of its preset under which a data directory was begun.

    DATA/form    a record (see `record`) of kind "form", version 1

Form 1 is what presets were before columns had several paths, form 2 what came after. A preset that
never changed has one form, and needs no file. Claimed (`Disk.claim`) by the first start that asks,
durable before anything is read, and never changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from forebay.storage.base import record
from forebay.storage.base.disk import Disk
from forebay.storage.base.layout import Layout

KIND, VERSION = "form", 1
BYTES_MAX = 4096
"""More than the file has."""


@dataclass(frozen=True)
class Form:
    number: Literal[1, 2]

    def encode(self) -> bytes:
        return record.encode(KIND, VERSION, self)


def read_form(disk: Disk, layout: Layout) -> Form | None:
    """The form that is kept, or None. Raises Corruption or FormatVersion."""
    try:
        data = disk.read(layout.form, end=BYTES_MAX)
    except FileNotFoundError:
        return None
    return record.read(Form, KIND, VERSION, data, str(layout.form))


def claim_form(disk: Disk, layout: Layout, form: Form) -> None:
    """Keep `form` unless one is kept."""
    if read_form(disk, layout) is None:
        disk.claim(layout.form, form.encode())
