"""The metrics of a service, in Prometheus' format."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from sbs_jax.inference.serving.batcher import FinishedBatch

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Metrics:
    """Counters, gauges and histograms of one service."""

    def __init__(self, waiting: Callable[[], int], ready: Callable[[], bool]) -> None:
        """Creates the metrics.

        Args:
          waiting: returns the number of jobs in the queue.
          ready: returns whether requests are answered.
        """
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "sbs_requests", "Requests by path and status.", ["path", "status"], registry=registry
        )
        self._latency = Histogram(
            "sbs_request_seconds",
            "From a request's head to its answer.",
            ["path"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._inputs = Counter("sbs_inputs", "Inputs answered.", registry=registry)
        self._rejected = Counter(
            "sbs_rejected_inputs", "Inputs refused because the queue was full.", registry=registry
        )
        self._rows = Histogram(
            "sbs_batch_rows", "Jobs in a batch.", ["kind"], buckets=_ROWS, registry=registry
        )
        self._seconds = Histogram(
            "sbs_batch_seconds",
            "The time that the model took for a batch.",
            ["kind"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._waited = Histogram(
            "sbs_queue_seconds",
            "How long a batch's oldest job waited.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._closed = Counter(
            "sbs_closed_connections",
            "Connections that the service closed before their time.",
            ["reason"],
            registry=registry,
        )
        Gauge("sbs_waiting_jobs", "Jobs in the queue.", registry=registry).set_function(waiting)
        Gauge("sbs_ready", "1 if requests are answered.", registry=registry).set_function(ready)

    def request(self, path: str, status: int, seconds: float) -> None:
        """Counts an answered request and its latency in seconds."""
        self._requests.labels(path, str(status)).inc()
        self._latency.labels(path).observe(seconds)

    def inputs(self, count: int) -> None:
        """Counts answered inputs."""
        self._inputs.inc(count)

    def rejected(self, count: int) -> None:
        """Counts inputs that were refused because the queue was full."""
        self._rejected.inc(count)

    def batch(self, batch: FinishedBatch) -> None:
        """Counts a batch: its size, its time and its wait."""
        kind = str(getattr(batch.group, "kind", batch.group))
        self._rows.labels(kind).observe(batch.size)
        self._seconds.labels(kind).observe(batch.seconds)
        self._waited.observe(batch.waited)

    def closed(self, reason: str) -> None:
        """Counts a connection that the service closed before its time."""
        self._closed.labels(reason).inc()

    def watch_connections(self, count: Callable[[], int]) -> None:
        """Shows how many connections there are."""
        gauge = Gauge("sbs_connections", "Open connections.", registry=self._registry)
        gauge.set_function(count)

    def text(self) -> bytes:
        """Returns all metrics in Prometheus' text format."""
        return generate_latest(self._registry)
