"""Runs one peer; see the package."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from benchmarks.peers.source import Source


def main(name: str, task: str, *arguments: str) -> int:
    peer = import_module(f"benchmarks.peers.{name}")
    if task == "count":
        print(peer.count(Path(arguments[0])))
        return 0
    bootstrap, topic, messages, folder = arguments
    peer.ingest(Source(bootstrap, topic, int(messages)), Path(folder))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
