"""The job: Forebay as a user runs it, as processes of its own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Protocol

import polars as pl

import forebay
from benchmarks.measure import Child, Usage
from forebay.storage.base.errors import ForebayError

TIMEOUT_S = 1_800.0
TIMES = {
    "block_span": "5m", "dedup_window": "10m", "epoch_interval": "1s", "publish_interval": "100ms",
    "future_skew": "1m", "grace": "10m",
}  # fmt: skip
"""Pinned, so that a figure means the same after a default has changed."""
STOP_S = 120.0


class Source(Protocol):
    """A topic, or files: how many messages it has, and the settings by which a job reads it."""

    @property
    def messages(self) -> int: ...

    @property
    def settings(self) -> dict[str, str]: ...


class Job:
    """`forebay run` over a source, its data in `folder`. Settings are named as FOREBAY_* are."""

    def __init__(self, source: Source, folder: Path, *, workers: int = 1, **settings: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._source = source
        self.data = folder / "data"
        config = folder / "forebay.toml"
        config.touch()
        environment = {
            "FOREBAY_CONFIG": str(config),
            "FOREBAY_DATA_DIR": str(self.data),
            **{
                f"FOREBAY_{name.upper()}": value
                for name, value in (TIMES | source.settings | settings).items()
            },
        }
        command = [sys.executable, "-m", "forebay", "run", "--workers", str(workers)]
        self.child = Child(command, folder / "job.log", environment)

    def ingest(self) -> Usage:
        """Wait until every message is visible; then stop, which commits, and measure."""
        self.child.wait_until(lambda: taken(self.data) >= self._source.messages, TIMEOUT_S)
        return self.child.stop(STOP_S)

    def finish(self) -> Usage:
        """Wait until it ends by itself, at the end of its files."""
        return self.child.wait(TIMEOUT_S)

    def unique(self) -> int:
        """How many events a query finds."""
        return int(forebay.open(self.data).scan().select(pl.len()).collect().item())


def taken(data: Path) -> int:
    """Messages whose outcome readers can see; 0 while there is nothing to read."""
    if not data.is_dir():
        return 0
    try:
        found = forebay.open(data).partitions()
    except ForebayError:
        return 0
    return int(found.select(pl.sum_horizontal("accepted", "duplicates", "rejects").sum()).item())
