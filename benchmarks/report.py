"""The report of a benchmark: a table on standard output, and build/bench/NAME.json.

    {"benchmark": "ingest", "command": "…", "events": 1000000, "runs": 3, "machine": {…},
     "forebay": {…}, "ceiling": {…}, "peers": {NAME: {…}}, "ratios": {NAME: 1.5},
     "ratios_started": {NAME: 1.6}, "bounds": {NAME: "<= 2"}, "absent": {NAME: "why"}}

`ratios` has what the project has set itself bounds for; `ratios_started` the same without what a
process takes to start; the rest is what they are computed from.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import orjson
from rich.console import Console
from rich.table import Table

from benchmarks.measure import BUILD


@dataclass(frozen=True)
class Bound:
    """What a ratio must be: at most, or at least, this."""

    relation: Literal["<=", ">="]
    limit: float

    def __str__(self) -> str:
        return f"{self.relation} {self.limit:g}"

    def holds(self, ratio: float) -> bool:
        return ratio <= self.limit if self.relation == "<=" else ratio >= self.limit


@dataclass
class Report:
    """What one benchmark has found so far."""

    name: str
    command: str
    events: int
    runs: int
    forebay: dict[str, Any] = field(default_factory=dict)
    ceiling: dict[str, Any] = field(default_factory=dict)
    peers: dict[str, dict[str, Any]] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)
    ratios_started: dict[str, float] = field(default_factory=dict)
    bounds: dict[str, Bound] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    def write(self) -> Path:
        """The path of the JSON written."""
        body = {
            "benchmark": self.name,
            "command": self.command,
            "events": self.events,
            "runs": self.runs,
            "machine": machine(),
            "forebay": self.forebay,
            "ceiling": self.ceiling,
            "peers": self.peers,
            "ratios": self.ratios,
            "ratios_started": self.ratios_started,
            "bounds": {name: str(bound) for name, bound in self.bounds.items()},
            "absent": self.absent,
        }
        BUILD.mkdir(parents=True, exist_ok=True)
        path = BUILD / f"{self.name}.json"
        path.write_bytes(
            orjson.dumps(body, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY)
        )
        return path

    def table(self, title: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> None:
        """Print one table."""
        table = Table("", box=None, pad_edge=False)
        for column in columns:
            table.add_column(column, justify="right")
        for name, cells in rows.items():
            table.add_row(name, *cells)
        console = Console(width=120)
        console.print(title, highlight=False)
        console.print(table)

    def show(self, title: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> None:
        """Print one table, then the ratios and who is absent."""
        self.table(title, columns, rows)
        console = Console(width=120)
        for name, ratio in self.ratios.items():
            started = self.ratios_started.get(name)
            told = "" if started is None else f" ({started:.3g} without start-up)"
            if bound := self.bounds.get(name):
                told += f", must be {bound}: {'holds' if bound.holds(ratio) else 'FAILS'}"
            console.print(f"{name} = {ratio:.3g}{told}", highlight=False)
        for name, reason in self.absent.items():
            console.print(f"absent: {name}: {reason}", highlight=False, markup=False)

    def plot(self, label: str, panels: Mapping[str, Mapping[str, float]]) -> None:
        """build/bench/NAME.svg, one curve per panel, if matplotlib is installed (extra `bench`)."""
        if find_spec("matplotlib") is None:
            return
        from matplotlib.figure import Figure as Picture

        picture = Picture(figsize=(3 * len(panels), 3), layout="constrained")
        every = picture.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (name, points) in zip(every, panels.items(), strict=True):
            axes.plot(list(points), list(points.values()), marker="o")
            axes.set_xlabel(name)
            axes.set_ylim(bottom=0)
        picture.axes[0].set_ylabel(label)
        BUILD.mkdir(parents=True, exist_ok=True)
        picture.savefig(BUILD / f"{self.name}.svg")


def machine() -> dict[str, Any]:
    """What the figures hold for."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal:\s*(\d+) kB", Path("/proc/meminfo").read_text())
    return {
        "cpu": model[1] if model else platform.machine(),
        "cores": os.cpu_count(),
        "memory_bytes": int(memory[1]) << 10 if memory else None,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0],
    }
