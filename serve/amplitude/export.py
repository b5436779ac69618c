"""The Export API: a zip of gzipped JSON lines, a file for each hour of upload, in UTC.

It is written as rows are read: memory holds one batch of them, whatever is asked for. Rows are in
order of upload time; the engine sorts them on disk where they are many.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from datetime import datetime
from itertools import chain, groupby
from typing import Any, BinaryIO
from zipfile import ZIP_STORED, ZipFile, ZipInfo

import pyarrow as pa

from forebay.query.store import Store
from forebay.serve.amplitude.properties import Properties
from forebay.serve.amplitude.records import line
from forebay.serve.problems import Problem
from forebay.storage.formats.schema import OFFSET, PARTITION, UPLOAD_TIME

PROJECT = "forebay"
"""In the names of files, where Amplitude has the number of a project."""
ROWS = 4096
TEXT = (
    f"from events where {UPLOAD_TIME} >= $start and {UPLOAD_TIME} < $end"
    f" order by {UPLOAD_TIME}, {PARTITION}, {OFFSET}"
)


def write(
    store: Store, properties: Properties, start: datetime, end: datetime, out: BinaryIO
) -> None:
    """The events that were uploaded from `start` on and before `end`. Raises Problem, before
    anything is written, where there are none."""
    batches = iter(store.sql_stream(TEXT, {"start": start, "end": end}))
    first = next((batch for batch in batches if batch.num_rows), None)
    if first is None:
        raise Problem(404, f"expected events of {start} to {end}, got none", title="Not found")
    with ZipFile(out, "w", ZIP_STORED) as archive:
        for hour, rows in groupby(_rows(first, batches), key=_hour):
            name = f"{PROJECT}/{PROJECT}_{hour:%Y-%m-%d}_{hour.hour}#0.json.gz"
            info = ZipInfo(name, (max(hour.year, 1980), *hour.timetuple()[1:6]))
            with (
                archive.open(info, "w", force_zip64=True) as member,
                gzip.GzipFile("", "wb", fileobj=member, mtime=0) as packed,
            ):
                for row in rows:
                    packed.write(line(row, properties))


def _rows(first: pa.RecordBatch, rest: Iterator[pa.RecordBatch]) -> Iterator[dict[str, Any]]:
    for batch in chain([first], rest):
        for start in range(0, batch.num_rows, ROWS):
            yield from batch.slice(start, ROWS).to_pylist()


def _hour(row: dict[str, Any]) -> datetime:
    moment: datetime = row[UPLOAD_TIME]
    return moment.replace(minute=0, second=0, microsecond=0)
