"""The job's metrics over HTTP, in Prometheus' text format, from the supervisor.

The supervisor outlives its workers, so it has the port: it reads what they have published from the
data directory, and what they measured themselves from their own folder, a new one for each run. So
what a worker counts itself begins at 0 in each run, as Prometheus expects of processes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from tempfile import TemporaryDirectory

from prometheus_client import CollectorRegistry, Metric, start_http_server
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from typing_extensions import override

from forebay.flows.hosts import Address
from forebay.flows.metrics import Published
from forebay.operators.measures import FOLDER
from forebay.storage.base.errors import BadInput


class Exporter(Collector):
    """Answers at `address`, once opened, with what `published` collects and what workers measured.
    Thread-safe."""

    def __init__(self, address: Address, published: Published) -> None:
        self._address, self._published = address, published
        self._registry = CollectorRegistry()
        self._registry.register(published)
        self._registry.register(self)
        self._lock = threading.Lock()
        self._folder: TemporaryDirectory[str] | None = None

    def open(self) -> None:
        """Answer from now on. Raises BadInput if the port is taken, or not one of this host's."""
        try:
            start_http_server(self._address.port, self._address.name, self._registry)
        except OSError as error:
            raise BadInput(
                f"metrics: expected {self._address} to be a free port of this host, got:"
                f" {error.strerror}"
            ) from error

    def renew(self) -> dict[str, str]:
        """What workers that start now find in their environment; earlier ones have ended. Raises
        OSError if the folder can't be made."""
        with self._lock:
            self._published.starts += 1
            if self._folder:
                self._folder.cleanup()
            self._folder = TemporaryDirectory(prefix="forebay-metrics-")
            return {FOLDER: self._folder.name}

    @override
    def collect(self) -> Iterable[Metric]:
        with self._lock:
            if self._folder is None:
                return []
            return [*MultiProcessCollector(CollectorRegistry(), self._folder.name).collect()]
