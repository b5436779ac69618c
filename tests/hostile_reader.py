"""Reads data directories that it doesn't trust, one after the other, with a limit on memory.

    python -m tests.hostile_reader HARMLESS MEMORY

HARMLESS is read first, so that the limit, MEMORY bytes, is beyond what the libraries take. For each
path on a line of standard input it prints one line of JSON: for each way to read, the answer as
text, or `refused` and the error. The first of them is a scan. Any other end of this process is a
fault.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl

import forebay
from forebay.query.check import check
from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import ForebayError

WAYS: tuple[Callable[[Path], object], ...] = (
    lambda data: forebay.open(data).scan().collect(),
    lambda data: forebay.open(data).partitions(),
    lambda data: forebay.open(data).receipt(),
    lambda data: forebay.open(data).rejects().collect(),
    lambda data: forebay.open(data).sql("select count(*) from events"),
    lambda data: forebay.open(data).late().collect(),
    lambda data: forebay.open(data).stream().read_all().to_pylist(),
    lambda data: forebay.open(data).stream("rejects").read_all().to_pylist(),
    lambda data: forebay.open(data).files(),
    lambda data: forebay.open(data).scan(layers="all").collect(),
    lambda data: forebay.open(data).sql("select * from events_all"),
    lambda data: forebay.open(data).why({"id": "x", "part": 1}),
    lambda data: forebay.open(data, verify=True, partial=True).scan().collect(),
    lambda data: check(Disk(), data),
)


def told(read: Callable[[Path], object], data: Path) -> str:
    try:
        answer = read(data)
        return f"{answer.rows()}" if isinstance(answer, pl.DataFrame) else f"{answer}"
    except ForebayError as error:
        return f"refused {type(error).__name__} {error}"


def used_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def main(harmless: str, memory: str) -> None:
    for read in WAYS:
        told(read, Path(harmless))
    for line in sys.stdin:
        data = Path(line.rstrip("\n"))
        limit = used_bytes() + int(memory)
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        print(json.dumps([told(read, data) for read in WAYS]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
