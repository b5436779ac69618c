"""The Export API: a zip of gzipped JSON lines, a file for each hour of upload, in UTC.

It is written as rows are read: memory holds one batch, however much is asked for. All rows are of
one view, so each event is in one file, once.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import chain, groupby
from operator import itemgetter
from typing import Any, BinaryIO
from zipfile import ZIP_STORED, ZipFile, ZipInfo

import pyarrow as pa

from forebay.query.scans import by_hour
from forebay.query.store import Store
from forebay.serve.amplitude.properties import Properties
from forebay.serve.amplitude.records import line
from forebay.serve.problems import Problem
from forebay.storage.base.times import ms_of, time_of

PROJECT = "forebay"
"""Used in file names, where Amplitude has the number of a project."""
ROWS = 4096
LEVEL = 6
ZIP_BEGINS = 1980
"""The earliest year that a zip can store as a file's time."""


def nothing(start: datetime, end: datetime) -> Problem:
    """The problem if there is nothing to export."""
    return Problem(404, f"expected events of {start} to {end}, got none", title="Not found")


def write(
    store: Store, properties: Properties, start: datetime, end: datetime, out: BinaryIO
) -> None:
    """The events that were uploaded from `start` on and before `end`. Raises Problem, before
    anything is written, if there are none."""
    batches = by_hour(store.view(), ms_of(start), ms_of(end))
    first = next(batches, None)
    if first is None:
        raise nothing(start, end)
    with ZipFile(out, "w", ZIP_STORED) as archive:
        for hour_ms, found in groupby(chain([first], batches), key=itemgetter(0)):
            hour = time_of(hour_ms)
            name = f"{PROJECT}/{PROJECT}_{hour:%Y-%m-%d}_{hour.hour}#0.json.gz"
            info = ZipInfo(name, (max(hour.year, ZIP_BEGINS), *hour.timetuple()[1:6]))
            with (
                archive.open(info, "w", force_zip64=True) as member,
                gzip.GzipFile("", "wb", LEVEL, member, 0) as packed,
            ):
                for row in _rows(batch for _, batch in found):
                    packed.write(line(row, properties))


def _rows(batches: Iterable[pa.RecordBatch]) -> Iterator[dict[str, Any]]:
    for batch in batches:
        for start in range(0, batch.num_rows, ROWS):
            yield from batch.slice(start, ROWS).to_pylist()
