"""A job over several hosts as a user runs it: a `Job` each, and all of them as one.

Hosts are network namespaces of the test's own, on a bridge in another one, where the machine lets
us make them (root, Linux's `ip`); else they are addresses of the loopback device.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
import pytest

import forebay
from tests import engine
from tests.broker import _free_port
from tests.job import Job
from tests.oracle import Place


@dataclass
class Several(Job):
    """All hosts: what is published on any of them, and the end of each log."""

    hosts: list[Job] = field(default_factory=list)
    named: str = ""
    """As `--hosts` has them."""

    def run_host(self, number: int, workers: int = 1) -> subprocess.Popen[bytes]:
        """`forebay run` on one of them."""
        engine.need()
        return self.hosts[number].start(
            "-m", "forebay", "run", "--workers", str(workers), "--hosts", self.named,
            "--host", str(number),
        )  # fmt: skip

    def run_all(self, order: list[int] | None = None, workers: int = 1) -> list[_Process]:
        """On all of them, started in this order."""
        started = {n: self.run_host(n, workers) for n in order or range(len(self.hosts))}
        return [started[n] for n in sorted(started)]

    def until(
        self,
        process: _Process,
        reached: Callable[[pl.DataFrame], bool],
        look_s: float = 0.2,  # each look takes CPU that the hosts need
    ) -> pl.DataFrame:
        return super().until(process, reached, look_s)

    def ends_all(self, processes: list[_Process]) -> list[int]:
        return [self.ends(one) for one in processes]

    def partitions(self) -> pl.DataFrame:
        for host in self.hosts:
            host.data.mkdir(parents=True, exist_ok=True)
        return forebay.open(*(host.data for host in self.hosts)).partitions()

    def places(self) -> list[Place]:
        store = forebay.open(*(host.data for host in self.hosts))
        return sorted(store.scan().select("_partition", "_offset").collect().rows())

    def told(self) -> str:
        return "\n".join(f"-- host {n}\n{one.told()}" for n, one in enumerate(self.hosts))

    def close(self) -> None:
        for host in self.hosts:
            host.close()


_Process = subprocess.Popen[bytes]


def on_loopback(folder: Path, count: int, **settings: str) -> Several:
    """Hosts at 127.0.0.1, 127.0.0.2 and so on."""
    port = _free_port()
    addresses = [f"127.0.0.{number + 1}:{port}" for number in range(count)]
    jobs = [Job(folder / f"host-{number}", dict(settings)) for number in range(count)]
    return Several(folder, dict(settings), hosts=jobs, named=",".join(addresses))


def in_namespaces(folder: Path, network: Network, **settings: str) -> Several:
    """Hosts of this network."""
    jobs = [
        Job(folder / f"host-{number}", dict(settings), prefix=network.inside(number))
        for number in range(network.count)
    ]
    addresses = [f"{network.address(number)}:2101" for number in range(network.count)]
    return Several(folder, dict(settings), hosts=jobs, named=",".join(addresses))


@dataclass(frozen=True)
class Network:
    """`count` namespaces that reach each other, and this process, at its address `here`."""

    count: int
    name: str

    def address(self, number: int) -> str:
        return f"{self._prefix}.{number + 1}"

    @property
    def here(self) -> str:
        return f"{self._prefix}.254"

    @property
    def _prefix(self) -> str:
        return f"10.{200 + os.getpid() % 50}.{os.getpid() // 50 % 250}"

    def inside(self, number: int) -> tuple[str, ...]:
        return "ip", "netns", "exec", f"{self.name}-{number}"

    def cut(self, number: int) -> None:
        """No packet comes to this host or from it any more, and no one is told."""
        _ip("-n", f"{self.name}-lan", "link", "set", f"{self.name}{number}", "down")

    def mend(self, number: int) -> None:
        _ip("-n", f"{self.name}-lan", "link", "set", f"{self.name}{number}", "up")

    def _join(self, end: str, inside: str | None, address: str) -> None:
        """A cable from the bridge to a namespace, or to this process's."""
        lan = f"{self.name}-lan"
        there = () if inside is None else ("netns", inside)
        _ip("-n", lan, "link", "add", end, "type", "veth", "peer", "name", f"{end}p")
        _ip("-n", lan, "link", "set", end, "master", "bridge", "up")
        _ip("-n", lan, "link", "set", f"{end}p", *(there or ("netns", str(os.getpid()))))
        at = () if inside is None else ("-n", inside)
        _ip(*at, "address", "add", f"{address}/24", "dev", f"{end}p")
        _ip(*at, "link", "set", f"{end}p", "up")


@contextmanager
def network(count: int) -> Iterator[Network]:
    """Skips the test where the machine does not let us."""
    if shutil.which("ip") is None or os.geteuid():
        pytest.skip("expected root and the command ip, to make network namespaces")
    name = f"fb{os.getpid() % 100_000}"
    made = Network(count, name)
    with ExitStack() as stack:
        for one in (f"{name}-lan", *(f"{name}-{number}" for number in range(count))):
            if one.endswith("-lan") and _refused("netns", "add", one):
                pytest.skip("expected the right to make network namespaces")
            if not one.endswith("-lan"):
                _ip("netns", "add", one)
            stack.callback(_ip, "netns", "delete", one)
            _ip("-n", one, "link", "set", "lo", "up")
        _ip("-n", f"{name}-lan", "link", "add", "bridge", "type", "bridge")
        _ip("-n", f"{name}-lan", "link", "set", "bridge", "up")
        for number in range(count):
            made._join(f"{name}{number}", f"{name}-{number}", made.address(number))
        made._join(f"{name}h", None, made.here)
        yield made


def _refused(*words: str) -> bool:
    with suppress(subprocess.CalledProcessError):
        _ip(*words)
        return False
    return True


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
