"""What a server counts about itself, in Prometheus' text format."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The metrics of one server."""

    def __init__(self) -> None:
        disable_created_metrics()
        own = self._registry = CollectorRegistry()
        self.requests = Counter(
            "forebay_serve_requests",
            "Requests by route and status.",
            ["route", "status"],
            registry=own,
        )
        self.seconds = Histogram(
            "forebay_serve_request_seconds",
            "From a request to the end of its answer.",
            ["route"],
            registry=own,
            buckets=SECONDS,
        )
        self.kills = Counter(
            "forebay_serve_workers_replaced",
            "Workers that were killed, by reason, or that ended by themselves.",
            ["reason"],
            registry=own,
        )
        self.asked = Counter(
            "forebay_serve_asked", "Questions that workers were asked.", registry=own
        )
        self.shared = Counter(
            "forebay_serve_shared", "Answers that were those of an equal question.", registry=own
        )
        self.cut = Counter(
            "forebay_serve_cut", "Answers that were cut off in the middle.", registry=own
        )
        self.sent = Counter("forebay_serve_sent_bytes", "Bytes of answers.", registry=own)
        self.waiting = Gauge(
            "forebay_serve_waiting", "Questions that wait for a worker.", registry=own
        )
        self.busy = Gauge("forebay_serve_busy", "Questions that workers are at.", registry=own)
        self.workers = Gauge("forebay_serve_workers", "Query workers that are ready.", registry=own)
        self.streams = Gauge("forebay_serve_streams", "Clients that follow events.", registry=own)

    def text(self) -> bytes:
        return generate_latest(self._registry)
