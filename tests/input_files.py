"""Input files, packed in every way, and what is read of them."""

from __future__ import annotations

import gzip
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import zstandard

from forebay.operators.sources.messages import Messages

MTIME_MS = 1_700_000_000_000
LINES = [b'{"n":%d,"pad":"%b"}' % (n, b"x" * (n * 7 % 90)) for n in range(200)]
CONTENT = b"\n".join(LINES) + b"\n"


class Match:
    """Equal to any text in which the pattern is found."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and re.search(self._pattern, other) is not None

    def __repr__(self) -> str:
        return self._pattern


def plain(content: bytes) -> bytes:
    return content


def zstd_frames(content: bytes) -> bytes:
    """Two frames, as of a file that was appended to."""
    half = len(content) // 2
    return b"".join(map(zstandard.compress, (content[:half], content[half:])))


def gzip_members(content: bytes) -> bytes:
    half = len(content) // 2
    return gzip.compress(content[:half]) + gzip.compress(content[half:])


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "a.ndjson": plain,
    "a.ndjson.gz": gzip.compress,
    "b.ndjson.gz": gzip_members,
    "a.ndjson.zst": zstandard.compress,
    "b.ndjson.zst": zstd_frames,
}


def write(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(PACKED[name](content))
    os.utime(path, ns=(MTIME_MS * 10**6, MTIME_MS * 10**6))
    return path


def messages(items: Iterable[Messages]) -> list[tuple[int, bytes]]:
    for item in items:
        assert len(item.offsets) == len(item.values) == len(item.times_ms)
    return [
        (offset, value)
        for item in items
        for offset, value in zip(item.offsets.tolist(), item.values, strict=True)
    ]
