"""Reads data directories that it doesn't trust, one after the other, with a limit on memory.

    python -m tests.hostile_reader HARMLESS MEMORY

HARMLESS is read first, so that the limit, MEMORY bytes, is beyond what the libraries take. For each
path on a line of standard input it prints one line: the rows of a scan, or `refused` and the error.
Every other way to read is tried too, and may give an answer or an error of ours. Any other end of
this process is a fault.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from pathlib import Path

import query
from query.check import check
from storage.errors import ForebayError
from storage.files import Files


def rows(data: Path) -> str:
    return str(query.open(data).scan().collect().height)


OTHERS: tuple[Callable[[Path], object], ...] = (
    lambda data: query.open(data).partitions(),
    lambda data: query.open(data).receipt(),
    lambda data: query.open(data).rejects().collect(),
    lambda data: query.open(data).sql("select count(*) from events"),
    lambda data: query.open(data).late().collect(),
    lambda data: query.open(data).why({"id": "x", "part": 1}),
    lambda data: query.open(data, verify=True, partial=True).scan().collect(),
    lambda data: check(Files(), data),
)


def told(read: Callable[[Path], object], data: Path) -> str:
    try:
        return f"{read(data)}"
    except ForebayError as error:
        return f"refused {type(error).__name__} {error}"


def used_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def main(harmless: str, memory: str) -> None:
    for read in (rows, *OTHERS):
        told(read, Path(harmless))
    for line in sys.stdin:
        data = Path(line.rstrip("\n"))
        limit = used_bytes() + int(memory)
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        answer = told(rows, data)
        for read in OTHERS:
            told(read, data)
        print(" ".join(answer.split()), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
