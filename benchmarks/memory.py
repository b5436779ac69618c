"""Memory: what the dedup index holds for each key, how fast it is, and a whole worker's peak.

The index takes KEYS hashes in batches, each looked up and then inserted, on one core; so does a
Python set of the same hashes. Each runs in its own process, so that its peak is its own. The worker
is a job whose events are all hot when it ends.

python -m benchmarks.memory index|set KEYS
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
import orjson

from benchmarks.events import ROWS, mixed
from benchmarks.job import Job
from benchmarks.lines import lines
from benchmarks.measure import Child, Failed, Figure, scratch
from benchmarks.report import Bound, Report
from forebay.storage.dedup.index import DedupIndex

KEYS = (1_000_000, 10_000_000, 30_000_000)
EVENTS = 10_000_000
TIMEOUT_S = 600.0
PINOT_BYTES_PER_KEY = 36
"""Apache Pinot keeps a UUID as 36 letters, in its map of primary keys too unless told to hash it
(apache/pinot #16619 and #12538); the map's own overhead comes on top."""


def run(events: int, runs: int, command: str) -> Report:
    """Bytes a key and keys a second of the dedup index, and a worker's peak with all events hot."""
    report = Report("memory", command, events, runs)
    sizes = sorted({min(count, 3 * events) for count in KEYS})
    with scratch("memory") as folder:

        def child(kind: str, keys: int) -> dict[str, Any]:
            log = folder / f"{kind}.json"
            log.unlink(missing_ok=True)
            arguments = [sys.executable, "-m", "benchmarks.memory", kind, str(keys)]
            Child(arguments, log, {}).wait(TIMEOUT_S)
            found: dict[str, Any] = orjson.loads(log.read_bytes())
            return found

        found = {
            kind: {keys: _medians([child(kind, keys) for _ in range(runs)]) for keys in sizes}
            for kind in ("index", "set")
        }
        source = lines(folder / "events", events, "--span", "10m")
        job = Job(source, folder / "job", dedup_window="1h")
        peak_bytes, unique = job.finish().peak_bytes, job.unique()
    index = list(found["index"].values())
    report.forebay = {
        "index": {str(keys): entry for keys, entry in found["index"].items()},
        "worker_peak_bytes": peak_bytes,
        "unique": unique,
        "unique_expected": source.unique,
        "exact": unique == source.unique and all(entry["exact"] for entry in index),
    }
    report.peers = {
        "python_set": {str(keys): entry for keys, entry in found["set"].items()},
        "pinot": {"published_bytes_per_key": PINOT_BYTES_PER_KEY},
    }
    report.ratios = {
        "index_bytes_per_key": max(entry["bytes_per_key"] for entry in index),
        "index_keys_per_s": min(entry["keys_per_s"] for entry in index),
        "worker_peak_gb": peak_bytes / 1e9,
    }
    report.bounds = {
        "index_bytes_per_key": Bound("<=", 24),
        "index_keys_per_s": Bound(">=", 3_000_000),
        "worker_peak_gb": Bound("<=", 1.2),
    }
    _show(report, found)
    return report


def _medians(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """One entry from several runs."""
    names = ("bytes_per_key", "peak_bytes_per_key", "keys_per_s")
    figures = {name: Figure.of(entry[name] for entry in entries) for name in names}
    return {
        **{name: figure.median for name, figure in figures.items()},
        "keys_per_s_spread": figures["keys_per_s"].spread,
        "exact": all(entry["exact"] for entry in entries),
    }


def _show(report: Report, found: dict[str, dict[int, dict[str, Any]]]) -> None:
    rows = {
        f"{kind}, {keys:,} keys": (
            f"{entry['bytes_per_key']:.1f}",
            f"{entry['peak_bytes_per_key']:.1f}",
            f"{entry['keys_per_s'] / 1e6:.2f}",
            f"{entry['keys_per_s_spread']:.0%}",
            "yes" if entry["exact"] else "no",
        )
        for kind, entries in found.items()
        for keys, entry in entries.items()
    }
    columns = ("bytes/key", "peak bytes/key", "M keys/s of CPU", "spread", "exact")
    worker = f"a worker with {report.events:,} hot events: {report.ratios['worker_peak_gb']:.2f} GB"
    report.show(f"memory: {worker}", columns, rows)


def measure(kind: str, keys: int) -> dict[str, Any]:
    """In this process: look so many new keys up and insert them; then ask for some again."""
    if kind == "index":
        _index(2 * ROWS)  # compiles
    before = _status_bytes("VmRSS")
    started_s = time.process_time()
    held, size = _index(keys) if kind == "index" else _set(keys)
    took_s = time.process_time() - started_s
    grown = _status_bytes("VmRSS") - before
    peak = _status_bytes("VmHWM") - before
    return {
        "bytes_per_key": (size or grown) / keys,
        "peak_bytes_per_key": peak / keys,
        "keys_per_s": keys / took_s,
        "exact": held == keys,
    }


def _batches(keys: int) -> list[range]:
    return [range(low, min(low + ROWS, keys)) for low in range(0, keys, ROWS)]


def _hashes(batch: range) -> np.ndarray[Any, np.dtype[np.uint64]]:
    return mixed(np.arange(batch.start + 1, batch.stop + 1, dtype=np.uint64))


def _index(keys: int) -> tuple[int, int]:
    """How many keys it holds, and its size."""
    index = DedupIndex()
    for batch in _batches(keys):
        hashes = _hashes(batch)
        hits, _ = index.find(hashes, np.full(len(hashes), -1, dtype=np.int64))
        if hits:
            raise Failed(f"expected no key twice, got {hits} hits")
        index.insert(hashes)
    asked = _hashes(range(min(ROWS, keys)))
    hits, _ = index.find(asked, np.full(len(asked), -1, dtype=np.int64))
    return len(index) if hits == len(asked) else 0, index.nbytes


def _set(keys: int) -> tuple[int, int]:
    held: set[int] = set()
    for batch in _batches(keys):
        hashes = _hashes(batch).tolist()
        fresh = [hash for hash in hashes if hash not in held]
        held.update(fresh)
    _kept.append(held)  # until its memory has been looked at
    return len(held), 0


_kept: list[set[int]] = []


def _status_bytes(name: str) -> int:
    with open("/proc/self/status") as status:
        found = next(line for line in status if line.startswith(f"{name}:"))
    return int(found.split()[1]) << 10


if __name__ == "__main__":
    print(orjson.dumps(measure(sys.argv[1], int(sys.argv[2]))).decode())
