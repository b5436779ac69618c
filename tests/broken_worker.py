"""A worker of a job that is broken on purpose, so that tests can see the crash stories fail.

BROKEN names the bug that it has:

    keys       a restart forgets the dedup keys that only logs and chunks have
    hollow     a snapshot commits offsets, but not the events that are still in memory
    hasty      logs are deleted as soon as a chunk covers them, committed or not
    short      what was evicted is a duplicate of nothing any more
    credulous  an upload time of a far future is believed
    touchy     a message that is no event takes the region around it along
    forgetful  a replay lists the file of rejects still
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from flows import realtime, worker
from operators import blocks as step
from operators.decode import DecodeConfig, Decoder, _Reasons
from operators.messages import I64
from operators.reader import REGION_ROWS
from storage.blocks import Blocks
from storage.chunk import ChunkKeys
from storage.log import Extent, LogKeys
from storage.retained import Retained
from storage.schema import Schema
from storage.series import LogSeries
from verify.worker import main

FAR_MS = 10**13


def keys() -> None:
    for source in (LogKeys, ChunkKeys):
        source.batches = lambda self: iter(())  # type: ignore[method-assign]


def hollow() -> None:
    snapshot = Blocks.snapshot

    def hollow_snapshot(self: Blocks) -> bytes:
        self.flush = list  # type: ignore[method-assign]
        try:
            return snapshot(self)
        finally:
            del self.flush

    step._Worker.sync = lambda self: None  # type: ignore[method-assign]
    Blocks.snapshot = hollow_snapshot  # type: ignore[method-assign]


def hasty() -> None:
    tidy = Blocks.tidy

    def hasty_tidy(self: Blocks, now_ms: int) -> None:
        tidy(self, now_ms)
        covered = self._catalog().covered
        for block in self._state.evicted:
            if block.id in covered:
                for extent in block.extents:
                    self._files.remove(self._folder / extent.file)

    Blocks.tidy = hasty_tidy  # type: ignore[method-assign]


def short() -> None:
    Retained.of_interval = lambda self, interval, catalog: []  # type: ignore[method-assign]


def credulous() -> None:
    def believing(schema: Schema, skew_ms: int, bytes_max: int) -> DecodeConfig:
        return DecodeConfig(schema, skew_ms + FAR_MS, bytes_max)

    realtime.DecodeConfig = believing  # type: ignore[attr-defined,assignment]


def touchy() -> None:
    read = Decoder._read

    def touchy_read(
        self: Decoder, values: list[bytes], reasons: _Reasons
    ) -> tuple[list[pa.Array], I64]:
        columns = read(self, values, reasons)
        for row in np.flatnonzero(reasons.mask).tolist():
            for near in range(row - row % REGION_ROWS, row):
                reasons.flag_row("bad json", near, "near a bad one")
        return columns

    Decoder._read = touchy_read  # type: ignore[method-assign]


def forgetful() -> None:
    def unlisted(self: LogSeries, extent: Extent) -> Path:
        return self._folder / "none"

    LogSeries.discard = unlisted  # type: ignore[method-assign]


BUGS: dict[str, Callable[[], None]] = {
    "keys": keys,
    "hollow": hollow,
    "hasty": hasty,
    "short": short,
    "credulous": credulous,
    "touchy": touchy,
    "forgetful": forgetful,
}

if __name__ == "__main__":
    BUGS[os.environ["BROKEN"]]()
    worker.leave(main(sys.argv[1:]))
