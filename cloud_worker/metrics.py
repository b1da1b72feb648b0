"""The worker's metrics, in a registry of their own so that two workers can share a process.

Inputs: counts and times from `receive`, `resume`, `reply` and `agent`. Output: the Prometheus text
of `GET /metrics`. All names start with `elma_worker_`, times are in seconds, sizes in bytes; no
label ever holds an id, and every label has few values.
"""

from __future__ import annotations

from collections.abc import Collection

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

OUTCOMES = (
    "answered",
    "failed",
    "cancelled",
    "expired",
    "abandoned",
    "busy",
    "repeated",
    "conflicting",
    "refused",
    "forged",
    "unknown_edge",
    "malformed",
)
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_COUNTS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
_TOKENS = tuple(float(2**power) for power in range(5, 16))
_BYTES = tuple(float(2**power) for power in range(12, 25))


class WorkerMetrics:
    """Every metric of one worker; the fields are used where things happen."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._shown_releases: set[str] = set()
        counter, gauge, histogram = self._counter, self._gauge, self._histogram
        self.requests = counter("requests", "Requests by what became of them.", ["outcome"])
        for outcome in OUTCOMES:
            self.requests.labels(outcome)
        self.busy = counter("busy", "Requests sent away because the queue was full.")
        self.expired = counter("expired", "Requests past their deadline, never computed to an end.")
        self.duplicates = counter("duplicates", "Requests that came again with the same bytes.")
        self.dead_letters = counter("dead_letters", "Messages set aside as dead.", ["reason"])
        self.lease_renewals = counter("lease_renewals", "Leases promised once more.")
        self.replies = counter("replies", "Messages to edges by what became of them.", ["result"])
        self.failures = counter("failures", "Unforeseen errors, each in the log.", ["part"])
        self.windows = counter("windows", "Windows that a layer was run on.", ["layer"])
        self.tokens = counter("tokens", "Tokens that a layer was run on.", ["group"])
        self.dropped_windows = counter(
            "dropped_windows", "Windows that waited when their request ended unanswered.", ["why"]
        )
        for why in ("cancelled", "expired", "failed", "abandoned"):
            self.dropped_windows.labels(why)
        self.request_bytes = histogram("request_bytes", "Size of a sealed request.", _BYTES)
        self.queue_seconds = histogram(
            "queue_seconds", "An answered request's time here without being computed.", _SECONDS
        )
        self.compute_seconds = histogram(
            "compute_seconds", "An answered request's time in batches.", _SECONDS
        )
        self.step_seconds = histogram("step_seconds", "One layer of one batch.", _SECONDS)
        self.batch_windows = histogram(
            "batch_windows", "Windows in a batch, by parameter group.", _COUNTS, ["group"]
        )
        self.batch_tokens = histogram(
            "batch_tokens", "Tokens in a batch, by parameter group.", _TOKENS, ["group"]
        )
        self.batch_depths = histogram("batch_depths", "Different depths in a batch.", _COUNTS)
        self.seconds_per_token = gauge(
            "seconds_per_token", "What a token of a layer takes, as measured lately.", ["release"]
        )
        self.agreement = counter(
            "agreement",
            "Windows by whether the edge's own span is the one at full depth.",
            ["layer", "kind", "agrees"],
        )
        self.releases_loaded = gauge("releases_loaded", "Releases that take requests.")
        self.releases_in_memory = gauge(
            "releases_in_memory", "The same, and those that held requests still need."
        )
        self.release_info = gauge("release_info", "1 for each loaded release.", ["release"])
        self.release_loads = counter("release_loads", "Releases loaded while working.")
        self.release_failures = counter(
            "release_failures", "Releases that were not loaded.", ["reason"]
        )
        self.releases_retired = counter(
            "releases_retired", "Releases that take no more requests.", ["why"]
        )
        for reason in ("idle", "evicted"):
            self.releases_retired.labels(reason)
        self.queue_requests = gauge("queue_requests", "Accepted, not yet answered.")
        self.queue_windows = gauge("queue_windows", "Windows that wait for their next layer.")
        self.broker_connected = gauge("broker_connected", "1 while the session is up.")
        self.certificate_expires = gauge(
            "certificate_expires_timestamp_seconds",
            "When the certificate for the broker expires, unix time; 0 without one.",
        )
        self.broker_certificate_expires = gauge(
            "broker_certificate_expires_timestamp_seconds",
            "When the broker's own certificate expires, as last shown, unix time; 0 without TLS.",
        )
        self.deliveries_dropped = gauge(
            "deliveries_dropped", "Deliveries so far that found no place to wait to be opened."
        )
        self.draining = gauge("draining", "1 once the worker accepts no more requests.")
        self.spans_dropped = counter(
            "spans_dropped", "Spans of traces that no collector got.", ["cause"]
        )
        for cause in ("queue_full", "not_sent"):
            self.spans_dropped.labels(cause)
        ProcessCollector(namespace="elma_worker", registry=self.registry)

    def show_releases(self, loaded: Collection[str]) -> None:
        """Name exactly the loaded releases, by the first digits of their digests."""
        names = {release[:12] for release in loaded}
        for name in self._shown_releases - names:
            self.release_info.remove(name)
        for name in names:
            self.release_info.labels(name).set(1)
        self._shown_releases = names

    def as_text(self) -> bytes:
        """The Prometheus exposition format, version 0.0.4."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, labels: list[str] | None = None) -> Counter:
        full_name = f"elma_worker_{name}_total"
        return Counter(full_name, text, labels or [], registry=self.registry)

    def _gauge(self, name: str, text: str, labels: list[str] | None = None) -> Gauge:
        return Gauge(f"elma_worker_{name}", text, labels or [], registry=self.registry)

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...], labels: list[str] | None = None
    ) -> Histogram:
        full_name = f"elma_worker_{name}"
        return Histogram(full_name, text, labels or [], buckets=buckets, registry=self.registry)
